from dataclasses import replace
from typing import Literal

import pytest
import torch
from acts import by_text, drive, num_evals, text, texts
from torch import Tensor

from diffedit_batch.core.acts import Evaluate, Recipe, Texts
from diffedit_batch.core.diffedit import edit_masked, edit_row, find_difference, find_mask, invert
from diffedit_batch.core.schedule import make_schedule

TABLE = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
SCHEDULE = make_schedule(TABLE, 50, steps_offset=1, set_alpha_to_one=False)
RECIPE = Recipe(num_maps_per_mask=10)
GENERATOR = torch.Generator().manual_seed(0)
X_0 = torch.randn(4, 8, 8, generator=GENERATOR)
NOISE = torch.randn(10, 4, 8, 8, generator=GENERATOR)
PICTURE = torch.zeros(3, 64, 64)
WEIGHTS = torch.randn(4, 8, 8, generator=GENERATOR)


def nonlinear(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """A network that depends on all it is given; texts pull at the left half of the image."""
    value = states[:, 0, 0, None, None, None]
    pull = (value * WEIGHTS + value**2 * WEIGHTS.flip(1)) * (torch.arange(8) < 4)
    return torch.tanh(latents + timesteps[:, None, None, None] / 1000) + pull


def by_half(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """A network that answers each text's own value in the left half, and 0 in the right."""
    return by_text(latents, timesteps, states) * (torch.arange(8) < 4)


def closed_form(x_0: Tensor, eps: float, level: int) -> Tensor:
    """The DDIM path of a constant noise estimate: x / sqrt(a) is linear in sqrt((1 - a) / a)."""
    a = SCHEDULE.alpha_bar
    sigma = ((1 - a) / a).sqrt()
    return a[level].sqrt() * (x_0 / a[0].sqrt() + (sigma[level] - sigma[0]) * eps)


def run_row(
    texts_: Texts, recipe: Recipe = RECIPE, log: list[Evaluate] | None = None, **options: object
) -> object:
    return drive(
        edit_row(
            X_0,
            NOISE,
            texts_,
            recipe,
            SCHEDULE,
            picture=PICTURE,
            prediction_type="epsilon",
            vae_scale_factor=8,
            **options,  # type: ignore[arg-type]
        ),
        nonlinear,
        log,
    )


def test_inverted_latents_follow_the_closed_form_of_a_constant_estimate() -> None:
    levels = drive(invert(X_0, texts(source=0.7), RECIPE, SCHEDULE, "epsilon"), by_text)
    assert len(levels) == 41
    assert levels[0] is X_0
    for level, latent in enumerate(levels):
        expected = closed_form(X_0, 0.7, level)
        torch.testing.assert_close(latent, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("asked_at", "first"), [("current", [0, 1, 21]), ("next", [1, 21, 41])])
def test_the_inversion_asks_at_the_named_timestep(
    asked_at: Literal["current", "next"], first: list[int]
) -> None:
    log: list[Evaluate] = []
    recipe = replace(RECIPE, inversion_timestep=asked_at)
    drive(invert(X_0, texts(), recipe, SCHEDULE, "epsilon"), by_text, log)
    assert [int(wish.timestep) for wish in log][:3] == first


def test_every_blend_puts_back_the_latent_of_exactly_its_level() -> None:
    levels = drive(invert(X_0, texts(source=0.7), RECIPE, SCHEDULE, "epsilon"), by_text)
    log: list[Evaluate] = []
    mask = torch.zeros(8, 8, dtype=torch.bool)
    result = drive(
        edit_masked(levels, mask, texts(target=-1.3), RECIPE, SCHEDULE, "epsilon"), by_text, log
    )
    assert [int(wish.timestep) for wish in log] == list(range(781, 0, -20))
    for wish, level in zip(log, range(40, 0, -1), strict=True):
        assert torch.equal(wish.latents[0], levels[level])
    assert result is levels[0] or torch.equal(result, X_0)


def test_the_reference_blends_one_level_too_noisy() -> None:
    levels = drive(invert(X_0, texts(source=0.7), RECIPE, SCHEDULE, "epsilon"), by_text)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    recipe = replace(RECIPE, is_reference=True)
    result = drive(edit_masked(levels, mask, texts(), recipe, SCHEDULE, "epsilon"), by_text)
    assert torch.equal(result, levels[1])
    assert not torch.equal(result, X_0)


def test_inverting_and_denoising_a_constant_estimate_returns_the_image() -> None:
    same = texts(source=0.7, target=0.7)
    levels = drive(invert(X_0, same, RECIPE, SCHEDULE, "epsilon"), by_text)
    mask = torch.ones(8, 8, dtype=torch.bool)
    result = drive(
        edit_masked(levels, mask, same, replace(RECIPE, guidance_scale=1.0), SCHEDULE, "epsilon"),
        by_text,
    )
    torch.testing.assert_close(result, X_0, atol=1e-4, rtol=1e-4)


def test_outside_the_mask_the_result_is_the_clean_latent() -> None:
    own = torch.zeros(64, 64, dtype=torch.bool)
    own[16:32, 16:40] = True
    edit = run_row(texts(), own_mask=own)
    mask = edit.mask.latent  # type: ignore[attr-defined]
    latents = edit.latents  # type: ignore[attr-defined]
    assert torch.equal(latents[:, ~mask], X_0[:, ~mask])
    assert not torch.allclose(latents[:, mask], X_0[:, mask], atol=0.1)


def test_the_mask_does_not_depend_on_guidance_when_negatives_are_equal() -> None:
    maps = []
    for scale in (1.0, 7.5):
        log: list[Evaluate] = []
        recipe = replace(RECIPE, guidance_scale=scale)
        act = find_difference(X_0[None], NOISE, texts(), recipe, SCHEDULE)
        maps.append(drive(act, nonlinear, log))
        assert num_evals(log) == 20
    assert torch.equal(maps[0], maps[1])


def test_the_shortcut_gives_the_mask_of_four_evaluations() -> None:
    """Asked with all four evaluations, the map is that of two, times the guidance scale."""
    short = drive(find_difference(X_0[None], NOISE, texts(), RECIPE, SCHEDULE), nonlinear)
    # The same empty text under two keys: equal for the network, different for the shortcut.
    apart = replace(texts(), source_mask_negative=text("other", 0.0))
    log: list[Evaluate] = []
    full = drive(find_difference(X_0[None], NOISE, apart, RECIPE, SCHEDULE), nonlinear, log)
    assert num_evals(log) == 40
    torch.testing.assert_close(full, 7.5 * short, atol=1e-5, rtol=1e-5)


def test_different_negatives_change_the_mask() -> None:
    apart = replace(texts(), source_mask_negative=text("other", -2.0))
    same = drive(find_difference(X_0[None], NOISE, texts(), RECIPE, SCHEDULE), nonlinear)
    different = drive(find_difference(X_0[None], NOISE, apart, RECIPE, SCHEDULE), nonlinear)
    assert not torch.allclose(different / different.max(), same / same.max(), atol=0.01)


def test_the_mask_is_the_same_when_source_and_target_swap() -> None:
    forth, back = texts(source=1.0, target=2.0), texts(source=2.0, target=1.0)
    one = drive(find_difference(X_0[None], NOISE, forth, RECIPE, SCHEDULE), nonlinear)
    other = drive(find_difference(X_0[None], NOISE, back, RECIPE, SCHEDULE), nonlinear)
    assert torch.equal(one, other)


def test_the_mask_draws_are_noised_to_level_25_of_50() -> None:
    log: list[Evaluate] = []
    drive(find_difference(X_0[None], NOISE, texts(), RECIPE, SCHEDULE), nonlinear, log)
    assert {int(wish.timestep) for wish in log} == {481}
    a = SCHEDULE.alpha_bar[25]
    expected = a.sqrt() * X_0 + (1 - a).sqrt() * NOISE
    torch.testing.assert_close(log[0].latents, expected)


def test_the_network_sees_the_left_half_change_and_only_that_is_masked() -> None:
    edit = run_row(texts())
    pixel = edit.mask.pixel  # type: ignore[attr-defined]
    assert pixel[:, :32].float().mean() > 0.3
    assert not pixel[:, 40:].any()


def test_equal_texts_need_no_evaluation_and_change_nothing() -> None:
    log: list[Evaluate] = []
    edit = run_row(texts(source=1.0, target=1.0), log=log)
    assert log == []
    assert edit.latents is None  # type: ignore[attr-defined]
    assert not edit.mask.pixel.any()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_reference", [False, True])
def test_a_flat_map_changes_nothing(is_reference: bool) -> None:
    """Texts with different keys that mean the same to the network: 0 / 0 must not become a mask."""
    same = replace(texts(source=1.0), target=text("paraphrase", 1.0))
    edit = run_row(same, replace(RECIPE, is_reference=is_reference))
    assert edit.latents is None  # type: ignore[attr-defined]
    assert not edit.mask.pixel.any()  # type: ignore[attr-defined]
    assert edit.difference.isfinite().all()  # type: ignore[attr-defined]


def test_an_empty_own_mask_changes_nothing() -> None:
    log: list[Evaluate] = []
    edit = run_row(texts(), log=log, own_mask=torch.zeros(64, 64, dtype=torch.bool))
    assert edit.latents is None  # type: ignore[attr-defined]
    assert log == []


def test_a_non_finite_estimate_is_an_error_not_a_mask() -> None:
    def broken(latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        return torch.full_like(latents, float("nan"))

    act = edit_row(
        X_0,
        NOISE,
        texts(),
        RECIPE,
        SCHEDULE,
        picture=PICTURE,
        prediction_type="epsilon",
        vae_scale_factor=8,
    )
    with pytest.raises(FloatingPointError):
        drive(act, broken)


def test_one_edit_at_the_defaults_takes_140_evaluations() -> None:
    log: list[Evaluate] = []
    run_row(texts(), log=log)
    assert num_evals(log) == 140


def test_one_edit_of_the_reference_takes_180_evaluations() -> None:
    log: list[Evaluate] = []
    run_row(
        texts(),
        replace(RECIPE, is_reference=True, inversion_guidance_scale=7.5, mask_rule="mean_ratio"),
        log,
    )
    assert num_evals(log) == 180


def test_inputs_are_not_modified() -> None:
    x_0, noise, own = X_0.clone(), NOISE.clone(), torch.zeros(64, 64, dtype=torch.bool)
    own[:16] = True
    kept = own.clone()
    run_row(texts(), own_mask=own)
    assert torch.equal(X_0, x_0)
    assert torch.equal(NOISE, noise)
    assert torch.equal(own, kept)


def test_a_guided_mask_follows_the_picture_and_leaves_room_in_the_latent() -> None:
    # The network changes the left half; the picture's edge is four pixels further left.
    edge = torch.where(torch.arange(64) < 28, -1.0, 1.0).expand(3, 64, 64)
    recipe = replace(RECIPE, mask_guide_radius=12)
    plain, guided = (
        drive(
            find_mask(
                X_0[None],
                NOISE,
                texts(),
                one,
                SCHEDULE,
                picture=edge,
                vae_scale_factor=8,
                flat_tolerance=1e-4,
            ),
            by_half,
        )[0]
        for one in (RECIPE, recipe)
    )
    assert plain.pixel[:, :32].all()
    assert not plain.pixel[:, 33:].any()
    assert guided.pixel[:, :28].all()
    assert not guided.pixel[:, 28:].any()
    assert torch.equal(guided.latent, plain.latent)
