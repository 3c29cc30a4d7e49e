from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from diffedit_batch.config import load_config
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.demo.manifest import NUM_ROWS, demo_job, write_demo_manifest
from diffedit_batch.runtime.wanted import open_generated

ROOT = Path(__file__).parents[2]


def open_rows(folder: Path) -> list[ManifestRow]:
    config = demo_job(write_demo_manifest(folder), folder / "output")
    generated = open_generated(config, Storage(config.output.uri))
    return list(Manifest(config, "model", generated).rows())


def test_the_demo_manifest_is_one_the_job_accepts_whole(tmp_path: Path) -> None:
    rows = open_rows(tmp_path)
    assert len(rows) == NUM_ROWS >= 48
    assert all(row.error is None for row in rows)
    missing = {text for row in rows for text in row.missing}
    assert Counter(name for name, _ in missing) == {"prompts": 12, "captions": 12}
    path = tmp_path / "manifest.parquet"
    kinds = Counter(pq.ParquetFile(path).read().column("kind").to_pylist())
    assert set(kinds) == {"recolour", "reshape", "replace", "background", "remove"}


def test_the_demo_run_again_finds_its_rows_unchanged(tmp_path: Path) -> None:
    first, again = open_rows(tmp_path), open_rows(tmp_path)
    assert [row.fingerprint for row in first] == [row.fingerprint for row in again]


def test_the_config_file_of_the_demo_is_its_job() -> None:
    config = load_config(ROOT / "configs/demo.yaml")
    manifest, output = Path(config.input.manifest), Path(config.output.uri)
    assert demo_job(manifest, output) == config
