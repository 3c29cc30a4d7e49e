"""Noise levels and the DDIM step between any two of them.

Legend: N inference steps, T training timesteps. *Levels* are counted from the clean latent: level 0
    is `x_0`,
level i (1 <= i <= N) is the i-th smallest timestep of the run, level N the noisiest.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TimestepSpacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class Schedule:
    """The levels of one DDIM run.

    Attributes:
        timesteps: network timestep of each level, (N + 1,), ascending; level 0 is asked as timestep
            0.
        alpha_bar: signal power of each level, (N + 1,), fp32, on the device of the latents, so that
            reading a level never makes the host wait for the device.
    """

    timesteps: Tensor
    alpha_bar: Tensor

    @property
    def num_inference_steps(self) -> int:
        """N."""
        return len(self.timesteps) - 1

    def level_of(self, strength: float) -> int:
        """Level reached by noising to `strength` (0..1), truncated as diffusers does: int(N *
        strength).

        Raises:
            ValueError: the strength is below one step.
        """
        level = min(int(self.num_inference_steps * strength), self.num_inference_steps)
        if level < 1:
            raise ValueError(
                f"strength {strength} of {self.num_inference_steps} steps is less than one step;"
                " raise the strength or num_inference_steps"
            )
        return level


def make_schedule(
    alphas_cumprod: Tensor,
    num_inference_steps: int,
    *,
    timestep_spacing: TimestepSpacing = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
) -> Schedule:
    """Levels of a DDIM run over a training noise table (T,), spaced as `DDIMScheduler` spaces them.

    Raises:
        ValueError: more inference steps than training timesteps.
    """
    num_train_timesteps = len(alphas_cumprod)
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps {num_inference_steps} is outside 1..{num_train_timesteps},"
            " the timesteps this model was trained with"
        )
    steps = torch.arange(num_inference_steps, dtype=torch.float64)
    if timestep_spacing == "leading":
        timesteps = steps * (num_train_timesteps // num_inference_steps) + steps_offset
    elif timestep_spacing == "trailing":
        ratio = num_train_timesteps / num_inference_steps
        timesteps = (num_train_timesteps - steps.flip(0) * ratio).round() - 1
    else:
        timesteps = torch.linspace(0, num_train_timesteps - 1, num_inference_steps).round()
    # An offset on a schedule without room for it would index past the table (N close to T).
    timesteps = timesteps.long().clamp(max=num_train_timesteps - 1).to(alphas_cumprod.device)
    clean = torch.ones_like(alphas_cumprod[:1]) if set_alpha_to_one else alphas_cumprod[:1]
    return Schedule(
        timesteps=torch.cat([torch.zeros_like(timesteps[:1]), timesteps]),
        alpha_bar=torch.cat([clean, alphas_cumprod[timesteps]]).float(),
    )


def add_noise(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """`x_0` noised to the level of `alpha_bar`: sqrt(a) x_0 + sqrt(1 - a) noise."""
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def ddim_step(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The latent at the level of `alpha_bar` on the DDIM path through the estimates (x_0, eps).

    Deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma = 0). Down or up is only a matter of
    which level is asked for: denoising and inversion are the same step.
    """
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
