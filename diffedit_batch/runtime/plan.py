"""What a run would do, counted without starting a model."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from diffedit_batch.config import JobConfig
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.engine.sizes import working_size
from diffedit_batch.engine.texts import count_truncated
from diffedit_batch.errors import ModelError
from diffedit_batch.models.identity import identify
from diffedit_batch.models.unloaded import PromptReader, read_sizing
from diffedit_batch.runtime.backlog import Backlog
from diffedit_batch.runtime.calibration import calibrate
from diffedit_batch.runtime.evaluations import count_evals, with_stand_ins
from diffedit_batch.runtime.headers import ImageCheck, ImageDraw
from diffedit_batch.runtime.selection import UNDONE, VERDICTS, Selection
from diffedit_batch.runtime.speed import Speed, recorded_speed
from diffedit_batch.runtime.survey import Survey
from diffedit_batch.runtime.wanted import Wanted
from diffedit_batch.schema import EditRequest

NUM_IMAGES_CHECKED = 1_000
"""Images whose header is read unless all are asked for: seconds, however large the manifest."""


@dataclass
class Plan:
    """What a run would do.

    Attributes:
        num_rows: rows of the manifest (of the limit, if there is one).
        selected: rows by what a run makes of them, see `runtime.selection.VERDICTS`.
        num_failed_before: failed rows among those that keep their result.
        num_to_edit: rows that would be edited.
        num_images: distinct images among them.
        num_repeated_images: images with the content of another one; None unless `input.image_key`
            is `content`.
        num_duplicates: rows to be edited that ask for exactly what an earlier row asks.
        num_truncated_rows: rows with a prompt that the text encoder would cut; None where the
            tokenizer is not on this machine. Prompts still to be generated are not counted.
        num_concepts: concepts for which prompts would be generated.
        num_captions: images that would be captioned.
        num_refused: rows that would fail without being tried.
        refusals: those by `stage/type`.
        examples: one message of each kind, and one row with a `duplicate` or `truncated` prompt.
        images: what the headers of images to be edited say.
        working_sizes: rows by the size at which their image is edited; empty where the model's
            configs are not on this machine.
        notes: what could not be found out, and why.
        unet_evals: network evaluations, at most: rows whose mask turns out empty need fewer.
        speed: of one worker, or None where nothing tells it.
        num_workers: among whom the work is shared.
        gpus_per_worker: as configured.
    """

    num_rows: int = 0
    selected: Counter[str] = field(default_factory=Counter)
    num_failed_before: int = 0
    num_to_edit: int = 0
    num_images: int = 0
    num_repeated_images: int | None = None
    num_duplicates: int = 0
    num_truncated_rows: int | None = None
    num_concepts: int = 0
    num_captions: int = 0
    num_refused: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    images: ImageCheck = field(default_factory=ImageCheck)
    working_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    unet_evals: int = 0
    speed: Speed | None = None
    num_workers: int = 1
    gpus_per_worker: float = 0.0

    def worker_hours(self) -> float | None:
        """Hours of one worker, or None where nothing tells its speed."""
        return None if self.speed is None else self.unet_evals * self.speed.seconds_per_eval / 3600

    def gpu_hours(self) -> float | None:
        """Hours of one GPU; None where nothing tells the speed, or on CPUs."""
        hours = self.worker_hours()
        return None if hours is None or not self.gpus_per_worker else hours * self.gpus_per_worker

    def wall_seconds(self) -> float | None:
        """Seconds on the clock: loading the model, then editing by all workers at once."""
        hours = self.worker_hours()
        if hours is None or self.speed is None:
            return None
        num_busy = max(1, min(self.num_workers, self.num_images))
        return self.speed.load_seconds + hours * 3600 / num_busy if self.num_to_edit else 0.0


def plan_job(
    config: JobConfig,
    *,
    selection: Selection = UNDONE,
    num_workers: int | None = None,
    all_images: bool = False,
    is_calibrated: bool = False,
) -> Plan:
    """The plan of a job.

    Args:
        config: the job.
        selection: which rows are done beside those that have no result yet.
        num_workers: among whom the work is shared; None: `cluster.workers` (of a range
            the most), or one.
        all_images: read the header of every image, instead of `NUM_IMAGES_CHECKED`.
        is_calibrated: measure the speed here by editing a few rows, see `runtime.calibration`.

    Raises:
        DiffEditError: the job would not start.
    """
    config = config.with_absolute_paths()
    model = identify(config.model)
    storage = Storage(config.output.uri)
    selector = Survey(config, selection, storage, model).selector
    plan = Plan(
        num_rows=selector.num_rows,
        num_workers=num_workers or (config.cluster.worker_range or (1, 1))[1],
        gpus_per_worker=config.cluster.gpus_per_worker,
    )
    draw = ImageDraw(
        None if all_images else NUM_IMAGES_CHECKED,
        is_by_content=config.input.image_key == "content",
    )
    asked = _Asked(plan, config)
    wanted = Wanted()

    def requests() -> Iterator[tuple[str, EditRequest]]:
        for row, verdict, has_failed in selector.rows():
            plan.selected[verdict] += 1
            is_duplicate = asked.is_duplicate(row)
            if verdict == "unchanged":
                plan.num_failed_before += has_failed
            elif row.error is not None:
                kind = f"{row.error.stage}/{row.error.kind}"
                plan.num_refused += 1
                plan.refusals[kind] += 1
                plan.examples.setdefault(kind, f"row {row.id!r}: {row.error}")
            else:
                assert row.request is not None
                assert row.request.image is not None
                plan.num_to_edit += 1
                asked.count(row.id, row.request, is_duplicate=is_duplicate)
                draw.add(row, row.request.image)
                wanted.add(row)
                yield row.group, with_stand_ins(row.request)

    backlog = Backlog(requests(), config.bundle_rows, num_workers=1)
    while backlog.peek() is not None:
        for group in backlog.pop().groups:
            shared: set[Any] = set()
            plan.unet_evals += sum(count_evals(request, shared) for request in group)
    plan.selected["pruned"] = selector.num_to_prune()
    plan.num_images, plan.num_repeated_images = draw.num_images, draw.num_repeated
    plan.num_concepts, plan.num_captions = len(wanted.prompts), len(wanted.captions)
    plan.images = draw.check(config.input)
    _add_working_sizes(plan, config)
    if is_calibrated and plan.num_to_edit:
        plan.speed = calibrate(
            config, plan.num_workers, where=selection.where, limit=selection.limit
        )
    else:
        plan.speed = recorded_speed(config, [storage, Storage(config.output.preview_uri)])
    return plan


class _Asked:
    """What rows ask for: twice, or of a text encoder that does not read so far."""

    def __init__(self, plan: Plan, config: JobConfig) -> None:
        self._plan = plan
        self._config = config
        self._is_by_content = config.input.image_key == "content"
        self._seen: set[int] = set()
        self._reader: PromptReader | None = None

    def is_duplicate(self, row: ManifestRow) -> bool:
        """Whether an earlier row asks for the same edit of the same image."""
        # A fingerprint knows an image file by its size and age alone; 64 bits are enough to count.
        number = hash((row.fingerprint, "" if self._is_by_content else row.group))
        is_known = number in self._seen
        self._seen.add(number)
        return is_known

    def count(self, row_id: str, request: EditRequest, *, is_duplicate: bool) -> None:
        """Count a row that is to be edited."""
        plan = self._plan
        if plan.num_to_edit == 1:
            self._open_reader()
        if is_duplicate:
            plan.num_duplicates += 1
            plan.examples.setdefault("duplicate", f"row {row_id!r}")
        if self._reader is not None and count_truncated(request, self._reader.is_truncated):
            assert plan.num_truncated_rows is not None
            plan.num_truncated_rows += 1
            plan.examples.setdefault("truncated", f"row {row_id!r}")

    def _open_reader(self) -> None:
        """Only where there is a prompt to read: it takes a second."""
        try:
            self._reader = PromptReader(self._config.model)
        except ModelError as error:
            self._plan.notes.append(f"prompts that would be cut are not counted: {error}")
        else:
            self._plan.num_truncated_rows = 0


def _add_working_sizes(plan: Plan, config: JobConfig) -> None:
    if not plan.images.sizes:
        return
    try:
        sizing = read_sizing(config.model, config.input.size_multiple)
    except ModelError as error:
        plan.notes.append(f"the sizes at which images are edited are not known: {error}")
        return
    for size, num_rows in plan.images.sizes.items():
        plan.working_sizes[working_size(*size, *sizing)] += num_rows


def as_json(plan: Plan) -> str:
    """The plan as a JSON document; its keys are those of `Plan`, flat where that has classes."""
    images, speed = plan.images, plan.speed
    document = {
        **vars(plan),
        "selected": {verdict: plan.selected[verdict] for verdict in VERDICTS},
        "images": {
            "num_checked": images.num_images,
            "num_unreadable": images.num_unreadable,
            "num_unreadable_rows": images.unreadable.total(),
            "unreadable": images.unreadable,
            "examples": images.examples,
        },
        "working_sizes": [
            {"width": width, "height": height, "num_rows": num_rows}
            for (width, height), num_rows in plan.working_sizes.most_common()
        ],
        "speed": None if speed is None else vars(speed),
        "worker_hours": plan.worker_hours(),
        "gpu_hours": plan.gpu_hours(),
        "wall_seconds": plan.wall_seconds(),
    }
    return json.dumps(document, indent=2)
