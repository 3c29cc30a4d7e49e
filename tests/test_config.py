from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from diffedit_batch.config import EditConfig, JobConfig, fingerprint, load_config
from diffedit_batch.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "model": {"id": "demo"},
    "input": {"manifest": "m.parquet"},
    "output": {"uri": "out"},
}
BY_PRESET: dict[str, dict[str, object]] = {
    "tuned": {
        "guidance_scale": 5.0,
        "mask_encode_strength": 0.7,
        "mask_rule": "minmax",
        "mask_threshold": 0.45,
        "mask_guide_radius": 16,
        "invert_with": "caption",
        "inversion_guidance_scale": 1.0,
        "inversion_timestep": "next",
        "negative_from": "empty",
        "paste_background": True,
        "feather": 4,
    },
    "paper": {
        "guidance_scale": 7.5,
        "mask_encode_strength": 0.5,
        "mask_rule": "minmax",
        "mask_threshold": 0.5,
        "mask_guide_radius": 0,
        "invert_with": "caption",
        "inversion_guidance_scale": 1.0,
        "inversion_timestep": "next",
        "negative_from": "empty",
        "paste_background": True,
    },
    "diffusers": {
        "guidance_scale": 7.5,
        "mask_rule": "mean_ratio",
        "invert_with": "caption",
        "inversion_guidance_scale": 7.5,
        "inversion_timestep": "next",
        "negative_from": "source_prompt",
        "paste_background": False,
    },
}


def write(folder: Path, tree: object) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    return path


def problems_of(path: Path, *settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    assert str(path) in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_show_every_key(path: Path) -> None:
    config = load_config(path)
    tree = yaml.safe_load(path.read_text("utf-8"))
    assert set(tree) == set(JobConfig.model_fields)
    for name, section in tree.items():
        if isinstance(section, dict):
            assert set(section) == set(type(getattr(config, name)).model_fields), name


def test_there_are_shipped_configs() -> None:
    assert {"demo", "sd15", "sd21"} <= {path.stem for path in CONFIGS}


def test_minimal_config_has_the_documented_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.edit == EditConfig()
    assert (config.edit.num_inference_steps, config.edit.preset) == (50, "tuned")
    assert (config.seed, config.output.max_failed_fraction) == (0, 0.1)


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    with pytest.raises(ValidationError, match="frozen"):
        config.edit.guidance_scale = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [
        ("edit", "guidence_scale", 5, "edit.guidence_scale: unknown key; did you mean guidance_sc"),
        ("edit", "zzz", 5, "edit.zzz: unknown key"),
        ("output", "max_failed_fractoin", 0, "output.max_failed_fractoin: unknown key; did you me"),
        ("edit", "guidance_scale", "7", "edit.guidance_scale: Input should be a valid number (got"),
        ("edit", "guidance_scale", True, "edit.guidance_scale: Input should be a valid number (g"),
        ("edit", "num_inference_steps", 30.0, "edit.num_inference_steps: Input should be a valid"),
        ("edit", "guidance_scale", 0.5, "edit.guidance_scale: Input should be greater than or eq"),
        ("edit", "guidance_scale", float("nan"), "edit.guidance_scale: Input should be"),
        ("edit", "mask_threshold", 1, "edit.mask_threshold: Input should be less than 1 (got 1)"),
        ("edit", "mask_rule", "median", "edit.mask_rule: Input should be 'minmax', 'mean_ratio' o"),
        (
            "edit",
            "preset",
            "fancy",
            "edit.preset: Input should be 'tuned', 'paper' or 'diffusers' (got 'f",
        ),
        ("output", "uri", 5, "output.uri: Input should be a valid string (got 5)"),
        ("output", "max_failed_fraction", 1.5, "output.max_failed_fraction: Input should be less"),
        ("input", "columns", {"id": 3}, "input.columns.id: Input should be a valid string (got 3)"),
        (
            "cluster",
            "workers",
            0,
            "cluster.workers: write `auto` (one for every GPU there is), a num",
        ),
        ("cluster", "workers", None, "cluster.workers: write `auto`"),
        ("cluster", "workers", True, "cluster.workers: write `auto`"),
        ("cluster", "workers", 2.0, "cluster.workers: write `auto`"),
        ("cluster", "workers", "8..2", "cluster.workers: write `auto`"),
        ("cluster", "workers", "0..2", "cluster.workers: write `auto`"),
        ("cluster", "workers", "2-8", "cluster.workers: write `auto`"),
        ("cluster", "gpus_per_worker", 1.5, "cluster.gpus_per_worker: write a fraction of one GPU"),
        (
            "cluster",
            "label_selector",
            {"a": "in(b"},
            "cluster.label_selector: cannot read a: 'in(b",
        ),
        ("cluster", "label_selector", {"a b": "c"}, "cluster.label_selector: cannot read a b: 'c'"),
        ("model", "dtype", "half", "model.dtype: Input should be 'float32', 'float16' or 'bfloat"),
    ],
)
def test_one_wrong_key_is_named_with_its_path(
    tmp_path: Path, section: str, key: str, value: object, problem: str
) -> None:
    tree = {**MINIMAL, section: {**MINIMAL.get(section, {}), key: value}}
    [found] = problems_of(write(tmp_path, tree))
    assert found.startswith(problem)


