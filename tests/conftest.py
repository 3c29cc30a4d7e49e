"""Tiny real models for all tests: diffusers and transformers classes with few, random weights."""

import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from s3_server import BUCKET, S3Server
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

import diffedit_batch
from diffedit_batch.config import ModelConfig, ScoresConfig
from diffedit_batch.data.storage import Storage
from diffedit_batch.models.clip import Clip, Picture
from diffedit_batch.models.components import Components
from diffedit_batch.models.lpips import Lpips

# Else Ray's workers yield to whatever else the machine does, and hardly run beside it.
os.environ.setdefault("RAY_worker_niceness", "0")

DEMO_WEIGHTS = Path(diffedit_batch.__file__).parent / "demo" / "weights"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run beside each other, those that start a cluster still do so one by one."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))


def save_tiny_pipeline(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A whole pipeline of 64 px pictures, 8 x 8 latents, and random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    tokenizer = CLIPTokenizer.from_pretrained(DEMO_WEIGHTS / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pipeline that predicts epsilon."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny-eps"))


@pytest.fixture(scope="session")
def tiny_v_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pipeline that predicts v."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny-v"), "v_prediction")


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Components:
    """The tiny model, loaded."""
    return Components.load(ModelConfig(id=str(tiny_model)), "cpu")


@pytest.fixture(scope="session")
def tiny_v(tiny_v_model: Path) -> Components:
    """The tiny v-predicting model, loaded."""
    return Components.load(ModelConfig(id=str(tiny_v_model)), "cpu")


def save_tiny_prompt_writer(folder: Path) -> Path:
    """A T5 with random weights that knows a few words."""
    torch.manual_seed(0)
    words = [
        "provide",
        "a",
        "caption",
        "for",
        "images",
        "containing",
        "dog",
        "cat",
        "on",
        "grass",
        "sand",
        "red",
        "blue",
    ]
    pieces = ["<pad>", "</s>", "<unk>", ".", *(f"▁{word}" for word in words)]
    tokenizer = T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=4,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_captioner(folder: Path) -> Path:
    """A BLIP of 16 px pictures with random weights that knows a few words."""
    torch.manual_seed(9)  # weights with something to say about pictures of noise
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
    words = (
        *special,
        *["a", "photograph", "of", "dog", "cat", "on", "grass", "sand", "red", "blue"],
    )
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate(words)}, bos_token="[DEC]")
    images = BlipImageProcessorPil(size={"height": 16, "width": 16})
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    # Initialised widely, for pictures to make a difference.
    shape |= {"num_hidden_layers": 1, "projection_dim": 16, "initializer_range": 0.7}
    model = BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                **shape,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 40,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.sep_token_id,
                "sep_token_id": tokenizer.sep_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={**shape, "image_size": 16, "patch_size": 8},
            projection_dim=16,
            image_text_hidden_size=16,
        )
    )
    model.save_pretrained(folder)
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def tiny_clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Of pictures of 16 px; initialised widely, for pictures and texts to make a difference."""
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": 1, "projection_dim": 8, "initializer_factor": 20.0}
    text = {
        **shape,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**shape, "image_size": 16, "patch_size": 8}
    return CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=8, initializer_factor=20.0
    )


def tiny_clip_processor() -> CLIPImageProcessorPil:
    """What prepares pictures for it."""
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def save_tiny_clip(folder: Path) -> Path:
    """A CLIP of 16 px pictures with random weights."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(DEMO_WEIGHTS / "tokenizer")
    CLIPModel(tiny_clip_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_clip_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny CLIP."""
    return save_tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def clip(tiny_clip: Path) -> Clip:
    """The tiny CLIP, loaded."""
    return Clip.load(ScoresConfig(clip=str(tiny_clip)), "cpu")


def save_random_lpips(path: Path) -> Path:
    """An LPIPS with random weights, in a file as the package `lpips` names and shapes them."""
    generator = torch.Generator().manual_seed(0)
    shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
    weights = {
        "scaling_layer.shift": torch.tensor(shift).view(1, 3, 1, 1),
        "scaling_layer.scale": torch.tensor(scale).view(1, 3, 1, 1),
    }
    layers = {
        "slice1.0": (64, 3, 11, 11),
        "slice2.3": (192, 64, 5, 5),
        "slice3.6": (384, 192, 3, 3),
        "slice4.8": (256, 384, 3, 3),
        "slice5.10": (256, 256, 3, 3),
    }
    for number, (name, shape) in enumerate(layers.items()):
        width = (2 / math.prod(shape[1:])) ** 0.5
        weights[f"net.{name}.weight"] = width * torch.randn(shape, generator=generator)
        weights[f"net.{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        head = torch.rand((1, shape[0], 1, 1), generator=generator)
        weights[f"lin{number}.model.1.weight"] = head
    save_file(weights, path)
    return path


@pytest.fixture(scope="session")
def random_lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of an LPIPS with random weights."""
    return save_random_lpips(tmp_path_factory.mktemp("lpips") / "lpips.safetensors")


@pytest.fixture(scope="session")
def lpips(random_lpips: Path) -> Lpips:
    """That LPIPS, loaded."""
    return Lpips.load(ScoresConfig(lpips=str(random_lpips)), "cpu")


def save_tiny_safety_checker(folder: Path, flagged: Sequence[Picture] | None) -> None:
    """Give a pipeline a safety checker that flags pictures like these; None: all pictures."""
    torch.manual_seed(0)
    processor = tiny_clip_processor()
    config = tiny_clip_config(CLIPTokenizer.from_pretrained(DEMO_WEIGHTS / "tokenizer"))
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        checker.special_care_embeds_weights.fill_(2)
        checker.concept_embeds_weights.fill_(-2 if flagged is None else 2)
        for number, picture in enumerate(flagged or ()):
            pixels = processor(picture, return_tensors="pt").pixel_values
            features = checker.vision_model(pixels).pooler_output
            checker.concept_embeds[number] = checker.visual_projection(features)[0]
            checker.concept_embeds_weights[number] = 0.998
    checker.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")


@pytest.fixture(scope="session")
def tiny_flagging_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pipeline whose safety checker flags every picture."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("tiny-flagging"))
    save_tiny_safety_checker(folder, None)
    return folder


@pytest.fixture(scope="session")
def tiny_prompt_writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny prompt writer."""
    return save_tiny_prompt_writer(tmp_path_factory.mktemp("tiny-t5"))


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny captioner."""
    return save_tiny_captioner(tmp_path_factory.mktemp("tiny-blip"))


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, shared by all tests; jobs under test find it running."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=150 * 2**20,
        # Workers in tests may be classes of modules beside this file.
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server that speaks S3, for all tests; this process finds it in its environment."""
    import s3fs

    with S3Server().running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(BUCKET)
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """That server, without faults before and after a test."""
    yield s3_server
    s3_server.faults.clear()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An output folder on a disk, and one on an object store."""
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    request.getfixturevalue("s3")
    return Storage(f"s3://{BUCKET}/{tmp_path.name}/out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
