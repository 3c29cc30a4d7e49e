"""What is measured: a model, and edits for it to do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from diffedit_batch.benchmark.timing import check_device
from diffedit_batch.config import EditConfig, ModelConfig
from diffedit_batch.core.mask import rescale
from diffedit_batch.demo.scenes import COLORS, GROUNDS, SHAPES
from diffedit_batch.engine.editor import DiffEditor
from diffedit_batch.engine.requests import EditResult, ImageEdits
from diffedit_batch.errors import ConfigError, ModelError, RowError
from diffedit_batch.models.architectures import ARCHITECTURES
from diffedit_batch.models.components import Components
from diffedit_batch.models.flops import PartFlops, count_flops
from diffedit_batch.models.identity import identify
from diffedit_batch.models.untrained import random_pipeline, read_architecture
from diffedit_batch.schema import EditRequest

MODELS = (*ARCHITECTURES, "demo")
"""The true shapes of what people edit with, filled with random weights, and the embedded model."""

COMPILE_MODES = ("off", "full")
"""Values of `engine.compile` that leave nothing to be decided."""

MASK_AREA = 0.25
"""Share of a picture that masks cover."""


@dataclass(frozen=True)
class Subject:
    """A model on a device.

    Attributes:
        name: one of `MODELS`.
        device: where.
        compile_mode: one of `COMPILE_MODES`, for its editors.
        pipeline: its parts as diffusers holds them.
        components: the same as the engine uses them.
        flops: of each part, for one image of its size.
    """

    name: str
    device: str
    compile_mode: str
    pipeline: StableDiffusionPipeline
    components: Components
    flops: PartFlops


def load_subject(
    name: str, device: str, *, compile_mode: str = "off", is_vae_half: bool = False
) -> Subject:
    """A model on a device, in the numbers a job uses there: float16 on a GPU, float32 on a CPU.

    Args:
        name: one of `MODELS`.
        device: `cuda` or `cpu`.
        compile_mode: a value of `engine.compile`.
        is_vae_half: the VAE in the numbers of the UNet, as in the reference; else in float32.

    Raises:
        ConfigError: there is no such model or device.
        ModelError: it does not fit on the device.
    """
    check_device(device)
    if name not in MODELS:
        raise ConfigError(f"model {name!r}", [f"choose from {', '.join(MODELS)}"])
    if compile_mode not in COMPILE_MODES:
        raise ConfigError(f"compile {compile_mode!r}", [f"choose from {', '.join(COMPILE_MODES)}"])
    dtype = torch.float16 if device == "cuda" else torch.float32
    vae_dtype = dtype if is_vae_half else torch.float32
    source = Path(identify(ModelConfig(id="demo")).source)
    architecture = read_architecture(source) if name == "demo" else ARCHITECTURES[name]
    try:
        if name == "demo":
            pipeline = StableDiffusionPipeline.from_pretrained(
                source, dtype=dtype, use_safetensors=True, local_files_only=True
            )
            if vae_dtype != dtype:
                pipeline.vae.to(vae_dtype)
            pipeline.to(device)
        else:
            pipeline = random_pipeline(architecture, device, dtype, vae_dtype)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"model {name!r} does not fit on {device}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    flops = count_flops(architecture)
    return Subject(name, device, compile_mode, pipeline, Components(pipeline), flops)


def make_editor(subject: Subject, batch_size: int) -> DiffEditor:
    """An editor as a worker has it.

    Args:
        subject: its model.
        batch_size: network evaluations in a call.

    Raises:
        ModelError: its calls cannot be compiled.
    """
    editor = DiffEditor(
        subject.components,
        batch_size=batch_size,
        vae_batch_size=8 if subject.device == "cuda" else 1,
    )
    if subject.compile_mode == "full":
        torch.compiler.reset()  # torch keeps graphs of a few sizes only
        editor.compile()
    return editor


def make_edits(
    subject: Subject, num_images: int, edits_per_image: int, edit: EditConfig
) -> list[ImageEdits]:
    """Edits of pictures of noise, each with prompts of its own that the tokenizer knows."""
    side = subject.components.resolution
    rng = np.random.default_rng(0)
    texts = [f"a {c} {s} on {g}" for c, s, g in product(COLORS, SHAPES, GROUNDS)]
    edits = []
    for image in range(num_images):
        picture = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
        requests = [
            EditRequest(
                f"{image}-{number}",
                (texts[image % len(texts)],),
                (texts[(image + 1 + number) % len(texts)],),
                edit=edit,
            )
            for number in range(edits_per_image)
        ]
        edits.append(ImageEdits(picture, requests))
    return edits


def with_mask_area(editor: DiffEditor, edits: list[ImageEdits]) -> list[ImageEdits]:
    """The same edits, with thresholds at which every mask covers `MASK_AREA` of its picture.

    A random network finds masks of any size, and an empty one would end its edit early. The masks
    are still searched for: this only moves the cut, having looked at the maps.
    """
    # One step of inversion and one of denoising: the maps are all that is looked at.
    brief = [
        _with_requests(
            one, lambda r: {"inpaint_strength": min(1.5 / r.edit.num_inference_steps, 1)}
        )
        for one in edits
    ]
    thresholds = {result.request.id: _threshold(result) for result in done(editor.edit(brief))}
    return [_with_requests(one, lambda r: {"mask_threshold": thresholds[r.id]}) for one in edits]


def done(results: Iterable[EditResult]) -> list[EditResult]:
    """Results that are all edited.

    Raises:
        RowError: one is not, so that its time would say nothing.
    """
    results = list(results)
    for result in results:
        if result.error is not None:
            raise result.error
        if result.status != "edited":
            raise RowError("edit", "EmptyMask", f"{result.request.id}: no mask, so nothing to edit")
    return results


def _with_requests(
    edits: ImageEdits, values: Callable[[EditRequest], dict[str, object]]
) -> ImageEdits:
    """The same edits with some parameters replaced, request by request."""
    requests = [replace(r, edit=r.edit.override(values(r))) for r in edits.requests]
    return replace(edits, requests=requests)


def _threshold(result: EditResult) -> float:
    """The `mask_threshold` at which the mask covers `MASK_AREA`."""
    edit = result.request.edit
    assert result.difference is not None
    scaled = rescale(torch.from_numpy(result.difference), "minmax", edit.mask_thresholding_ratio)
    return float(scaled.flatten().quantile(1 - MASK_AREA))
