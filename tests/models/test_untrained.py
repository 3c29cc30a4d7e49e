from pathlib import Path

import pytest
import torch
from conftest import DEMO_WEIGHTS
from diffusers import AutoencoderKL, UNet2DConditionModel

from diffedit_batch.models.architectures import SMALL
from diffedit_batch.models.components import Components
from diffedit_batch.models.untrained import random_pipeline, read_architecture


@pytest.fixture(scope="module")
def model() -> Components:
    return Components(random_pipeline(SMALL, "cpu", torch.float32, torch.float32))


def test_texts_are_as_long_as_the_architecture_reads(model: Components) -> None:
    states = model.text(("a red circle on grass",)).states
    assert states.shape == (SMALL.num_tokens, SMALL.text_width)


@pytest.mark.parametrize("timestep", [1, 500, 981])
def test_noise_estimates_are_of_order_one_and_depend_on_the_text(
    model: Components, timestep: int
) -> None:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    texts = [model.text((p,)).states for p in ("a red circle on grass", "a blue star on sand")]
    one, other = model.predict(
        latents.repeat(2, 1, 1, 1), torch.full((2,), timestep), torch.stack(texts)
    )
    assert 0.5 < one.std() < 2
    assert (one - other).abs().mean() > 1e-3


def test_weights_are_the_same_every_time(model: Components) -> None:
    again = Components(random_pipeline(SMALL, "cpu", torch.float32, torch.float32))
    latents, states = torch.randn(1, 4, 16, 16), model.text(("a",)).states[None]
    timesteps = torch.tensor([500])
    torch.testing.assert_close(
        again.predict(latents, timesteps, states), model.predict(latents, timesteps, states)
    )


def test_a_saved_pipeline_has_the_architecture_it_was_made_of() -> None:
    architecture = read_architecture(DEMO_WEIGHTS)
    assert (architecture.resolution, architecture.prediction_type) == (128, "v_prediction")
    with torch.device("meta"):
        parts = {"unet": architecture.unet(), "vae": architecture.vae()}
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for name, part in parts.items():
        saved = kinds[name].from_pretrained(Path(DEMO_WEIGHTS) / name)
        assert {k: v.shape for k, v in part.state_dict().items()} == {
            k: v.shape for k, v in saved.state_dict().items()
        }
    assert architecture.num_tokens == 24
