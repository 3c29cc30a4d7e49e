"""Rendered scenes and edits of them, to try the job on."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import encode_png
from diffedit_batch.demo.scenes import (
    CHANGE_KINDS,
    VALIDATION_SEEDS,
    caption,
    edit,
    render,
    sample_change,
    sample_scene,
)

NUM_ROWS = 48


def write_demo_manifest(folder: Path) -> Path:
    """Render scenes under `folder` and write a manifest of edits of every kind; return its path."""
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    seed = VALIDATION_SEEDS.start
    while len(rows) < NUM_ROWS:
        scene = sample_scene(seed)
        # "Remove" needs something to remain, for the prompt to name.
        if len(scene.objects) == 2:
            name = f"scene-{seed}.png"
            _write_if_new(pictures / name, encode_png(render(scene)))
            for kind in CHANGE_KINDS[: NUM_ROWS - len(rows)]:
                after = edit(scene, sample_change(scene, kind, seed))
                rows.append(
                    {
                        "id": f"{seed}-{kind}",
                        "image": f"images/{name}",
                        "source_prompt": caption(scene),
                        "target_prompt": caption(after),
                        "kind": kind,
                    }
                )
        seed += 1
    path = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def demo_job(manifest: Path, output: Path) -> JobConfig:
    """The job of the demo, as in `configs/demo.yaml`: the embedded models, on the CPU."""
    return JobConfig.model_validate(
        {
            "model": {"id": "demo"},
            "prompts": {"id": "demo"},
            "captions": {"id": "demo"},
            "input": {"manifest": str(manifest)},
            "output": {"uri": str(output)},
            "cluster": {"gpus_per_worker": 0.0, "workers": 1},
        }
    )


def _write_if_new(path: Path, data: bytes) -> None:
    """A picture written again would count as changed, and its edits would be done again."""
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
