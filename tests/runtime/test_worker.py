import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs_on_disk import edits_of, job, picture, write_manifest, write_pictures
from PIL import Image
from torch import Tensor

from diffedit_batch.config import JobConfig
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.storage import PROBE, Storage
from diffedit_batch.errors import ModelError, StorageError
from diffedit_batch.models.clip import Clip
from diffedit_batch.models.lpips import Lpips
from diffedit_batch.models.network import Network
from diffedit_batch.runtime.messages import BundleResult, Group
from diffedit_batch.runtime.worker import Worker
from diffedit_batch.schema import ImageRef


def groups_of(config: JobConfig) -> list[Group]:
    groups: dict[str, Group] = {}
    for row in Manifest(config, "model").rows():
        assert row.request is not None
        groups[row.group] = (*groups.get(row.group, ()), row.request)
    return list(groups.values())


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> JobConfig:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 3), per_picture=2))
    config = job(tmp_path, tiny_model)
    Storage(config.output.uri).write(PROBE, b"")
    return config


@pytest.fixture
def worker(config: JobConfig) -> Worker:
    worker = Worker(config, num_threads=1)
    info = worker.load()
    assert info.device == "cpu"
    assert list(info.start_seconds) == ["imports", "download", "load", "warm_up", "compile"]
    assert (
        info.load_seconds >= sum(info.start_seconds.values()) - info.start_seconds["imports"] - 1e-2
    )
    assert (info.batch_size, info.is_compiled) == (64, False), "compile: auto, on a CPU"
    assert info.attention == ("flash_attention_for_cpu",)
    return worker


def test_a_bundle_comes_back_whole_with_its_pictures_written(
    worker: Worker, config: JobConfig, tmp_path: Path
) -> None:
    result = worker.edit(groups_of(config))
    assert sorted(row["id"] for row in result.rows) == [
        f"00{i}-{j}" for i in range(3) for j in "01"
    ]
    for row in result.rows:
        assert row["status"] == "edited"
        edited = picture(tmp_path / "output", row["edited_file_name"])
        assert edited.shape == (row["height"], row["width"], 3)
        mask = picture(tmp_path / "output", row["mask_file_name"])
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask == 255).mean() == pytest.approx(row["mask_coverage"])
        original = picture(tmp_path, f"{row['id'][:3]}.png")
        error = (edited.astype(float) - original)[mask == 0] ** 2
        psnr = 10 * np.log10(255**2 / error.mean()) if error.any() else 100
        assert row["background_psnr"] == pytest.approx(psnr)
        for kind in ("edited", "mask", "map"):
            file = tmp_path / "output" / row[f"{kind}_file_name"]
            assert hashlib.sha256(file.read_bytes()).hexdigest() == row[f"{kind}_sha256"]
        soft = picture(tmp_path / "output", row["map_file_name"])
        assert soft.shape == mask.shape
        assert soft[mask > 0].mean() > soft[mask == 0].mean()
    assert result.counters.vae_encodes == 3
    assert result.counters.vae_decodes == 6
    assert set(result.seconds) == {"wait", "read", "edit", "write"}
    assert worker.progress() > 3 + 6, "pictures read, rows written, and network calls in between"


def test_edited_pictures_say_what_made_them_and_others_nothing(
    worker: Worker, config: JobConfig, tmp_path: Path
) -> None:
    groups = groups_of(config)
    [group] = groups[:1]
    same = replace(group[0], target_prompt=group[0].source_prompt)
    own = ImageRef(str(tmp_path / "mask.png"))
    Image.new("L", (64, 64), 255).save(own.uri)
    masked = replace(group[1], mask=own)
    rows = {row["id"]: row for row in worker.edit([(same, masked)]).rows}
    unchanged, edited = rows[same.id], rows[masked.id]
    assert (unchanged["status"], edited["status"]) == ("unchanged", "edited")
    with Image.open(tmp_path / "output" / unchanged["edited_file_name"]) as image:
        assert image.info == {}
    assert unchanged["digital_source_type"] == ""
    with Image.open(tmp_path / "output" / edited["edited_file_name"]) as image:
        said = json.loads(image.info["diffedit_batch"])
        assert edited["digital_source_type"] in image.info["XML:com.adobe.xmp"]
    assert said["digital_source_type"] == edited["digital_source_type"] != ""
    assert said["id"] == edited["id"]
    assert said["model"] == Path(config.model.id).name, "not where it lies"
    with Image.open(tmp_path / "output" / edited["mask_file_name"]) as image:
        assert image.info == {}
    for row in (unchanged, edited):
        assert "map_file_name" not in row, "no prompts were compared for it"


