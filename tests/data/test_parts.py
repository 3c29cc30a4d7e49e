import random

import numpy as np
import pytest

from diffedit_batch.data.parts import (
    Asked,
    Committed,
    PartName,
    as_keys,
    find,
    part_names,
    row_key,
    version_key,
)
from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import StorageError


def test_keys_tell_rows_and_versions_apart() -> None:
    assert row_key("a") != row_key("b")
    keys = {version_key(*pair) for pair in (("a", "f"), ("b", "f"), ("a", "g"), ("af", ""))}
    assert len(keys) == 4
    assert all(len(key) == 16 for key in keys)


def test_part_names_sort_by_age_and_nothing_else_passes_for_one() -> None:
    storage = Storage("memory://test_part_names/out")
    for name in ("part-000002-000001", "part-000001-1000000", "part-000001-000002"):
        storage.write(f"results/{name}.parquet", b"")
    storage.write("results/note.txt", b"")
    assert part_names(storage) == [(1, 2), (1, 1_000_000), (2, 1)]
    assert PartName(1, 2).path == "results/part-000001-000002.parquet"
    storage.write("results/mine.parquet", b"")
    with pytest.raises(StorageError, match=r"mine\.parquet.*move it away"):
        part_names(storage)


def test_committed_is_what_a_dict_would_be() -> None:
    rng = random.Random(0)
    keys = [rng.randbytes(16) for _ in range(200)]
    # Ends of zeros are where fixed-width bytes go wrong.
    keys += [bytes(16), b"a" + bytes(15), b"a\0b" + bytes(13), b"ab" + bytes(14)]
    results = [(rng.choice(keys[::2] + keys[-4:]), rng.random() < 0.5) for _ in range(400)]
    expected: dict[bytes, bool] = {}
    for key, is_failed in results:
        expected[key] = is_failed and expected.get(key, True)
    committed = Committed(
        as_keys(b"".join(key for key, _ in results)), np.array([failed for _, failed in results])
    )
    assert len(committed) == len(expected)
    assert {key: committed.get(key) for key in keys} == {key: expected.get(key) for key in keys}


def test_nothing_committed_and_nothing_asked() -> None:
    committed = Committed(as_keys(b""), np.zeros(0, bool))
    assert len(committed) == 0
    assert committed.get(version_key("a", "f")) is None
    rows, versions = Asked().in_order()
    assert len(rows) == len(versions) == 0
    _, is_there = find(rows, as_keys(row_key("a")))
    assert is_there.tolist() == [False]


def test_asked_keeps_rows_and_versions_together() -> None:
    asked = Asked()
    ids = [str(number) for number in range(50)]
    for row_id in ids:
        asked.add(row_id, f"f{row_id}")
    rows, versions = asked.in_order()
    assert rows.tolist() == sorted(rows.tolist())
    pairs = dict(zip(rows.tolist(), versions.tolist(), strict=True))
    for row_id in ids:
        expected = version_key(row_id, f"f{row_id}").rstrip(b"\0")
        assert pairs[row_key(row_id).rstrip(b"\0")] == expected
