"""What a plan finds out before a model is started."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from jobs_on_disk import edits_of, job, tree_bytes, write_manifest, write_pictures
from PIL import Image

from diffedit_batch.config import JobConfig
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError, ManifestError
from diffedit_batch.models.components import Components
from diffedit_batch.runtime import plan as planning
from diffedit_batch.runtime.calibration import calibrate
from diffedit_batch.runtime.plan import as_json, plan_job
from diffedit_batch.terminal.plan import plan_text

LONG = "a red circle and a blue star and a green square on grass under a very wide and bright sky"


def lines(config: JobConfig, **options: Any) -> dict[str, str]:
    """The plan as people read it, by subject."""
    text = plan_text(plan_job(config, **options)).splitlines()
    found, subject = {"": text[0]}, ""
    for line in text[2:]:
        subject = line[:13].strip() or subject
        found[subject] = f"{found.get(subject, '')}\n{line[13:]}".strip("\n")
    return found


def test_sizes_at_which_images_are_edited(tmp_path: Path) -> None:
    wide = write_pictures(tmp_path / "wide", 1, (200, 100))
    tall = write_pictures(tmp_path / "tall", 2, (100, 200))
    names = [*(f"wide/{name}" for name in wide), *(f"tall/{name}" for name in tall)]
    write_manifest(tmp_path, [{**row, "id": str(n)} for n, row in enumerate(edits_of(names, 2))])
    plan = plan_job(job(tmp_path, Path("demo")))
    assert plan.working_sizes == {(96, 192): 4, (192, 96): 2}
    assert plan.images.num_images == plan.num_images == 3
    assert lines(job(tmp_path, Path("demo")))["sizes"].split() == [
        *("96", "x", "192", "4", "rows"),
        *("192", "x", "96", "2", "rows"),
    ]


def test_an_image_is_edited_at_the_size_the_plan_says(
    tmp_path: Path, tiny_model: Path, tiny: Components
) -> None:
    """Turned by its EXIF, with the sizes that the loaded model works at."""
    from diffedit_batch.data.images import read_picture
    from diffedit_batch.engine.editor import DiffEditor
    from diffedit_batch.engine.requests import ImageEdits
    from diffedit_batch.schema import EditRequest, ImageRef

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 40)).save(tmp_path / "turned.jpg", exif=exif)
    write_manifest(tmp_path, edits_of(["turned.jpg"]))
    [size] = plan_job(job(tmp_path, tiny_model)).working_sizes
    ref = ImageRef(str(tmp_path / "turned.jpg"))
    picture = read_picture(ref, max_bytes=10**6, max_pixels=10**6)
    edits = ImageEdits(picture, [EditRequest("a", ("x",), ("y",))])
    assert size == DiffEditor(tiny).prepare(edits).picture.shape[:0:-1]
    assert size[0] < size[1]


def test_images_that_cannot_be_read_are_found_by_their_headers(tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 4)
    (tmp_path / names[1]).write_bytes(b"not a picture")
    Image.new("RGB", (3000, 10)).save(tmp_path / names[2])
    write_manifest(tmp_path, edits_of(names, per_picture=2))
    config = job(tmp_path, Path("demo"), input={"max_pixels": 10_000})
    plan = plan_job(config)
    assert plan.images.num_unreadable == 2
    assert plan.images.unreadable == {"load/ImageUnreadable": 2, "load/ImageTooLarge": 2}
    assert "row '001-0': not a PNG, JPEG, WEBP" in plan.images.examples["load/ImageUnreadable"]
    assert plan.num_to_edit == 8, "they are tried, and fail"
    text = lines(config)["unreadable"].splitlines()
    assert text[0] == "2 images, in 4 rows"
    assert text[1].split()[:2] == ["load/ImageUnreadable", "2"]


def test_of_many_images_some_are_looked_at_and_all_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "NUM_IMAGES_CHECKED", 4)
    names = write_pictures(tmp_path, 12, (8, 8))
    rows = edits_of(names, per_picture=2)
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"))
    plan = plan_job(config)
    assert (plan.images.num_images, plan.num_images) == (4, 12)
    assert plan.images.sizes == {(8, 8): 8}, "all rows of each"
    assert "no image of 4 looked at" in lines(config)["unreadable"]
    assert "8 rows of those looked at" in lines(config)["sizes"]
    for name in names:
        (tmp_path / name).write_bytes(b"broken")
    assert plan_job(config).images.num_unreadable == 4
    assert plan_job(config, all_images=True).images.num_unreadable == 12


def test_the_images_looked_at_are_the_same_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "NUM_IMAGES_CHECKED", 4)
    for number in range(12):
        Image.new("RGB", (10 + number, 10)).save(tmp_path / f"{number:02}.png")
    rows = edits_of([f"{number:02}.png" for number in range(12)], per_picture=2)
    sizes = []
    for order in (rows, rows[::-1], rows[7:] + rows[:7]):
        write_manifest(tmp_path, order)
        sizes.append(plan_job(job(tmp_path, Path("demo"))).images.sizes)
    assert sizes[0] == sizes[1] == sizes[2]
    assert set(sizes[0].values()) == {2}, "with all rows of each"


def test_prompts_are_cut_where_the_loaded_model_would_cut_them(
    tmp_path: Path, tiny: Components, tiny_model: Path
) -> None:
    names = write_pictures(tmp_path, 4)
    rows = edits_of(names)
    exact = "a " * 22  # 24 tokens in all, which is what the text encoder reads
    texts = [rows[0]["target_prompt"], LONG, exact.strip(), f"{exact}a"]
    assert [tiny.is_truncated(text) for text in texts] == [False, True, False, True]
    for row, text in zip(rows, texts, strict=True):
        row["target_prompt"] = text
    rows[0]["negative_prompt"] = LONG
    write_manifest(tmp_path, rows)
    plan = plan_job(job(tmp_path, tiny_model))
    assert plan.num_truncated_rows == 3
    assert plan.examples["truncated"] == "row '000-0'"
    assert lines(job(tmp_path, tiny_model))["cut prompts"] == "3 rows, e.g. row '000-0'"


def test_without_the_files_of_the_model_the_plan_says_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "nothing"))
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    config = job(tmp_path, Path("owner/name"))
    plan = plan_job(config)
    assert plan.num_truncated_rows is None
    assert not plan.working_sizes
    text = plan_text(plan)
    assert "unknown: prompts that would be cut are not counted: model 'owner/name'" in text
    assert "unknown: the sizes at which images are edited are not known" in text
    assert "cut prompts" not in text


def test_a_model_in_the_cache_is_known_without_the_network(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    repository = cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abc").symlink_to(tiny_model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    rows = edits_of(write_pictures(tmp_path, 1))
    write_manifest(tmp_path, [{**rows[0], "target_prompt": LONG}])
    plan = plan_job(job(tmp_path, Path("owner/name")))
    assert plan.num_truncated_rows == 1
    assert plan.working_sizes == {(64, 64): 1}
    assert not plan.notes


def test_rows_that_ask_twice(tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 3)
    (tmp_path / names[2]).write_bytes((tmp_path / names[0]).read_bytes())
    rows = edits_of(names)
    rows += [{**rows[0], "id": "again"}, {**rows[0], "id": "other", "seed": 7}]
    write_manifest(tmp_path, rows)
    plan = plan_job(job(tmp_path, Path("demo")))
    assert (plan.num_duplicates, plan.examples["duplicate"]) == (1, "row 'again'")
    assert plan.num_repeated_images is None
    plan = plan_job(job(tmp_path, Path("demo"), input={"image_key": "content"}))
    assert (plan.num_duplicates, plan.examples["duplicate"]) == (2, "row '002-0'")
    assert (plan.num_images, plan.num_repeated_images) == (3, 1)
    assert "same images  1 image with the content of another one" in plan_text(plan)


def test_files_of_one_size_and_age_are_no_duplicates(tmp_path: Path) -> None:
    import os

    for name in ("a.bmp.png", "b.bmp.png"):
        data = io.BytesIO()
        Image.new("RGB", (9, 9), (name[0] == "a" and "red") or "blue").save(data, "PNG")
        (tmp_path / name).write_bytes(data.getvalue().ljust(200, b"\0"))
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    rows = edits_of(["a.bmp.png", "b.bmp.png"])
    write_manifest(tmp_path, rows)
    assert plan_job(job(tmp_path, Path("demo"))).num_duplicates == 0


def write_record(folder: Path, ran: JobConfig, name: str, **changes: Any) -> None:
    record = {
        "run_id": name,
        "outcome": "finished",
        "counts": {"edited": 7, "failed": 1},
        "counters": {"unet_evals": 1000},
        "seconds": {"edit": 500.0},
        "workers": [{"load_seconds": 20.0}, {"load_seconds": 30.0}],
        "config": ran.model_dump(),
        **changes,
    }
    Storage(str(folder)).write(f"runs/{name}.json", json.dumps(record).encode())


@pytest.fixture
def timed(tmp_path: Path) -> JobConfig:
    """A job on GPUs of 8 images, the plan of which is 8 x 104 evaluations."""
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 8)))
    edit = {"num_inference_steps": 50, "num_maps_per_mask": 2, "inpaint_strength": 0.666}
    return job(
        tmp_path, Path("demo"), edit=edit, cluster={"gpus_per_worker": 2.0, "workers": "auto"}
    )


def test_time_for_workers_from_the_record_of_a_run(tmp_path: Path, timed: JobConfig) -> None:
    assert "unknown" in lines(timed)["time"]
    absolute = timed.with_absolute_paths()
    write_record(tmp_path / "output", absolute, "20260101T000000-a")
    plan = plan_job(timed, num_workers=4)
    evals = 8 * (2 * 2 + 3 * 33)
    assert plan.unet_evals == evals
    assert plan.worker_hours() == pytest.approx(evals * 0.5 / 3600)
    assert plan.gpu_hours() == pytest.approx(2 * evals * 0.5 / 3600)
    assert plan.wall_seconds() == pytest.approx(30 + evals * 0.5 / 4)
    assert plan_job(timed, num_workers=100).wall_seconds() == pytest.approx(30 + evals * 0.5 / 8)
    assert plan_job(timed).num_workers == 1
    text = lines(timed, num_workers=4)["time"].splitlines()
    assert text[0] == "about 2 min with 4 workers: 0.23 GPU-hours"
    assert text[1] == (
        "at the speed of run 20260101T000000-a (8 rows), 30 s of it to load the model"
    )


def test_seeds_that_are_tried_are_counted(tmp_path: Path, timed: JobConfig) -> None:
    edit = timed.edit.model_copy(update={"num_seeds": 3})
    plan = plan_job(timed.model_copy(update={"edit": edit}))
    assert plan.unet_evals == 8 * (3 * 2 * 2 + 33 + 3 * 2 * 33), "pictures are inverted once"


def test_only_runs_like_the_planned_one_tell_its_speed(tmp_path: Path, timed: JobConfig) -> None:
    like = timed.with_absolute_paths()
    model = like.model.model_copy(update={"resolution": 256})
    cluster = like.cluster.model_copy(update={"gpus_per_worker": 0.0})
    scores = like.scores.model_copy(update={"clip": "owner/clip"})
    compared = like.scores.model_copy(update={"lpips": "lpips.safetensors"})
    safety = like.safety.model_copy(update={"policy": "keep"})
    others: dict[str, dict[str, Any]] = {
        "3": {"config": like.model_copy(update={"model": model}).model_dump()},
        "4": {"config": like.model_copy(update={"cluster": cluster}).model_dump()},
        "5": {"outcome": "interrupted"},
        "7": {"config": like.model_copy(update={"scores": scores}).model_dump()},
        "8": {"config": like.model_copy(update={"safety": safety}).model_dump()},
        "9": {"config": like.model_copy(update={"scores": compared}).model_dump()},
        "6": {"counters": {"unet_evals": 0}},
    }
    for name, changes in others.items():
        write_record(tmp_path / "output", like, name, **changes)
    assert plan_job(timed).speed is None
    write_record(tmp_path / "output-preview", like, "9")
    speed = plan_job(timed).speed
    assert speed is not None
    assert speed.source == "run 9", "of a preview, where the output has none"
    write_record(tmp_path / "output", like, "1", seconds={"edit": 1.0})
    write_record(tmp_path / "output", like, "2", seconds={"edit": 2.0})
    speed = plan_job(timed).speed
    assert speed is not None
    assert speed.seconds_per_eval == 2 / 1000, "the newest of the output itself"


def test_a_calibration_runs_the_engine_and_writes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    names = write_pictures(tmp_path, 3)
    rows = edits_of(names, per_picture=2)
    rows[0]["target_prompt"], rows[0]["mask"] = "a star", names[1]
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[:-200])
    write_manifest(tmp_path, rows)
    before = set(tmp_path.rglob("*"))
    plan = plan_job(job(tmp_path, tiny_model), is_calibrated=True)
    assert plan.speed is not None
    assert plan.speed.num_rows == 4, "the last picture is broken behind its header"
    assert plan.speed.seconds_per_eval > 0
    assert plan.speed.load_seconds > 0
    assert set(tmp_path.rglob("*")) == before
    assert "at the speed of this calibration (4 rows)" in plan_text(plan)


def test_a_calibration_scores_and_checks_edits_as_workers_do(
    tmp_path: Path, tiny_flagging_model: Path, tiny_clip: Path
) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    best = {"num_seeds": 2, "keep_best": "clip_text"}
    review = {"scores": {"clip": str(tiny_clip)}, "safety": {"policy": "drop"}}
    speed = calibrate(job(tmp_path, tiny_flagging_model, edit=best, **review), 1)
    assert speed.num_rows == 1


def test_a_calibration_that_cannot_be_made_says_why(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_pictures(tmp_path, 1)
    write_manifest(tmp_path, edits_of(names))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="which has no GPU"):
        calibrate(job(tmp_path, tiny_model, cluster={"gpus_per_worker": 1.0}), 1)
    (tmp_path / names[0]).write_bytes((tmp_path / names[0]).read_bytes()[:-200])
    with pytest.raises(ManifestError, match="none of the 1 rows tried has an image"):
        calibrate(job(tmp_path, tiny_model), 1)
    write_pictures(tmp_path, 1)
    rows = edits_of(names)
    write_manifest(tmp_path, [{**rows[0], "target_prompt": rows[0]["source_prompt"]}])
    with pytest.raises(ManifestError, match="needs the network"):
        calibrate(job(tmp_path, tiny_model), 1)


KEYS = {
    *("num_rows", "selected", "num_failed_before", "num_to_edit", "num_images"),
    *("num_repeated_images", "num_duplicates", "num_truncated_rows", "num_concepts"),
    *("num_captions", "num_refused", "refusals", "examples", "images", "working_sizes", "notes"),
    *("unet_evals", "speed", "num_workers", "gpus_per_worker"),
    *("worker_hours", "gpu_hours", "wall_seconds"),
}


def test_the_keys_of_the_json_are_always_there(tmp_path: Path, timed: JobConfig) -> None:
    empty = json.loads(as_json(plan_job(timed)))
    assert empty.keys() == KEYS
    assert empty["speed"] is None
    write_record(tmp_path / "output", timed.with_absolute_paths(), "1")
    full = json.loads(as_json(plan_job(timed)))
    assert full.keys() == KEYS
    assert full["working_sizes"] == [{"width": 128, "height": 128, "num_rows": 8}]
    assert full["speed"]["source"] == "run 1"
    assert full["images"].keys() == {
        *("num_checked", "num_unreadable", "num_unreadable_rows", "unreadable", "examples")
    }
    assert tree_bytes(tmp_path).keys() == {"runs/1.json"}
