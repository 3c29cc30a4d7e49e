import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from diffedit_batch.core.schedule import (
    Schedule,
    TimestepSpacing,
    add_noise,
    ddim_step,
    make_schedule,
)


def make(num_steps: int, **overrides: object) -> tuple[Schedule, DDIMScheduler]:
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **overrides,
    }
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(num_steps)
    schedule = make_schedule(
        scheduler.alphas_cumprod,
        num_steps,
        timestep_spacing=scheduler.config.timestep_spacing,
        steps_offset=scheduler.config.steps_offset,
        set_alpha_to_one=scheduler.config.set_alpha_to_one,
    )
    return schedule, scheduler


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 3, 20, 50, 999])
def test_timesteps_are_those_of_diffusers(spacing: TimestepSpacing, num_steps: int) -> None:
    schedule, scheduler = make(num_steps, timestep_spacing=spacing)
    assert schedule.timesteps[1:].flip(0).tolist() == scheduler.timesteps.tolist()
    assert schedule.num_inference_steps == num_steps


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_level_0_has_the_final_alpha_of_diffusers(set_alpha_to_one: bool) -> None:
    schedule, scheduler = make(50, set_alpha_to_one=set_alpha_to_one)
    assert schedule.alpha_bar[0] == scheduler.final_alpha_cumprod


def test_a_step_down_is_that_of_diffusers() -> None:
    schedule, scheduler = make(50)
    x_t, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for level in (50, 25, 2, 1):
        alpha_bar = schedule.alpha_bar[level]
        x_0 = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        expected = scheduler.step(eps, schedule.timesteps[level], x_t).prev_sample
        torch.testing.assert_close(
            ddim_step(x_0, eps, schedule.alpha_bar[level - 1]), expected, atol=1e-5, rtol=1e-5
        )


def test_a_step_up_is_that_of_diffusers() -> None:
    schedule, scheduler = make(50)
    inverse = DDIMInverseScheduler.from_config(scheduler.config)
    inverse.set_timesteps(50)
    x_t, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for level in (0, 1, 24, 49):
        alpha_bar = schedule.alpha_bar[level]
        x_0 = (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        expected = inverse.step(eps, inverse.timesteps[level], x_t).prev_sample
        torch.testing.assert_close(
            ddim_step(x_0, eps, schedule.alpha_bar[level + 1]), expected, atol=1e-5, rtol=1e-5
        )


def test_noise_is_added_as_diffusers_does() -> None:
    schedule, scheduler = make(50)
    x_0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = scheduler.add_noise(x_0, noise, schedule.timesteps[25])
    torch.testing.assert_close(add_noise(x_0, noise, schedule.alpha_bar[25]), expected)


@pytest.mark.parametrize(
    ("strength", "num_steps", "level"), [(0.5, 50, 25), (0.8, 50, 40), (1.0, 50, 50), (0.75, 5, 3)]
)
def test_level_of_a_strength_is_truncated(strength: float, num_steps: int, level: int) -> None:
    assert make(num_steps)[0].level_of(strength) == level


def test_level_25_of_50_is_timestep_481_not_500() -> None:
    schedule, _ = make(50)
    assert schedule.timesteps[schedule.level_of(0.5)] == 481


def test_a_strength_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="less than one step"):
        make(5)[0].level_of(0.1)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_steps_the_model_was_not_trained_for_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.1000"):
        make_schedule(torch.linspace(0.99, 0.01, 1000), num_steps)


def test_an_offset_never_leaves_the_noise_table() -> None:
    table = torch.linspace(0.99, 0.01, 1000)
    assert make_schedule(table, 1000, steps_offset=1).timesteps.max() == 999
