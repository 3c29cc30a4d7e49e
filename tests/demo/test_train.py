import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffedit_batch.config import ModelConfig
from diffedit_batch.demo.components import build_components
from diffedit_batch.demo.optimise import Stage
from diffedit_batch.demo.scenes import VALIDATION_SEEDS, caption, sample_scene
from diffedit_batch.demo.train import TrainSettings, train
from diffedit_batch.models.components import Components
from diffedit_batch.models.identity import identify


def settings(folder: Path, denoiser_steps: int = 2) -> TrainSettings:
    return TrainSettings(
        output=folder,
        autoencoder=Stage(steps=2, batch_size=2, learning_rate=1e-3),
        denoiser=Stage(steps=denoiser_steps, batch_size=4, learning_rate=1e-3),
        scenes=8,
    )


def unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def test_training_leaves_a_model_the_job_loads(tmp_path: Path) -> None:
    train(settings(tmp_path))
    model = Components.load(ModelConfig(id=str(tmp_path / "pipeline")), "cpu")
    assert (model.resolution, model.vae_scale_factor) == (128, 8)
    assert identify(ModelConfig(id=str(tmp_path / "pipeline"))).is_folder


def test_a_run_that_was_stopped_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(settings(tmp_path, denoiser_steps=1))
    first = unet_weights(tmp_path)
    with caplog.at_level(logging.INFO):
        train(settings(tmp_path, denoiser_steps=2))
    assert "autoencoder: continues at step 2" in caplog.text
    assert "denoiser: continues at step 1" in caplog.text
    second = unet_weights(tmp_path)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_autoencoder_of_another_model_can_be_taken(tmp_path: Path) -> None:
    def autoencoder(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors")

    first, second = tmp_path / "first", tmp_path / "second"
    train(settings(first))
    train(replace(settings(second), autoencoder_from=first / "pipeline", seed=1))
    assert not (second / "autoencoder.pt").exists()
    assert all(torch.equal(autoencoder(second)[k], v) for k, v in autoencoder(first).items())
    one, other = unet_weights(first), unet_weights(second)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_word_of_a_caption_is_one_token() -> None:
    tokenizer = build_components(0).tokenizer
    for seed in VALIDATION_SEEDS[:20]:
        text = caption(sample_scene(seed))
        tokens = tokenizer(text).input_ids
        assert len(tokens) == len(text.split()) + 2, text
        assert tokenizer.unk_token_id not in tokens[1:-1]
