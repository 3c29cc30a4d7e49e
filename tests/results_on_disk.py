"""Results of small runs, written without running anything."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffedit_batch.data.finalize import Balance, finalize
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.parts import Asked
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.schema import FILE_COLUMNS, LATER_COLUMNS


def edited(row_id: str, fingerprint: str = "f", **more: Any) -> dict[str, Any]:
    names = file_names(row_id, fingerprint)
    return {
        "id": row_id,
        "fingerprint": fingerprint,
        "status": "edited",
        **dict(zip(FILE_COLUMNS, names, strict=True)),
        "map_sha256": "",
        "digital_source_type": "",
        **more,
    }


def failed(row_id: str, fingerprint: str = "f", **more: Any) -> dict[str, Any]:
    row = edited(row_id, fingerprint, **more)
    return {**row, "status": "failed", **dict.fromkeys(FILE_COLUMNS, "")}


def older(row: dict[str, Any]) -> dict[str, Any]:
    """The row as earlier versions of the job wrote it."""
    return {name: value for name, value in row.items() if name not in LATER_COLUMNS}


def commit(storage: Storage, *parts: list[dict[str, Any]] | pa.Table) -> list[str]:
    """The parts of one run, with their pictures; returns their names."""
    names = []
    with hold_lease(storage, "run") as lease:
        ledger = Ledger(storage, lease)
        for part in parts:
            table = part if isinstance(part, pa.Table) else pa.Table.from_pylist(part)
            if table.num_rows < 100 and "edited_file_name" in table.column_names:
                for row in table.to_pylist():
                    for name in {row.get(column, "") for column in FILE_COLUMNS} - {""}:
                        storage.write(name, row["id"].encode())
            names.append(ledger.commit(table))
    return names


def wanted(*rows: tuple[str, str]) -> Asked:
    asked = Asked()
    for row_id, fingerprint in rows:
        asked.add(row_id, fingerprint)
    return asked


def finish(storage: Storage, asked: Asked | None = None) -> Balance:
    """The end of a run that was asked for some rows."""
    with hold_lease(storage, "run") as lease:
        return finalize(Ledger(storage, lease), asked or Asked())


def results(storage: Storage) -> list[dict[str, Any]]:
    rows = []
    for name in storage.names("results", ".parquet"):
        with storage.fs.open(storage.full(f"results/{name}"), "rb") as file:
            rows += pq.ParquetFile(file).read().to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def content(storage: Storage) -> dict[str, bytes]:
    root = storage.full("").rstrip("/")
    return {
        path.removeprefix(f"{root}/"): storage.fs.cat_file(path)
        for path in storage.fs.find(root)
        if "/_diffedit/lease/" not in path
    }


def pictures(storage: Storage) -> set[str]:
    return {name for name in content(storage) if name.endswith(".png")}
