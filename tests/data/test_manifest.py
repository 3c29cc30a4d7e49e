import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffedit_batch.config import EditConfig, JobConfig
from diffedit_batch.data.cells import MAX_PROMPT_BYTES
from diffedit_batch.data.manifest import Manifest
from diffedit_batch.data.row import ManifestRow
from diffedit_batch.errors import ManifestError
from diffedit_batch.schema import EDIT_PARAMETERS

CAT_TO_DOG = {"image": "a.png", "source_prompt": "a cat", "target_prompt": "a dog"}
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

OTHER_VALUES: dict[str, Any] = {
    "preset": "diffusers",
    "num_inference_steps": 30,
    "inpaint_strength": 0.7,
    "guidance_scale": 3.5,
    "num_maps_per_mask": 4,
    "mask_encode_strength": 0.4,
    "mask_rule": "otsu",
    "mask_threshold": 0.3,
    "mask_thresholding_ratio": 2.0,
    "mask_guide_radius": 3,
    "invert_with": "empty",
    "caption_with": "source_prompt",
    "inversion_guidance_scale": 2.0,
    "inversion_timestep": "current",
    "negative_from": "source_prompt",
    "paste_background": False,
    "feather": 3,
    "mask_grow": 2,
    "num_seeds": 4,
    "keep_best": "background_psnr",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images; the manifest never looks inside them."""
    (tmp_path / "a.png").write_bytes(b"aaa")
    (tmp_path / "b.png").write_bytes(b"bbbb")
    return tmp_path


def job(manifest: Path | str, **sections: Any) -> JobConfig:
    tree = {"model": {"id": "demo"}, "output": {"uri": "out"}, **sections}
    tree["input"] = {"manifest": str(manifest), **sections.get("input", {})}
    return JobConfig.model_validate(tree)


def write(path: Path, rows: list[dict[str, Any]] | pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, path, **options)
    return path


def rows_of(
    folder: Path, rows: list[dict[str, Any]] | pa.Table, model_key: str = "model@1", **sections: Any
) -> list[ManifestRow]:
    path = write(folder / "m.parquet", rows)
    return list(Manifest(job(path, **sections), model_key).rows())


def row_of(folder: Path, model_key: str = "model@1", **values: Any) -> ManifestRow:
    [row] = rows_of(folder, [{**CAT_TO_DOG, **values}], model_key)
    return row


def problems_of(config: JobConfig) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        Manifest(config, "model@1")
    assert config.input.manifest in str(caught.value)
    return caught.value.problems


def refusal(folder: Path, **values: Any) -> tuple[str, str]:
    row = row_of(folder, **values)
    assert row.request is None
    assert row.error is not None
    return row.error.stage, row.error.kind


def test_row_becomes_a_request(folder: Path) -> None:
    row = row_of(folder, id="x", seed=5, caption="a pet", negative_prompt="blur", mask="b.png")
    assert row.error is None
    request = row.request
    assert request is not None
    assert (row.id, request.id, request.seed) == ("x", "x", 5)
    assert request.source_prompt == ("a cat",)
    assert request.target_prompt == ("a dog",)
    assert request.caption == ("a pet",)
    assert request.negative_prompt == ("blur",)
    assert request.source_negative_prompt is None
    assert request.fingerprint == row.fingerprint
    assert request.image is not None
    assert request.mask is not None
    assert request.image.uri == str(folder / "a.png")
    assert request.mask.uri == str(folder / "b.png")
    assert row.image == "a.png"
    assert None not in request.edit.model_dump().values()


def test_seeds_of_a_column_with_nulls_are_integers_all_the_same(folder: Path) -> None:
    first, second = rows_of(folder, [{**CAT_TO_DOG, "seed": 7.0}, {**CAT_TO_DOG, "seed": None}])
    assert first.request is not None
    assert second.request is not None
    assert (first.request.seed, second.request.seed) == (7, 0)
    assert isinstance(first.request.seed, int)
    [odd] = rows_of(folder, [{**CAT_TO_DOG, "seed": 7.5}])
    assert odd.error is not None
    assert odd.error.kind == "InvalidParameter"


def test_run_seed_serves_rows_without_one(folder: Path) -> None:
    rows = rows_of(folder, [{**CAT_TO_DOG, "seed": 3}, {**CAT_TO_DOG, "seed": None}], seed=9)
    assert [row.request.seed for row in rows if row.request] == [3, 9]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(folder: Path, seed: int) -> None:
    table = pa.Table.from_pylist([CAT_TO_DOG])
    kind = pa.int64() if seed < 0 else pa.uint64()
    [row] = rows_of(folder, table.append_column("seed", pa.array([seed], kind)))
    assert row.error is not None
    assert (row.error.stage, row.error.kind) == ("manifest", "InvalidParameter")
    assert "seed" in str(row.error)


@pytest.mark.parametrize(
    ("image", "column", "name"),
    [
        (pa.array([b"png"]), "image", ""),
        (pa.array([b"png"], pa.large_binary()), "image", ""),
        (pa.array([{"bytes": b"png", "path": "x.png"}], HF_IMAGE), "image.bytes", "x.png"),
        (pa.array([{"bytes": b"png", "path": None}], HF_IMAGE), "image.bytes", ""),
    ],
    ids=["binary", "large", "struct", "struct without path"],
)
def test_images_in_the_manifest(folder: Path, image: pa.Array, column: str, name: str) -> None:
    table = pa.Table.from_pylist([CAT_TO_DOG]).set_column(0, "image", image)
    [row] = rows_of(folder, table)
    assert row.request is not None
    assert row.request.image is not None
    assert row.request.image.uri == ""
    assert row.request.image.file == str(folder / "m.parquet")
    assert row.request.image.column == column
    assert row.image == name


def test_struct_with_a_path_alone_means_the_file(folder: Path) -> None:
    image = pa.array([{"bytes": None, "path": "a.png"}], HF_IMAGE)
    [row] = rows_of(folder, pa.Table.from_pylist([CAT_TO_DOG]).set_column(0, "image", image))
    assert row.request is not None
    assert row.request.image is not None
    assert row.request.image.uri == str(folder / "a.png")
    assert row.fingerprint == row_of(folder).fingerprint


def test_cells_are_numbered_within_their_row_group(folder: Path) -> None:
    images = [bytes([number]) for number in range(150)]
    path = write(
        folder / "m.parquet",
        [{**CAT_TO_DOG, "image": image} for image in images],
        row_group_size=100,
    )
    rows = list(Manifest(job(path), "").rows())
    parquet = pq.ParquetFile(path)
    for row, image in zip(rows, images, strict=True):
        assert row.request is not None
        ref = row.request.image
        assert ref is not None
        group = parquet.read_row_group(ref.row_group, columns=[ref.column])
        assert group.column(0)[ref.row].as_py() == image


def test_rows_of_one_image_are_one_group(folder: Path) -> None:
    rows = rows_of(
        folder,
        [
            CAT_TO_DOG,
            {**CAT_TO_DOG, "image": "./a.png", "target_prompt": "a cow"},
            {**CAT_TO_DOG, "image": "b.png"},
        ],
    )
    assert rows[0].group == rows[1].group != rows[2].group
    content = rows_of(folder, [{**CAT_TO_DOG, "image": data} for data in (b"x", b"x", b"y")])
    assert content[0].group == content[1].group != content[2].group


@pytest.mark.parametrize("image", ["", None])
def test_empty_image_cell(folder: Path, image: str | None) -> None:
    table = pa.Table.from_pylist([CAT_TO_DOG]).set_column(
        0, "image", pa.array([image], pa.string())
    )
    [row] = rows_of(folder, table)
    assert row.error is not None
    assert (row.error.stage, row.error.kind) == ("manifest", "ImageMissing")


def test_missing_file_is_one_failed_row(folder: Path) -> None:
    rows = rows_of(folder, [{**CAT_TO_DOG, "image": "no.png"}, CAT_TO_DOG])
    assert rows[0].error is not None
    assert (rows[0].error.stage, rows[0].error.kind) == ("load", "ImageNotFound")
    assert rows[0].image == "no.png"
    assert rows[1].request is not None


@pytest.mark.parametrize("name", ["image", "mask"])
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("../x.png", "PathOutsideRoot"),
        ("/etc/passwd", "PathOutsideRoot"),
        ("file:///etc/passwd", "SchemeNotAllowed"),
        ("http://127.0.0.1/a.png", "SchemeNotAllowed"),
        ("https://user:word@127.0.0.1/a.png", "CredentialsInUri"),
    ],
)
def test_paths_to_elsewhere_are_refused(folder: Path, name: str, path: str, kind: str) -> None:
    assert refusal(folder, **{name: path}) == ("manifest", kind)


def test_image_root_is_configurable(folder: Path) -> None:
    path = write(folder / "deep" / "m.parquet", [CAT_TO_DOG])
    [row] = Manifest(job(path), "").rows()
    assert row.error is not None
    [row] = Manifest(job(path, input={"image_root": str(folder)}), "").rows()
    assert row.request is not None


def test_given_ids_are_kept(folder: Path) -> None:
    for ids in (["x", "ÿ/../", " "], [3, -1, 2**40]):
        rows = rows_of(folder, [{**CAT_TO_DOG, "id": row_id} for row_id in ids])
        assert [row.id for row in rows] == [str(row_id) for row_id in ids]
        assert [row.request.id for row in rows if row.request] == [row.id for row in rows]


def test_derived_ids_are_stable_and_distinct(folder: Path) -> None:
    rows = [
        CAT_TO_DOG,
        {**CAT_TO_DOG, "target_prompt": "a cow"},
        {**CAT_TO_DOG, "image": "b.png"},
        CAT_TO_DOG,
        CAT_TO_DOG,
    ]
    ids = [row.id for row in rows_of(folder, rows)]
    assert len(set(ids)) == len(rows)
    assert ids[3:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert {row.id for row in rows_of(folder, rows[::-1])} == set(ids)
    other = [row.id for row in rows_of(folder, rows, "model@2", edit={"feather": 1}, seed=4)]
    assert other == ids


def test_derived_ids_follow_what_is_asked(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        CAT_TO_DOG,
        {**CAT_TO_DOG, "seed": 1},
        {**CAT_TO_DOG, "guidance_scale": 2.0},
        {**CAT_TO_DOG, "mask": "b.png"},
        {**CAT_TO_DOG, "caption": "pets"},
    ]
    table = pa.concat_tables(
        map(pa.Table.from_pylist, [[row] for row in rows]), promote_options="default"
    )
    assert len({row.id for row in rows_of(folder, table)}) == len(rows)


def test_ids_are_checked_over_all_files(folder: Path) -> None:
    write(folder / "m" / "1.parquet", [{**CAT_TO_DOG, "id": i} for i in ("x", "y", None)])
    write(folder / "m" / "2.parquet", [{**CAT_TO_DOG, "id": i} for i in ("y", "", "z")])
    assert problems_of(job(folder / "m")) == [
        "column 'id': ids must be unique; repeated: 'y'",
        "column 'id': 2 rows have no id; give every row one, or leave the column out",
    ]


def test_many_repeated_ids_are_counted(folder: Path) -> None:
    path = write(folder / "m.parquet", [{**CAT_TO_DOG, "id": n % 8} for n in range(24)])
    [problem] = problems_of(job(path))
    assert problem.endswith("repeated: '0', '1', '2', '3', '4' and 3 more")


def test_all_problems_of_columns_come_at_once(folder: Path) -> None:
    path = write(
        folder / "m.parquet",
        [{"image": 3, "source_prompt": "a", "status": "x", "feather": 1, "edit.feather": 2}],
    )
    problems = problems_of(job(path, input={"columns": {"seed": "no"}}))
    for text in ("'target_prompt' is missing", "'no' is missing", "int64", "same", "reserved"):
        assert sum(text in problem for problem in problems) == 1, text


def test_extension_type_is_refused_in_every_file(folder: Path) -> None:
    plain = pa.Table.from_pylist([{**CAT_TO_DOG, "note": b"x"}])
    write(folder / "m" / "1.parquet", plain)
    marked = plain.schema.get_field_index("note")
    field = plain.schema.field("note").with_metadata({"ARROW:extension:name": "ray.data.x"})
    write(folder / "m" / "2.parquet", plain.cast(plain.schema.set(marked, field)))
    [problem] = problems_of(job(folder / "m"))
    assert "2.parquet: column 'note': extension types are refused" in problem


def test_files_must_agree(folder: Path) -> None:
    write(folder / "m" / "1.parquet", [{**CAT_TO_DOG, "note": "x"}])
    write(folder / "m" / "2.parquet", [CAT_TO_DOG])
    write(folder / "m" / "3.parquet", [{**CAT_TO_DOG, "note": 1}])
    problems = problems_of(job(folder / "m"))
    assert len(problems) == 2
    assert "2.parquet has other columns than" in problems[0]
    assert "3.parquet: column 'note' has type int64, elsewhere string" in problems[1]


def test_files_may_differ_where_values_fit(folder: Path) -> None:
    write(folder / "m" / "1.parquet", [{**CAT_TO_DOG, "note": None}])
    write(folder / "m" / "2.parquet", [{**CAT_TO_DOG, "note": 1}])
    write(folder / "m" / "3.parquet", [{**CAT_TO_DOG, "note": 1.5}])
    assert Manifest(job(folder / "m"), "").num_rows == 3


def test_columns_can_be_mapped(folder: Path) -> None:
    row = {"file": "a.png", "before": "a cat", "after": "a dog", "cfg": 3, "key": 7}
    mapping = {
        "image": "file",
        "source_prompt": "before",
        "target_prompt": "after",
        "guidance_scale": "cfg",
        "id": "key",
    }
    [found] = rows_of(folder, [row], input={"columns": mapping})
    assert found.id == "7"
    assert found.request is not None
    assert found.request.target_prompt == ("a dog",)
    assert found.request.edit.guidance_scale == 3.0
    assert found.carried.num_columns == 0


@pytest.mark.parametrize("spelling", ["guidance_scale", "edit.guidance_scale"])
@pytest.mark.parametrize("value", [5.0, 5])
def test_rows_override_parameters(folder: Path, spelling: str, value: float) -> None:
    rows = rows_of(
        folder,
        [{**CAT_TO_DOG, spelling: value}, {**CAT_TO_DOG, spelling: None}],
        edit={"guidance_scale": 3.0},
    )
    assert [row.request.edit.guidance_scale for row in rows if row.request] == [5.0, 3.0]
    assert all(spelling not in row.carried.schema.names for row in rows)


def test_integers_written_as_floats_are_taken_as_meant(folder: Path) -> None:
    row = row_of(folder, num_inference_steps=30.0, feather=0.0)
    assert row.request is not None
    assert row.request.edit.num_inference_steps == 30
    assert row.request.edit.feather == 0
    assert row.fingerprint == row_of(folder, num_inference_steps=30, feather=0).fingerprint


def test_row_preset_fills_what_the_row_leaves_open(folder: Path) -> None:
    row = row_of(folder, preset="diffusers", guidance_scale=4.0)
    assert row.request is not None
    assert row.request.edit.mask_rule == "mean_ratio"
    assert row.request.edit.inversion_guidance_scale == 4.0


@pytest.mark.parametrize(
    "values",
    [
        {"guidance_scale": 0.5},
        {"guidance_scale": float("inf")},
        {"guidance_scale": float("nan")},
        {"num_inference_steps": 30.5},
        {"num_inference_steps": 0},
        {"num_inference_steps": 10, "inpaint_strength": 0.05},
        {"mask_rule": "median"},
        {"preset": "fancy"},
    ],
    ids=str,
)
def test_parameter_out_of_range_is_a_failed_row(folder: Path, values: dict[str, Any]) -> None:
    table = pa.Table.from_pylist([{**CAT_TO_DOG, **values}])
    [row] = rows_of(folder, table)
    assert row.request is None
    assert row.error is not None
    assert (row.error.stage, row.error.kind) == ("manifest", "InvalidParameter")
    assert next(iter(values)) in str(row.error) or "strength" in str(row.error)


@pytest.mark.parametrize("prompt", ["", "  \n", [], ["a", ""], ["a", None], None])
@pytest.mark.parametrize("name", ["source_prompt", "target_prompt"])
def test_empty_prompt_is_a_failed_row(folder: Path, name: str, prompt: Any) -> None:
    kind = pa.list_(pa.string()) if isinstance(prompt, list) else pa.string()
    table = pa.Table.from_pylist([CAT_TO_DOG])
    index = table.schema.get_field_index(name)
    [row] = rows_of(folder, table.set_column(index, name, pa.array([prompt], kind)))
    assert row.error is not None
    assert (row.error.stage, row.error.kind) == ("manifest", "PromptMissing")
    assert name in str(row.error)


def test_list_prompts_are_several_texts(folder: Path) -> None:
    row = row_of(folder, source_prompt=["a cat", "one cat"], negative_prompt=["", "blur"])
    assert row.request is not None
    assert row.request.source_prompt == ("a cat", "one cat")
    assert row.request.negative_prompt == ("", "blur")


@pytest.mark.parametrize("name", ["caption", "negative_prompt", "source_negative_prompt"])
def test_optional_text_without_any_text_is_none(folder: Path, name: str) -> None:
    for kind, value in ((pa.list_(pa.string()), []), (pa.string(), None)):
        table = pa.Table.from_pylist([CAT_TO_DOG])
        [row] = rows_of(folder, table.append_column(name, pa.array([value], kind)))
        assert row.request is not None
        assert getattr(row.request, name) is None
        assert row.request.negative_text == ("",)
    row = row_of(folder, **{name: ""})
    assert row.request is not None
    assert getattr(row.request, name) == ("",)


@pytest.mark.parametrize("name", ["source_prompt", "caption", "source_negative_prompt"])
def test_prompt_length_is_limited(folder: Path, name: str) -> None:
    # Counted in bytes: two for each letter.
    longest = "ä" * (MAX_PROMPT_BYTES // 2)
    assert row_of(folder, **{name: longest}).error is None
    assert refusal(folder, **{name: longest + "a"}) == ("manifest", "PromptTooLong")
    assert refusal(folder, **{name: ["a", longest + "a"]}) == ("manifest", "PromptTooLong")


def test_failed_rows_keep_id_fingerprint_and_columns(folder: Path) -> None:
    row = row_of(folder, id="x", guidance_scale=0.0, note="mine")
    assert row.id == "x"
    assert row.carried.to_pylist() == [{"note": "mine"}]
    assert row.fingerprint != row_of(folder, id="x", guidance_scale=0.5, note="mine").fingerprint
    assert row.fingerprint == row_of(folder, id="x", guidance_scale=0.0, note="his").fingerprint


def test_other_columns_are_carried_untouched(folder: Path) -> None:
    more = pa.table(
        {
            "num": pa.array([1, None, 3], pa.uint8()),
            "nested": pa.array(
                [[{"a": 1.5}], [], None], pa.list_(pa.struct([("a", pa.float32())]))
            ),
            "when": pa.array([0, 1, None], pa.timestamp("ns", "Europe/Berlin")),
            "raw": pa.array([b"\xff", b"", None]),
            "word": pa.array(["x", "y", "x"]).dictionary_encode(),
        }
    )
    table = pa.Table.from_pylist([CAT_TO_DOG] * 3)
    for field in more.schema:
        marked = field.with_metadata({"secret": "payload"})
        table = table.append_column(marked, more.column(field.name))
    rows = rows_of(folder, table.replace_schema_metadata({"pandas": "payload"}))
    carried = pa.Table.from_batches([row.carried for row in rows])
    word = more.schema.get_field_index("word")
    plain = more.set_column(word, "word", more.column("word").cast(pa.string()))
    assert carried.cast(plain.schema).combine_chunks().equals(plain)
    assert carried.schema.names == more.schema.names
    assert carried.schema.metadata is None
    assert all(field.metadata is None for field in carried.schema)
    assert all(row.carried.num_rows == 1 for row in rows)


@pytest.mark.parametrize("name", EDIT_PARAMETERS)
def test_fingerprint_changes_with_every_parameter(folder: Path, name: str) -> None:
    base = row_of(folder)
    changed = row_of(folder, **{name: OTHER_VALUES[name]})
    assert changed.error is None
    assert changed.fingerprint != base.fingerprint
    [configured] = rows_of(folder, [CAT_TO_DOG], edit={name: OTHER_VALUES[name]})
    assert configured.fingerprint == changed.fingerprint


def test_a_known_fingerprint_stays_what_it_was(folder: Path) -> None:
    """Else every output there is would be done again; only ALGORITHM_VERSION may ask for that."""
    cell = pa.array([b"bytes in the manifest itself"])
    table = pa.Table.from_pylist([CAT_TO_DOG]).set_column(0, "image", cell)
    [row] = rows_of(folder, table)
    assert row.fingerprint == "7b72a569169c15add2a8cb5aefd51394"


def test_a_best_edit_known_to_clip_alone_needs_one_and_follows_it(folder: Path) -> None:
    asked = {**CAT_TO_DOG, "num_seeds": 2, "keep_best": "clip_text"}
    [row] = rows_of(folder, [asked])
    assert row.error is not None
    assert row.error.kind == "InvalidParameter"
    assert "needs a CLIP model" in str(row.error)
    [one] = rows_of(folder, [{**asked, "num_seeds": 1}])
    assert one.error is None
    first, second, other = (
        rows_of(folder, [{**asked, "keep_best": best}], scores={"clip": clip})[0].fingerprint
        for best, clip in [("clip_text", "a/b"), ("clip_text", "a/c"), ("map_contrast", "a/b")]
    )
    assert len({first, second, other}) == 3
    [same] = rows_of(folder, [{**asked, "keep_best": "map_contrast"}])
    assert same.fingerprint == other


@pytest.mark.parametrize(
    "values",
    [
        {"image": "b.png"},
        {"source_prompt": "a kitten"},
        {"target_prompt": "a puppy"},
        {"target_prompt": ["a dog", "a puppy"]},
        {"caption": "a pet"},
        {"negative_prompt": "blur"},
        {"negative_prompt": ""},
        {"source_negative_prompt": "blur"},
        {"mask": "b.png"},
        {"seed": 1},
        {"model_key": "model@2"},
    ],
    ids=str,
)
def test_fingerprint_changes_with_every_input(folder: Path, values: dict[str, Any]) -> None:
    assert row_of(folder, **values).fingerprint != row_of(folder).fingerprint


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 1},
        {"model": {"id": "demo", "dtype": "bfloat16"}},
        {"model": {"id": "demo", "vae_dtype": "float16"}},
        {"model": {"id": "demo", "resolution": 256}},
        {"input": {"size_multiple": 32}},
        {"safety": {"policy": "keep"}},
    ],
    ids=str,
)
def test_fingerprint_changes_with_the_config(folder: Path, sections: dict[str, Any]) -> None:
    [changed] = rows_of(folder, [CAT_TO_DOG], **sections)
    assert changed.fingerprint != row_of(folder).fingerprint


@pytest.mark.parametrize(
    "sections",
    [
        {"engine": {"batch_size": 3, "loader_threads": 7, "writer_threads": 7}},
        {"cluster": {"workers": 3, "gpus_per_worker": 0.5, "cpus_per_worker": 2.0}},
        {"output": {"uri": "elsewhere", "max_failed_fraction": 0.5}},
        {"model": {"id": "demo", "enable_attention_slicing": True, "local_files_only": True}},
        {"input": {"max_pixels": 1, "max_bytes": 9}},
        {"scores": {"clip": "a/b"}, "filter": {"min_clip_text": 0.1, "max_mask_coverage": 0.1}},
        {"scores": {"lpips": "a.safetensors"}, "filter": {"max_lpips": 0.1}},
        {"edit": {"preset": "tuned", "mask_rule": "minmax"}},
    ],
    ids=str,
)
def test_fingerprint_ignores_how_the_work_is_done(folder: Path, sections: dict[str, Any]) -> None:
    [same] = rows_of(folder, [CAT_TO_DOG], **sections)
    assert same.fingerprint == row_of(folder).fingerprint


def test_fingerprint_ignores_id_other_columns_and_spelling(folder: Path) -> None:
    base = row_of(folder)
    assert row_of(folder, id="x", note="y").fingerprint == base.fingerprint
    assert (
        row_of(folder, seed=0, feather=EditConfig().resolved().feather).fingerprint
        == base.fingerprint
    )
    one = row_of(folder, guidance_scale=5)
    [other] = rows_of(folder, [{**CAT_TO_DOG, "edit.guidance_scale": 5.0}])
    assert one.fingerprint == other.fingerprint


def test_fingerprint_follows_the_content_of_a_file(folder: Path) -> None:
    base = row_of(folder)
    shutil.copy2(folder / "a.png", folder / "elsewhere.png")
    assert row_of(folder, image="elsewhere.png").fingerprint == base.fingerprint
    stamp = (folder / "a.png").stat().st_mtime_ns
    (folder / "a.png").write_bytes(b"AAA")
    os.utime(folder / "a.png", ns=(stamp, stamp + 1))
    assert row_of(folder).fingerprint != base.fingerprint


def test_fingerprint_follows_the_content_of_a_cell(folder: Path) -> None:
    def struct(data: bytes, path: str) -> str:
        image = pa.array([{"bytes": data, "path": path}], HF_IMAGE)
        table = pa.Table.from_pylist([CAT_TO_DOG]).set_column(0, "image", image)
        return rows_of(folder, table)[0].fingerprint

    assert struct(b"x", "1.png") == struct(b"x", "2.png") == row_of(folder, image=b"x").fingerprint
    assert struct(b"x", "1.png") != struct(b"y", "1.png")


def test_fingerprint_ignores_order_files_and_row_groups(folder: Path) -> None:
    rows = [{**CAT_TO_DOG, "id": str(n), "target_prompt": f"dog {n}"} for n in range(5)]
    one = {row.id: row.fingerprint for row in rows_of(folder, rows)}
    write(folder / "shards" / "1.parquet", rows[:1:-1], row_group_size=1)
    write(folder / "shards" / "2.parquet", rows[:2])
    config = job(folder / "shards", input={"image_root": str(folder)})
    many = {row.id: row.fingerprint for row in Manifest(config, "model@1").rows()}
    assert one == many
    assert len(set(one.values())) == 5


def test_folders_and_globs(folder: Path) -> None:
    for name in ("m/2.parquet", "m/1.parquet", "m/deep/3.parquet", "m/[x]/4.parquet"):
        write(folder / name, [CAT_TO_DOG])
    for name in (
        "m/_metadata.parquet",
        "m/.5.parquet",
        "m/_temporary/6.parquet",
        "m/.cache/7.parquet",
    ):
        write(folder / name, [{"junk": 1}])
    (folder / "m" / "README.md").write_text("hello")

    def names(uri: Path | str) -> list[str]:
        manifest = Manifest(job(uri), "")
        assert manifest.num_rows == len(manifest.files)
        return [file.partition(f"{folder}/m/")[2] for file in manifest.files]

    assert names(folder / "m") == ["1.parquet", "2.parquet", "[x]/4.parquet", "deep/3.parquet"]
    assert names(folder / "m" / "*.parquet") == ["1.parquet", "2.parquet"]
    assert names(folder / "m" / "[12].parquet") == ["1.parquet", "2.parquet"]
    assert names(folder / "m" / "[x]") == ["[x]/4.parquet"]
    assert names(folder / "m" / "[x]" / "4.parquet") == ["[x]/4.parquet"]
    assert names(f"file://{folder}/m/1.parquet") == ["1.parquet"]


def test_hidden_folder_may_be_named(folder: Path) -> None:
    write(folder / ".data" / "m.parquet", [CAT_TO_DOG])
    assert Manifest(job(folder / ".data"), "").num_rows == 1


def test_manifest_on_another_filesystem(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    root = f"memory://{tmp_path.name}"
    local = write(tmp_path / "m.parquet", [CAT_TO_DOG, {**CAT_TO_DOG, "image": "../b.png"}])
    fs.pipe_file(f"{root}/data/m.parquet", local.read_bytes())
    fs.pipe_file(f"{root}/data/a.png", b"aaa")
    fs.pipe_file(f"{root}/b.png", b"bbb")
    good, bad = Manifest(job(f"{root}/data/*.parquet"), "").rows()
    assert good.request is not None
    assert good.request.image is not None
    assert good.request.image.uri.endswith(f"{tmp_path.name}/data/a.png")
    assert bad.error is not None
    assert bad.error.kind == "PathOutsideRoot"


def test_file_uri_of_the_manifest_keeps_images_under_its_folder(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "out.png").symlink_to(folder / "a.png")
    write(folder / "data" / "m.parquet", [{**CAT_TO_DOG, "image": "out.png"}])
    [row] = Manifest(job(f"file://{folder}/data/m.parquet"), "").rows()
    assert row.error is not None
    assert row.error.kind == "PathOutsideRoot"


@pytest.mark.parametrize("name", ["no.parquet", "no", "*.nothing", "empty"])
def test_manifest_that_is_not_there(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    assert problems_of(job(folder / name)) == ["no such Parquet file, folder or glob"]


def test_manifest_of_an_unknown_scheme() -> None:
    [problem] = problems_of(job("s4://bucket/m.parquet"))
    assert problem.startswith("cannot be opened: ")


@pytest.mark.parametrize("data", [b"", b"id,image\n1,a.png\n", b"PAR1PAR1"])
def test_file_that_is_not_parquet(folder: Path, data: bytes) -> None:
    (folder / "m.parquet").write_bytes(data)
    [problem] = problems_of(job(folder / "m.parquet"))
    assert "m.parquet: is not Parquet: " in problem


def test_truncated_file(folder: Path) -> None:
    path = write(folder / "m.parquet", [CAT_TO_DOG])
    path.write_bytes(path.read_bytes()[:-9])
    [problem] = problems_of(job(path))
    assert "m.parquet: is not Parquet: " in problem


def test_damaged_page_is_a_manifest_error(folder: Path) -> None:
    path = write(folder / "m.parquet", [{**CAT_TO_DOG, "note": "x" * 500}], compression="zstd")
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(3).dictionary_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="is broken"):
        list(Manifest(job(path), "").rows())


@pytest.mark.parametrize("name", ["id", "source_prompt", "note"])
def test_text_that_is_not_utf8_is_a_manifest_error(folder: Path, name: str) -> None:
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    table = pa.Table.from_pylist([{**CAT_TO_DOG, "id": "x", "note": "y"}])
    path = write(
        folder / "m.parquet", table.set_column(table.schema.get_field_index(name), name, broken)
    )
    with pytest.raises(ManifestError, match="UTF"):
        list(Manifest(job(path), "").rows())


def test_empty_manifest_has_no_rows(folder: Path) -> None:
    path = write(folder / "m.parquet", pa.Table.from_pylist([CAT_TO_DOG]).slice(0, 0))
    manifest = Manifest(job(path), "")
    assert manifest.num_rows == 0
    assert list(manifest.rows()) == []


@pytest.mark.parametrize("with_ids", [True, False])
def test_rows_are_kept_by_their_numbers_and_given_as_written(folder: Path, with_ids: bool) -> None:
    rows = [{**CAT_TO_DOG, "target_prompt": f"dog {n}", "note": n} for n in range(9)]
    for n, row in enumerate(rows):
        row |= {"id": f"r{n}"} if with_ids else {}
    write(folder / "m" / "1.parquet", rows[:5], row_group_size=2)
    write(folder / "m" / "2.parquet", rows[5:], row_group_size=3)
    config = job(folder / "m", input={"image_root": str(folder)})

    def kept(manifest: Manifest) -> list[int]:
        notes = [row.carried.column("note")[0].as_py() for row in manifest.rows()]
        assert manifest.table()["note"].to_pylist() == notes
        assert manifest.num_rows == len(notes)
        return notes

    manifest = Manifest(config, "model@1")
    assert manifest.table().to_pylist() == rows
    manifest.keep([1, 4, 5, 8])
    assert kept(manifest) == [1, 4, 5, 8]
    manifest.keep([1, 3])
    assert kept(manifest) == [4, 8]
    assert manifest.table().to_pylist() == [rows[4], rows[8]]
    manifest = Manifest(config, "model@1", where="note % 2 = 1")
    manifest.keep([0, 3])
    assert kept(manifest) == [1, 7]
