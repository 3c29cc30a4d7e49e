"""The dataset card of an export: what it holds and what made it, as the hub reads it."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import yaml

from diffedit_batch.export.samples import PICTURES, Sample
from diffedit_batch.report.contact_sheet import (
    PROMPTS,
    SheetRow,
    draw_contact_sheet,
    sheet_row,
)
from diffedit_batch.schema import EDIT_PARAMETERS

_NUM_SHOWN = 12
"""Rows on the picture of a card."""

_NUM_VALUES = 5
"""Values of a parameter that are listed, the most frequent ones."""

_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M"}
_COLUMNS = ["status", "model_id", "model_revision", *PROMPTS, *EDIT_PARAMETERS]


class Card:
    """Gathers what there is to say of rows while they pass by.

    Args:
        name: of the export.
        counts: all its rows, by status.
    """

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self._name, self._counts = name, counts
        self._num_rows = 0
        self._models: Counter[tuple[str, str]] = Counter()
        self._parameters: dict[str, Counter[Any]] = {name: Counter() for name in EDIT_PARAMETERS}
        self._shown: list[SheetRow] = []

    def add(self, sample: Sample) -> None:
        """Take note of a row."""
        # Results of earlier versions lack parameters that came later.
        there = [name for name in _COLUMNS if name in sample.row.column_names]
        [row] = sample.row.select(there).to_pylist()
        self._models[row["model_id"], row["model_revision"]] += 1
        for name, values in self._parameters.items():
            if row.get(name) is not None:
                values[row[name]] += 1
        # Evenly spread over what is to come.
        if self._num_rows * _NUM_SHOWN >= len(self._shown) * self._num_expected:
            self._show(row, sample)
        self._num_rows += 1

    def picture(self) -> bytes | None:
        """Some of the rows, as PNG bytes; None where there are none to show."""
        if not self._shown:
            return None
        return draw_contact_sheet(self._shown, "source, mask, soft map, edited")

    def text(self, data_files: str) -> str:
        """The card in Markdown, with the metadata that the hub and `datasets` read.

        Args:
            data_files: pattern of the files that hold the data.
        """
        sizes = [size for limit, size in _SIZES.items() if self._num_rows < limit]
        metadata = {
            "pretty_name": self._name,
            "task_categories": ["image-to-image"],
            "tags": ["image-editing", "diffedit", "synthetic"],
            "size_categories": [*sizes, "n>10M"][:1],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": "train", "path": data_files}],
                }
            ],
        }
        left_out = self._counts["failed"]
        return "\n".join(
            [
                "---",
                yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True) + "---",
                f"# {_escape(self._name)}",
                "",
                f"{self._num_rows:,} edits of pictures by"
                " [DiffEdit](https://arxiv.org/abs/2210.11427), made with diffedit_batch: the"
                " picture that was edited, the edit, the mask it was kept to, the map behind the"
                " mask where there was one, and prompts, parameters and scores.",
                "",
                "Edited pictures are synthetic: what lies inside the mask was painted by a"
                " diffusion model. Each says so, and with which parameters, in its own metadata"
                " (IPTC's digital source type in XMP, `parameters`, and JSON under"
                " `diffedit_batch`), but for those of earlier versions, whose"
                " `digital_source_type` is empty.",
                "",
                *(["![Some of the edits](samples.png)", ""] if self._shown else []),
                *_table(("status", "rows"), sorted(self._counts.items())),
                *([f"The {left_out:,} that failed are left out.", ""] if left_out else []),
                "## Made by",
                "",
                *_table(
                    ("model", "revision", "rows"),
                    [(*model, number) for model, number in self._models.most_common()],
                ),
                *_table(
                    ("parameter", "value"),
                    [(name, _values(found)) for name, found in self._parameters.items() if found],
                ),
            ]
        )

    @property
    def _num_expected(self) -> int:
        return max(1, self._counts.total() - self._counts["failed"])

    def _show(self, row: dict[str, Any], sample: Sample) -> None:
        files = [one.data if one else b"" for one in map(sample.pictures.get, PICTURES)]
        try:
            shown = sheet_row(row, *files)
        except OSError:
            return  # a picture is gone
        if shown.source.shape[:2] == shown.mask.shape:  # else it is another one by now
            self._shown.append(shown)


def _values(found: Counter[Any]) -> str:
    """The values of a parameter, with the rows of each where they differ."""
    common = found.most_common(_NUM_VALUES)
    if len(found) == 1:
        return str(common[0][0])
    more = f", and {len(found) - _NUM_VALUES} others" if len(found) > _NUM_VALUES else ""
    return ", ".join(f"{value} ({number:,})" for value, number in common) + more


def _table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> list[str]:
    names = list(head)
    cells = [names, ["---"] * len(names)]
    cells += [
        [f"{cell:,}" if isinstance(cell, int) else _escape(str(cell)) for cell in line]
        for line in lines
    ]
    return [*(f"| {' | '.join(line)} |" for line in cells), ""]


def _escape(text: str) -> str:
    """The text as nothing but text, in one line of Markdown."""
    return re.sub(r"([\\`*_{}\[\]()<>#!|~&:@$])", r"\\\1", " ".join(text.split()))
