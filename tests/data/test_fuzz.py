"""Manifests nobody would write: no exception but ours, every row accounted for, nothing written
elsewhere. The same examples every time.
"""

import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffedit_batch.config import JobConfig
from diffedit_batch.data.finalize import finalize
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.ledger import Ledger
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.parts import Asked
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.data.storage import Storage, file_names
from diffedit_batch.errors import ManifestError
from diffedit_batch.models.identity import ModelIdentity
from diffedit_batch.runtime.records import error_columns, result_table
from diffedit_batch.schema import EDIT_PARAMETERS, INPUT_COLUMNS, RESULT_SCHEMA

STEADY = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NASTY = [
    *["", ".", "..", "/", "a.png", "../a.png", "/etc/passwd", "a\0b", "CON", "-rf", "~", "%2e%2e"],
    *[
        "a/b",
        "a_b",
        "A",
        "a",
        "\u00e9",
        "e\u0301",
        "\u202egnp.a",
        "x" * 10_000,
        "\r\n",
        "a::b",
        "nan",
    ],
    *["http://127.0.0.1/", "file:///etc/passwd", "https://u:p@h/", "memory://x/../y", "[", "://"],
]
TEXT = st.sampled_from(NASTY) | st.text(max_size=20)
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.binary(): st.binary(max_size=20),
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(),
    pa.null(): st.none(),
    pa.list_(pa.string()): st.lists(st.none() | TEXT, max_size=3),
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]): st.fixed_dictionaries(
        {"bytes": st.none() | st.binary(max_size=20), "path": st.none() | TEXT}
    ),
}
EXPECTED = {
    "id": [pa.string(), pa.int64()],
    "image": [pa.string(), pa.binary(), list(VALUES)[-1]],
    "mask": [pa.string(), pa.binary()],
    "seed": [pa.int64(), pa.uint64(), pa.float64()],
    "source_concept": [pa.null()],
    "target_concept": [pa.null()],
    **{name: [pa.float64(), pa.int64()] for name in EDIT_PARAMETERS},
    **{name: [pa.string()] for name in ("mask_rule", "preset", "caption_with", "negative_from")},
    **{name: [pa.string()] for name in ("invert_with", "inversion_timestep")},
    "paste_background": [pa.bool_()],
}
USUAL = {"image": "a.png", "source_prompt": "a cat", "target_prompt": "a dog"}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table that is nearly a manifest: expected columns, mostly of expected types."""
    known = st.sampled_from([*INPUT_COLUMNS, *EDIT_PARAMETERS])
    others = st.sampled_from(["note", "status", "edit.seed", "a.b", ""]) | st.text(
        string.printable, max_size=5
    )
    names = ["image", "source_prompt", "target_prompt", *draw(st.lists(known | others, max_size=4))]
    num_rows = draw(st.integers(0, 6))
    columns = {}
    for name in dict.fromkeys(names):
        is_odd = draw(st.integers(0, 40)) == 40
        kinds = list(VALUES) if is_odd else EXPECTED.get(name, [pa.string(), list(VALUES)[-2]])
        kind = draw(st.sampled_from(kinds))
        cells = st.none() | VALUES[kind]
        if kind == pa.string() and name in USUAL:  # or hardly any row would be a good one
            cells = st.just(USUAL[name]) | st.just(USUAL[name]) | cells
        if name == "id" and draw(st.booleans()):
            columns[name] = pa.array(
                draw(st.lists(VALUES[kind], min_size=num_rows, max_size=num_rows, unique_by=str)),
                kind,
            )
            continue
        columns[name] = pa.array(draw(st.lists(cells, min_size=num_rows, max_size=num_rows)), kind)
    return pa.table(columns)


def planned(folder: Path, table: pa.Table, **options: Any) -> list[ManifestRow] | None:
    """The rows of a table as a manifest, or None where it is refused as a whole."""
    pq.write_table(table, folder / "m.parquet", **options)
    tree = {
        "model": {"id": "demo"},
        "edit": {"num_inference_steps": 5},
        "input": {"manifest": str(folder / "m.parquet"), "allowed_schemes": []},
        "output": {"uri": str(folder / "output")},
    }
    try:
        return list(Manifest(JobConfig.model_validate(tree), "model@1").rows())
    except ManifestError as error:
        assert error.problems
        return None


@given(table=tables(), row_group_size=st.integers(1, 4))
@STEADY
def test_any_manifest_is_planned_or_refused(
    tmp_path: Path, table: pa.Table, row_group_size: int
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = planned(tmp_path, table, row_group_size=row_group_size)
    if rows is None:
        return
    assert len(rows) == table.num_rows
    assert len({row.id for row in rows}) == len(rows)
    model = ModelIdentity("demo", "1", "demo")
    for row in rows:
        assert (row.request is None) != (row.error is None) or row.missing
        if row.error is not None:
            assert row.error.stage in ("manifest", "load")
            assert row.error.kind.isalpha()
    storage = Storage(str(tmp_path / "output"))
    done = [
        (row, error_columns(row.error) if row.error else {"status": "unchanged"}) for row in rows
    ]
    if done:
        asked = Asked()
        for row in rows:
            asked.add(row.id, row.fingerprint)
        with hold_lease(storage, "run") as lease:
            ledger = Ledger(storage, lease)
            ledger.commit(result_table(done, model, run_id="run", attempts=0))
            balance = finalize(ledger, asked)
        assert sum(balance.counts.values()) == table.num_rows
        for part in balance.parts:
            found = pq.ParquetFile(tmp_path / "output" / "results" / part).schema_arrow
            assert found.names[: len(RESULT_SCHEMA)] == RESULT_SCHEMA.names
            storage.remove([f"results/{part}"])
    assert {path.name for path in tmp_path.iterdir()} <= {"m.parquet", "a.png", "output"}


@given(ids=st.lists(TEXT | st.text(st.characters(exclude_categories=["Cs"])), unique=True))
@STEADY
def test_any_id_becomes_a_file_of_its_own_under_the_output(tmp_path: Path, ids: list[str]) -> None:
    storage = Storage(str(tmp_path / "output"))
    names = [name for row_id in ids for name in file_names(row_id, "fingerprint")]
    assert len({name.lower() for name in names}) == len(names)
    for name in names[:4]:
        storage.write(name, b"x")
        path = Path(storage.full(name)).resolve()
        assert path.is_relative_to(tmp_path / "output")
        assert path.parent.parent.name in ("edited", "masks", "maps")
        assert not path.name.startswith((".", "-", "_"))
        assert len(path.name.encode()) < 100


@given(data=st.binary(max_size=200), place=st.floats(0, 1))
@STEADY
def test_any_damage_to_a_manifest_is_told(tmp_path: Path, data: bytes, place: float) -> None:
    rows = [
        {"id": str(n), "image": "a.png", "source_prompt": "a", "target_prompt": "b"} for n in "12"
    ]
    path = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    whole = path.read_bytes()
    start = int(place * len(whole))
    damaged = whole[:start] + data + whole[start + len(data) :]
    (tmp_path / "m.parquet").write_bytes(damaged)
    tree = {
        "model": {"id": "demo"},
        "input": {"manifest": str(tmp_path / "m.parquet")},
        "output": {"uri": str(tmp_path / "output")},
    }
    try:
        rows_found = list(Manifest(JobConfig.model_validate(tree), "model@1").rows())
    except ManifestError as error:
        assert "m.parquet" in str(error)
    else:
        assert all(row.id for row in rows_found)
