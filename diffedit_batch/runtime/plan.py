"""What a run would do, counted without starting a model."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from diffedit_batch.config import JobConfig
from diffedit_batch.data.ledger import read_json
from diffedit_batch.data.storage import Storage
from diffedit_batch.models.identity import identify
from diffedit_batch.runtime.backlog import Backlog
from diffedit_batch.runtime.selection import UNDONE, VERDICTS, Selection
from diffedit_batch.runtime.survey import Survey
from diffedit_batch.runtime.wanted import Wanted
from diffedit_batch.schema import EditRequest


@dataclass
class Plan:
    """What a run would do.

    Attributes:
        num_rows: rows of the manifest (of the limit, if there is one).
        selected: rows by what a run makes of them, see `runtime.selection.VERDICTS`.
        num_to_edit: rows that would be edited.
        num_images: distinct images among them.
        num_concepts: concepts for which prompts would be generated.
        num_captions: images that would be captioned.
        num_refused: rows that would fail without being tried.
        refusals: those by `stage/type`.
        examples: one message of each kind.
        unet_evals: network evaluations, at most: rows whose mask turns out empty need fewer.
        seconds_per_eval: of one worker in the newest finished run of this output, if there is one.
    """

    num_rows: int = 0
    selected: Counter[str] = field(default_factory=Counter)
    num_to_edit: int = 0
    num_images: int = 0
    num_concepts: int = 0
    num_captions: int = 0
    num_refused: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unet_evals: int = 0
    seconds_per_eval: float | None = None

    def worker_hours(self) -> float | None:
        """Hours of one worker, or None where no earlier run tells its speed."""
        if self.seconds_per_eval is None:
            return None
        return self.unet_evals * self.seconds_per_eval / 3600


def plan_job(config: JobConfig, *, selection: Selection = UNDONE) -> Plan:
    """The plan of a job. Raises DiffEditError where the job would not start."""
    config = config.with_absolute_paths()
    model = identify(config.model)
    storage = Storage(config.output.uri)
    selector = Survey(config, selection, storage, model).selector
    plan = Plan(num_rows=selector.num_rows, seconds_per_eval=_last_speed(storage))
    images: set[str] = set()
    wanted = Wanted()

    def requests() -> Iterator[tuple[str, EditRequest]]:
        for row, verdict, _ in selector.rows():
            plan.selected[verdict] += 1
            if verdict == "unchanged":
                continue
            if row.error is not None:
                kind = f"{row.error.stage}/{row.error.kind}"
                plan.num_refused += 1
                plan.refusals[kind] += 1
                plan.examples.setdefault(kind, f"row {row.id!r}: {row.error}")
            else:
                assert row.request is not None
                plan.num_to_edit += 1
                images.add(row.group)
                wanted.add(row)
                yield row.group, _with_stand_ins(row.request)

    backlog = Backlog(requests(), config.bundle_rows, num_workers=1)
    while backlog.peek() is not None:
        for group in backlog.pop().groups:
            shared: set[Any] = set()
            plan.unet_evals += sum(
                _count_evals(candidate, shared)
                for request in group
                for candidate in request.candidates(has_mask=request.mask is not None)
            )
    plan.selected["pruned"] = selector.num_to_prune()
    plan.num_images = len(images)
    plan.num_concepts, plan.num_captions = len(wanted.prompts), len(wanted.captions)
    return plan


def _with_stand_ins(request: EditRequest) -> EditRequest:
    """The request with something in place of every text that is still to be generated: equal where
    the texts will be equal, which is all that counts here.
    """
    caption = request.caption
    if request.edit.caption_with == "blip" and not caption:
        caption = ("a caption",)
    return replace(
        request,
        source_prompt=request.source_prompt or (f"about {request.source_concept}",),
        target_prompt=request.target_prompt or (f"about {request.target_concept}",),
        caption=caption,
    )


def _count_evals(request: EditRequest, shared: set[Any]) -> int:
    """Network evaluations of one row, beyond what earlier rows of its group already paid for.

    `shared` collects what they paid for, by what `core.diffedit` asks for once.
    """
    if request.source_prompt == request.target_prompt:
        return 0
    edit = request.edit
    is_reference = edit.preset == "diffusers"
    top = int(edit.num_inference_steps * edit.inpaint_strength)
    inversion_scale = edit.inversion_guidance_scale or 1.0
    count = top * (1 if edit.guidance_scale == 1 else 2)
    inversion = (
        "inversion",
        request.inversion_text,
        inversion_scale,
        edit.inversion_timestep,
        request.seed if is_reference else None,
        edit.num_inference_steps,
        top,
    )
    if inversion not in shared:
        shared.add(inversion)
        count += top * (1 if inversion_scale == 1 else 2)
    if request.mask is not None:
        return count
    cancels = request.source_negative_text == request.negative_text or edit.guidance_scale == 1
    half = edit.num_maps_per_mask * (1 if cancels else 2)
    level = int(edit.num_inference_steps * (edit.mask_encode_strength or 0.0))
    source = (
        "source",
        request.source_prompt,
        None if cancels else (request.source_negative_text, edit.guidance_scale),
        request.seed,
        edit.num_maps_per_mask,
        is_reference,
        edit.num_inference_steps,
        level,
    )
    if source not in shared:
        shared.add(source)
        count += half
    return count + half


def _last_speed(storage: Storage) -> float | None:
    for name in reversed(storage.names("runs", ".json")):
        record = read_json(storage, f"runs/{name}")
        evals = record["counters"]["unet_evals"]
        if record["outcome"] == "finished" and evals:
            return float(record["seconds"]["edit"] / evals)
    return None


def as_json(plan: Plan) -> str:
    """The plan as a JSON document."""
    selected = {verdict: plan.selected[verdict] for verdict in VERDICTS}
    document = {**vars(plan), "selected": selected, "worker_hours": plan.worker_hours()}
    return json.dumps(document, indent=2)
