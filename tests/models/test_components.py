import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DEMO_WEIGHTS
from diffusers import PNDMScheduler, StableDiffusionPipeline

from diffedit_batch.config import ModelConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.components import Components


def test_facts_are_read_from_the_model(tiny: Components) -> None:
    assert tiny.prediction_type == "epsilon"
    assert tiny.latent_channels == 4
    assert tiny.vae_scale_factor == 8
    assert tiny.unet_scale_factor == 2
    assert tiny.resolution == 64
    assert tiny.dtype == torch.float32


def test_a_text_is_the_embedding_the_pipeline_computes(tiny: Components, tiny_model: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, use_safetensors=True)
    expected, _ = pipeline.encode_prompt("a red circle on grass", "cpu", 1, False)
    text = tiny.text(("a red circle on grass",))
    assert text.states.shape == (24, 16)
    assert torch.equal(text.states, expected[0])


def test_several_prompts_are_averaged(tiny: Components) -> None:
    one, other = tiny.text(("a red circle",)), tiny.text(("a blue square",))
    mean = tiny.text(("a red circle", "a blue square"))
    torch.testing.assert_close(mean.states, (one.states + other.states) / 2)
    assert mean.key != one.key


def test_each_distinct_prompt_is_encoded_once(tiny_model: Path) -> None:
    model = Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    for prompts in [("a star",), ("a star", "a circle"), ("a circle",), ("a star",)]:
        model.text(prompts)
    assert model.num_text_encodes == 2


def test_prompts_beyond_the_text_encoder_are_noticed(tiny: Components) -> None:
    assert not tiny.is_truncated("a red circle on grass")
    assert tiny.is_truncated("a red circle and " * 20)


def test_encode_returns_the_scaled_posterior(tiny: Components, tiny_model: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, use_safetensors=True)
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = tiny.encode(images)
    with torch.no_grad():
        posterior = pipeline.vae.encode(images).latent_dist
    assert mean.shape == std.shape == (2, 4, 8, 6)
    torch.testing.assert_close(mean, posterior.mode() * pipeline.vae.config.scaling_factor)
    assert (std > 0).all()


def test_decode_undoes_the_scale(tiny: Components, tiny_model: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, use_safetensors=True)
    latents = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(tiny.decode(latents), expected)


def test_timesteps_of_one_call_may_differ(tiny: Components) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 24, 16, generator=generator)
    timesteps = torch.tensor([1, 781])
    together = tiny.predict(latents, timesteps, states)
    for i in range(2):
        alone = tiny.predict(latents[i : i + 1], timesteps[i : i + 1], states[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_applies_to_the_unet_alone(tiny_model: Path, dtype: str) -> None:
    config = ModelConfig.model_validate({"id": str(tiny_model), "dtype": dtype})
    model = Components.load(config, "cpu")
    assert model.dtype == getattr(torch, dtype)
    assert model.can_be_more_precise
    output = model.predict(
        torch.zeros(1, 4, 8, 8), torch.tensor([1]), model.text(("a star",)).states[None]
    )
    assert output.dtype == torch.float32
    assert model.encode(torch.zeros(1, 3, 64, 64))[0].dtype == torch.float32
    precise = model.in_full_precision()
    assert not precise.can_be_more_precise
    assert model.dtype == getattr(torch, dtype)


def test_memory_options_reach_the_model(tiny_model: Path) -> None:
    config = ModelConfig(
        id=str(tiny_model),
        enable_vae_slicing=True,
        enable_vae_tiling=True,
        enable_attention_slicing=True,
    )
    model = Components.load(config, "cpu")
    assert model._vae.use_slicing
    assert model._vae.use_tiling
    processors = {type(p).__name__ for p in model._unet.attn_processors.values()}
    assert processors == {"SlicedAttnProcessor"}


def test_attention_slicing_changes_nothing_but_memory(tiny_model: Path, tiny: Components) -> None:
    config = ModelConfig(id=str(tiny_model), enable_attention_slicing=True)
    sliced = Components.load(config, "cpu")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    states = tiny.text(("a star",)).states.expand(2, -1, -1)
    timesteps = torch.tensor([100, 200])
    torch.testing.assert_close(
        sliced.predict(latents, timesteps, states),
        tiny.predict(latents, timesteps, states),
        atol=1e-5,
        rtol=1e-5,
    )


def test_cpu_offload_without_a_gpu_is_refused(tiny_model: Path) -> None:
    config = ModelConfig(id=str(tiny_model), enable_model_cpu_offload=True)
    with pytest.raises(ModelError, match="needs a GPU"):
        Components.load(config, "cpu")


def test_a_hub_model_that_cannot_be_had_says_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(id="nobody/no-such-model", local_files_only=True, revision="abc")
    with pytest.raises(ModelError) as caught:
        Components.load(config, "cpu")
    message = str(caught.value)
    for words in ("nobody/no-such-model", "revision abc", "offline", "hf download", "local folder"):
        assert words in message


def test_a_model_whose_parts_do_not_fit_together_is_found_out_at_once(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(DEMO_WEIGHTS / "text_encoder", folder / "text_encoder")
    with pytest.raises(ModelError, match="was loaded, but cannot be used"):
        Components.load(ModelConfig(id=str(folder)), "cpu")


def test_broken_weights_are_one_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot load model") as caught:
        Components.load(ModelConfig(id=str(folder)), "cpu")
    assert "folder is whole" in str(caught.value)
    assert "hub" not in str(caught.value)


def test_a_checkpoint_as_they_are_on_the_hub_loads(tiny_model: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5 comes with a PNDM scheduler and an index older than image encoders."""
    folder = tmp_path / "sd15"
    shutil.copytree(tiny_model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    del index["image_encoder"]
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    model = Components.load(ModelConfig(id=str(folder)), "cpu")
    assert model.prediction_type == "epsilon"
    assert model.schedule(50).timesteps[[0, 1, 25, 50]].tolist() == [0, 1, 481, 981]
    original = Components.load(ModelConfig(id=str(tiny_model)), "cpu")
    assert torch.equal(model.schedule(50).alpha_bar, original.schedule(50).alpha_bar)
