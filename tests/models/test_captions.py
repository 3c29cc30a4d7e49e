from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffedit_batch.config import CaptionsConfig
from diffedit_batch.errors import ModelError, RowError
from diffedit_batch.models.captions import Captioner

Picture = NDArray[np.uint8]


def config(folder: Path, **values: Any) -> CaptionsConfig:
    tree = {"id": str(folder), "max_new_tokens": 6, "batch_size": 4, **values}
    return CaptionsConfig.model_validate(tree)


@pytest.fixture(scope="module")
def captioner(tiny_captioner: Path) -> Captioner:
    return Captioner.load(config(tiny_captioner), "cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (31, 16), (16, 16), (8, 40), (9, 9), (50, 20), (17, 18)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_every_picture_of_a_batch_has_its_own_caption(
    captioner: Captioner, pictures: list[Picture]
) -> None:
    """The guide's helper returns the first caption of a batch only."""
    together = list(map(str, captioner.caption(pictures)))
    assert len(together) == len(pictures)
    assert len(set(together)) > 2
    assert [str(captioner.caption([picture])[0]) for picture in pictures] == together
    assert list(map(str, captioner.caption(pictures[::-1]))) == together[::-1]


def test_captions_begin_with_the_prefix(captioner: Captioner, pictures: list[Picture]) -> None:
    captions = [text for text in captioner.caption(pictures) if isinstance(text, str)]
    assert captions
    assert all(text.startswith("a photograph of ") for text in captions)


def test_calls_have_one_size(
    captioner: Captioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def generate(batch: Sequence[Picture], do_sample: bool = False) -> list[str]:
        sizes.append(len(batch))
        return ["a dog"] * len(batch)

    monkeypatch.setattr(captioner, "_generate", generate)
    assert captioner.caption(pictures) == ["a dog"] * 7
    assert sizes == [4, 4]


def test_a_caption_that_says_nothing_is_sampled_once_and_then_fails(
    captioner: Captioner, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = iter(["a photograph of a dog", "a photograph of"])

    def generate(batch: Sequence[Picture], do_sample: bool = False) -> list[str]:
        return [next(second)] if do_sample else ["A photograph of", "", "a cat", "a cat"]

    monkeypatch.setattr(captioner, "_generate", generate)
    first, failed, good = captioner.caption(pictures[:3])
    assert (first, good) == ("a photograph of a dog", "a cat")
    assert isinstance(failed, RowError)
    assert (failed.stage, failed.kind) == ("captions", "DegenerateCaption")


def test_a_model_that_is_not_there(tmp_path: Path, tiny_prompt_writer: Path) -> None:
    with pytest.raises(ModelError, match=r"captions\.id './missing': no such folder"):
        Captioner.load(CaptionsConfig(id="./missing"), "cpu")
    with pytest.raises(ModelError, match="cannot load model"):
        Captioner.load(CaptionsConfig(id=str(tiny_prompt_writer)), "cpu")
