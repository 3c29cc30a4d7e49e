import shutil
from pathlib import Path

import pytest
from jobs_on_disk import job, write_pictures

from diffedit_batch.data.text_files import Text
from diffedit_batch.errors import ModelError
from diffedit_batch.runtime.text_workers import CaptionsWorker, PromptsWorker, TextResult
from diffedit_batch.runtime.wanted import TextRequest
from diffedit_batch.schema import ImageRef


def captions_worker(folder: Path, model: Path) -> CaptionsWorker:
    captions = {"id": str(model), "max_new_tokens": 6, "batch_size": 4}
    worker = CaptionsWorker(job(folder, Path("demo"), captions=captions), num_threads=1)
    assert worker.load().device == "cpu"
    return worker


def request_of(folder: Path, name: str) -> TextRequest:
    return TextRequest((name, "key"), ImageRef(str(folder / name)))


def outcomes_of(result: TextResult) -> dict[str, object]:
    """Caption and content of each image, or why there is none: tiny models have little to say."""
    texts = {text.key[0]: (text.texts, text.content_key) for text in result.texts}
    return texts | {key[0]: str(error) for key, error in result.failures.items()}


def test_prompts_are_written_for_every_concept(tmp_path: Path, tiny_prompt_writer: Path) -> None:
    prompts = {"id": str(tiny_prompt_writer), "num_prompts": 4, "max_new_tokens": 8}
    config = job(tmp_path, Path("demo"), prompts=prompts)
    found: list[dict[tuple[str, ...], Text]] = []
    for order in (("dog", "cat"), ("cat", "dog")):
        worker = PromptsWorker(config, num_threads=1)
        worker.load()
        result = worker.generate([(TextRequest((concept,)),) for concept in order])
        assert result.counters.prompt_generations == worker.progress() == 2
        assert result.failures == {}
        found.append({text.key: text for text in result.texts})
    assert found[0] == found[1], "on any worker, in any order"
    assert len(found[0]["dog",].texts) == 4


def test_images_are_captioned_once_per_content(tmp_path: Path, tiny_captioner: Path) -> None:
    names = write_pictures(tmp_path, 5)
    shutil.copy(tmp_path / names[2], tmp_path / "copy.png")
    worker = captions_worker(tmp_path, tiny_captioner)
    requests = [request_of(tmp_path, name) for name in (*names, "copy.png")]
    result = worker.generate([(request,) for request in requests])
    outcomes = outcomes_of(result)
    assert len(outcomes) == 6
    assert outcomes["copy.png"] == outcomes[names[2]]
    assert result.counters.captions == 5
    assert (before := worker.progress()) > 0
    again = worker.generate([(requests[2],), (requests[5],)])
    assert worker.progress() > before
    assert again.counters.captions == 0
    assert outcomes_of(again) == {name: outcomes[name] for name in (names[2], "copy.png")}


def test_an_image_that_cannot_be_read_fails_alone(tmp_path: Path, tiny_captioner: Path) -> None:
    names = write_pictures(tmp_path, 3)
    (tmp_path / names[1]).write_bytes(b"nothing")
    worker = captions_worker(tmp_path, tiny_captioner)
    result = worker.generate([tuple(request_of(tmp_path, name) for name in names)])
    error = result.failures[names[1], "key"]
    assert (error.stage, error.kind) == ("load", "ImageUnreadable")
    assert result.counters.captions == 2


def test_a_model_that_cannot_be_loaded_is_raised(tmp_path: Path) -> None:
    config = job(tmp_path, Path("demo"), prompts={"id": str(tmp_path / "missing")})
    with pytest.raises(ModelError):
        PromptsWorker(config).load()
