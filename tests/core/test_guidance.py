import pytest
import torch
from diffusers import DDIMScheduler

from diffedit_batch.core.guidance import PredictionType, estimates, guide


def test_guidance_runs_from_the_negative_to_the_text() -> None:
    text, negative = torch.tensor([3.0]), torch.tensor([1.0])
    assert guide(text, negative, 1.0) == 3.0
    assert guide(text, negative, 7.5) == 1.0 + 7.5 * 2.0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_all_predictions_of_one_truth_give_the_same_estimates(
    prediction_type: PredictionType,
) -> None:
    x_0, eps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alpha_bar = torch.tensor(0.3)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    outputs = {
        "epsilon": eps,
        "sample": x_0,
        "v_prediction": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0,
    }
    found_x_0, found_eps = estimates(outputs[prediction_type], x_t, alpha_bar, prediction_type)
    torch.testing.assert_close(found_x_0, x_0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_eps, eps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_estimates_are_those_of_diffusers(prediction_type: PredictionType) -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction_type)
    scheduler.set_timesteps(50)
    x_t, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = scheduler.step(output, 500, x_t).pred_original_sample
    x_0, _ = estimates(output, x_t, scheduler.alphas_cumprod[500], prediction_type)
    torch.testing.assert_close(x_0, expected, atol=1e-5, rtol=1e-5)


def test_x_0_prediction_at_a_noise_free_level_stays_finite() -> None:
    x_0, eps = estimates(torch.ones(4), torch.ones(4), torch.tensor(1.0), "sample")
    assert x_0.isfinite().all()
    assert eps.isfinite().all()


def test_v_prediction_at_zero_signal_stays_finite() -> None:
    x_0, eps = estimates(torch.ones(4), torch.ones(4), torch.tensor(0.0), "v_prediction")
    assert x_0.isfinite().all()
    assert eps.isfinite().all()
