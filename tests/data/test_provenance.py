import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffedit_batch.config import EditConfig
from diffedit_batch.data.images import XMP, encode_png
from diffedit_batch.data.provenance import COMPOSITE, describe
from diffedit_batch.schema import EDIT_PARAMETERS, EditRequest, ImageRef

PICTURE = np.zeros((4, 6, 3), np.uint8)
REQUEST = EditRequest(
    "row 1",
    source_prompt=("a red circle",),
    target_prompt=("a blue circle", "a circle, blue"),
    edit=EditConfig(negative_from="source_prompt"),
    seed=7,
    fingerprint="f",
)


def read(request: EditRequest, model: str = "owner/name") -> dict[str, Any]:
    """What Pillow finds in the picture of a request."""
    texts = describe(request, (768, 512), model, "r1")
    data = encode_png(PICTURE, texts)
    assert data == encode_png(PICTURE, describe(replace(request), (768, 512), model, "r1"))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert np.array_equal(np.array(image), PICTURE)
        return {str(name): text for name, text in image.info.items()}


def test_every_parameter_as_json() -> None:
    said = json.loads(read(REQUEST)["diffedit_batch"])
    assert said["model"] == "owner/name"
    assert said["model_revision"] == "r1"
    assert said["fingerprint"] == "f"
    assert said["target_prompt"] == list(REQUEST.target_prompt)
    assert {name: said[name] for name in EDIT_PARAMETERS} == REQUEST.edit.model_dump()
    assert said == {**said, **REQUEST.columns()}


def test_parameters_as_the_web_uis_write_them() -> None:
    assert read(REQUEST, "a: model, mine")["parameters"].split("\n") == [
        "a blue circle",
        "a circle, blue",
        "Negative prompt: a red circle",
        "Steps: 50, Sampler: DDIM, CFG scale: 5.0, Seed: 7, Size: 768x512,"
        ' Model: "a: model, mine", Denoising strength: 0.8',
    ]
    without = replace(REQUEST, edit=EditConfig(negative_from="empty"))
    assert "Negative" not in read(without)["parameters"]


def test_the_mark_of_synthetic_pictures_is_xmp() -> None:
    packet = read(REQUEST)[XMP]
    [description] = ET.fromstring(packet.encode()).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.attrib[name] == COMPOSITE
    data = encode_png(PICTURE, describe(REQUEST, (8, 8), "m", "r"))
    assert b"iTXtXML:com.adobe.xmp\0\0\0\0\0<?xpacket" in data, "as Adobe's part 3 lays it down"


@pytest.mark.parametrize("prompt", ["ein Kätzchen", "قطة 🐶", "<img src=x> & \"'", "x" * 100_000])
def test_prompts_of_any_script(prompt: str) -> None:
    said = read(replace(REQUEST, target_prompt=(prompt,)))
    assert said["parameters"].split("\n")[0] == prompt
    assert json.loads(said["diffedit_batch"])["target_prompt"] == [prompt]


def test_what_no_chunk_can_hold_becomes_a_blank() -> None:
    prompt = "a\0b\ud800c\nNegative prompt: d"
    said = read(replace(REQUEST, target_prompt=(prompt,)))
    assert said["parameters"].split("\n")[0] == "a b c Negative prompt: d"
    assert json.loads(said["diffedit_batch"])["target_prompt"] == [prompt]


def test_secrets_stay_out() -> None:
    secret = "wJalrXUtnFEMI"
    uri = f"https://user:{secret}@host/a.png?X-Amz-Signature={secret}"
    request = replace(REQUEST, image=ImageRef(uri), mask=ImageRef(uri), target_prompt=(uri,))
    data = encode_png(PICTURE, describe(request, (8, 8), "m", "r"))
    assert secret.encode() not in data
    assert b"https://host/a.png" in data
