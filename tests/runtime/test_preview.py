"""Previews: what is sampled, what is swept, and that the real output stays as it is."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_worker import FakeWorker
from jobs_on_disk import SOURCE, edits_of, job, tree_bytes, write_manifest, write_pictures

from diffedit_batch.config import JobConfig
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError, OutputHeldError
from diffedit_batch.runtime import driver
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.preview import SELECTION, Preview, make_preview
from diffedit_batch.runtime.records import RunState
from diffedit_batch.schema import RESULT_SCHEMA

SWEEP = ["edit.mask_threshold=0.3,0.6"]


def manifest_of(preview: Preview) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(preview.config.input.manifest).read().to_pylist()
    return rows


def ids(preview: Preview) -> list[str]:
    return [row["id"] for row in manifest_of(preview)]


def run(preview: Preview) -> RunState:
    return run_job(preview.config, selection=SELECTION)


def preview_results(config: JobConfig) -> dict[str, dict[str, Any]]:
    folder = Path(config.output.preview_uri) / "results"
    rows = [row for part in folder.iterdir() for row in pq.ParquetFile(part).read().to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """A job of eight rows."""
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 4), per_picture=2))
    return job(tmp_path, Path("demo"))


def test_a_row_stands_there_once_for_every_value(config: JobConfig) -> None:
    preview = make_preview(config, 3, sweeps=[*SWEEP, "seed=5,6"])
    assert (preview.num_rows, preview.num_variants) == (3, 4)
    rows = manifest_of(preview)
    assert len(rows) == 12
    assert rows[1] == {
        **rows[0],
        "id": f"{rows[0]['variant_of']} mask_threshold=0.3, seed=6",
        "variant": "mask_threshold=0.3, seed=6",
        "seed": 6,
    }
    assert {row["mask_threshold"] for row in rows} == {0.3, 0.6}
    assert rows[0]["source_prompt"] == SOURCE
    assert rows[0]["note"] == f"about {rows[0]['image']}"


def test_without_a_sweep_rows_are_as_they_were(config: JobConfig, tmp_path: Path) -> None:
    preview = make_preview(config, 8)
    before = pq.ParquetFile(tmp_path / "manifest.parquet").read()
    assert pq.ParquetFile(preview.config.input.manifest).read().equals(before)


@pytest.mark.parametrize("name", ["mask_threshold", "edit.mask_threshold", "cut"])
def test_a_sweep_wins_over_a_column_whatever_its_name(tmp_path: Path, name: str) -> None:
    rows = edits_of(write_pictures(tmp_path, 2))
    for row in rows:
        del row["id"]
        row["name"], row[name] = f"row {row['image']}", 0.9
    write_manifest(tmp_path, rows)
    columns = {"id": "name", **({"mask_threshold": "cut"} if name == "cut" else {})}
    config = job(tmp_path, Path("demo"), input={"columns": columns})
    rows = manifest_of(make_preview(config, 1, sweeps=SWEEP))
    assert [row[name] for row in rows] == [0.3, 0.6]
    assert rows[0]["name"].endswith(".png mask_threshold=0.3")
    assert rows[0].keys() == {
        *("image", "source_prompt", "target_prompt", "note", "name", name, "variant_of", "variant")
    }


def test_derived_ids_stay_what_they_are(tmp_path: Path) -> None:
    rows = edits_of(write_pictures(tmp_path, 3))
    for row in rows:
        del row["id"]
    write_manifest(tmp_path, rows)
    config = job(tmp_path, Path("demo"))
    preview = make_preview(config, 3, sweeps=SWEEP)
    found = [row["variant_of"] for row in manifest_of(preview)]
    assert found[0] == found[1] != found[2]
    assert found[0].startswith("000-")


@pytest.mark.parametrize("name", ["variant", "variant_of"])
def test_a_column_in_the_way_of_a_sweep(tmp_path: Path, name: str) -> None:
    rows = edits_of(write_pictures(tmp_path, 1))
    write_manifest(tmp_path, [{**rows[0], name: "x"}])
    config = job(tmp_path, Path("demo"))
    make_preview(config, 1)
    with pytest.raises(ConfigError, match=f"column '{name}' is what a sweep calls its own"):
        make_preview(config, 1, sweeps=SWEEP)


def test_a_whole_bucket_leaves_no_place(config: JobConfig) -> None:
    config = config.model_copy(
        update={"output": config.output.model_copy(update={"uri": "memory://bucket/"})}
    )
    with pytest.raises(ConfigError, match="leaves no place beside it"):
        make_preview(config, 1)


def test_a_preview_at_work_is_not_disturbed(config: JobConfig) -> None:
    with hold_lease(Storage(config.output.preview_uri), "run"), pytest.raises(OutputHeldError):
        make_preview(config, 1)
    assert not (Path(config.output.preview_uri) / "manifest.parquet").exists()


def test_corrected_prompts_hold_in_the_preview_too(tmp_path: Path) -> None:
    [row] = edits_of(write_pictures(tmp_path, 1))
    row["target_concept"] = "star"
    del row["target_prompt"]
    write_manifest(tmp_path, [row])
    config = job(tmp_path, Path("demo"), prompts={"id": "demo"})
    (tmp_path / "output").mkdir()
    corrected = pa.table({"concept": ["star"], "prompts": [["a star by hand"]]})
    pq.write_table(corrected, tmp_path / "output" / "prompts.parquet")
    preview = make_preview(config, 1)
    copied = Path(preview.config.output.uri) / "prompts.parquet"
    assert copied.read_bytes() == (tmp_path / "output" / "prompts.parquet").read_bytes()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
class TestRuns:
    def test_a_rerun_does_what_is_new_and_drops_what_is_gone(
        self, config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "Worker", FakeWorker)
        run_job(config)
        real = tree_bytes(tmp_path)
        state = run(make_preview(config, 2, sweeps=SWEEP))
        assert state.selected["new"] == 4
        assert not run(make_preview(config, 2, sweeps=SWEEP)).counts, "nothing to do"
        wider = make_preview(config, 2, sweeps=["edit.mask_threshold=0.1,0.3"])
        state = run(wider)
        assert (state.selected["new"], state.selected["unchanged"]) == (2, 2)
        assert state.selected["pruned"] == 2
        assert preview_results(config).keys() == set(ids(wider))
        plain = make_preview(config, 2)
        run(plain)
        assert preview_results(config).keys() == set(ids(plain))
        assert tree_bytes(tmp_path) == real, "the output itself is not touched"

    def test_failures_are_shown_and_stop_nothing(
        self, config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "Worker", FakeWorker)
        rows = edits_of(write_pictures(tmp_path, 2))
        write_manifest(tmp_path, [{**row, "target_prompt": "fail"} for row in rows])
        state = run(make_preview(config, 2))
        assert state.counts == {"failed": 2}

    def test_images_in_the_manifest_and_every_value_for_real(
        self, tmp_path: Path, tiny_model: Path
    ) -> None:
        """With a real model, whose results differ where the values do."""
        rows = edits_of(write_pictures(tmp_path, 2))
        for row in rows:
            path = row["image"]
            row["image"] = {"bytes": (tmp_path / path).read_bytes(), "path": path}
        write_manifest(tmp_path, rows)
        config = job(tmp_path, tiny_model)
        preview = make_preview(config, 2, sweeps=["edit.mask_threshold=0.2,0.9"])
        state = run(preview)
        assert state.counts == {"edited": 4}
        assert state.counters.inversions == state.counters.vae_encodes == 2, "shared by variants"
        found = preview_results(config)
        for row_id in ("000-0", "001-0"):
            low, high = (found[f"{row_id} mask_threshold={value}"] for value in (0.2, 0.9))
            assert (low["mask_threshold"], high["mask_threshold"]) == (0.2, 0.9)
            assert low["mask_coverage"] > high["mask_coverage"]
            assert low["variant_of"] == high["variant_of"] == row_id
        assert set(RESULT_SCHEMA.names) < low.keys()
        assert not (tmp_path / "output").exists()
