import pytest
import torch

from diffedit_batch.core.mask import (
    MaskPair,
    MaskRule,
    binarise,
    difference_map,
    feather,
    follow_outlines,
    grow,
    otsu_threshold,
    paste,
    upsample,
)

RULES: list[MaskRule] = ["minmax", "mean_ratio", "otsu"]


def two_levels(share: float, low: float = 0.1, high: float = 1.0) -> torch.Tensor:
    """A 40 x 40 map whose first rows, `share` of the image, are high."""
    values = torch.full((40, 40), low)
    values[: round(40 * share)] = high
    return values


def test_the_difference_is_averaged_over_draws_and_channels() -> None:
    source = torch.zeros(2, 4, 3, 3)
    target = torch.zeros(2, 4, 3, 3)
    target[0, 0, 1, 1], target[1, 3, 1, 1] = 4.0, -4.0
    expected = torch.zeros(3, 3)
    expected[1, 1] = 1.0
    assert torch.equal(difference_map(target, source), expected)


def test_the_difference_of_half_precision_estimates_is_taken_in_fp32() -> None:
    target, source = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 1.0009765625)
    difference = difference_map(target.half(), source.half())
    assert difference.dtype == torch.float32
    assert difference.item() == pytest.approx(0.0009765625)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_every_rule_finds_a_clear_region(rule: MaskRule, share: float) -> None:
    values = two_levels(share, low=0.01)
    mask = binarise(values, rule, threshold=0.5, thresholding_ratio=2.0)
    assert torch.equal(mask, values == 1)


@pytest.mark.parametrize("rule", ["minmax", "otsu"])
def test_regions_above_two_thirds_can_be_selected(rule: MaskRule) -> None:
    values = two_levels(0.9)
    mask = binarise(values, rule, threshold=0.5, thresholding_ratio=3.0)
    assert torch.equal(mask, values == 1)


def test_the_reference_rule_cannot_select_more_than_two_thirds() -> None:
    generator = torch.Generator().manual_seed(0)
    for power in (1, 2, 4):
        values = torch.rand(64, 64, generator=generator) ** power
        mask = binarise(values, "mean_ratio", threshold=0.5, thresholding_ratio=3.0)
        assert mask.float().mean() <= 2 / 3
    assert not binarise(two_levels(0.9), "mean_ratio", threshold=0.5, thresholding_ratio=3.0).any()


def test_the_threshold_is_for_minmax_alone() -> None:
    values = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) ** 3
    found = {
        (rule, threshold): binarise(values, rule, threshold=threshold, thresholding_ratio=3.0)
        for rule in RULES
        for threshold in (0.3, 0.5)
    }
    assert torch.equal(found["mean_ratio", 0.3], found["mean_ratio", 0.5])
    assert torch.equal(found["otsu", 0.3], found["otsu", 0.5])
    assert found["minmax", 0.3].sum() > found["minmax", 0.5].sum()


@pytest.mark.parametrize("rule", RULES)
def test_the_scale_of_the_map_does_not_matter(rule: MaskRule) -> None:
    values = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    options = {"threshold": 0.5, "thresholding_ratio": 3.0}
    assert torch.equal(binarise(values, rule, **options), binarise(values * 1024, rule, **options))


def test_one_extreme_cell_does_not_decide_the_scale() -> None:
    values = two_levels(0.3)
    values[39, 39] = 100.0
    mask = binarise(values, "minmax", threshold=0.5, thresholding_ratio=3.0)
    assert mask[0].all()


def test_a_lone_cell_above_a_flat_map_is_found() -> None:
    values = torch.zeros(40, 40)
    values[3, 3] = 1.0
    mask = binarise(values, "minmax", threshold=0.5, thresholding_ratio=3.0)
    assert mask.sum() == 1
    assert mask[3, 3]


def test_otsu_cuts_between_two_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    low = 0.2 + 0.03 * torch.randn(900, generator=generator)
    high = 0.8 + 0.03 * torch.randn(100, generator=generator)
    assert 0.3 < otsu_threshold(torch.cat([low, high]).clamp(0, 1)) < 0.7


def test_upsampling_multiplies_the_sides() -> None:
    assert upsample(torch.rand(4, 6), 8).shape == (32, 48)


def test_a_cell_with_one_masked_pixel_is_masked() -> None:
    pixel = torch.zeros(32, 32, dtype=torch.bool)
    pixel[9, 17] = True
    pair = MaskPair.from_pixels(pixel, 8)
    assert pair.latent.nonzero().tolist() == [[1, 2]]
    assert pair.pixel is pixel


def test_latent_cells_become_squares_of_pixels() -> None:
    latent = torch.zeros(4, 4, dtype=torch.bool)
    latent[1, 2] = True
    pair = MaskPair.from_latents(latent, 8)
    assert pair.pixel.sum() == 64
    assert pair.pixel[8:16, 16:24].all()


@pytest.mark.parametrize("width", [0, 1, 4, 8, 9])
def test_feathering_is_1_inside_and_0_beyond_its_width(width: int) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:40, 24:44] = True
    alpha = feather(mask, width)
    assert (alpha[mask] == 1).all()
    reach = torch.zeros_like(mask)
    reach[20 - width : 40 + width, 24 - width : 44 + width] = True
    assert (alpha[~reach] == 0).all()
    row = alpha[30, 44:]
    assert (row.diff() <= 0).all()


