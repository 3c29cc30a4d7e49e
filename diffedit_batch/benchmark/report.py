"""A measurement as files: JSON with every number, Markdown to read, a figure where there is one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffedit_batch.benchmark.surroundings import surroundings
from diffedit_batch.benchmark.timing import Spread


class Column(NamedTuple):
    """A column of a table: key of its values, heading, and whether they are shares of 1."""

    key: str
    heading: str
    is_share: bool = False


@dataclass(frozen=True)
class Table:
    """Rows by key; a key that a row lacks is a dash."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """What one benchmark found.

    Attributes:
        name: of the benchmark.
        title: what was measured, in one line.
        device: where.
        settings: with what.
        tables: the numbers.
        notes: what a reader must know to read them right.
        figure: PNG bytes, or None.
    """

    name: str
    title: str
    device: str
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    figure: bytes | None = None
    surroundings: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "surroundings", surroundings(self.device))

    def write(self, folder: Path) -> Path:
        """Write `report.json`, `report.md` and perhaps `figure.png`; returns the Markdown."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_tree(), indent=2, default=_as_tree)
        (folder / "report.json").write_text(text + "\n", "utf-8")
        if self.figure is not None:
            (folder / "figure.png").write_bytes(self.figure)
        page = folder / "report.md"
        page.write_text(self.as_markdown(), "utf-8")
        return page

    def as_tree(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "benchmark": self.name,
            "title": self.title,
            **self.surroundings,
            "settings": dict(self.settings),
            "tables": {table.title: [dict(row) for row in table.rows] for table in self.tables},
            "notes": list(self.notes),
        }

    def as_markdown(self) -> str:
        """The page."""
        lines = [f"# {self.title}", "", *_facts(self.surroundings), *_facts(self.settings)]
        for table in self.tables:
            lines += ["", f"## {table.title}", "", *_rows(table)]
        if self.figure is not None:
            lines += ["", "![Figure](figure.png)"]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def shown(value: Any, *, is_share: bool = False) -> str:
    """A value as tables show it: three digits, ranges in brackets, shares in percent."""
    if value is None:
        return "-"
    if isinstance(value, Spread):
        median, low, high = (
            shown(number, is_share=is_share) for number in (value.median, value.low, value.high)
        )
        return f"{median} [{low}, {high}]"
    if is_share:
        return f"{value:.1%}".replace("%", " %")
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def _rows(table: Table) -> list[str]:
    lines = [
        "| " + " | ".join(column.heading for column in table.columns) + " |",
        "|" + "---|" * len(table.columns),
    ]
    for row in table.rows:
        cells = [shown(row.get(c.key), is_share=c.is_share) for c in table.columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _facts(tree: Mapping[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {_inline(value)}" for name, value in tree.items()]


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')} {_inline(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_inline(one) for one in value)
    return str(value)


def _as_tree(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is no value of a report")
