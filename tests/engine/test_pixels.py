import numpy as np
import pytest
import torch

from diffedit_batch.engine.pixels import (
    PSNR_CAP,
    background_psnr,
    content_key,
    paste_picture,
    resize,
    resize_mask,
    resize_weights,
    to_picture,
    to_tensor,
)

RNG = np.random.default_rng(0)


def test_content_key_is_about_pixels_and_shape() -> None:
    picture = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert content_key(picture) == content_key(picture.copy())
    assert content_key(picture) == content_key(picture[:, ::-1][:, ::-1])
    assert content_key(picture) != content_key(picture.reshape(6, 4, 3))
    other = picture.copy()
    other[0, 0, 0] ^= 1
    assert content_key(picture) != content_key(other)


def test_a_picture_survives_being_a_tensor() -> None:
    picture = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    tensor = to_tensor(picture, (24, 16))
    assert tensor.shape == (3, 16, 24)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert np.array_equal(to_picture(tensor), picture)


def test_read_only_pictures_are_welcome() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture.flags.writeable = False
    to_tensor(picture, (8, 8))
    paste_picture(picture, picture, torch.zeros(8, 8))


def test_resizing() -> None:
    picture = np.full((10, 20, 3), 77, np.uint8)
    assert resize(picture, (41, 13)).shape == (13, 41, 3)
    assert (resize(picture, (41, 13)) == 77).all()


def test_weights_of_0_stay_0_at_every_size() -> None:
    weights = torch.zeros(32, 32)
    weights[8:16, 8:16] = 1
    larger = resize_weights(weights, (101, 67))
    assert larger.shape == (67, 101)
    assert (larger[:10] == 0).all()
    assert (larger[:, 60:] == 0).all()
    assert larger.max() == 1


def test_a_mask_keeps_its_share_when_resized() -> None:
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    resized = resize_mask(mask, (100, 50))
    assert resized.shape == (50, 100)
    assert resized.mean() == pytest.approx(0.5, abs=0.03)


def test_background_psnr_is_about_what_is_outside_the_mask_alone() -> None:
    picture = RNG.integers(0, 246, (40, 30, 3), dtype=np.uint8)
    mask = np.zeros((40, 30), bool)
    mask[:, :10] = True
    edited = picture.copy()
    edited[mask] = 255
    assert background_psnr(edited, picture, mask) == PSNR_CAP
    edited[:, 20:] += 10  # half of the background, by 10: a mean squared error of 50
    assert background_psnr(edited, picture, mask) == pytest.approx(10 * np.log10(255**2 / 50))
    assert background_psnr(picture, edited, mask) == background_psnr(edited, picture, mask)
    assert background_psnr(edited, picture, np.ones_like(mask)) is None
