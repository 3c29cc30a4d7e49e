"""Model folders that bring code along: it is refused or left alone, and never runs."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffedit_batch.config import CaptionsConfig, ModelConfig, PromptsConfig
from diffedit_batch.errors import ModelError
from diffedit_batch.models.captions import Captioner
from diffedit_batch.models.components import Components
from diffedit_batch.models.prompts import PromptWriter


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that leaves a mark when it runs; also installed, as `evil_module`."""
    code = (
        f"open({str(tmp_path / 'marker')!r}, 'w').close()\n"
        "from diffusers import StableDiffusionPipeline as Custom\n"
    )
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "evil_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    return code


def name_a_pipeline(folder: Path, code: str) -> None:
    (folder / "pipeline.py").write_text(code)
    edit(folder / "model_index.json", _class_name=["pipeline", "Custom"])


def name_a_pipeline_otherwise(folder: Path, code: str) -> None:
    (folder / "pipeline.py").write_text(code)
    edit(folder / "model_index.json", _class_name="Custom", custom_pipeline="pipeline")


def bring_a_component(folder: Path, code: str) -> None:
    (folder / "unet" / "mine.py").write_text(code)
    edit(folder / "model_index.json", unet=["mine", "Custom"])


def name_another_library(folder: Path, code: str) -> None:
    edit(folder / "model_index.json", unet=["evil_module", "Custom"])


def name_a_function(folder: Path, code: str) -> None:
    edit(folder / "model_index.json", unet=["os", "system"])


def add_a_component(folder: Path, code: str) -> None:
    edit(folder / "model_index.json", extra=["evil_module", "Custom"])


def map_a_text_encoder(folder: Path, code: str) -> None:
    (folder / "text_encoder" / "mine.py").write_text(code)
    names = {"AutoConfig": "mine.Custom", "AutoModel": "mine.Custom"}
    edit(folder / "text_encoder" / "config.json", auto_map=names)


def map_a_tokenizer(folder: Path, code: str) -> None:
    (folder / "tokenizer" / "mine.py").write_text(code)
    edit(
        folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.C", None]}
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        (name_a_pipeline, True),
        (name_a_pipeline_otherwise, False),
        (bring_a_component, True),
        (name_another_library, True),
        (name_a_function, True),
        (add_a_component, False),
        (map_a_text_encoder, False),
        (map_a_tokenizer, False),
    ],
)
def test_code_beside_a_pipeline_never_runs(
    tiny_model: Path,
    tmp_path: Path,
    code: str,
    change: Callable[[Path, str], None],
    is_refused: bool,
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    change(folder, code)
    if is_refused:
        with pytest.raises(ModelError, match="cannot load model"):
            Components.load(ModelConfig(id=str(folder)), "cpu")
    else:
        Components.load(ModelConfig(id=str(folder)), "cpu")
    assert not (tmp_path / "marker").exists()
    assert "evil_module" not in sys.modules


def test_code_beside_a_prompt_writer_never_runs(
    tiny_prompt_writer: Path, tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_prompt_writer, tmp_path / "model")
    (folder / "mine.py").write_text(code)
    names = {"AutoModelForSeq2SeqLM": "mine.Custom", "AutoConfig": "mine.Custom"}
    edit(folder / "config.json", auto_map=names, model_type="mine")
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["mine.Custom", None]},
        tokenizer_class="Mine",
    )

    def ask(*question: object) -> str:
        raise AssertionError("a job must not wait for an answer at a terminal")

    monkeypatch.setattr("builtins.input", ask)
    with pytest.raises(ModelError, match="cannot load model"):
        PromptWriter.load(PromptsConfig(id=str(folder)), "cpu", seed=0)
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore")
def test_code_beside_a_captioner_never_runs(
    tiny_captioner: Path, tmp_path: Path, code: str
) -> None:
    folder = shutil.copytree(tiny_captioner, tmp_path / "model")
    (folder / "mine.py").write_text(code)
    names = {"AutoModel": "mine.Custom", "AutoConfig": "mine.Custom"}
    edit(folder / "config.json", auto_map=names)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Custom", None]})
    Captioner.load(CaptionsConfig(id=str(folder), batch_size=1, max_new_tokens=8), "cpu")
    assert not (tmp_path / "marker").exists()
