from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from diffedit_batch.config import load_config
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.demo.manifest import NUM_ROWS, demo_job, write_demo_manifest

ROOT = Path(__file__).parents[2]


def test_the_demo_manifest_is_one_the_job_accepts_whole(tmp_path: Path) -> None:
    path = write_demo_manifest(tmp_path)
    config = demo_job(path, tmp_path / "output")
    rows = list(Manifest(config, "model").rows())
    assert len(rows) == NUM_ROWS >= 48
    assert all(row.error is None for row in rows)
    kinds = Counter(pq.ParquetFile(path).read().column("kind").to_pylist())
    assert set(kinds) == {"recolour", "reshape", "replace", "background", "remove"}


def test_the_demo_run_again_finds_its_rows_unchanged(tmp_path: Path) -> None:
    def fingerprints() -> list[str]:
        path = write_demo_manifest(tmp_path)
        config = demo_job(path, tmp_path / "output")
        return [row.fingerprint for row in Manifest(config, "model").rows()]

    assert fingerprints() == fingerprints()


def test_the_config_file_of_the_demo_is_its_job() -> None:
    config = load_config(ROOT / "configs/demo.yaml")
    manifest, output = Path(config.input.manifest), Path(config.output.uri)
    assert demo_job(manifest, output) == config
