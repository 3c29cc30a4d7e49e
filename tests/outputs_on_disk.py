"""Outputs of runs that never ran: results with pictures, fast and in any number."""

import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from diffedit_batch.config import EditConfig
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.schema import FILE_COLUMNS, RESULT_SCHEMA

RUN = "20261122T160000-abcdef"
STARTED = datetime(2026, 11, 22, 16, tzinfo=UTC)
_NOTHING: dict[str, Any] = {
    **{field.name: "" for field in RESULT_SCHEMA if field.type == pa.string()},
    **{"source_concept": None, "target_concept": None, "attempts": 1, "attempt_errors": []},
    **EditConfig().resolved().model_dump(),
    **{"caption": [""], "negative_prompt": [""], "source_negative_prompt": [""], "seed": 0},
    **{"num_truncated_prompts": 0, "model_id": "demo", "model_revision": "1", "run_id": RUN},
}


def png(color: tuple[int, int, int] | int, size: tuple[int, int] = (48, 32)) -> bytes:
    """A picture of one colour, or a mask of which the left half is white."""
    if isinstance(color, int):
        pixels = np.zeros((size[1], size[0]), np.uint8)
        pixels[:, : size[0] // 2] = color
        image = Image.fromarray(pixels)
    else:
        image = Image.new("RGB", size, color)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def row(row_id: str, number: int = 0, **columns: Any) -> dict[str, Any]:
    """An edited row, unless `columns` say something else."""
    names = file_names(row_id, f"f{number}")
    return {
        **_NOTHING,
        "id": row_id,
        "status": "edited",
        "image": f"{number}.png",
        "source_prompt": ["a red circle on grass"],
        "target_prompt": ["a blue circle on grass"],
        "edited_file_name": names.edited,
        "mask_file_name": names.mask,
        "map_file_name": names.map,
        "edited_sha256": f"edited {row_id} {number}",
        "mask_sha256": f"mask {row_id} {number}",
        "map_sha256": f"map {row_id} {number}",
        "mask_coverage": 0.5,
        "background_psnr": 40.0,
        "map_contrast": 3.0,
        "width": 48,
        "height": 32,
        "seconds": 1.5,
        "fingerprint": f"f{number}",
        "finished_at": STARTED + timedelta(seconds=number),
        **columns,
    }


def failure(row_id: str, stage: str, kind: str, message: str, **columns: Any) -> dict[str, Any]:
    """A failed row."""
    empty = (*FILE_COLUMNS, "edited_sha256", "mask_sha256", "map_sha256")
    scores = ("mask_coverage", "background_psnr", "map_contrast", "width", "height", "seconds")
    return {
        **row(row_id),
        **dict.fromkeys(empty, ""),
        **dict.fromkeys(scores),
        "status": "failed",
        "error_stage": stage,
        "error_type": kind,
        "error_message": message,
        **columns,
    }


def write_output(folder: Path, rows: Iterable[dict[str, Any]], *, is_finished: bool = True) -> str:
    """Write results with their pictures to `output`, and their sources beside it; returns its
    path. Pictures follow the number in the name of the image.
    """
    storage = Storage(str(folder / "output"))
    rows = list(rows)
    extra = [name for name in rows[0] if name not in RESULT_SCHEMA.names] if rows else []
    schema = RESULT_SCHEMA
    for name in extra:
        schema = schema.append(pa.field(name, pa.array([r[name] for r in rows]).type))
    with hold_lease(storage, RUN) as lease:
        Ledger(storage, lease).commit(pa.Table.from_pylist(rows, schema=schema))
    for one in rows:
        shade = sum(one["image"].encode()) * 37 % 256
        is_file = one["image"] and "://" not in one["image"]
        pictures = {folder / one["image"]: png((shade, 120, 90))} if is_file else {}
        if one["edited_file_name"]:
            pictures[folder / "output" / one["edited_file_name"]] = png((90, 120, shade))
            pictures[folder / "output" / one["mask_file_name"]] = png(255)
        if one["map_file_name"]:
            pictures[folder / "output" / one["map_file_name"]] = png(200)
        for path, data in pictures.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if is_finished:
        record = {
            "run_id": RUN,
            "outcome": "finished",
            "started_at": STARTED.isoformat(),
            "num_rows": len(rows),
            "counts": {},
            "config": {
                "model": {"id": "demo"},
                "input": {"manifest": str(folder / "manifest.parquet"), "image_root": str(folder)},
                "output": {"uri": storage.uri},
            },
        }
        storage.write(f"runs/{RUN}.json", json.dumps(record).encode())
        storage.write("_SUCCESS", b"{}")
    return storage.uri
