import pytest
import torch

from diffedit_batch.models.architectures import (
    ARCHITECTURES,
    SD15,
    SD21,
    SD21_BASE,
    SMALL,
    Architecture,
)
from diffedit_batch.models.flops import count_flops

# 10^9 operations, counted independently when the work was planned; 512 and 768 px.
KNOWN = [
    (SD15, 512, 803.3, 1116.7, 2514.5, 13.3),
    (SD15, 768, 2148.1, 2609.1, 5754.3, 13.3),
    (SD21_BASE, 512, 804.3, 1116.7, 2514.5, 45.1),
    (SD21, 768, 2149.1, 2609.1, 5754.3, 45.1),
]


@pytest.mark.parametrize(("model", "side", "unet", "encode", "decode", "text"), KNOWN)
def test_operations_of_each_part_are_as_known(
    model: Architecture, side: int, unet: float, encode: float, decode: float, text: float
) -> None:
    flops = count_flops(model, side, side)
    assert flops.unet_eval / 1e9 == pytest.approx(unet, rel=0.01)
    assert flops.vae_encode / 1e9 == pytest.approx(encode, rel=0.01)
    assert flops.vae_decode / 1e9 == pytest.approx(decode, rel=0.01)
    assert flops.text_encode / 1e9 == pytest.approx(text, rel=0.01)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("sd15", (859.5, 83.7, 123.1)), ("sd21-512", (865.9, 83.7, 340.4))],
)
def test_models_have_as_many_parameters_as_published(
    name: str, num_parameters: tuple[float, ...]
) -> None:
    model = ARCHITECTURES[name]
    with torch.device("meta"):
        parts = (model.unet(), model.vae(), model.text_encoder())
    for part, millions in zip(parts, num_parameters, strict=True):
        assert sum(p.numel() for p in part.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_other_sizes_are_counted_as_such() -> None:
    tall, wide = count_flops(SMALL, 96, 192), count_flops(SMALL, 192, 96)
    assert tall == wide
    assert count_flops(SMALL).unet_eval == count_flops(SMALL, 128, 128).unet_eval
    assert count_flops(SMALL, 256, 128).vae_decode > 1.9 * count_flops(SMALL).vae_decode
