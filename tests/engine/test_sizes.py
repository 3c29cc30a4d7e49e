import pytest

from diffedit_batch.engine.sizes import working_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((1024, 1024), (512, 512)),
        ((100, 100), (512, 512)),
        ((1024, 512), (704, 384)),
        ((512, 1024), (384, 704)),
    ],
)
def test_working_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*size, 512, 64) == expected


def test_working_sizes_keep_ratio_and_area() -> None:
    for width in range(40, 2000, 97):
        for height in range(40, 2000, 89):
            if max(width, height) > 4 * min(width, height):
                continue
            w, h = working_size(width, height, 512, 8)
            assert w % 8 == h % 8 == 0
            assert w / h == pytest.approx(width / height, rel=0.04)
            assert w * h == pytest.approx(512 * 512, rel=0.04)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (1, 1), (7, 3)])
def test_extreme_pictures_stay_within_memory(size: tuple[int, int]) -> None:
    w, h = working_size(*size, 512, 64)
    assert w % 64 == h % 64 == 0
    assert min(w, h) >= 64
    assert w * h <= 2 * 512 * 512
