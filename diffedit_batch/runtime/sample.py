"""A few rows that stand for a manifest: of every kind, from all over it, and always the same."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from diffedit_batch.config import JobConfig, canonical_json
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage
from diffedit_batch.engine.sizes import working_size
from diffedit_batch.errors import ManifestError, ModelError, RowError
from diffedit_batch.models.identity import identify
from diffedit_batch.models.unloaded import Sizing, read_sizing
from diffedit_batch.runtime.headers import read_sizes
from diffedit_batch.runtime.wanted import open_generated
from diffedit_batch.schema import EditRequest

NUM_CANDIDATES = 512
"""Rows, spread over the manifest, that are looked at to find some of every kind."""

_GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, less their whole parts, fill 0..1 more evenly than any others."""

_COMMON = Sizing(512, 64)
"""Tells sizes apart where nothing is known of the model yet."""


@dataclass(frozen=True)
class Sample:
    """Rows that were chosen.

    Attributes:
        manifest: cut down to them.
        rows: in the order of the manifest; all can be edited, as far as was seen.
        num_kinds: working sizes and kinds of edit among the rows looked at.
        num_candidates: rows looked at.
        refused: those that cannot be edited, by `stage/type`.
    """

    manifest: Manifest
    rows: list[ManifestRow]
    num_kinds: int
    num_candidates: int
    refused: Counter[str]


def sample_rows(
    config: JobConfig, num_rows: int, *, where: str | None = None, limit: int | None = None
) -> Sample:
    """So many rows, or all there are: at least one of each kind, of the largest kinds first where
    there are more kinds than rows, and then as many as each kind has rows.

    A kind is a working size and a set of edit parameters; rows with an own mask, or given by
    concept, are kinds of their own.

    Raises:
        ManifestError: the manifest cannot be used, has no rows, or none that can be edited.
        ConfigError: `where` is no condition on its columns.
    """
    model = identify(config.model)
    generated = open_generated(config, Storage(config.output.uri))
    manifest = Manifest(config, f"{model.id}@{model.revision}", generated, where)
    num_there = manifest.num_rows if limit is None else min(limit, manifest.num_rows)
    if not num_there:
        problem = "has no rows" if where is None else "has no rows for which --where is true"
        raise ManifestError(f"manifest {manifest.uri}", [problem])
    manifest.keep(spread(num_there, max(NUM_CANDIDATES, num_rows)))
    candidates = list(manifest.rows())
    kinds, errors = _kinds(config, candidates)
    if not kinds:
        problem = f"none of the {len(candidates)} rows looked at can be edited; the first: "
        raise ManifestError(f"manifest {manifest.uri}", [f"{problem}{errors[0]}"])
    strata: dict[Hashable, list[int]] = {}
    for number, kind in kinds.items():
        strata.setdefault(kind, []).append(number)
    quotas = allocate([len(numbers) for numbers in strata.values()], num_rows)
    chosen = sorted(
        numbers[place]
        for numbers, quota in zip(strata.values(), quotas, strict=True)
        for place in spread(len(numbers), quota)
    )
    manifest.keep(chosen)
    return Sample(
        manifest,
        [candidates[number] for number in chosen],
        len(strata),
        len(candidates),
        Counter(f"{error.stage}/{error.kind}" for error in errors),
    )


def spread(num_there: int, num_wanted: int) -> list[int]:
    """Ascending numbers below `num_there`, one in each of as many equal stretches; all of them
    where no fewer are wanted.

    Within their stretches they lie at ever different places: manifests often repeat the same edits
    for image after image, and steps of equal length would meet the same one again and again.
    """
    num = min(num_there, num_wanted)
    found = []
    for place in range(num):
        start, end = place * num_there // num, (place + 1) * num_there // num
        found.append(start + int((place + 0.5) * _GOLDEN % 1 * (end - start)))
    return found


def allocate(sizes: Sequence[int], num_wanted: int) -> list[int]:
    """How many to take of groups of these sizes: one of each, the largest first, then by
    D'Hondt's rule.
    """
    quotas = [0] * len(sizes)
    for _ in range(min(num_wanted, sum(sizes))):
        open_ = [number for number, size in enumerate(sizes) if quotas[number] < size]
        most = max(open_, key=lambda n: (not quotas[n], sizes[n] / (quotas[n] + 1), -n))
        quotas[most] += 1
    return quotas


def _kinds(
    config: JobConfig, rows: Sequence[ManifestRow]
) -> tuple[dict[int, Hashable], list[RowError]]:
    """The kind of every row by its number, and why the others cannot be edited."""
    requests = {n: row.request for n, row in enumerate(rows) if row.request is not None}
    errors = [row.error for row in rows if row.error is not None]
    images = [request.image for request in requests.values() if request.image is not None]
    try:
        sizing = read_sizing(config.model, config.input.size_multiple)
    except ModelError:
        sizing = _COMMON
    kinds: dict[int, Hashable] = {}
    for (number, request), size in zip(
        requests.items(), read_sizes(images, config.input), strict=True
    ):
        if isinstance(size, RowError):
            errors.append(size)
        else:
            kinds[number] = (working_size(*size, *sizing), _edit_kind(request))
    return kinds, errors


def _edit_kind(request: EditRequest) -> Hashable:
    concepts = (request.source_concept is not None, request.target_concept is not None)
    return (canonical_json(request.edit.model_dump()), request.mask is not None, concepts)