def test_a_worker_on_a_cpu_has_no_memory_of_a_gpu(worker: Worker, config: JobConfig) -> None:
    assert worker.edit(groups_of(config)).gpu_memory_used_bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_worker_says_how_much_of_its_gpu_is_in_use(config: JobConfig) -> None:
    cluster = config.cluster.model_copy(update={"gpus_per_worker": 1.0})
    worker = Worker(config.model_copy(update={"cluster": cluster}))
    info = worker.load()
    assert info.gpu_memory_bytes == torch.cuda.get_device_properties(0).total_memory
    used = worker.edit(groups_of(config)).gpu_memory_used_bytes
    assert torch.cuda.memory_reserved() <= used <= info.gpu_memory_bytes


def test_scores_of_clip_are_those_of_the_files(
    config: JobConfig, tmp_path: Path, tiny_clip: Path
) -> None:
    scores = config.scores.model_copy(update={"clip": str(tiny_clip)})
    worker = Worker(config.model_copy(update={"scores": scores}), num_threads=1)
    worker.load()
    result = worker.edit(groups_of(config))
    clip = Clip.load(scores, "cpu")
    prompts = {row["id"]: row for row in edits_of(["000.png", "001.png", "002.png"], 2)}

    def vector(folder: Path, name: str) -> Tensor:
        return clip.encode(clip.prepare(picture(folder, name))[None])[0]

    assert len(result.rows) == 6
    for row in result.rows:
        asked = prompts[row["id"]]
        edited = vector(tmp_path / "output", row["edited_file_name"])
        source = vector(tmp_path, asked["image"])
        target = clip.text((asked["target_prompt"],))
        change = target - clip.text((asked["source_prompt"],))
        assert row["clip_text"] == pytest.approx(float(edited @ target), abs=1e-5)
        assert row["clip_image"] == pytest.approx(float(edited @ source), abs=1e-5)
        direction = torch.nn.functional.cosine_similarity(edited - source, change, dim=0)
        assert row["clip_direction"] == pytest.approx(float(direction), abs=1e-3)
    assert result.counters.clip_encodes == 3 + 6


def test_distances_of_lpips_are_those_of_the_files(
    config: JobConfig, tmp_path: Path, random_lpips: Path, lpips: Lpips
) -> None:
    scores = config.scores.model_copy(update={"lpips": str(random_lpips)})
    worker = Worker(config.model_copy(update={"scores": scores}), num_threads=1)
    worker.load()
    result = worker.edit(groups_of(config))
    images = {row["id"]: row["image"] for row in edits_of(["000.png", "001.png", "002.png"], 2)}
    assert len(result.rows) == 6
    for row in result.rows:
        source = picture(tmp_path, images[row["id"]])
        pair = lpips.prepare(source, picture(tmp_path / "output", row["edited_file_name"]))
        assert row["lpips"] == pytest.approx(float(lpips.distances(pair[None])), rel=1e-5)
        assert row["lpips"] > 0
        assert row["clip_image"] is None
    assert result.counters.lpips_distances == 6