def test_unknown_section_is_named(tmp_path: Path) -> None:
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "clutser": {}}))
    assert problem == "clutser: unknown key; did you mean cluster?"


def test_missing_keys_are_named(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, {"model": {}, "input": {}}))
    assert problems == [
        "model.id: is required",
        "input.manifest: is required",
        "output: is required",
    ]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    tree = {
        "model": {"id": 5},
        "edit": {"feather": -1, "mask_treshold": 0.5},
        "input": {},
        "output": {"uri": "out"},
        "seed": -1,
    }
    problems = problems_of(write(tmp_path, tree))
    assert [problem.split(":")[0] for problem in problems] == [
        "model.id",
        "edit.feather",
        "edit.mask_treshold",
        "input.manifest",
        "seed",
    ]


@pytest.mark.parametrize(
    ("sections", "thresholds"),
    [
        ({}, {}),
        ({"filter": {"max_mask_coverage": 0.9}}, {"max_mask_coverage": 0.9}),
        (
            {"scores": {"clip": "a/b"}, "filter": {"min_clip_text": 0.3, "min_clip_image": -1.0}},
            {"min_clip_text": 0.3, "min_clip_direction": 0.2, "min_clip_image": -1.0},
        ),
    ],
)
def test_thresholds_of_clip_have_defaults_where_there_is_one(
    sections: dict[str, Any], thresholds: dict[str, float]
) -> None:
    assert JobConfig.model_validate({**MINIMAL, **sections}).thresholds == thresholds


def test_thresholds_that_nothing_can_meet_are_refused(tmp_path: Path) -> None:
    coverage = {"min_mask_coverage": 0.5, "max_mask_coverage": 0.4}
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "filter": coverage}))
    assert problem == "filter: min_mask_coverage 0.5 is above max_mask_coverage 0.4"
    scores = {"min_clip_text": 0.3, "min_clip_image": 0.8, "min_map_contrast": 1.0}
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "filter": scores}))
    assert problem == (
        "filter.min_clip_text, filter.min_clip_image: needs a CLIP model, see scores.clip"
    )


def test_thresholds_of_models_that_are_not_there_are_all_told(tmp_path: Path) -> None:
    limits = {"max_lpips": 0.5, "min_clip_text": 0.3}
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "filter": limits}))
    assert problem == (
        "filter.min_clip_text: needs a CLIP model, see scores.clip;"
        " filter.max_lpips: needs a file of LPIPS, see scores.lpips"
    )
    tree = {**MINIMAL, "filter": {"max_lpips": 0.5}, "scores": {"lpips": "a.safetensors"}}
    assert load_config(write(tmp_path, tree)).thresholds == {"max_lpips": 0.5}


