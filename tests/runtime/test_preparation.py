import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_text_worker import FakePromptsWorker, HealthyPromptsWorker, NoPromptsWorker
from fake_worker import FakeWorker
from jobs_on_disk import SOURCE, job, results, tree_bytes, write_manifest, write_pictures

from diffedit_batch.config import JobConfig
from diffedit_batch.errors import InterruptedRunError, ModelError
from diffedit_batch.runtime import driver, preparation
from diffedit_batch.runtime.driver import prepare_job, run_job
from diffedit_batch.runtime.plan import plan_job
from diffedit_batch.runtime.records import RunState
from diffedit_batch.runtime.selection import Selection

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)
    monkeypatch.setattr(preparation, "PromptsWorker", FakePromptsWorker)


def by_concept(names: list[str], *concepts: str) -> list[dict[str, Any]]:
    """A row for each concept, on the first image."""
    return [
        {"id": concept, "image": names[0], "source_concept": "cat", "target_concept": concept}
        for concept in concepts
    ]


def read(path: Path) -> list[dict[str, Any]]:
    return list(pq.ParquetFile(path).read().to_pylist())


def test_a_mixed_manifest_in_one_run_and_what_is_done_is_not_done_again(
    tmp_path: Path,
    tiny_model: Path,
    tiny_prompt_writer: Path,
    tiny_captioner: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = write_pictures(tmp_path, 3)
    given = {"source_prompt": [SOURCE], "target_prompt": ["a blue circle", "a blue disc"]}
    rows: list[dict[str, Any]] = [
        {"id": "0-prompts", "image": names[0], **given, "caption_with": "column"},
        {"id": "1-caption", "image": names[1], **given, "caption": "my caption"},
        {"id": "2-blip", "image": names[1], **given},
        {"id": "3-blip-again", "image": names[1], **given, "seed": 4},
        {"id": "4-concepts", "image": names[2], "source_concept": "cat", "target_concept": "dog"},
        {
            "id": "5-mixed",
            "image": names[2],
            "source_prompt": [SOURCE],
            "target_concept": "dog",
            "caption_with": "column",
        },
        {"id": "6-both", "image": names[2], **given, "source_concept": "cat"},
    ]
    write_manifest(tmp_path, rows)
    config = job(
        tmp_path,
        tiny_model,
        edit={"caption_with": "blip"},
        prompts={"id": str(tiny_prompt_writer), "num_prompts": 3, "max_new_tokens": 6},
        captions={"id": str(tiny_captioner), "max_new_tokens": 6, "batch_size": 2},
        output={"uri": str(tmp_path / "output"), "max_failed_fraction": 0.5},
        # Both cores for each worker: the workers of a pass must be gone for the next to start.
        cluster={"cpus_per_worker": 2.0},
    )
    plan = plan_job(config)
    assert (plan.num_concepts, plan.num_captions) == (2, 2)
    assert not (tmp_path / "output").exists()

    state = run_job(config)
    assert (state.counters.prompt_generations, state.counters.captions) == (2, 2)
    found = {row["id"][0]: row for row in results(tmp_path)}
    written = {row["concept"]: row["prompts"] for row in read(tmp_path / "output/prompts.parquet")}
    captions = {row["image"]: row["caption"] for row in read(tmp_path / "output/captions.parquet")}
    assert written.keys() == {"cat", "dog"}
    assert captions.keys() == {names[1], names[2]}
    assert [found[n]["status"] for n in "0123456"] == ["edited"] * 6 + ["failed"]
    assert found["6"]["error_type"] == "PromptAndConcept"
    assert found["0"]["source_concept"] is None
    assert found["4"]["source_concept"] == "cat"
    assert found["4"]["source_prompt"] == written["cat"]
    assert found["4"]["target_prompt"] == found["5"]["target_prompt"] == written["dog"]
    assert [found[n]["caption"] for n in "012345"] == [
        [SOURCE],
        ["my caption"],
        [captions[names[1]]],
        [captions[names[1]]],
        [captions[names[2]]],
        [SOURCE],
    ]
    texts = {
        text
        for row in found.values()
        if row["status"] == "edited"
        for name in ("source_prompt", "target_prompt", "caption", "negative_prompt")
        for text in row[name]
    }
    assert state.counters.text_encodes == len(texts)
    record = json.loads((tmp_path / "output" / "runs" / f"{state.run_id}.json").read_text())
    assert record["counters"]["prompt_generations"] == record["counters"]["captions"] == 2
    assert state.counters.unet_evals <= plan.unet_evals

    for name in ("prompts", "captions"):
        (tmp_path / "output" / f"{name}.parquet").unlink()
    before = tree_bytes(tmp_path)
    again = run_job(config)
    assert (again.num_skipped, again.counters.prompt_generations) == (7, 0)
    assert tree_bytes(tmp_path) == before, "nothing is generated for rows that are done"

    monkeypatch.setattr(driver, "Worker", FakeWorker)
    added = [{"concept": "dog", "prompts": ["my dog"]}]
    pq.write_table(pa.Table.from_pylist(added), tmp_path / "output" / "prompts.parquet")
    corrected = run_job(config)
    assert (corrected.num_skipped, corrected.counts) == (5, {"unchanged": 2})
    # The other side of row 4 had to be written again, its caption as well: their files were lost.
    assert (corrected.counters.prompt_generations, corrected.counters.captions) == (1, 1)
    redone = {row["id"][0]: row for row in results(tmp_path)}
    assert redone["4"]["source_prompt"] == found["4"]["source_prompt"], "same seed, same prompts"
    assert redone["4"]["caption"] == found["4"]["caption"]
    assert redone["4"]["target_prompt"] == redone["5"]["target_prompt"] == ["my dog"]


@pytest.mark.usefixtures("fake")
def test_a_concept_that_fails_fails_its_rows_alone_and_a_correction_helps(tmp_path: Path) -> None:
    write_manifest(tmp_path, by_concept(write_pictures(tmp_path, 1), "blank", "die", "dog"))
    config = job(
        tmp_path,
        Path("demo"),
        prompts={"id": "demo"},
        output={"uri": str(tmp_path / "output"), "max_failed_fraction": 0.9},
    )
    prepared = prepare_job(config)
    assert prepared.failures == {"prompts/DegeneratePrompts": 1, "worker/WorkerDied": 1}
    assert results(tmp_path) == []
    rows = read(tmp_path / "output" / "prompts.parquet")
    assert [row["concept"] for row in rows] == ["cat", "dog"]

    rows.append({"concept": "die", "prompts": ["a die"]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "output" / "prompts.parquet")
    state = run_job(config)
    assert state.counts == {"unchanged": 2, "failed": 1}
    found = {row["id"]: row for row in results(tmp_path)}
    assert (found["blank"]["error_stage"], found["blank"]["error_message"]) == ("prompts", "blank")
    assert found["blank"]["target_concept"] == "blank"
    assert found["die"]["target_prompt"] == ["a die"]
    assert run_job(config).num_skipped == 3, "a failure is not tried again"


@pytest.mark.usefixtures("fake")
def test_prompts_that_failed_are_generated_again_when_their_rows_are_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(tmp_path, by_concept(write_pictures(tmp_path, 1), "blank", "dog"))
    output = {"uri": str(tmp_path / "output"), "max_failed_fraction": 0.9}
    config = job(tmp_path, Path("demo"), prompts={"id": "demo"}, output=output)
    assert run_job(config).counts == {"unchanged": 1, "failed": 1}
    monkeypatch.setattr(preparation, "PromptsWorker", HealthyPromptsWorker)
    for which, counts in (("load", {}), ("prompts/DegeneratePrompts", {"unchanged": 1})):
        selection = Selection(retry_failed=frozenset({which}))
        assert plan_job(config, selection=selection).num_concepts == len(counts)
        state = run_job(config, selection=selection)
        assert state.counts == counts
        assert state.counters.prompt_generations == len(counts)
    [row] = [row for row in results(tmp_path) if row["id"] == "blank"]
    assert (row["status"], row["target_prompt"]) == ("unchanged", ["a blank"])


@pytest.mark.usefixtures("fake")
def test_a_pass_that_was_stopped_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concepts = [f"thing {number}" for number in range(12)]
    write_manifest(tmp_path, by_concept(write_pictures(tmp_path, 1), *concepts))
    config = job(tmp_path, Path("demo"), prompts={"id": "demo"})
    monkeypatch.setattr(preparation, "FLUSH_TEXTS", 1)

    def interrupt(state: RunState) -> None:
        parts = list((tmp_path / "output" / "_diffedit" / "prompts").glob("*.parquet"))
        if len(parts) > 2 and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    stopped: list[bool] = []
    with pytest.raises(InterruptedRunError, match="the same command continues"):
        run_job(config, on_progress=interrupt)
    num_kept = len(read(tmp_path / "output" / "prompts.parquet"))
    assert 2 < num_kept < 13
    rest = run_job(config)
    assert rest.counters.prompt_generations == 13 - num_kept
    assert rest.counts.total() == 12
    assert not list((tmp_path / "output" / "_diffedit").rglob("*.parquet"))


def write_prompts(config: JobConfig) -> None:
    """What a process of its own does until it is killed; it brings its own Ray."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "PromptsWorker", FakePromptsWorker)
        patch.setattr(preparation, "FLUSH_TEXTS", 1)
        prepare_job(config)


@pytest.mark.usefixtures("fake")
def test_a_pass_whose_driver_was_killed_continues(tmp_path: Path) -> None:
    concepts = [f"thing {number}" for number in range(40)]
    write_manifest(tmp_path, by_concept(write_pictures(tmp_path, 1), *concepts))
    config = job(tmp_path, Path("demo"), prompts={"id": "demo"})
    driver_process = multiprocessing.get_context("spawn").Process(
        target=write_prompts, args=(config,)
    )
    driver_process.start()
    parts = tmp_path / "output" / "_diffedit" / "prompts"
    while len(list(parts.glob("*.parquet"))) < 3:
        assert driver_process.is_alive()
        time.sleep(0.05)
    driver_process.kill()
    driver_process.join()
    num_kept = sum(len(read(part)) for part in parts.glob("*.parquet"))
    assert 3 <= num_kept < 41
    rest = prepare_job(config)
    assert rest.counters.prompt_generations == 41 - num_kept
    written = [row["concept"] for row in read(tmp_path / "output" / "prompts.parquet")]
    assert written == sorted(["cat", *concepts])


def test_a_missing_model_is_one_message_before_any_worker(tmp_path: Path) -> None:
    write_manifest(tmp_path, by_concept(write_pictures(tmp_path, 1), "dog"))
    for run in (run_job, prepare_job, plan_job):
        with pytest.raises(ModelError, match=r"prompts\.id './missing': no such folder"):
            run(job(tmp_path, Path("demo"), prompts={"id": "./missing"}))


def test_a_model_that_cannot_be_loaded_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "PromptsWorker", NoPromptsWorker)
    write_manifest(tmp_path, by_concept(write_pictures(tmp_path, 1), "dog"))
    with pytest.raises(ModelError, match="cannot load model 'x'"):
        run_job(job(tmp_path, Path("demo"), prompts={"id": "demo"}))
