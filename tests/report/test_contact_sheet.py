import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from diffedit_batch.data.images import encode_png
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.storage import Storage
from diffedit_batch.report.contact_sheet import SheetRow, draw_contact_sheet, write_contact_sheet


def row(color: tuple[int, int, int]) -> SheetRow:
    picture = np.full((60, 90, 3), color, np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[:30] = True
    return SheetRow(picture, mask, 255 - picture, "before", "after " * 50, "edited")


def test_a_sheet_shows_source_overlay_and_edit_side_by_side() -> None:
    sheet = Image.open(io.BytesIO(draw_contact_sheet([row((0, 200, 0))], "title")))
    colors = {tuple(color) for color in np.array(sheet).reshape(-1, 3).tolist()}
    assert (0, 200, 0) in colors
    assert (255, 55, 255) in colors
    assert any(r > 100 and b > 60 and 60 < g < 130 for r, g, b in colors), "overlay"


def test_long_prompts_stay_inside_their_cell() -> None:
    one = Image.open(io.BytesIO(draw_contact_sheet([row((0, 0, 0))], "t")))
    pixels = np.array(one.convert("L"))
    assert (pixels[:, one.width // 3 + 8 :][42:] == 255).all()


def test_a_sheet_of_an_output_leaves_out_rows_without_pictures(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "output"))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    storage.write("edited/a.png", encode_png(np.zeros((32, 32, 3), np.uint8)))
    storage.write("masks/a.png", encode_png(np.ones((32, 32), bool)))
    shared: dict[str, object] = {
        "image": "a.png",
        "source_prompt": ["a"],
        "target_prompt": ["b", "c"],
    }
    shared |= {"source_concept": None, "target_concept": "letter"}
    names = {"edited_file_name": "edited/a.png", "mask_file_name": "masks/a.png"}
    rows = [
        {"id": "1", "status": "edited", **shared, **names},
        {"id": "2", "status": "failed", **shared, "edited_file_name": "", "mask_file_name": ""},
    ]
    with hold_lease(storage, "run") as lease:
        Ledger(storage, lease).commit(pa.Table.from_pylist(rows))
    path = write_contact_sheet(storage.uri, tmp_path, tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.width > 300
