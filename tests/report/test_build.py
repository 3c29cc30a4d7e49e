import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from jobs_on_disk import write_manifest
from outputs_on_disk import RUN, failure, png, row, write_output
from PIL import Image

from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError, StorageError
from diffedit_batch.report import build
from diffedit_batch.report.build import Report, build_report

PAGE = Path(build.__file__).parent / "gallery"


def arguments_of(path: Path) -> list[Any]:
    """What a data file calls its function with."""
    text = path.read_text("ascii")
    found: list[Any] = json.loads(f"[{text[text.index('(') + 1 : text.rindex(')')]}]")
    return found


def cells(column: Any, number: int) -> Any:
    if isinstance(column, list):
        return column[number]
    return column["all"] if "all" in column else column["values"][column["at"][number]]


def shown(report: Report) -> list[dict[str, Any]]:
    """Every cell the page can show, row by row."""
    folder = report.page.parent
    [meta] = arguments_of(folder / "data.js")
    rows: list[dict[str, Any]] = [{} for _ in range(meta["numRows"])]
    for kind, length in (("rows", meta["indexRows"]), ("details", meta["detailRows"])):
        for path in (folder / "data" / meta["data"]).glob(f"{kind}-*.js"):
            name, number, columns = arguments_of(path)
            assert (name, path.stem) == (kind, f"{kind}-{number}")
            for place, one in enumerate(rows[number * length : (number + 1) * length]):
                one |= {column: cells(values, place) for column, values in columns.items()}
    return rows


def pictures(report: Report) -> set[Path]:
    return {path for path in (report.page.parent / "pictures").rglob("*") if path.is_file()}


def test_every_number_is_that_of_the_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_INDEX_ROWS", 6)
    monkeypatch.setattr(build, "_DETAIL_ROWS", 3)
    rng = np.random.default_rng(0)
    rows = [
        row(
            f"row-{number}",
            number,
            mask_coverage=rng.random(),
            background_psnr=100 * rng.random(),
            map_mean=rng.random(),
            map_max=rng.random(),
            digital_source_type="http://x" if number % 2 else "",
            map_contrast=None if number == 3 else rng.lognormal(),
            seed=2**63 - 1 - number,
            weight=rng.random() if number else float("nan"),
            tags=["a", "\u2028</script>"],
        )
        for number in range(11)
    ]
    output = write_output(tmp_path, rows)
    report = build_report(output)
    [part] = Path(output, "results").iterdir()
    table = pq.ParquetFile(part).read().to_pylist()
    assert report.num_rows == len(table)
    for ours, theirs in zip(shown(report), table, strict=True):
        for name, value in theirs.items():
            if name in ("error_stage", "error_type", "finished_at"):
                continue
            if name == "seed" or value != value:  # what JavaScript would round or cannot write
                assert ours[name] == str(value)
            else:
                assert ours[name] == value, name
        assert ours["finished"] == theirs["finished_at"].timestamp() * 1000
        assert ours["finished_at"] == theirs["finished_at"].isoformat()


def test_rows_come_as_people_count(tmp_path: Path) -> None:
    names = ["b", "row-10", "row-9", "Row-1", "9" * 5000, "7", "", "٣"]
    output = write_output(tmp_path, [row(name, n) for n, name in enumerate(names)])
    ids = [one["id"] for one in shown(build_report(output))]
    assert ids == ["", "7", "9" * 4000 + "…", "b", "Row-1", "row-9", "row-10", "٣"]


def test_pictures_are_made_once_and_those_unused_go(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1), row("b", 1, image="1.png"), row("c", 2)])
    first = build_report(output)
    assert (first.num_made, first.num_reused, first.missing) == (2 + 3 * 3, 0, Counter())
    assert len(pictures(first)) == 2 * 11, "two sizes each"
    stamps = {path: path.stat().st_mtime_ns for path in pictures(first)}
    (tmp_path / "1.png").write_bytes(png((1, 2, 3)))
    write_output(tmp_path, [row("c", 3, image="1.png")])
    second = build_report(output)
    assert (second.num_made, second.num_reused) == (4, 6)
    kept = pictures(second) & stamps.keys()
    assert len(kept) == 2 * 6
    assert all(path.stat().st_mtime_ns == stamps[path] for path in kept)
    assert len(pictures(second)) == 2 * 10
    assert len(list((second.page.parent / "data").iterdir())) == 1


def test_the_newest_result_of_a_row_is_shown_and_a_success_before_a_failure(
    tmp_path: Path,
) -> None:
    output = write_output(tmp_path, [row("a", 1, seconds=1.0), row("b", 2, seconds=1.0)])
    write_output(tmp_path, [row("a", 3, seconds=2.0)])
    write_output(
        tmp_path, [failure("b", "worker", "WorkerDied", "gone", image="2.png", fingerprint="f2")]
    )
    seconds = {one["id"]: one["seconds"] for one in shown(build_report(output))}
    assert seconds == {"a": 2.0, "b": 1.0}
    write_output(tmp_path, [failure("b", "load", "ImageNotFound", "gone", fingerprint="f9")])
    assert [one["status"] for one in shown(build_report(output))] == ["edited", "failed"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    rows = [
        row("gone", 1),
        row("junk", 2),
        row("lost", 3),
        row("web", 4),
        failure("failed", "load", "ImageNotFound", "no file", image="5.png"),
        failure("failed too", "load", "ImageNotFound", "no file at all", image="5.png"),
    ]
    output = write_output(tmp_path, rows)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"junk")
    (tmp_path / "output" / rows[2]["edited_file_name"]).unlink()
    (tmp_path / "output" / rows[3]["mask_file_name"]).write_bytes(b"junk")
    (tmp_path / "output" / rows[0]["map_file_name"]).unlink()
    report = build_report(output)
    assert report.missing == {
        "source: ImageNotFound": 1,
        "source: ImageUnreadable": 1,
        "edited: FileGone": 1,
        "mask: FileBroken": 1,
        "map: FileGone": 1,
    }
    found = {one["id"]: one for one in shown(report)}
    assert "no file" in found["gone"]["source_note"]
    assert "not a PNG" in found["junk"]["source_note"]
    assert "no longer in the output" in found["lost"]["note"]
    assert (found["lost"]["edited"], bool(found["lost"]["mask"])) == ("", True)
    assert found["failed"]["source"], "the source of a failed row helps to see why"
    [meta] = arguments_of(report.page.parent / "data.js")
    assert meta["failures"] == [
        {
            "stage": "load",
            "type": "ImageNotFound",
            "count": 2,
            "messages": [["no file", 1], ["no file at all", 1]],
            "numMessages": 2,
        }
    ]


