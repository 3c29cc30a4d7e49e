"""A plan as people read it."""

from collections import Counter
from collections.abc import Iterator, Mapping

from diffedit_batch.runtime.plan import Plan
from diffedit_batch.terminal.summary import verdicts

_LABEL = 13
_NUM_SIZES = 6


def plan_text(plan: Plan) -> str:
    """The plan in a few lines, each with its subject in front."""
    lines = [verdicts(plan), ""]
    subject = ""
    for name, text in _lines(plan):
        lines.append(f"{name if name != subject else '':{_LABEL}}{text}")
        subject = name
    return "\n".join([*lines, *(f"unknown: {note}" for note in plan.notes)])


def _lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Subject and text of each line."""
    if plan.num_failed_before:
        failed = f"{plan.num_failed_before:,} of them failed (see --retry-failed)"
        yield "done", f"{_count(plan.selected['unchanged'], 'row')}; {failed}"
    yield "to edit", f"{_count(plan.num_to_edit, 'row')} of {_count(plan.num_images, 'image')}"
    if plan.num_refused:
        yield "to fail", f"{_count(plan.num_refused, 'row')} at once"
        yield from (("to fail", line) for line in _by_kind(plan.refusals, plan.examples))
    if plan.num_to_edit:
        yield from _about_images(plan)
        yield from _about_texts(plan)
        yield "work", f"{_count(plan.unet_evals, 'network evaluation')}"
        yield from (("time", line) for line in _about_time(plan))


def _about_images(plan: Plan) -> Iterator[tuple[str, str]]:
    images = plan.images
    some = ""
    if images.num_images < plan.num_images:
        some = f" of {images.num_images:,} looked at (--all-images: every one)"
    if images.num_unreadable:
        rows = _count(images.unreadable.total(), "row")
        yield "unreadable", f"{_count(images.num_unreadable, 'image')}{some}, in {rows}"
        yield from (("unreadable", line) for line in _by_kind(images.unreadable, images.examples))
    else:
        yield "unreadable", f"no image{some}" if some else "none"
    if plan.num_repeated_images:
        what = _count(plan.num_repeated_images, "image")
        yield "same images", f"{what} with the content of another one"
    sizes = plan.working_sizes.most_common()
    share = " of those looked at" if some else ""
    for number, ((width, height), num_rows) in enumerate(sizes[:_NUM_SIZES]):
        note = share if number == 0 else ""
        yield "sizes", f"{f'{width} x {height}':12} {_count(num_rows, 'row'):>12}{note}"
    if len(sizes) > _NUM_SIZES:
        others = _count(sum(number for _, number in sizes[_NUM_SIZES:]), "row")
        yield "sizes", f"{f'{len(sizes) - _NUM_SIZES} others':12} {others:>12}"


def _about_texts(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.num_truncated_rows is not None:
        is_any = plan.num_truncated_rows > 0
        example = f", e.g. {plan.examples['truncated']}" if is_any else ""
        rows = _count(plan.num_truncated_rows, "row")
        yield "cut prompts", f"{rows}{example}" if is_any else "none"
    if plan.num_duplicates:
        rows = _count(plan.num_duplicates, "row")
        example = plan.examples["duplicate"]
        yield "duplicates", f"{rows} asking exactly what an earlier row asks, e.g. {example}"
    else:
        yield "duplicates", "none"
    if plan.num_concepts or plan.num_captions:
        concepts = _count(plan.num_concepts, "concept")
        images = _count(plan.num_captions, "image")
        yield "first", f"generate prompts for {concepts}, captions of {images}"


def _about_time(plan: Plan) -> Iterator[str]:
    hours, wall_seconds = plan.worker_hours(), plan.wall_seconds()
    if plan.speed is None or hours is None or wall_seconds is None:
        yield "unknown: nothing with this model has run yet; see --calibrate, or make a preview"
        return
    gpu_hours = plan.gpu_hours()
    cost = (
        f"{_hours(hours)} worker-hours" if gpu_hours is None else f"{_hours(gpu_hours)} GPU-hours"
    )
    workers = _count(plan.num_workers, "worker")
    yield f"about {_duration(wall_seconds)} with {workers}: {cost}"
    loading = ""
    if plan.speed.load_seconds >= 1:
        loading = f", {_duration(plan.speed.load_seconds)} of it to load the model"
    yield f"at the speed of {plan.speed.source} ({_count(plan.speed.num_rows, 'row')}){loading}"
    if plan.num_concepts or plan.num_captions:
        yield "without what is generated first"


def _by_kind(kinds: Counter[str], examples: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, kinds))
    for kind, number in kinds.most_common():
        yield f"  {kind:{width}} {number:>7,}  e.g. {examples[kind]}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
