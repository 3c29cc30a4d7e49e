"""Exports of one output, each opened with the tools it is for."""

import gc
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from outputs_on_disk import failure, row, write_output
from PIL import Image

from diffedit_batch.data.storage import Storage
from diffedit_batch.errors import ConfigError, StorageError
from diffedit_batch.export import parquet, shards
from diffedit_batch.export.export import DATA_FILES, export_output
from diffedit_batch.export.samples import NUM_THREADS, PICTURES, Picture

datasets = pytest.importorskip("datasets", reason="needs datasets (pip)")
polars = pytest.importorskip("polars", reason="needs polars (pip)")
duckdb = pytest.importorskip("duckdb", reason="needs duckdb (pip)")
webdataset = pytest.importorskip("webdataset", reason="needs webdataset (pip)")
pandas = pytest.importorskip("pandas", reason="needs pandas (pip)")

REVIEWED = ("clip_text", "filter_reasons", "is_flagged", "candidates")
ARABIC = "قطة سوداء <b>|"


def rows() -> list[dict[str, Any]]:
    found = [row(f"row {n}/é.x", n, note=f"note {n}", weight=n / 4) for n in range(7)]
    found[1] |= {"status": "unchanged", "target_prompt": [ARABIC]}
    found[2] |= {"map_file_name": "", "map_sha256": ""}  # of an own mask
    found[3] |= {"image": "gone.png"}
    found[4] |= {"filter_reasons": ["clip_text < 0.2", "mask_coverage > 0.4"], "clip_text": 0.1}
    found[4] |= {"candidates": [{"seed": 0, "score": 2.5}, {"seed": 7, "score": None}]}
    found[5] |= {"filter_reasons": [], "is_flagged": True}
    found += [failure("bad", "load", "ImageNotFound", "no file", note="", weight=float("nan"))]
    return found


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six rows with all their pictures, two without one of them, and one that failed."""
    folder = tmp_path_factory.mktemp("export")
    uri = write_output(folder, rows())
    (folder / "gone.png").unlink()
    return uri


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    datasets.disable_progress_bars()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def expected(output: str) -> dict[str, dict[str, Any]]:
    """Rows with pictures by id, and the bytes of these."""
    found = {}
    for one in rows()[:-1]:
        folder = Path(output)
        names = (
            folder.parent / one["image"],
            *(folder / one[f"{kind}_file_name"] for kind in ("edited", "mask", "map")),
        )
        read = {
            name: path.read_bytes() if path.is_file() else None
            for name, path in zip(PICTURES, names, strict=True)
        }
        found[one["id"]] = {**one, **read}
    return found


def check_dataset(dataset: Any, output: str) -> None:
    """What `datasets` makes of an export is what the output holds."""
    wanted = expected(output)
    assert {name for name in PICTURES if isinstance(dataset.features[name], datasets.Image)} == set(
        PICTURES
    )
    assert set(dataset.unique("id")) == wanted.keys()
    for one in dataset:
        theirs = wanted[one["id"]]
        for name in PICTURES:
            if theirs[name] is None:
                assert one[name] is None
            else:
                pixels = np.array(Image.open(io.BytesIO(theirs[name])))
                assert np.array_equal(np.array(one[name]), pixels), name
        for name in ("status", "target_prompt", "note", "weight", "seed", "map_contrast"):
            assert one[name] == theirs[name], name
        for name in REVIEWED:
            assert one[name] == theirs.get(name), name
        assert not any(name.endswith("_file_name") for name in one)


def test_parquet_opens_with_datasets_pandas_polars_and_duckdb(output: str, tmp_path: Path) -> None:
    export = export_output(output, str(tmp_path / "to"), "parquet")
    assert (export.num_rows, export.num_failed, export.num_files) == (7, 1, 1)
    assert export.missing == {"source_image: ImageNotFound": 1}
    check_dataset(datasets.load_dataset(str(tmp_path / "to"), split="train"), output)
    stream = datasets.load_dataset(str(tmp_path / "to"), split="train", streaming=True)
    assert next(iter(stream))["edited_image"].size == (48, 32)
    path = str(tmp_path / "to" / "data" / "train-00000.parquet")
    check_dataset(datasets.Dataset.from_parquet(path), output)
    wanted = expected(output)
    digests = {row_id: one["edited_image"] for row_id, one in wanted.items()}
    frame = pandas.read_parquet(path)
    assert {r["id"]: r["edited_image"]["bytes"] for _, r in frame.iterrows()} == digests
    frame = polars.read_parquet(path)
    assert {r["id"]: r["edited_image"]["bytes"] for r in frame.iter_rows(named=True)} == digests
    found = duckdb.sql(
        f"SELECT id, edited_image.bytes, list_extract(target_prompt, 1) FROM '{path}'"
    ).fetchall()
    assert {row_id: data for row_id, data, _ in found} == digests
    assert ARABIC in {prompt for _, _, prompt in found}


def test_plain_results_open_with_every_tool(output: str) -> None:
    pattern = f"{output}/results/*.parquet"
    wanted = {one["id"]: (one["status"], one["target_prompt"], one["seed"]) for one in rows()}
    columns = ["id", "status", "target_prompt", "seed"]
    loaded = datasets.load_dataset("parquet", data_files=pattern, split="train")
    folder = datasets.load_dataset(f"{output}/results", split="train")
    tables = {
        "datasets": loaded.select_columns(columns).to_list(),
        "its folder": folder.select_columns(columns).to_list(),
        "pandas": pandas.read_parquet(f"{output}/results")[columns].to_dict("records"),
        "polars": polars.read_parquet(pattern).select(columns).to_dicts(),
        "duckdb": duckdb.sql(f"SELECT {', '.join(columns)} FROM '{pattern}'").to_arrow_table(),
    }
    tables["duckdb"] = tables["duckdb"].to_pylist()
    for name, found in tables.items():
        cells = {r["id"]: (r["status"], list(r["target_prompt"]), r["seed"]) for r in found}
        assert cells == wanted, name


def test_pictures_in_parquet_are_stored_as_the_viewer_wants_them(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
    export_output(output, str(tmp_path / "to"), "parquet")
    file = pq.ParquetFile(tmp_path / "to" / "data" / "train-00000.parquet")
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [3, 3, 1]
    chunks = [groups[0].column(n) for n in range(groups[0].num_columns)]
    columns = {chunk.path_in_schema: chunk for chunk in chunks}
    data = columns["edited_image.bytes"]
    assert (data.compression, data.has_dictionary_page) == ("UNCOMPRESSED", False)
    assert "PLAIN" in data.encodings
    assert data.has_column_index or data.has_offset_index
    texts = columns["source_prompt.list.element"]
    assert (texts.compression, texts.has_dictionary_page) == ("ZSTD", True)
    info = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]
    assert info == {"features": {name: {"_type": "Image"} for name in PICTURES}}
    assert file.schema_arrow.field("edited_image").type == datasets.Image().pa_type


def test_a_row_group_ends_by_size_too(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1)
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    export = export_output(output, str(tmp_path / "to"), "parquet")
    paths = sorted((tmp_path / "to" / "data").iterdir())
    assert 1 < export.num_files == len(paths) < 7
    assert paths[-1].name == f"train-{len(paths) - 1:05}.parquet"
    metadata = [pq.read_metadata(path) for path in paths]
    assert sum(one.num_row_groups for one in metadata) == sum(one.num_rows for one in metadata) == 7
    check_dataset(datasets.load_dataset(str(tmp_path / "to"), split="train"), output)


def test_a_folder_of_pictures_opens_with_datasets(output: str, tmp_path: Path) -> None:
    export = export_output(output, str(tmp_path / "to"), "imagefolder")
    assert export.num_files == 1 + 6 + 7 + 7 + 6
    check_dataset(datasets.load_dataset(str(tmp_path / "to"), split="train"), output)
    plain = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "to" / "data"))
    check_dataset(plain["train"], output)
    table = pq.read_table(tmp_path / "to" / "data" / "metadata.parquet").to_pylist()
    for one in table:
        data = (tmp_path / "to" / "data" / one["edited_image_file_name"]).read_bytes()
        assert data == expected(output)[one["id"]]["edited_image"]


# WebDataset leaves its files to be closed by the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning"
)
def test_tar_files_open_with_webdataset_and_datasets(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    export = export_output(output, str(tmp_path / "to"), "webdataset")
    paths = sorted(str(path) for path in (tmp_path / "to" / "data").iterdir())
    assert export.num_files == len(paths) > 1
    wanted = expected(output)
    found = 0
    for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
        one = json.loads(sample["json"])
        theirs = wanted[one["id"]]
        found += 1
        assert one["target_prompt"] == theirs["target_prompt"]
        assert one["finished_at"] == theirs["finished_at"].isoformat()
        assert {name: one[name] for name in REVIEWED} == {n: theirs.get(n) for n in REVIEWED}
        for name in PICTURES:
            assert sample.get(f"{name}.png") == theirs[name]
    assert found == 7
    gc.collect()
    for path in paths:
        with tarfile.open(path) as tar:
            assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    features = {name: datasets.Image() for name in ("edited_image.png", "map_image.png")}
    loaded = datasets.load_dataset(
        "webdataset", data_files=paths, split="train", features=datasets.Features(features)
    )
    sizes = [one["edited_image.png"].size for one in loaded]
    assert sizes == [(48, 32)] * 7
    assert [one["map_image.png"] is None for one in loaded].count(True) == 1


@pytest.mark.parametrize("form", DATA_FILES)
def test_an_export_is_repeated_byte_by_byte(
    output: str, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one" / "edits", tmp_path / "other" / "edits"
    export_output(output, str(one), form)
    first = files(one)
    export_output(output, str(other), form)
    assert files(other) == first
    (one / "data" / "train-00099.parquet").write_bytes(b"of an earlier export")
    export_output(output, str(one), form)
    assert files(one) == first
    # Of an export that is killed no file is half there, and the card is not.
    write, names = Storage.write, []

    def die(self: Storage, path: str, data: bytes) -> None:
        if path.startswith("data/"):
            names.append(path)
            raise StorageError("the disk is full")
        write(self, path, data)

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(Storage, "write", die)
        export_output(output, str(one), form)
    assert names
    assert not (one / "README.md").exists()
    export_output(output, str(one), form)
    assert files(one) == first


def test_every_form_goes_from_and_to_an_object_store(output: str, tmp_path: Path) -> None:
    remote = Storage("memory://export/output")
    for path in Path(output).rglob("*.*"):
        if path.is_file():
            remote.write(str(path.relative_to(output)), path.read_bytes())
    for form in DATA_FILES:
        target = Storage(f"memory://export/{form}")
        for _ in range(2):
            export = export_output(remote.uri, target.uri, form)
            assert export.num_rows == 7
        export_output(output, str(tmp_path / form), form)
        assert {path: target.read(path) for path in target.find("")} == files(tmp_path / form)
    remote.fs.rm("/export", recursive=True)


def test_the_card_says_what_there_is(output: str, tmp_path: Path) -> None:
    export_output(output, str(tmp_path / "to"), "parquet")
    card = (tmp_path / "to" / "README.md").read_text("utf-8")
    _, header, body = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert metadata["size_categories"] == ["n<1K"]
    assert "| edited | 6 |" in body
    assert "| unchanged | 1 |" in body
    assert "The 1 that failed are left out." in body
    assert r"| guidance\_scale | 5.0 |" in body
    assert "| demo | 1 | 7 |" in body
    with Image.open(tmp_path / "to" / "samples.png") as picture:
        assert picture.width > 3 * 4 * 128, "with soft maps"


def test_the_card_of_results_without_younger_parameters(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1)])
    [part] = (Path(output) / "results").iterdir()
    table = pq.ParquetFile(part).read().drop_columns(["mask_grow", "num_seeds", "keep_best"])
    pq.write_table(table, part)
    export_output(output, str(tmp_path / "to"), "parquet")
    card = (tmp_path / "to" / "README.md").read_text("utf-8")
    assert r"| feather |" in card
    assert r"mask\_grow" not in card


def test_names_on_a_card_are_only_text(tmp_path: Path) -> None:
    evil = "<img src=x>|[a](javascript:b)\n# c"
    ids = ["a", "b", "c", "d", "e", "f", "g"]
    output = write_output(
        tmp_path,
        [row(i, n, model_id=evil, seed=n, guidance_scale=n / 8) for n, i in enumerate(ids)],
    )
    target = tmp_path / "<script>"
    export_output(output, str(target), "parquet")
    card = (target / "README.md").read_text("utf-8").split("---\n", 2)[2]
    assert "<" not in card.replace("\\<", "")
    assert r"# \<script\>" in card
    assert r"\|\[a\]\(javascript\:b\) \# c" in card
    assert "and 2 others" in card.replace("\\", "")


def test_a_running_or_killed_output_gives_what_there_is(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1)], is_finished=False)
    export = export_output(output, str(tmp_path / "to"), "parquet")
    assert (export.num_rows, export.missing) == (1, {"source_image: ImageNotFound": 1})
    export = export_output(output, str(tmp_path / "to"), "parquet", image_root=str(tmp_path))
    assert export.missing == {}
    (Path(output) / row("a", 1)["edited_file_name"]).unlink()
    export = export_output(output, str(tmp_path / "to"), "parquet", image_root=str(tmp_path))
    assert export.missing == {"edited_image: FileGone": 1}


def test_sources_of_other_formats_keep_their_bytes(tmp_path: Path) -> None:
    output = write_output(tmp_path, [row("a", 1), row("b", 2)])
    for name, form in (("1.png", "JPEG"), ("2.png", "WEBP")):
        Image.new("RGB", (48, 32), "red").save(tmp_path / name, form)
    export_output(output, str(tmp_path / "to"), "imagefolder")
    found = sorted((tmp_path / "to" / "data" / "source_image").rglob("*.*"))
    kept = {path.suffix: hashlib.sha256(path.read_bytes()).digest() for path in found}
    assert kept == {
        ".jpg": hashlib.sha256((tmp_path / "1.png").read_bytes()).digest(),
        ".webp": hashlib.sha256((tmp_path / "2.png").read_bytes()).digest(),
    }


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no results of this job"):
        export_output(str(tmp_path), str(tmp_path / "to"), "parquet")
    assert not (tmp_path / "to").exists()
    output = write_output(tmp_path, [failure("a", "load", "ImageNotFound", "no file")])
    for form in DATA_FILES:
        assert export_output(output, str(tmp_path / form), form).num_rows == 0


def test_what_is_no_export_is_left_alone(output: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for target in (tmp_path / "mine", Path(output)):
        before = files(target)
        with pytest.raises(ConfigError, match="holds something that is no export"):
            export_output(output, str(target), "parquet")
        assert files(target) == before


@pytest.mark.parametrize(
    ("name", "form"), [("mask_image", "parquet"), ("scan_file_name", "imagefolder")]
)
def test_columns_that_would_be_taken_for_pictures_are_refused(
    tmp_path: Path, name: str, form: str
) -> None:
    output = write_output(tmp_path, [row("a", 1, **{name: "x"})])
    with pytest.raises(ConfigError, match=f"column '{name}' of the manifest"):
        export_output(output, str(tmp_path / "to"), form)
    assert not (tmp_path / "to").exists()


def test_no_sample_is_kept_once_it_is_written(tmp_path: Path) -> None:
    """Of many rows, no more samples are alive than a row group and a window of readers hold."""
    output = write_output(
        tmp_path, [row(f"r{n}", n % 5) | {"fingerprint": f"f{n % 5}"} for n in range(300)]
    )
    alive = []

    def count(num_done: int, _: int) -> None:
        if num_done % 50 == 0:
            alive.append(sum(type(one) is Picture for one in gc.get_objects()))

    export_output(output, str(tmp_path / "to"), "parquet", on_progress=count)
    assert len(alive) == 6
    assert max(alive) <= 4 * (parquet.GROUP_ROWS + 2 * NUM_THREADS)
