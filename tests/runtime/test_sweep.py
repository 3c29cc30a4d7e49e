import pytest

from diffedit_batch.config import EditConfig
from diffedit_batch.errors import ConfigError
from diffedit_batch.runtime.sweep import label, read_sweeps

EDIT = EditConfig()


def test_without_sweeps_nothing_is_varied() -> None:
    assert read_sweeps([], EDIT) == [{}]


def test_values_become_what_the_config_would_hold() -> None:
    variants = read_sweeps(["edit.guidance_scale=3,5.5"], EDIT)
    assert [v["guidance_scale"] for v in variants] == [3.0, 5.5]
    assert [label(v) for v in variants] == ["guidance_scale=3", "guidance_scale=5.5"]
    assert label(read_sweeps(["edit.guidance_scale=3.0"], EDIT)[0]) == "guidance_scale=3"
    assert read_sweeps(["edit.preset=tuned, paper"], EDIT)[1] == {"preset": "paper"}
    [_, off] = read_sweeps(["edit.paste_background=true,false"], EDIT)
    assert label(off) == "paste_background=false"
    assert read_sweeps(["seed=0,1"], EDIT) == [{"seed": 0}, {"seed": 1}]
    assert read_sweeps(["edit.mask_grow=-4,8"], EDIT) == [{"mask_grow": -4}, {"mask_grow": 8}]
    [best] = read_sweeps(["edit.num_seeds=4", "edit.keep_best=clip_text"], EDIT)
    assert label(best) == "num_seeds=4, keep_best=clip_text"


def test_several_keys_are_combined() -> None:
    variants = read_sweeps(["edit.guidance_scale=3,5", "edit.feather=0,4,8"], EDIT)
    assert len(variants) == 6
    assert label(variants[1]) == "guidance_scale=3, feather=4"


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["edit.mask_treshold=0.3"], "mask_treshold: .* did you mean edit.mask_threshold?"),
        (["mask_threshold=0.3"], "mask_threshold: .* did you mean edit.mask_threshold?"),
        (["model.id=demo"], "model.id: is no key that a row may have"),
        (["edit.mask_threshold"], "expected KEY=VALUE"),
        (["edit.mask_threshold="], "edit.mask_threshold: '' is no value"),
        (["edit.mask_threshold=0.3,,0.4"], "'' is no value"),
        (["edit.mask_threshold=null"], "'null' is no value"),
        (
            ["edit.mask_threshold=0.3,1.5"],
            r"edit.mask_threshold: Input should be less than 1 \(got",
        ),
        (["edit.mask_threshold=high"], "edit.mask_threshold: Input should be a valid number"),
        (["edit.preset=fancy"], "edit.preset: Input should be 'tuned'"),
        (["edit.num_inference_steps=1"], "inpaint_strength 0.8 of 1 steps"),
        (["edit.mask_threshold=0.3,0.30"], "0.30 is given twice"),
        (["edit.feather=1", "edit.feather=2"], "edit.feather: is given twice"),
        (["seed=-1"], "'-1' is not in"),
        (["seed=x"], "'x' is not in"),
        ([f"seed={','.join(map(str, range(25)))}"], "25 combinations are more than 24"),
        (
            ["edit.num_inference_steps=4,50", "edit.mask_encode_strength=0.1,0.5"],
            "num_inference_steps=4, mask_encode_strength=0.1: mask_encode_strength 0.1 of 4 steps",
        ),
    ],
)
def test_what_cannot_be_swept(sweeps: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweeps(sweeps, EDIT)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweeps(["edit.feather=-1,x", "seed=-1", "nonsense=1"], EDIT)
    assert len(caught.value.problems) == 4
