"""A picture of a run: source, mask overlay and edit of some rows, with their prompts."""

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

_TILE = 128
_GAP = 8
_TEXT_HEIGHT = 58
_COLUMNS = 3
_OVERLAY = np.array([255, 0, 170])
_INK = "#1c1c1e"
_MUTED = "#6b6b70"
_LETTER = 12
_PROMPTS = ("source_prompt", "source_concept", "target_prompt", "target_concept")


@dataclass(frozen=True)
class SheetRow:
    """One edit to be shown: pictures uint8 (H, W, 3), mask bool (H, W), prompts and status."""

    source: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    edited: NDArray[np.uint8]
    source_prompt: str
    target_prompt: str
    status: str


def write_contact_sheet(output_uri: str, image_root: Path, path: Path, num_rows: int = 24) -> Path:
    """Draw a sheet of evenly spread rows of an output that have pictures; returns its path."""
    storage = Storage(output_uri)
    columns = ["image", *_PROMPTS, "edited_file_name", "mask_file_name"]
    tables = list(Ledger(storage).scan(["id", "status", *columns]))
    found = [
        row for row in pa.concat_tables(tables).sort_by("id").to_pylist() if row["edited_file_name"]
    ]
    shown = [found[number * len(found) // num_rows] for number in range(num_rows)]
    sheet = draw_contact_sheet(
        [
            SheetRow(
                source=_open(image_root / row["image"]),
                mask=_open(storage.read(row["mask_file_name"])).max(axis=2) > 127,
                edited=_open(storage.read(row["edited_file_name"])),
                source_prompt=_describe(row, "source"),
                target_prompt=_describe(row, "target"),
                status=row["status"],
            )
            for row in (shown if len(found) > num_rows else found)
        ],
        f"{len(found)} edits: source, mask, edited",
    )
    path.write_bytes(sheet)
    return path


def draw_contact_sheet(rows: Sequence[SheetRow], title: str) -> bytes:
    """The sheet as PNG bytes, three edits across."""
    width = 3 * _TILE + 2 * 2
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
        for place, picture in enumerate((row.source, overlay, row.edited)):
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


def _open(source: Path | bytes) -> NDArray[np.uint8]:
    data = source.read_bytes() if isinstance(source, Path) else source
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut to a width in pixels."""
    measure: Callable[[str], float] = font.getlength
    if measure(text) <= width:
        return text
    while text and measure(text + "...") > width:
        text = text[:-1]
    return text + "..."
