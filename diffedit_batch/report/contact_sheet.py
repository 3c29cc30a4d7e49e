"""A picture of a run: source, mask overlay, soft map and edit of some rows, with their prompts."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import Storage
from diffedit_batch.schema import FILE_COLUMNS

_TILE = 128
_GAP = 8
_TEXT_HEIGHT = 58
_COLUMNS = 3
_OVERLAY = np.array([255, 0, 170])
_INK = "#1c1c1e"
_MUTED = "#6b6b70"
_LETTER = 12
PROMPTS = ("source_prompt", "source_concept", "target_prompt", "target_concept")


@dataclass(frozen=True)
class SheetRow:
    """One edit to be shown: pictures uint8 (H, W, 3), mask bool (H, W), prompts and status; and the
    soft map, uint8 (H, W, 3), where there is one.
    """

    source: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    edited: NDArray[np.uint8]
    source_prompt: str
    target_prompt: str
    status: str
    map: NDArray[np.uint8] | None = None


def write_contact_sheet(output_uri: str, image_root: Path, path: Path, num_rows: int = 24) -> Path:
    """Draw a sheet of evenly spread rows of an output that have pictures; returns its path."""
    storage = Storage(output_uri)
    columns = ["image", *PROMPTS, *FILE_COLUMNS]
    tables = list(Ledger(storage).scan(["id", "status", *columns]))
    found = [
        row for row in pa.concat_tables(tables).sort_by("id").to_pylist() if row["edited_file_name"]
    ]
    shown = [found[number * len(found) // num_rows] for number in range(num_rows)]
    sheet = draw_contact_sheet(
        [
            sheet_row(
                row,
                (image_root / row["image"]).read_bytes(),
                *(storage.read(row[name]) if row[name] else b"" for name in FILE_COLUMNS),
            )
            for row in (shown if len(found) > num_rows else found)
        ],
        f"{len(found)} edits: source, mask, soft map, edited",
    )
    path.write_bytes(sheet)
    return path


def sheet_row(
    row: Mapping[str, Any], source: bytes, edited: bytes, mask: bytes, soft: bytes
) -> SheetRow:
    """A result and the files of its pictures, no larger than they are shown; without a soft map
    `soft` is empty.

    Raises:
        OSError: one cannot be read.
    """
    return SheetRow(
        source=_open(source),
        mask=_open(mask).max(axis=2) > 127,
        edited=_open(edited),
        source_prompt=_describe(row, "source"),
        target_prompt=_describe(row, "target"),
        status=row["status"],
        map=_open(soft) if soft else None,
    )


def draw_contact_sheet(rows: Sequence[SheetRow], title: str) -> bytes:
    """The sheet as PNG bytes, three edits across; soft maps have a place if there are any."""
    num_tiles = 4 if any(row.map is not None for row in rows) else 3
    width = num_tiles * _TILE + (num_tiles - 1) * 2
    cell_width, cell_height = width + 2 * _GAP, _TILE + _TEXT_HEIGHT + _GAP
    num_lines = -(-len(rows) // _COLUMNS)
    sheet = Image.new(
        "RGB", (_COLUMNS * cell_width + _GAP, 40 + num_lines * cell_height + _GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * _GAP, 12), title, fill=_INK, font=ImageFont.load_default(16))
    for number, row in enumerate(rows):
        x = _GAP + _GAP + number % _COLUMNS * cell_width
        y = 40 + number // _COLUMNS * cell_height
        overlay = row.source.copy()
        overlay[row.mask] = (0.45 * overlay[row.mask] + 0.55 * _OVERLAY).astype(np.uint8)
        soft = [] if num_tiles == 3 else [row.map]
        for place, picture in enumerate((row.source, overlay, *soft, row.edited)):
            if picture is not None:
                tile = ImageOps.contain(Image.fromarray(picture), (_TILE, _TILE))
                sheet.paste(tile, (x + place * (_TILE + 2), y))
        font = ImageFont.load_default(_LETTER)
        draw.text((x, y + _TILE + 4), _fit(row.source_prompt, font, width), fill=_MUTED, font=font)
        arrow = f"> {row.target_prompt}"
        draw.text((x, y + _TILE + 20), _fit(arrow, font, width), fill=_INK, font=font)
        label = f"{row.status}, mask {row.mask.mean():.0%}"
        draw.text((x, y + _TILE + 36), label, fill=_MUTED, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _describe(row: Mapping[str, Any], side: str) -> str:
    prompts, concept = row[f"{side}_prompt"], row[f"{side}_concept"]
    return f"{concept} ({len(prompts)} prompts)" if concept else " | ".join(prompts)


def _open(data: bytes) -> NDArray[np.uint8]:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    picture.thumbnail((2 * _TILE, 2 * _TILE))
    return np.array(picture)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut to a width in pixels."""
    measure: Callable[[str], float] = font.getlength
    if measure(text) <= width:
        return text
    while text and measure(text + "...") > width:
        text = text[:-1]
    return text + "..."
