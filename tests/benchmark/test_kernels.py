import pytest
import torch
from torch.nn import functional

from diffedit_batch.benchmark.kernels import KINDS, kind_of, profile_kernels

NAMES = [
    (
        "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128",
        "convolution",
    ),
    (
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816fprop_optimized_f16>",
        "convolution",
    ),
    ("aten::mkldnn_convolution", "convolution"),
    ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "GEMM"),
    ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x64", "GEMM"),
    ("aten::addmm", "GEMM"),
    ("aten::bmm", "GEMM"),
    ("aten::mm", "GEMM"),
    ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", "attention"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
    ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "attention"),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
    ("void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half>", "elementwise"),
    ("triton_poi_fused_convert_element_type_mul_3", "elementwise"),
    ("void at::native::vectorized_elementwise_kernel<4, silu>", "elementwise"),
    ("aten::native_group_norm", "elementwise"),
    ("aten::copy_", "elementwise"),
]


@pytest.mark.parametrize(("name", "kind"), NAMES)
def test_kernels_are_known_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_time_goes_where_the_work_is() -> None:
    images, weight = torch.randn(2, 16, 64, 64), torch.randn(32, 16, 3, 3)

    def use() -> None:
        for _ in range(5):
            functional.conv2d(images, weight)

    found = profile_kernels(use, "cpu")
    assert found.busy_seconds["convolution"] > 0.9 * sum(found.busy_seconds.values())
    assert found.busy_seconds["attention"] == 0
    assert found.shares.keys() == {*KINDS, "idle"}
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.longest[0][1] == "convolution"