def test_of_several_seeds_a_row_keeps_the_best(
    config: JobConfig, worker: Worker, tmp_path: Path
) -> None:
    groups = [
        tuple(replace(one, edit=one.edit.override({"num_seeds": 3})) for one in group)
        for group in groups_of(config)[:2]
    ]
    rows = worker.edit(groups).rows
    assert sorted(row["id"] for row in rows) == ["000-0", "000-1", "001-0", "001-1"]
    for row in rows:
        scores = {one["seed"]: one["score"] for one in row["candidates"]}
        assert len(scores) == 3
        assert next(iter(scores)) == 0, "the row's own"
        assert row["map_contrast"] == scores[row["kept_seed"]] == max(scores.values())
        with Image.open(tmp_path / "output" / row["edited_file_name"]) as image:
            said = json.loads(image.info["diffedit_batch"])
        assert (said["seed"], said["num_seeds"]) == (row["kept_seed"], 1), "what made this one"
    again = [
        tuple(
            replace(one, seed=row["kept_seed"], edit=one.edit.override({"num_seeds": 1}))
            for one in group
            for row in rows
            if row["id"] == one.id
        )
        for group in groups
    ]
    masks = {row["id"]: picture(tmp_path / "output", row["mask_file_name"]) for row in rows}
    for row in worker.edit(again).rows:
        assert row["candidates"] is None
        mask = picture(tmp_path / "output", row["mask_file_name"])
        assert np.array_equal(mask, masks[row["id"]])


@pytest.mark.parametrize("policy", ["keep", "blur", "drop"])
def test_what_becomes_of_flagged_pictures(
    config: JobConfig, tmp_path: Path, tiny_model: Path, tiny_flagging_model: Path, policy: str
) -> None:
    plain = Worker(config, num_threads=1)
    plain.load()
    expected = {row["id"]: row for row in plain.edit(groups_of(config)).rows}
    output = config.output.model_copy(update={"uri": str(tmp_path / "checked")})
    Storage(output.uri).write(PROBE, b"")
    model = config.model.model_copy(update={"id": str(tiny_flagging_model)})
    safety = config.safety.model_copy(update={"policy": policy})
    worker = Worker(
        config.model_copy(update={"model": model, "safety": safety, "output": output}),
        num_threads=1,
    )
    worker.load()
    result = worker.edit(groups_of(config))
    assert len(result.rows) == result.counters.safety_checks == 6
    assert all(row["is_flagged"] for row in result.rows)
    if policy == "drop":
        for row in result.rows:
            assert (row["status"], row["error_stage"]) == ("failed", "safety")
            assert row["error_type"] == "Flagged"
            assert "edited_file_name" not in row
        assert not list(Path(output.uri).rglob("*.png"))
        return
    for row in result.rows:
        assert row["status"] == "edited"
        data = Path(output.uri, row["edited_file_name"]).read_bytes()
        assert row["edited_sha256"] == hashlib.sha256(data).hexdigest()
        with Image.open(Path(output.uri, row["edited_file_name"])) as image:
            assert json.loads(image.info["diffedit_batch"])["id"] == row["id"]
        written = picture(Path(output.uri), row["edited_file_name"])
        unchecked = expected[row["id"]]
        edited = picture(tmp_path / "output", unchecked["edited_file_name"])
        if policy == "keep":
            assert np.abs(written.astype(int) - edited).max() <= 1
        else:
            detail = [np.abs(np.diff(one.astype(int), axis=1)).mean() for one in (written, edited)]
            assert detail[0] < 0.1 * detail[1]
        # Of the edit, whatever became of the file.
        assert row["background_psnr"] == pytest.approx(unchecked["background_psnr"], rel=1e-3)


def test_a_worker_compiles_when_it_is_told_to(
    config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with = Network.compile
    # Torch's own compiler takes most of a minute; tests/models/test_network.py does it once.
    monkeypatch.setattr(Network, "compile", lambda self, size: compile_with(self, size, "eager"))
    engine = config.engine.model_copy(update={"compile": "full", "batch_size": 4})
    worker = Worker(config.model_copy(update={"engine": engine}))
    info = worker.load()
    assert (info.batch_size, info.is_compiled) == (4, True)
    assert {row["status"] for row in worker.edit(groups_of(config)).rows} == {"edited"}
    assert worker._editor.components.network.num_graphs == 1
    torch._dynamo.reset()


def test_counters_are_reported_once(worker: Worker, config: JobConfig) -> None:
    first, second, third = groups_of(config)
    counts = [worker.edit([group]).counters.vae_encodes for group in (first, second, third)]
    assert counts == [1, 1, 1]


def test_bundles_may_run_at_once(worker: Worker, config: JobConfig) -> None:
    found: dict[int, BundleResult] = {}
    groups = groups_of(config)
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: worker.edit([groups[i]])}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, group in enumerate(groups):
        ids = {row["id"] for row in found[number].rows}
        assert ids == {request.id for request in group}
    assert sum(result.counters.vae_decodes for result in found.values()) == 6


