"""Rendered scenes and edits of them, to try the job on."""

import itertools
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import encode_png
from diffedit_batch.demo.scenes import (
    CHANGE_KINDS,
    VALIDATION_SEEDS,
    ChangeKind,
    SceneSpec,
    caption,
    edit,
    render,
    sample_change,
    sample_scene,
)

NUM_ROWS = 48
_NUM_BY_CONCEPT = 8
_CHANGES_OF_CONCEPT: tuple[ChangeKind, ...] = ("recolour", "reshape")
_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in (
            *("id", "image", "source_prompt", "target_prompt"),
            *("source_concept", "target_concept", "caption_with", "kind"),
        )
    ]
)


def write_demo_manifest(folder: Path) -> Path:
    """Render scenes under `folder` and write a manifest of edits of every kind; return its path.

    Most rows have prompts, some are given by concept; the images of some are captioned.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    num_scenes = (NUM_ROWS - _NUM_BY_CONCEPT) // len(CHANGE_KINDS)
    rows: list[dict[str, str]] = []
    # "Remove" needs something to remain, for the prompt to name.
    for number, (seed, scene) in enumerate(_find_scenes(num_objects=2, count=num_scenes)):
        for kind in CHANGE_KINDS:
            after = edit(scene, sample_change(scene, kind, seed))
            rows.append(
                {
                    **_show(folder, seed, scene, kind),
                    "source_prompt": caption(scene),
                    "target_prompt": caption(after),
                    "caption_with": "blip" if number % 2 else "source_prompt",
                }
            )
    single = _find_scenes(num_objects=1, count=_NUM_BY_CONCEPT)
    for (seed, scene), kind in zip(single, itertools.cycle(_CHANGES_OF_CONCEPT), strict=False):
        after = edit(scene, sample_change(scene, kind, seed))
        rows.append(
            {
                **_show(folder, seed, scene, kind),
                "source_concept": _name_object(scene),
                "target_concept": _name_object(after),
                "caption_with": "blip",
            }
        )
    path = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)
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


def _find_scenes(num_objects: int, count: int) -> list[tuple[int, SceneSpec]]:
    """The first validation scenes of so many objects, with their seeds."""
    scenes = ((seed, sample_scene(seed)) for seed in VALIDATION_SEEDS)
    return list(islice((s for s in scenes if len(s[1].objects) == num_objects), count))


def _show(folder: Path, seed: int, scene: SceneSpec, kind: ChangeKind) -> dict[str, str]:
    """Write the picture of a row; returns what says which row it is."""
    name = f"images/scene-{seed}.png"
    _write_if_new(folder / name, encode_png(render(scene)))
    return {"id": f"{seed}-{kind}", "image": name, "kind": kind}


def _name_object(scene: SceneSpec) -> str:
    [one] = scene.objects
    return f"{one.color} {one.shape}"


def _write_if_new(path: Path, data: bytes) -> None:
    """A picture written again would count as changed, and its edits would be done again."""
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
