"""Run arms over items, once each: finished arms are kept on disk and taken from there next time."""

import datetime
import io
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from diffedit_batch.config import ALGORITHM_VERSION, fingerprint
from diffedit_batch.errors import ConfigError
from diffedit_batch.evaluation.arms import Arm, Outcome, Studio
from diffedit_batch.evaluation.items import Item, digest
from diffedit_batch.evaluation.measure import SCHEMA, describe, measure

logger = logging.getLogger(__name__)

MEASURES_VERSION = 2
"""Part of every cache key: raise it when judges or metrics change."""
Tier = Literal["smoke", "ci", "full"]
NUM_PER_KIND: dict[Tier, int] = {"smoke": 4, "ci": 24, "full": 200}
TIER_ARMS: dict[Tier, tuple[str, ...]] = {
    "smoke": ("copy", "default"),
    "ci": ("copy", "vae", "reference", "default", "true-mask"),
    "full": (
        *("copy", "vae", "reference", "diffusers", "paper", "default", "true-mask"),
        *("no-mask", "no-inversion", "sdedit", "text-to-image"),
    ),
}
CURVE_ARMS = tuple(
    f"{name}@{strength:g}"
    for name in ("reference", "default", "no-mask", "sdedit")
    for strength in (0.4, 0.6, 0.8, 1.0)
)
"""Arms over strength, for the trade-off curve of the full tier."""
CURVE_NUM_PER_KIND = 20
"""Items of each kind on that curve."""
NUM_SHOWN_PER_KIND = 2
"""Items of each kind whose pictures are kept for the figure."""

_CHUNK = 20


@dataclass(frozen=True)
class ArmResult:
    """What was measured of one arm.

    Attributes:
        arm: which.
        table: a row per item, in their order, see `measure.SCHEMA`.
        shown: picture and mask of the first items of each kind, by item id.
        num_evals: network evaluations of all items together.
        measured: day and commit.
    """

    arm: Arm
    table: pa.Table
    shown: dict[str, Outcome]
    num_evals: int
    measured: str

    def column(self, name: str) -> NDArray[Any]:
        """Values of one column, in the order of the items."""
        values: NDArray[Any] = self.table.column(name).to_numpy()
        return values


@dataclass(frozen=True)
class Study:
    """Arms over items with one model.

    Attributes:
        studio: the model.
        model_revision: which weights those are.
        folder: where finished arms are kept.
    """

    studio: Studio
    model_revision: str
    folder: Path

    def run(self, plan: Sequence[tuple[Arm, list[Item]]]) -> list[ArmResult]:
        """What every arm scores on its items; arms measured before are not run again.

        Raises:
            ConfigError: the folder holds an arm as measured with another model, other items,
                parameters or code. Nothing was run then.
        """
        found = [_read(self._path(arm), arm, self._key(arm, items)) for arm, items in plan]
        return [
            result or self._run_arm(arm, items)
            for result, (arm, items) in zip(found, plan, strict=True)
        ]

    def _path(self, arm: Arm) -> Path:
        return self.folder / f"{arm.name}.parquet"

    def _key(self, arm: Arm, items: list[Item]) -> str:
        edit = arm.edit.model_dump() if arm.edit else None
        versions = [ALGORITHM_VERSION, MEASURES_VERSION]
        return fingerprint(
            [self.model_revision, digest(items), arm.mask, arm.start, edit, versions]
        )

    def _run_arm(self, arm: Arm, items: list[Item]) -> ArmResult:
        rows: list[dict[str, object]] = []
        num_evals = 0
        num_shown: dict[str, int] = {}
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            outcomes, evals = self.studio.edit(arm, chunk)
            num_evals += evals
            for item, outcome in zip(chunk, outcomes, strict=True):
                num_shown[item.kind] = num_shown.get(item.kind, 0) + 1
                is_shown = num_shown[item.kind] <= NUM_SHOWN_PER_KIND
                rows.append(
                    {
                        **describe(item),
                        **measure(arm, item, outcome),
                        "picture": _encode(outcome.picture) if is_shown else b"",
                        "mask": _encode(outcome.mask)
                        if is_shown and outcome.mask is not None
                        else b"",
                    }
                )
            logger.info("%s: %d of %d", arm.name, len(rows), len(items))
        today = datetime.datetime.now(datetime.UTC).date()
        measured = f"{today} at commit {_commit()}"
        table = _to_table(rows, {"num_evals": num_evals, "measured": measured})
        result = _to_result(arm, table)
        _write(self._path(arm), table, self._key(arm, items))
        return result


def _commit() -> str:
    """The commit of the code that runs, with a mark where it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        described = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def _to_table(rows: list[dict[str, object]], note: dict[str, object]) -> pa.Table:
    schema = SCHEMA.append(pa.field("picture", pa.binary())).append(pa.field("mask", pa.binary()))
    metadata = {name: str(value) for name, value in note.items()}
    return pa.Table.from_pylist(rows, schema.with_metadata(metadata))


def _to_result(arm: Arm, table: pa.Table) -> ArmResult:
    shown = {
        row["id"]: Outcome(_decode(row["picture"]), _decode(row["mask"]) if row["mask"] else None)
        for row in table.select(["id", "picture", "mask"]).to_pylist()
        if row["picture"]
    }
    note = table.schema.metadata
    return ArmResult(
        arm,
        table,
        shown,
        num_evals=int(note[b"num_evals"]),
        measured=note[b"measured"].decode(),
    )


def _write(path: Path, table: pa.Table, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, "key": key}), temporary)
    temporary.replace(path)


def _read(path: Path, arm: Arm, key: str) -> ArmResult | None:
    """The arm as it was measured, or None where it was not."""
    if not path.exists():
        return None
    table = pq.ParquetFile(path).read()
    if (table.schema.metadata or {}).get(b"key") != key.encode():
        raise ConfigError(
            f"{path} is stale",
            [
                f"arm {arm.name} was measured there with another model, other items, parameters or"
                " code; choose another --output, or delete the file to measure it again"
            ],
        )
    return _to_result(arm, table)


def _encode(picture: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _decode(data: bytes) -> NDArray[Any]:
    return np.array(Image.open(io.BytesIO(data)))