def test_an_unreadable_picture_fails_its_rows_alone(
    worker: Worker, config: JobConfig, tmp_path: Path
) -> None:
    groups = groups_of(config)
    (tmp_path / "001.png").write_bytes(b"nothing")
    rows = {row["id"]: row for row in worker.edit(groups).rows}
    assert [rows[i]["status"] for i in sorted(rows)] == ["edited"] * 2 + ["failed"] * 2 + [
        "edited"
    ] * 2
    assert rows["001-0"]["error_stage"] == "load"
    assert rows["001-0"]["error_type"] == "ImageUnreadable"
    assert "not a PNG" in rows["001-0"]["error_message"]


def test_an_output_that_cannot_be_written_is_raised(
    worker: Worker, config: JobConfig, tmp_path: Path
) -> None:
    groups = groups_of(config)
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / "edited").write_bytes(b"a file where a folder should be")
    with pytest.raises(StorageError, match="cannot write"):
        worker.edit(groups)


def test_an_error_nobody_expected_is_raised_now_and_later(
    worker: Worker, config: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(worker._editor, "step", step)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="device-side assert"):
            worker.edit(groups_of(config))


def test_a_row_is_the_same_on_any_worker(worker: Worker, config: JobConfig, tmp_path: Path) -> None:
    """Another process layout, other threads, other bundles: masks equal, pixels within 1 of 255."""
    first = {row["id"]: row for row in worker.edit(groups_of(config)).rows}
    elsewhere = config.model_copy(
        update={"output": config.output.model_copy(update={"uri": str(tmp_path / "other")})}
    )
    Storage(elsewhere.output.uri).write(PROBE, b"")
    other = Worker(elsewhere, num_threads=2)
    other.load()
    for group in groups_of(config)[::-1]:
        for row in other.edit([group]).rows:
            same = first[row["id"]]
            assert row["edited_file_name"] == same["edited_file_name"]
            one, two = (
                picture(tmp_path / folder, row["mask_file_name"]) for folder in ("output", "other")
            )
            assert np.array_equal(one, two)
            one, two = (
                picture(tmp_path / folder, row["edited_file_name"])
                for folder in ("output", "other")
            )
            assert np.abs(one.astype(int) - two).max() <= 1


def test_a_model_that_cannot_be_loaded_is_raised(config: JobConfig, tmp_path: Path) -> None:
    missing = config.model.model_copy(update={"id": str(tmp_path / "missing")})
    with pytest.raises(ModelError):
        Worker(config.model_copy(update={"model": missing})).load()


def test_a_worker_that_does_not_see_the_output_says_so(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(StorageError, match="on storage that all nodes share"):
        Worker(job(tmp_path, tiny_model)).load()


def test_out_of_device_memory_halves_calls_and_fails_the_row_that_does_not_fit_alone(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds 5 evaluations of the small pictures, and none of the wide one."""
    Image.new("RGB", (256, 64), "red").save(tmp_path / "001.png")
    worker = Worker(config, num_threads=1)
    worker.load()
    batcher = worker._editor._batcher
    network = batcher._noise_model

    def limited(latents: Tensor, timesteps: Tensor, texts: Tensor) -> Tensor:
        if len(latents) > 5 or latents.shape[-1] != latents.shape[-2]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return network(latents, timesteps, texts)

    monkeypatch.setattr(batcher, "_noise_model", limited)
    result = worker.edit(groups_of(config))
    rows = {row["id"]: row for row in result.rows}
    for row_id in ("001-0", "001-1"):
        row = rows.pop(row_id)
        assert (row["status"], row["error_stage"]) == ("failed", "edit")
        assert row["error_type"] == "OutOfMemory"
        assert "Tried to allocate" in row["error_message"]
    assert [row["status"] for row in rows.values()] == ["edited"] * 4
    assert result.counters.batch_halvings > 0
    assert worker.edit(groups_of(config)[:1]).counters.batch_halvings == 0, "remembered"
