"""Small jobs for tests: pictures, manifests and configs in a folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from diffedit_batch.config import JobConfig

SOURCE = "a red circle on grass"
TARGETS = ("a blue circle on grass", "a red star on grass", "a red circle on sand")


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> list[str]:
    """Write random pictures; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{number:03d}.png" for number in range(count)]
    for name in names:
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return names


def edits_of(names: list[str], per_picture: int = 1) -> list[dict[str, Any]]:
    """Manifest rows: edits of each picture, ids like `000-1`."""
    return [
        {
            "id": f"{Path(name).stem}-{number}",
            "image": name,
            "source_prompt": SOURCE,
            "target_prompt": TARGETS[number],
            "note": f"about {name}",
        }
        for name in names
        for number in range(per_picture)
    ]


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the manifest of a folder."""
    path = folder / "manifest.parquet"
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, path)
    return path


def job(folder: Path, model: Path, **sections: dict[str, Any]) -> JobConfig:
    """A quick job on the CPU over the manifest of a folder."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"id": str(model)},
        "edit": {"num_inference_steps": 5, "num_maps_per_mask": 2},
        "input": {"manifest": str(folder / "manifest.parquet")},
        "output": {"uri": str(folder / "output")},
        "cluster": {"gpus_per_worker": 0.0, "workers": 1, "threads_per_worker": 1},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return JobConfig.model_validate(tree)


def write_config(config: JobConfig, folder: Path) -> Path:
    """Write a job as its config file in a folder."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()))
    return path


def results(folder: Path) -> list[dict[str, Any]]:
    """All result rows of the output of a folder, by id."""
    parts = sorted((folder / "output" / "results").glob("*.parquet"))
    rows = [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]
    return sorted(rows, key=lambda row: str(row["id"]))


def check_output(folder: Path, num_rows: int) -> list[dict[str, Any]]:
    """All result rows by id, after a look at what must hold of every finished output, whatever
    happened on the way.
    """
    rows = results(folder)
    assert len(rows) == len({row["id"] for row in rows}) == num_rows
    output = folder / "output"
    success = json.loads((output / "_SUCCESS").read_text())
    assert success["num_rows"] == num_rows == sum(success["counts"].values())
    assert set(success["parts"]) == {path.name for path in (output / "results").iterdir()}
    listed = set()
    for row in rows:
        kinds = ("edited", "mask", "map")
        files = {row[f"{name}_file_name"]: row[f"{name}_sha256"] for name in kinds}
        has_none = row["status"] == "failed" or row["width"] is None
        assert [bool(row[f"{name}_file_name"]) for name in kinds[:2]] == [not has_none] * 2
        assert bool(row["map_file_name"]) == (row["map_max"] is not None)
        for name, digest in files.items():
            if name:
                listed.add(name)
                assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest
                assert picture(output, name).shape[:2] == (row["height"], row["width"])
    on_disk = {
        p.relative_to(output)
        for d in ("edited", "masks", "maps")
        for p in (output / d).rglob("*.png")
    }
    assert {str(path) for path in on_disk} == listed
    [lease] = (output / "_diffedit").rglob("*.*")  # and nothing temporary
    assert json.loads(lease.read_text())["is_released"]
    return rows


def picture(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of a file under a folder."""
    return np.array(Image.open(folder / name))


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of an output that a rerun must leave alone."""
    output = folder / "output"
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }
