"""What an edited picture says of itself, in text chunks of its PNG.

Three readers are served: programs (JSON of everything the row asked for), the web UIs (their
`parameters`), and whoever asks whether a picture is synthetic (IPTC's digital source type, in XMP).
All of it follows from the row and the model alone: a row that is done again says the same.
"""

import json
import re

from diffedit_batch.config import canonical_json
from diffedit_batch.data.images import XMP
from diffedit_batch.redact import redact, redact_tree
from diffedit_batch.schema import EditRequest

COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's word for a picture of which a trained model has painted a part."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmp:CreatorTool="diffedit_batch"'
    f' Iptc4xmpExt:DigitalSourceType="{COMPOSITE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")


def describe(
    request: EditRequest, working_size: tuple[int, int], model: str, model_revision: str
) -> dict[str, str]:
    """The text chunks of an edited picture, by keyword.

    Args:
        request: what was asked.
        working_size: width and height it was edited at.
        model: its name.
        model_revision: hub revision, or a digest of its weights.
    """
    everything = {
        "id": request.id,
        "fingerprint": request.fingerprint,
        "model": model,
        "model_revision": model_revision,
        "digital_source_type": COMPOSITE,
        **request.columns(),
    }
    return {
        "parameters": redact(_parameters(request, working_size, model)),
        "diffedit_batch": canonical_json(redact_tree(everything)).decode(),
        "Software": "diffedit_batch",
        XMP: _XMP,
    }


def _parameters(request: EditRequest, working_size: tuple[int, int], model: str) -> str:
    """As AUTOMATIC1111's web UI writes it: prompt, negative prompt, and a line of the rest."""
    edit = request.edit
    values = {
        "Steps": edit.num_inference_steps,
        "Sampler": "DDIM",
        "CFG scale": edit.guidance_scale,
        "Seed": request.seed,
        "Size": "{}x{}".format(*working_size),
        "Model": model,
        "Denoising strength": edit.inpaint_strength,
    }
    lines = _lines(request.target_prompt)
    negative = _lines(request.negative_text)
    if any(negative):
        lines += [f"Negative prompt: {negative[0]}", *negative[1:]]
    return "\n".join([*lines, ", ".join(f"{key}: {_quote(v)}" for key, v in values.items())])


def _lines(prompts: tuple[str, ...]) -> list[str]:
    return [_UNPRINTABLE.sub(" ", prompt) for prompt in prompts]


def _quote(value: object) -> str:
    """A value that may stand between commas."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text
