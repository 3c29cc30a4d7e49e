"""A job to measure: rendered scenes, a manifest of edits of them, a model, all in one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from diffedit_batch.benchmark.subject import load_subject
from diffedit_batch.benchmark.timing import free_memory
from diffedit_batch.config import EditConfig, JobConfig
from diffedit_batch.data.images import encode_png
from diffedit_batch.engine.pixels import Picture, resize
from diffedit_batch.errors import ConfigError
from diffedit_batch.evaluation.items import Item, sample_items


@dataclass(frozen=True)
class Job:
    """A job that is ready to run.

    Attributes:
        config: as `run_job` takes it; one worker.
        items: what its rows ask for.
        side: of its pictures, in pixels.
    """

    config: JobConfig
    items: Sequence[Item]
    side: int

    def picture(self, item: Item) -> Picture:
        """The picture of a row."""
        return resize(item.source, (self.side, self.side))

    def path(self, item: Item) -> Path:
        """Where it is."""
        return Path(self.config.input.manifest).parent / "images" / f"{item.id}.png"

    def writing_to(self, output: Path) -> JobConfig:
        """The config with another output folder."""
        uri = self.config.output.model_copy(update={"uri": str(output)})
        return self.config.model_copy(update={"output": uri})


def write_job(
    folder: Path,
    model: str,
    device: str,
    *,
    num_rows: int,
    batch_size: int | None,
    compile_mode: str,
    edit: EditConfig | None = None,
) -> Job:
    """Write all files of a job under `folder`.

    Args:
        folder: where.
        model: one of `subject.MODELS`; but for the embedded one it is written, too.
        device: `cuda` or `cpu`.
        num_rows: edits, each of a picture of its own.
        batch_size: `engine.batch_size`.
        compile_mode: `engine.compile`.
        edit: parameters; None: the defaults.

    Raises:
        ConfigError: there is no such model or device, or a number is not positive.
    """
    if num_rows < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError("benchmark of the job", ["rows and batch size are at least 1"])
    subject = load_subject(model, device, compile_mode=compile_mode)
    side = subject.components.resolution
    if model != "demo":
        subject.pipeline.save_pretrained(folder / "model", safe_serialization=True)
    del subject
    free_memory()
    items = sample_items("validation", -(-num_rows // 5), with_empty_goals=False)[:num_rows]
    is_gpu = device == "cuda"
    config = JobConfig.model_validate(
        {
            "model": {"id": "demo" if model == "demo" else str(folder / "model")},
            "edit": (edit or EditConfig()).resolved(),
            "input": {"manifest": str(folder / "manifest.parquet")},
            "output": {"uri": str(folder / "output")},
            "engine": {"batch_size": batch_size, "compile": compile_mode},
            "cluster": {
                "address": "local",
                "workers": 1,
                "gpus_per_worker": 1.0 if is_gpu else 0.0,
                # As many as this process has: what is compared with the job runs here.
                "threads_per_worker": None if is_gpu else torch.get_num_threads(),
            },
        }
    )
    job = Job(config, items, side)
    (folder / "images").mkdir()
    rows = []
    for item in items:
        job.path(item).write_bytes(encode_png(job.picture(item)))
        rows.append(
            {
                "id": item.id,
                "image": str(job.path(item).relative_to(folder)),
                "source_prompt": item.source_prompt,
                "target_prompt": item.target_prompt,
                "seed": item.seed,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return job