def test_a_best_edit_known_to_clip_alone_needs_one(tmp_path: Path) -> None:
    edit = {"num_seeds": 2, "keep_best": "clip_direction"}
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "edit": edit}))
    assert problem == "edit.keep_best clip_direction: needs a CLIP model, see scores.clip"
    load_config(write(tmp_path, {**MINIMAL, "edit": {**edit, "num_seeds": 1}}))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_fits_its_column(tmp_path: Path, seed: int) -> None:
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "seed": seed}))
    assert problem.startswith("seed: ")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "no.yaml") == ["cannot be read: No such file or directory"]
    assert problems_of(tmp_path) == ["cannot be read: Is a directory"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"model: [", "is not YAML: "),
        (b"\xff\xfe\x00", "is not YAML: "),
        (b"!!python/object/apply:os.getcwd []", "is not YAML: "),
        (b"", "must be a mapping of sections"),
        (b"- a", "must be a mapping of sections"),
        (b"text", "must be a mapping of sections"),
    ],
)
def test_file_that_is_no_config(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    [found] = problems_of(path)
    assert found.startswith(problem)
    assert "\n" not in found


def test_settings_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {**MINIMAL, "edit": {"guidance_scale": 3.0, "feather": 2}})
    config = load_config(
        path,
        [
            "edit.guidance_scale=5",
            "edit.mask_rule=otsu",
            "engine.compile=off",
            "safety.policy=off",
            "edit.paste_background=false",
            "input.columns.image=file_name",
            "input.columns={id: key}",
            "input.columns.mask=own = mask",
            "model.revision=null",
            "output.uri=s3://bucket/a=b",
            "seed=7",
            "seed=8",
        ],
    )
    assert config.edit.guidance_scale == 5.0
    assert config.edit.feather == 2
    assert config.edit.mask_rule == "otsu"
    assert config.engine.compile == config.safety.policy == "off", "which YAML reads as false"
    assert config.edit.paste_background is False
    assert config.input.columns == {"id": "key", "mask": "own = mask"}
    assert config.model.revision is None
    assert config.output.uri == "s3://bucket/a=b"
    assert config.seed == 8


@pytest.mark.parametrize("edit", [{}, {"edit": None}, {"edit": {}}])
def test_settings_fill_absent_and_empty_sections(tmp_path: Path, edit: dict[str, Any]) -> None:
    config = load_config(write(tmp_path, {**MINIMAL, **edit}), ["edit.feather=3"])
    assert config.edit.feather == 3


@pytest.mark.parametrize("setting", ["edit.feather", "=3", "edit.=3", "", "model.id.x=3"])
def test_setting_with_bad_syntax_is_quoted(tmp_path: Path, setting: str) -> None:
    [problem] = problems_of(write(tmp_path, MINIMAL), setting)
    assert problem == f"--set {setting}: expected section.key=value"


def test_settings_are_checked_like_the_file(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, MINIMAL), "edit.feater=3", "edit.guidance_scale=x")
    assert problems[0].startswith("edit.guidance_scale: ")
    assert problems[1] == "edit.feater: unknown key; did you mean feather?"


@pytest.mark.parametrize("preset", BY_PRESET)
def test_presets_resolve_as_documented(preset: Any) -> None:
    resolved = EditConfig(preset=preset).resolved()
    assert {name: getattr(resolved, name) for name in BY_PRESET[preset]} == BY_PRESET[preset]
    assert None not in resolved.model_dump().values()
    assert resolved.resolved() == resolved


def test_explicit_keys_win_over_the_preset() -> None:
    config = EditConfig(
        preset="diffusers", mask_rule="otsu", paste_background=True, guidance_scale=3.0
    )
    resolved = config.resolved()
    assert resolved.mask_rule == "otsu"
    assert resolved.paste_background is True
    assert resolved.inversion_guidance_scale == 3.0
    assert resolved.negative_from == "source_prompt"


def test_override_replaces_and_checks() -> None:
    config = EditConfig(guidance_scale=3.0, feather=2)
    row = config.override({"preset": "diffusers", "guidance_scale": 5})
    assert (row.guidance_scale, row.feather) == (5.0, 2)
    assert row.resolved().mask_rule == "mean_ratio"
    assert row.resolved().inversion_guidance_scale == 5.0
    assert config.guidance_scale == 3.0
    assert config.override({}) is config


def test_override_reports_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        EditConfig().override({"guidance_scale": 0.0, "feather": 2.5, "feathr": 1})
    assert [p.split(":")[0] for p in caught.value.problems] == [
        "guidance_scale",
        "feather",
        "feathr",
    ]
    assert caught.value.problems[2].endswith("did you mean feather?")


