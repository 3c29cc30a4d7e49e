from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from diffedit_batch.config import ScoresConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.lpips import Lpips

Picture = NDArray[np.uint8]
SIZES = ((20, 30), (300, 200), (256, 256), (8, 40), (600, 90))


def pictures() -> list[Picture]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def disturbed(picture: Picture, amount: float) -> Picture:
    noise = np.random.default_rng(1).normal(0, amount, picture.shape)
    return (picture + noise).clip(0, 255).round().astype(np.uint8)


def prepared(lpips: Lpips) -> torch.Tensor:
    pairs = [(one, disturbed(one, 10 * (n + 1))) for n, one in enumerate(pictures())]
    return torch.stack([lpips.prepare(*pair) for pair in pairs])


def load(path: Path) -> Lpips:
    return Lpips.load(ScoresConfig(lpips=str(path)), "cpu")


def test_distances_are_those_of_the_package(lpips: Lpips) -> None:
    """Of lpips 0.1.4, `LPIPS(net="alex")`, given these weights, and these pictures as its own
    `im2tensor` has them. It is not asked here: torchvision, which it imports, does not go with
    every build of torch.
    """
    expected = [0.0208138, 0.0617339, 0.1189984, 0.2539114, 0.2421171]
    assert lpips.distances(prepared(lpips)).tolist() == pytest.approx(expected, rel=1e-4)


def test_equal_pictures_have_no_distance(lpips: Lpips) -> None:
    pairs = [lpips.prepare(one, one.copy()) for one in pictures()]
    assert lpips.distances(torch.stack(pairs)).tolist() == [0.0] * len(SIZES)


def test_neighbours_and_order_make_no_difference(lpips: Lpips) -> None:
    pairs = prepared(lpips)
    alone = torch.cat([lpips.distances(pair[None]) for pair in pairs])
    assert torch.allclose(lpips.distances(pairs), alone, rtol=1e-5)
    assert torch.allclose(lpips.distances(pairs.flip(0)).flip(0), alone, rtol=1e-5)


def test_what_is_more_disturbed_is_further_away(lpips: Lpips) -> None:
    for picture in pictures():
        pairs = [lpips.prepare(picture, disturbed(picture, amount)) for amount in (2, 8, 32, 128)]
        near_to_far = lpips.distances(torch.stack(pairs)).tolist()
        assert near_to_far == sorted(near_to_far)
        assert near_to_far[0] < 0.5 * near_to_far[-1]


def test_all_of_a_picture_counts(lpips: Lpips) -> None:
    """Not the middle square alone, as with CLIP."""
    picture = pictures()[4]
    edge = picture.copy()
    edge[:40] = 0
    assert lpips.distances(lpips.prepare(picture, edge)[None]) > 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.safetensors", "no such file. .* all nodes must see it"),
        ("", "no such file"),
        ("weights.pth", "not a .safetensors file; pickled weights are never loaded"),
    ],
)
def test_a_file_that_is_not_there_or_pickled(tmp_path: Path, name: str, problem: str) -> None:
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=rf"scores\.lpips '.*{name}': {problem}") as caught:
        load(tmp_path / name)
    assert "save_model(lpips.LPIPS(net='alex'), 'lpips.safetensors')" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"whole"])
def test_a_file_that_cannot_be_read(tmp_path: Path, random_lpips: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(random_lpips.read_bytes()[:-100] if content == b"whole" else content)
    with pytest.raises(ModelError, match=r"broken\.safetensors' cannot be read: .*\n  Where"):
        load(path)


def test_a_pickled_file_by_another_name_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "pickled.safetensors"
    torch.save({}, path)
    with pytest.raises(ModelError, match="cannot be read"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lin3.model.1.weight": None}, r"1 of its weights .* e\.g\. lin3\.model\.1\.weight"),
        (
            {"net.slice1.0.weight": (64, 3, 3, 3), "net.slice1.0.bias": None},
            r"2 of its weights .* e\.g\. net\.slice1\.0\.weight",
        ),
        # As torchvision has it, without what LPIPS has learned.
        ({f"lin{n}.model.1.weight": None for n in range(5)}, "5 of its weights"),
    ],
)
def test_a_file_of_another_model(
    tmp_path: Path, random_lpips: Path, changes: dict[str, tuple[int, ...] | None], problem: str
) -> None:
    weights = load_file(random_lpips)
    for name, shape in changes.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(shape)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"is no LPIPS with AlexNet: {problem}"):
        load(tmp_path / "other.safetensors")


def test_weights_in_half_precision_are_computed_with_in_full(
    tmp_path: Path, random_lpips: Path, lpips: Lpips
) -> None:
    halves = {name: tensor.half() for name, tensor in load_file(random_lpips).items()}
    save_file(halves, tmp_path / "half.safetensors")
    found = load(tmp_path / "half.safetensors").distances(prepared(lpips))
    assert found.dtype == torch.float32
    assert torch.allclose(found, lpips.distances(prepared(lpips)), rtol=0.01)
