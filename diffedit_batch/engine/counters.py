"""Work done, counted: what tests assert and run records keep, instead of seconds."""

from dataclasses import asdict, dataclass, fields


@dataclass
class Counters:
    """Counts of one worker, or the sum of several.

    Attributes:
        unet_evals: network evaluations that rows asked for.
        unet_calls: network calls they were packed into.
        padding_evals: evaluations that only filled up a call.
        vae_encodes: images encoded.
        vae_decodes: latents decoded.
        text_encodes: distinct prompts encoded.
        inversions: inversions run, however many rows shared each.
        batch_halvings: times a call was too large for the device and was split.
        full_precision_retries: rows redone in fp32 after a non-finite result.
        prompt_generations: concepts for which prompts were generated.
        captions: images captioned.
        clip_encodes: images that CLIP looked at.
        lpips_distances: edits that LPIPS compared with their source.
        safety_checks: images that the safety checker looked at.
    """

    unet_evals: int = 0
    unet_calls: int = 0
    padding_evals: int = 0
    vae_encodes: int = 0
    vae_decodes: int = 0
    text_encodes: int = 0
    inversions: int = 0
    batch_halvings: int = 0
    full_precision_retries: int = 0
    prompt_generations: int = 0
    captions: int = 0
    clip_encodes: int = 0
    lpips_distances: int = 0
    safety_checks: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def as_dict(self) -> dict[str, int]:
        """Counts by name."""
        return asdict(self)