@pytest.mark.parametrize("name", ["inpaint_strength", "mask_encode_strength"])
def test_strength_below_one_step_is_refused(tmp_path: Path, name: str) -> None:
    EditConfig(num_inference_steps=10).override({name: 0.1})
    with pytest.raises(ConfigError) as caught:
        EditConfig(num_inference_steps=10).override({name: 0.09})
    assert caught.value.problems == [f"{name} 0.09 of 10 steps is less than one step"]
    [problem] = problems_of(write(tmp_path, {**MINIMAL, "edit": {name: 0.01}}))
    assert problem == f"edit: {name} 0.01 of 50 steps is less than one step"


def test_paths_are_absolute_and_the_embedded_model_stays_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mine"):
        (tmp_path / name).mkdir()
    tree = {**MINIMAL, "captions": {"id": "mine"}}
    config = JobConfig.model_validate(tree).with_absolute_paths()
    assert config.model.id == "demo"
    assert config.prompts.id == "google/flan-t5-large"
    assert config.captions.id == str(tmp_path / "mine")
    assert config.output.uri == str(tmp_path / "out")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "elsewhere" / "manifest.parquet")
    places = {"manifest": "link.parquet", "image_root": "images"}
    config = JobConfig.model_validate({**MINIMAL, "input": places}).with_absolute_paths()
    assert config.input.manifest == str(tmp_path / "link.parquet"), "images lie beside the link"
    assert config.input.image_root == str(tmp_path / "images")
    (tmp_path / "lpips.safetensors").symlink_to(tmp_path / "blobs" / "0123456789abcdef")
    tree = {**MINIMAL, "scores": {"clip": "mine", "lpips": "lpips.safetensors"}}
    config = JobConfig.model_validate(tree).with_absolute_paths()
    assert config.scores.clip == str(tmp_path / "mine")
    assert config.scores.lpips == str(tmp_path / "lpips.safetensors"), "blobs have no such ending"
    places = {"manifest": "s3://bucket/a.parquet"}
    config = JobConfig.model_validate({**MINIMAL, "input": places}).with_absolute_paths()
    assert config.input.manifest == "s3://bucket/a.parquet"


def test_fingerprint_tells_parts_apart() -> None:
    variants: list[list[object]] = [
        ["a", "b"],
        ["ab"],
        ["b", "a"],
        ["a", None],
        ["a", ""],
        [[]],
        [],
    ]
    assert len({fingerprint(parts) for parts in variants}) == len(variants)
    assert fingerprint([{"a": 1, "b": 2}]) == fingerprint([{"b": 2, "a": 1}])
    assert len(fingerprint([])) == 32


@pytest.mark.parametrize(
    ("compile", "gpus", "num_rows", "decided"),
    [
        ("auto", 1.0, 1500, "auto"),
        ("auto", 1.0, 1499, "off"),
        ("auto", 0.0, 1_000_000, "off"),
        ("full", 0.0, 1, "full"),
        ("off", 1.0, 1_000_000, "off"),
    ],
)
def test_two_workers_compile_where_rows_repay_it(
    compile: str, gpus: float, num_rows: int, decided: str
) -> None:
    tree = {**MINIMAL, "engine": {"compile": compile}, "cluster": {"gpus_per_worker": gpus}}
    config = JobConfig.model_validate(tree).with_compile_decided(num_rows, num_workers=2)
    assert config.engine.compile == decided


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("auto", None), ("4", (4, 4)), ("2..8", (2, 8)), ("10..10", (10, 10))],
)
def test_workers_are_auto_a_number_or_a_range(
    tmp_path: Path, setting: str, expected: tuple[int, int] | None
) -> None:
    config = load_config(write(tmp_path, MINIMAL), [f"cluster.workers={setting}"])
    assert config.cluster.worker_range == expected
    assert JobConfig.model_validate(config.model_dump()) == config


def test_nodes_are_selected_by_labels(tmp_path: Path) -> None:
    selector = {"ray.io/accelerator-type": "in(L4, A10G)", "market": "!spot"}
    tree = {**MINIMAL, "cluster": {"label_selector": selector, "gpus_per_worker": 0.5}}
    assert load_config(write(tmp_path, tree)).cluster.label_selector == selector
