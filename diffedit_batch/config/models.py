"""Which models, and how they are asked."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from diffedit_batch.config.section import Dtype, Section, off

EMBEDDED = "demo"
"""What `model.id` calls the embedded model; so `prompts.id` and `captions.id` theirs."""


class ModelConfig(Section):
    """Which model, and how it is held in memory."""

    id: str = Field(description="hub id, local folder, or `demo` for the embedded model")
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    variant: str | None = Field(None, description="weight variant of a hub id, e.g. `fp16`")
    dtype: Dtype | None = Field(None, description="null: float16 on a GPU, float32 on a CPU")
    vae_dtype: Dtype = Field("float32", description="half precision overflows in some VAEs")
    resolution: int | None = Field(None, ge=64, description="null: the size it was trained at, px")
    enable_model_cpu_offload: bool = False
    enable_vae_slicing: bool = False
    enable_vae_tiling: bool = False
    enable_attention_slicing: bool = False
    local_files_only: bool = Field(False, description="offline: never ask the hub")


class PromptsConfig(Section):
    """The model that writes prompts for rows given by concept, and how it is asked."""

    id: str = Field(
        "google/flan-t5-large",
        description="T5-like model: hub id, local folder, or `demo` for the embedded one",
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    # T5 was trained in bfloat16; in float16 its activations overflow.
    dtype: Dtype | None = Field(None, description="null: bfloat16 on a GPU, float32 on a CPU")
    template: str = Field(
        "Provide a caption for images containing a {concept}. The captions should be in English"
        " and should be no longer than 150 characters.",
        description="the instruction; {concept} stands for the concept",
    )
    num_prompts: int = Field(16, ge=1, le=64, description="prompts of a concept")
    temperature: float = Field(0.8, gt=0, le=10)
    top_k: int = Field(10, ge=1, description="words drawn from at each step")
    max_new_tokens: int = Field(128, ge=1, le=1024)
    local_files_only: bool = Field(False, description="offline: never ask the hub")

    @field_validator("template")
    @classmethod
    def _names_the_concept(cls, template: str) -> str:
        if "{concept}" not in template:
            raise ValueError("must contain {concept}, which stands for the row's concept")
        return template


class CaptionsConfig(Section):
    """The model that captions images for rows with `edit.caption_with: blip`."""

    id: str = Field(
        "Salesforce/blip-image-captioning-base",
        description="BLIP model: hub id, local folder, or `demo` for the embedded one",
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    dtype: Dtype | None = Field(None, description="null: float16 on a GPU, float32 on a CPU")
    prefix: str = Field("a photograph of", description="how every caption begins")
    max_new_tokens: int = Field(128, ge=1, le=1024)
    batch_size: int = Field(16, ge=1, le=512, description="images captioned in one call")
    local_files_only: bool = Field(False, description="offline: never ask the hub")


class ScoresConfig(Section):
    """What edits are scored by, beside what needs no model."""

    clip: str | None = Field(
        None, description="CLIP model: hub id or local folder; null: no scores of CLIP"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    local_files_only: bool = Field(False, description="offline: never ask the hub")
    lpips: str | None = Field(
        None, description="file of LPIPS with AlexNet, .safetensors; null: no such score"
    )

    @property
    def id(self) -> str:
        """The CLIP model by the name other sections give theirs; empty without one."""
        return self.clip or ""


class SafetyConfig(Section):
    """What becomes of edits that the model's own safety checker flags."""

    policy: Annotated[Literal["off", "keep", "blur", "drop"], BeforeValidator(off)] = Field(
        "off",
        description="off: not checked; keep: only say so; blur: the file; drop: the row fails",
    )
