"""A worker's speed, measured by editing a few rows here without writing anything."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diffedit_batch.config import JobConfig
from diffedit_batch.data.images import read_mask, read_picture
from diffedit_batch.errors import ConfigError, ManifestError, RowError
from diffedit_batch.runtime.evaluations import with_stand_ins
from diffedit_batch.runtime.sample import sample_rows
from diffedit_batch.runtime.speed import Speed
from diffedit_batch.schema import EditRequest

if TYPE_CHECKING:
    from diffedit_batch.engine.editor import DiffEditor
    from diffedit_batch.engine.requests import ImageEdits

NUM_ROWS = 16


def calibrate(
    config: JobConfig, num_workers: int, *, where: str | None = None, limit: int | None = None
) -> Speed:
    """The speed of an editor that edits a sample of the rows on one device of this machine.

    A few rows fill network calls less well than many do: a long run is rather faster.

    Args:
        config: the job.
        num_workers: that would share the cores of this machine, where they compute on CPUs.
        where: as of `Selection`.
        limit: as of `Selection`.

    Raises:
        ConfigError: this machine has no GPU, and the job asks for one.
        ManifestError: there is no row to edit.
        ModelError: the model cannot be loaded or used.
    """
    import torch

    from diffedit_batch.engine.editor import DiffEditor
    from diffedit_batch.engine.reviewing import Reviewer

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--calibrate",
            [
                "edits on this machine, which has no GPU; call it where the workers will run, or"
                " set cluster.gpus_per_worker to 0"
            ],
        )
    sample = sample_rows(config, NUM_ROWS, where=where, limit=limit)
    requests = [with_stand_ins(row.request) for row in sample.rows if row.request is not None]
    edits = list(_read(config, requests))
    if not edits:
        problem = f"none of the {len(requests)} rows tried has an image that can be read"
        raise ManifestError(f"manifest {sample.manifest.uri}", [problem])
    if config.device == "cpu":
        cores = (os.cpu_count() or 1) // num_workers
        torch.set_num_threads(config.cluster.threads_per_worker or max(1, cores))
    started = time.perf_counter()
    editor = DiffEditor.load(
        config.model,
        device=config.device,
        batch_size=config.engine.batch_size,
        vae_batch_size=config.engine.vae_batch_size,
        size_multiple=config.input.size_multiple,
        reviewer=Reviewer.load(config.scores, config.checked_model, device=config.device),
    )
    load_seconds = time.perf_counter() - started
    _edit(editor, edits[:1])  # what a device does only once
    evals = editor.counters.unet_evals
    seconds = _edit(editor, edits)
    evals = editor.counters.unet_evals - evals
    num_rows = sum(len(one.requests) for one in edits)
    if not evals:
        problem = f"none of the {num_rows} rows tried needs the network"
        raise ManifestError(f"manifest {sample.manifest.uri}", [problem])
    return Speed(seconds / evals, load_seconds, num_rows, "this calibration")


def _read(config: JobConfig, requests: Sequence[EditRequest]) -> Iterator["ImageEdits"]:
    """The rows with their pictures, image by image; without those that cannot be read."""
    from diffedit_batch.engine.requests import ImageEdits

    limits = {"max_bytes": config.input.max_bytes, "max_pixels": config.input.max_pixels}
    groups: dict[object, list[EditRequest]] = {}
    for request in requests:
        groups.setdefault(request.image, []).append(request)
    for group in groups.values():
        assert group[0].image is not None
        try:
            picture = read_picture(group[0].image, **limits)
            masks = {r.id: read_mask(r.mask, **limits) for r in group if r.mask is not None}
        except RowError:
            continue
        yield ImageEdits(picture, group, masks)


def _edit(editor: "DiffEditor", edits: Sequence["ImageEdits"]) -> float:
    """Seconds that a worker's device would be busy with these edits."""
    prepared = [editor.prepare(one) for one in edits]
    started = time.perf_counter()
    for one in prepared:
        editor.submit(one)
    while editor.num_active:
        editor.step()
    return time.perf_counter() - started
