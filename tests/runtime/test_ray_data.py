"""`DiffEditBatch` alone, and in a real Ray Data pipeline.

The pipeline has a process of its own: one that has imported `ray.data` runs code from crafted
Parquet files, and other tests say that ours has not.
"""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs_on_disk import SOURCE, TARGETS, write_pictures
from PIL import Image

from diffedit_batch import DiffEditBatch, DiffEditor, EditConfig, EditRequest, ImageEdits
from diffedit_batch.config import ModelConfig, ScoresConfig
from diffedit_batch.errors import ManifestError
from diffedit_batch.models.lpips import Lpips

QUICK = EditConfig(num_inference_steps=5, num_maps_per_mask=2)


@pytest.fixture(scope="module")
def step(tiny_model: Path) -> DiffEditBatch:
    return DiffEditBatch(ModelConfig(id=str(tiny_model)), QUICK, device="cpu")


def objects(*values: Any) -> np.ndarray[Any, Any]:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def opened(png: bytes) -> np.ndarray[Any, Any]:
    return np.array(Image.open(io.BytesIO(png)))


def pixels(seed: int = 0, shape: tuple[int, ...] = (48, 64, 3)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(picture: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_arrays_bytes_and_structs_give_what_the_editor_gives(
    step: DiffEditBatch, tiny_model: Path
) -> None:
    picture = pixels()
    images = [picture, png(picture), {"bytes": png(picture), "path": "a.png"}]
    before = step._editor.counters
    batch = {
        "image": objects(*images),
        "source_prompt": objects(*[SOURCE] * 3),
        "target_prompt": objects(*TARGETS),
        "note": np.array([1, 2, 3]),
    }
    result = step(batch)
    assert list(result["note"]) == [1, 2, 3]
    assert list(result["status"]) == ["edited"] * 3
    work = step._editor.counters - before
    assert (work.vae_encodes, work.inversions) == (1, 1), "equal pixels are one picture"

    editor = DiffEditor.load(ModelConfig(id=str(tiny_model)), device="cpu")
    requests = [EditRequest(f"row {i}", (SOURCE,), (TARGETS[i],), edit=QUICK) for i in range(3)]
    for number, one in enumerate(editor.edit([ImageEdits(picture, requests)])):
        assert (opened(result["edited_image"][number]) == one.image).all()
        assert ((opened(result["mask_image"][number]) > 0) == one.mask).all()
        assert result["mask_coverage"][number] == one.coverage
        assert result["background_psnr"][number] == one.background_psnr


def test_rows_have_parameters_seeds_and_masks_of_their_own(step: DiffEditBatch) -> None:
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:20, 10:30] = True
    result = step(
        {
            "image": objects(*[pixels()] * 3),
            "source_prompt": objects(*[SOURCE] * 3),
            "target_prompt": objects(TARGETS[0], np.array(TARGETS[:2], dtype=object), TARGETS[0]),
            "mask": objects(None, mask, png(mask.astype(np.uint8) * 255)),
            "seed": np.array([np.nan, 5.0, 5.0]),
            "mask_threshold": np.array([0.9, np.nan, np.nan]),
            "caption": objects(None, "a picture", "a picture"),
        }
    )
    assert list(result["status"]) == ["edited"] * 3
    assert list(result["error_message"]) == [""] * 3
    for number in (1, 2):
        assert ((opened(result["mask_image"][number]) > 0) == mask).all()
    assert (opened(result["mask_image"][0]) > 0).sum() != mask.sum()


def test_the_best_of_several_seeds_by_clip_and_its_distance_by_lpips(
    step: DiffEditBatch, tiny_model: Path, tiny_clip: Path, random_lpips: Path, lpips: Lpips
) -> None:
    model = ModelConfig(id=str(tiny_model))
    scores = ScoresConfig(clip=str(tiny_clip), lpips=str(random_lpips))
    scored = DiffEditBatch(model, QUICK, scores=scores, device="cpu")
    batch = {
        "image": objects(pixels()),
        "source_prompt": objects(SOURCE),
        "target_prompt": objects(TARGETS[0]),
    }
    best = {"num_seeds": objects(3), "keep_best": objects("clip_text")}
    result = scored({**batch, **best})
    assert list(result["status"]) == ["edited"]
    again = scored({**batch, "seed": result["kept_seed"]})
    for name in ("clip_text", "clip_direction", "clip_image"):
        assert result[name] == pytest.approx(again[name], abs=1e-4)
    assert result["clip_text"][0] >= scored(batch)["clip_text"][0] - 1e-4
    pair = lpips.prepare(pixels(), opened(result["edited_image"][0]))
    assert result["lpips"] == pytest.approx(lpips.distances(pair[None]).tolist(), rel=1e-5)
    for name in ("clip_text", "lpips"):
        assert np.isnan(step(batch)[name][0]), "where it is not asked"


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        ({"image": None}, "ImageMissing", "empty"),
        ({"image": "a.png"}, "ImageUnreadable", "read by ray.data.read_images"),
        ({"image": b"no picture"}, "ImageUnreadable", "not a PNG"),
        ({"image": pixels().astype(np.float32)}, "ImageUnreadable", "array of float32 (48, 64, 3)"),
        ({"image": pixels(shape=(4, 4, 2))}, "ImageUnreadable", "expected uint8"),
        ({"mask": b"no picture"}, "ImageUnreadable", "not a PNG"),
        ({"source_prompt": None}, "PromptMissing", "source_prompt is empty"),
        ({"target_prompt": 5}, "InvalidParameter", "target_prompt: expected text"),
        ({"target_prompt": "x" * 9000}, "PromptTooLong", "over 8192 bytes"),
        ({"seed": -1}, "InvalidParameter", "seed: -1"),
        ({"guidance_scale": 0.5}, "InvalidParameter", "guidance_scale"),
        ({"caption_with": "blip"}, "InvalidParameter", "give a column `caption`"),
        ({"num_seeds": 2, "keep_best": "clip_text"}, "InvalidParameter", "needs a CLIP model"),
    ],
)
def test_a_row_that_cannot_be_edited_fails_alone(
    step: DiffEditBatch, cells: dict[str, Any], kind: str, message: str
) -> None:
    good = {"image": pixels(), "source_prompt": SOURCE, "target_prompt": TARGETS[0]}
    names = good | cells
    result = step({name: objects(good.get(name), (good | cells)[name]) for name in names})
    assert list(result["status"]) == ["edited", "failed"]
    assert list(result["error_type"]) == ["", kind]
    assert result["error_stage"][1] in ("manifest", "load")
    assert message in result["error_message"][1]
    assert (result["edited_image"][1], result["mask_image"][1]) == (b"", b"")
    assert np.isnan(result["mask_coverage"][1])
    assert result["mask_coverage"].dtype == np.float64
    assert result["num_truncated_prompts"].dtype == np.int64


