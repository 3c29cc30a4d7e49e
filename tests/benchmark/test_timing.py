import pytest
import torch

from diffedit_batch.benchmark.ceilings import measure_ceilings
from diffedit_batch.benchmark.timing import Spread, check_device, peak_memory_gb, seconds_of
from diffedit_batch.errors import ConfigError


def test_a_spread_is_median_and_range() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert spread == Spread(2.5, 1.0, 10.0)
    assert spread.scaled(2) == Spread(5.0, 2.0, 20.0)
    assert spread.rate(10) == Spread(4.0, 1.0, 10.0)


def test_work_is_done_once_for_each_time_it_is_timed() -> None:
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(1), "cpu") >= 0
    assert calls == [1]


def test_devices_that_are_not_there_are_refused() -> None:
    check_device("cpu")
    with pytest.raises(ConfigError, match="choose from cuda, cpu"):
        check_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no CUDA device"):
            check_device("cuda")


def test_this_process_has_some_memory() -> None:
    assert 0.01 < peak_memory_gb("cpu") < 1000


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings("cpu", torch.float32, 2, matmul_size=64, copy_bytes=2**16)
    assert ceilings.matmul_size == 64
    for spread in (ceilings.matmul_tflops, ceilings.copy_gb_per_s):
        assert 0 < spread.low <= spread.median <= spread.high
