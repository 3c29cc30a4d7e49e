from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jobs_on_disk import edits_of, job, write_manifest, write_pictures

from diffedit_batch.errors import ManifestError
from diffedit_batch.runtime import sample
from diffedit_batch.runtime.sample import allocate, sample_rows, spread


@pytest.mark.parametrize(("num_there", "num_wanted"), [(1, 1), (7, 7), (7, 9), (100, 7), (3, 2)])
def test_spread_numbers_are_one_of_each_stretch(num_there: int, num_wanted: int) -> None:
    numbers = spread(num_there, num_wanted)
    num = min(num_there, num_wanted)
    assert len(numbers) == num
    for place, number in enumerate(numbers):
        assert place * num_there // num <= number < (place + 1) * num_there // num


@pytest.mark.parametrize("period", range(2, 12))
def test_a_manifest_that_repeats_itself_is_not_met_at_one_beat(period: int) -> None:
    met = Counter(number % period for number in spread(12 * 10 * period, 12 * period))
    assert met.keys() == set(range(period))
    assert max(met.values()) <= 24


def test_every_kind_comes_before_any_comes_twice() -> None:
    assert allocate([100, 1, 1], 2) == [1, 1, 0]
    assert allocate([1, 1, 100], 1) == [0, 0, 1]
    assert allocate([100, 1, 1], 5) == [3, 1, 1]
    assert allocate([60, 30, 10], 10) == [6, 3, 1]
    assert allocate([2, 1], 16) == [2, 1]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Forty edits of wide pictures; one of a tall one, one with another guidance, one with a mask,
    and two that cannot be edited.
    """
    names = write_pictures(tmp_path, 40, (64, 32))
    [tall] = write_pictures(tmp_path / "tall", 1, (32, 64))
    rows = edits_of(names)
    rows[7]["image"] = f"tall/{tall}"
    rows[20]["guidance_scale"] = 9.0
    rows[33]["mask"] = names[0]
    rows[34]["target_prompt"] = " "
    (tmp_path / names[35]).write_bytes(b"broken")
    write_manifest(tmp_path, rows)
    return rows


@pytest.mark.usefixtures("rows")
def test_a_sample_has_rows_of_every_kind_and_is_always_the_same(tmp_path: Path) -> None:
    config = job(tmp_path, Path("demo"))
    found = sample_rows(config, 6)
    ids = [row.id for row in found.rows]
    assert {"007-0", "020-0", "033-0"} < set(ids)
    assert ids == sorted(ids), "in the order of the manifest"
    assert len(ids) == 6
    assert found.num_kinds == 4
    assert found.num_candidates == 40
    assert found.refused == {"manifest/PromptMissing": 1, "load/ImageUnreadable": 1}
    assert found.manifest.table()["id"].to_pylist() == ids
    assert [row.id for row in found.manifest.rows()] == ids
    assert [row.id for row in sample_rows(config, 6).rows] == ids
    assert len(sample_rows(config, 100).rows) == 38


@pytest.mark.usefixtures("rows")
def test_of_a_large_manifest_only_some_rows_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "NUM_CANDIDATES", 10)
    found = sample_rows(job(tmp_path, Path("demo")), 3)
    assert (found.num_candidates, len(found.rows)) == (10, 3)
    found = sample_rows(job(tmp_path, Path("demo")), 3, where="id < '003'", limit=2)
    assert [row.id for row in found.rows] == ["000-0", "001-0"]


def test_a_manifest_without_rows_to_edit(tmp_path: Path) -> None:
    config = job(tmp_path, Path("demo"))
    [name] = write_pictures(tmp_path, 1)
    write_manifest(tmp_path, edits_of([name]))
    with pytest.raises(ManifestError, match="no rows for which --where is true"):
        sample_rows(config, 4, where="id = 'x'")
    (tmp_path / name).unlink()
    with pytest.raises(ManifestError, match=r"none of the 1 rows looked at .* no file"):
        sample_rows(config, 4)
    write_manifest(tmp_path, edits_of([name]))
    import pyarrow.parquet as pq

    path = tmp_path / "manifest.parquet"
    pq.write_table(pq.ParquetFile(path).read().slice(0, 0), path)
    with pytest.raises(ManifestError, match="has no rows"):
        sample_rows(config, 4)