def test_grey_and_transparent_arrays_are_pictures_too(step: DiffEditBatch) -> None:
    images = [pixels(shape=(48, 64)), pixels(shape=(48, 64, 1)), pixels(shape=(48, 64, 4))]
    prompts = {f"{side}_prompt": objects(*[SOURCE] * 3) for side in ("source", "target")}
    result = step({"image": objects(*images), **prompts})
    assert list(result["status"]) == ["unchanged"] * 3, "equal prompts change nothing"
    assert {opened(one).shape for one in result["edited_image"]} == {(48, 64, 3)}
    assert (opened(result["edited_image"][0])[:, :, 1] == images[0]).all()


def test_columns_that_are_missing_or_taken_end_the_pipeline(step: DiffEditBatch) -> None:
    batch = {"image": objects(pixels()), "source_prompt": objects(SOURCE), "status": objects("")}
    with pytest.raises(ManifestError) as error:
        step(batch)
    assert "column 'target_prompt' is missing" in str(error.value)
    assert "column 'status' is added here" in str(error.value)


def test_an_empty_batch_stays_empty(step: DiffEditBatch) -> None:
    names = ("image", "source_prompt", "target_prompt")
    result = step({name: np.empty(0, dtype=object) for name in names})
    assert {len(column) for column in result.values()} == {0}


PIPELINE = """
import sys
import ray
from diffedit_batch import DiffEditBatch, EditConfig, ModelConfig

model, source, target, images = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=150 * 2**20)
ray.data.DataContext.get_current().enable_progress_bars = False
step = dict(
    fn_constructor_kwargs={
        "model": ModelConfig(id=model),
        "edit": EditConfig(num_inference_steps=5, num_maps_per_mask=2),
        "device": "cpu",
    },
    compute=ray.data.ActorPoolStrategy(size=1),
    batch_size=3,
)
ray.data.read_parquet(source).map_batches(DiffEditBatch, **step).write_parquet(target)

def ask(row):
    return {**row, "source_prompt": "a star", "target_prompt": "a circle"}

pictures = ray.data.read_images(images, mode="RGB").map(ask).map_batches(DiffEditBatch, **step)
print(*sorted(f"{row['status']} {len(row['image'])}" for row in pictures.take_all()), sep=", ")
"""


@pytest.mark.ray
def test_a_pipeline_goes_on_past_rows_that_fail(tmp_path: Path, tiny_model: Path) -> None:
    """Batches without a failed row, with some, and of nothing else come out with one schema."""
    names = write_pictures(tmp_path / "images", 5)
    files = [(tmp_path / "images" / name).read_bytes() for name in names]
    images = [*files[:3], b"broken", files[3], None, b"a", b"b", b"c"]
    rows = [
        {"id": str(number), "image": image, "source_prompt": SOURCE, "target_prompt": TARGETS[0]}
        for number, image in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    Image.fromarray(pixels(shape=(48, 64, 3))).save(tmp_path / "images" / "lower.png")
    places = (tmp_path / name for name in ("rows.parquet", "edited", "images"))
    arguments = [str(tiny_model), *map(str, places)]
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", PIPELINE, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = ", ".join(["edited 48", *["edited 64"] * 5])
    assert done.stdout.splitlines()[-1] == expected, "arrays of two sizes"
    tables = [pq.ParquetFile(path).read() for path in (tmp_path / "edited").glob("*.parquet")]
    assert len({str(table.schema.remove_metadata()) for table in tables}) == 1
    table = pa.concat_tables(tables)
    assert table.schema.field("edited_image").type == pa.binary()
    assert table.schema.field("error_message").type in (pa.string(), pa.large_string())
    found = {row["id"]: row for row in table.to_pylist()}
    statuses = [found[str(number)]["status"] for number in range(9)]
    assert statuses == ["edited"] * 3 + ["failed", "edited"] + ["failed"] * 4
    assert found["3"]["error_type"] == "ImageUnreadable"
    assert found["5"]["error_type"] == "ImageMissing"
    for row in found.values():
        if row["status"] == "edited":
            assert opened(row["edited_image"]).shape == (64, 64, 3)
            assert (opened(row["mask_image"]) > 0).mean() == pytest.approx(row["mask_coverage"])
        else:
            assert row["edited_image"] == row["mask_image"] == b""
