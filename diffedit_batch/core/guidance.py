"""From what a network says to what DDIM needs: guidance, and eps / v / x_0 conversion."""

from typing import Literal

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def guide(text: Tensor, negative: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): negative + g (text - negative)."""
    return negative + guidance_scale * (text - negative)


def estimates(
    output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """(x_0, eps) as estimated by a network output for the latent `x_t` at the level of
    `alpha_bar`.
    """
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (x_t - noise * output) / signal, output
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output, signal * output + noise * x_t
    # At a noise-free level eps is undefined (0 / 0) and plays no part: any finite value will do.
    return output, (x_t - signal * output) / noise.clamp_min(1e-6)