def test_an_output_without_an_ended_run_needs_the_folder_of_the_images(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1)], is_finished=False)
    report = build_report(output)
    [one] = shown(report)
    assert "--image-root" in one["source_note"]
    assert one["edited"]
    [meta] = arguments_of(report.page.parent / "data.js")
    assert (meta["isComplete"], meta["numAsked"]) == (False, None)
    [one] = shown(build_report(output, image_root=str(tmp_path)))
    assert (one["source_note"], bool(one["source"])) == ("", True)


def test_images_that_are_bytes_in_the_manifest(tmp_path: Path) -> None:
    colors = {"a": (200, 0, 0), "b": (0, 200, 0)}
    output = write_output(tmp_path, [row(name, image="") for name in colors])
    for one in shown(build_report(output)):
        assert "which is gone" in one["source_note"]
    rows = [
        {"id": name, "image": png(color), "source_prompt": "x", "target_concept": "y"}
        for name, color in colors.items()
    ]
    write_manifest(tmp_path, rows)
    report = build_report(output)
    for one in shown(report):
        path = report.page.parent / "pictures" / one["source"][:2] / f"{one['source']}.jpg"
        with Image.open(path) as picture:
            assert np.allclose(np.array(picture), colors[one["id"]], atol=6)


def test_another_folder(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1)])
    for _ in range(2):
        report = build_report(output, tmp_path / "gallery")
        assert report.page == tmp_path / "gallery" / "index.html"
        [meta] = arguments_of(report.page.parent / "data.js")
        assert meta["output"] == "", "no links that lead nowhere"
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds something that is no gallery"):
        build_report(output, tmp_path / "mine")


def test_no_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no results of this job"):
        build_report(str(tmp_path))
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1)])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"file/gallery: Not a directory\..*--to"):
        build_report(output, tmp_path / "file" / "gallery")


def test_a_remote_output_needs_a_folder(tmp_path: Path) -> None:
    local = write_output(tmp_path, [row("a", 1)])
    remote = Storage("memory://report/output")
    for path in Path(local).rglob("*.*"):
        remote.write(str(path.relative_to(local)), path.read_bytes())
    with pytest.raises(ConfigError, match="--to"):
        build_report(remote.uri)
    report = build_report(remote.uri, tmp_path / "gallery")
    [one] = shown(report)
    assert one["source"]
    assert one["edited"]
    assert one["run_id"] == RUN
    remote.fs.rm(remote.full(""), recursive=True)


def test_the_page_is_whole_and_asks_for_nothing_else() -> None:
    page = (PAGE / "index.html").read_text("utf-8")
    names = {path.name for path in PAGE.iterdir()}
    linked = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    assert linked - {"data.js"} == names - {"index.html"}
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", page), "not inline"
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write", text)


def test_variants_are_named_in_ascending_order(tmp_path: Path) -> None:
    labels = ("seed=10", "seed=9", "a=0.35, b=x", "a=0.5, b=w", "a=0.35, b=w", "a=-1, b=w")
    rows = [row(label, n, variant_of="a", variant=label) for n, label in enumerate(labels)]
    rows.append(row("other", 9, variant_of=None, variant=None))
    report = build_report(write_output(tmp_path, rows))
    [meta] = arguments_of(report.page.parent / "data.js")
    assert meta["variants"] == [
        *("a=-1, b=w", "a=0.35, b=w", "a=0.35, b=x", "a=0.5, b=w", "seed=9", "seed=10")
    ]
    found = {one["id"]: (one["variant_of"], one["variant"]) for one in shown(report)}
    assert found["seed=9"] == ("a", "seed=9")
    assert found["other"] == (None, None)


@pytest.mark.parametrize(
    "columns", [{"variant": "x"}, {"variant_of": 1, "variant": 2}, {"variant_of": "x"}]
)
def test_other_columns_of_these_names_are_no_variants(
    tmp_path: Path, columns: dict[str, object]
) -> None:
    report = build_report(write_output(tmp_path, [row("a", 1, **columns)]))
    [meta] = arguments_of(report.page.parent / "data.js")
    assert meta["variants"] == []


def test_more_variants_than_anyone_compares_are_none(tmp_path: Path) -> None:
    rows = [row(f"{n}", n, image="", variant_of="a", variant=f"{n}") for n in range(101)]
    report = build_report(write_output(tmp_path, rows))
    [meta] = arguments_of(report.page.parent / "data.js")
    assert meta["variants"] == []