def test_feathering_does_not_fade_at_the_border_of_the_picture() -> None:
    assert (feather(torch.ones(32, 32, dtype=torch.bool), 8) == 1).all()


def test_pasting_keeps_the_original_byte_for_byte_where_the_weight_is_0() -> None:
    generator = torch.Generator().manual_seed(0)
    edited, original = torch.randint(0, 256, (2, 16, 16, 3), generator=generator).to(torch.uint8)
    alpha = torch.zeros(16, 16)
    alpha[4:8, 4:8], alpha[8:10, 4:8] = 1.0, 0.5
    pasted = paste(edited, original, alpha)
    assert torch.equal(pasted[alpha == 0], original[alpha == 0])
    assert torch.equal(pasted[alpha == 1], edited[alpha == 1])
    middle = (edited[8, 4].float() + original[8, 4].float()) / 2
    assert ((pasted[8, 4].float() - middle).abs() <= 0.5).all()


def step(column: int, noise: float = 0.0) -> torch.Tensor:
    """A 40 x 40 picture (3, H, W), dark left of a column and bright from there on."""
    grain = noise * torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(40) < column, -0.5, 0.5) + grain


def test_a_guided_map_ends_where_the_picture_does() -> None:
    blurred = ((torch.arange(40) - 8) / 16).clamp(0, 1).expand(40, 40)  # half of it at column 16
    guided = follow_outlines(blurred, step(19), 8)
    assert (blurred[20] > 0.5).nonzero().min() == 17
    assert (guided[20] > 0.5).nonzero().min() == 19
    assert guided[20, 19] - guided[20, 18] > 0.4


def test_a_guided_map_keeps_its_level_where_the_picture_is_plain() -> None:
    plain = torch.zeros(3, 40, 40)
    assert torch.allclose(follow_outlines(torch.full((40, 40), 0.3), plain, 8), torch.tensor(0.3))
    assert torch.allclose(
        follow_outlines(torch.full((40, 40), 0.3), step(19, 0.1), 8), torch.tensor(0.3), atol=1e-5
    )


def test_a_guided_map_is_the_least_squares_fit_of_its_windows() -> None:
    generator = torch.Generator().manual_seed(1)
    picture, values = torch.rand(3, 9, 9, generator=generator) * 2 - 1, torch.rand(9, 9)
    radius, ridge = 2, 1e-3
    guide = (picture + 1) / 2
    fits = torch.zeros(9, 9, 4)
    for y in range(9):
        for x in range(9):
            window = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + 3))
            colors, targets = guide[:, *window].flatten(1), values[window].flatten()
            centred = colors - colors.mean(1, keepdim=True)
            slopes = torch.linalg.solve(
                centred @ centred.T / len(targets) + ridge * torch.eye(3),
                centred @ (targets - targets.mean()) / len(targets),
            )
            fits[y, x] = torch.cat([slopes, targets.mean()[None] - slopes @ colors.mean(1, True)])
    expected = torch.zeros(9, 9)
    for y in range(9):
        for x in range(9):
            window = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + 3))
            fit = fits[window].reshape(-1, 4).mean(0)
            expected[y, x] = fit[:3] @ guide[:, y, x] + fit[3]
    assert torch.allclose(follow_outlines(values, picture, radius), expected, atol=1e-4)


@pytest.mark.parametrize("radius", [1, 8, 256])
def test_windows_may_be_larger_than_the_picture(radius: int) -> None:
    values = torch.rand(24, 40, generator=torch.Generator().manual_seed(0))
    picture = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(1))
    assert follow_outlines(values, picture, radius).isfinite().all()


def dots(*places: tuple[int, int], size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for y, x in places:
        mask[y, x] = True
    return mask


@pytest.mark.parametrize("by", [0, 1, 3])
def test_a_mask_grows_by_so_many_pixels_in_every_direction(by: int) -> None:
    grown = grow(dots((8, 12)), by)
    expected = dots()
    expected[8 - by : 9 + by, 12 - by : 13 + by] = True
    assert torch.equal(grown, expected)
    assert torch.equal(grow(grown, -by), dots((8, 12)))


def test_the_border_of_the_picture_is_no_edge() -> None:
    mask = dots()
    mask[:, :6] = True
    shrunk = grow(mask, -2)
    assert shrunk[:, :4].all()
    assert not shrunk[:, 4:].any()
    assert grow(mask, 100).all()
    assert not grow(mask, -100).any()
    assert grow(torch.ones(4, 4, dtype=torch.bool), -100).all()
    assert not grow(torch.zeros(4, 4, dtype=torch.bool), 100).any()


def test_cells_follow_a_mask_that_grows_and_keep_their_room() -> None:
    pixel = dots((7, 15))
    room = MaskPair.from_pixels(dots((0, 0)), 8).latent
    pair = MaskPair(pixel, MaskPair.from_pixels(pixel, 8).latent | room)
    assert pair.latent.tolist() == [[True, True, False], [False, False, False]]
    grown = pair.grown(1, 8)
    assert grown.latent.tolist() == [[True, True, True], [False, True, True]]
    assert grown.grown(-1, 8).latent.tolist() == [[False, True, False], [False, False, False]]
    assert pair.grown(0, 8) is pair
    assert not pair.grown(-1, 8).latent.any()
