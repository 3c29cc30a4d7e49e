import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from diffedit_batch.benchmark import command
from jobs.benchmark import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engine", "--model", "sd3", "--device", "cpu"], "choose from sd15"),
        (["engine", "--device", "tpu"], "device 'tpu'"),
        (["engine", "--model", "small", "--device", "cpu", "--compile", "fast"], "compile"),
        (["baselines", "--model", "small", "--device", "cpu", "--baselines", "guide"], "'guide'"),
        (
            ["baselines", "--model", "small", "--device", "cpu", "--baselines", "x"],
            "'x' is none of",
        ),
        (["end-to-end", "--model", "sd3", "--device", "cpu"], "choose from sd15"),
        (["cold-start", "--model", "sd3", "--device", "cpu"], "choose from sd15"),
        (["scheduler", "--groups", "0"], "must be positive"),
        (["all", "--device", "tpu"], "device 'tpu'"),
    ],
)
def test_what_is_not_there_is_said_and_ends_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("what", ["engine", "baselines", "end-to-end", "cold-start", "all"])
def test_without_a_gpu_a_gpu_is_refused(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([what, "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_numbers_that_are_none_end_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["scheduler", "--workers", "1,many"])
    assert caught.value.code == 2


def test_a_report_is_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "small", "--device", "cpu", "--baselines", "ours", "--edits", "1"]
    output = ["--repeats", "1", "--output", str(tmp_path)]
    assert main(["baselines", *arguments, *output]) == 0
    tree = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert tree["benchmark"] == "baselines"
    assert (tmp_path / "report.md").read_text("utf-8") in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_is_every_benchmark_with_arguments_it_takes(device: str) -> None:
    runs = command.everything(device)
    assert {arguments[0] for _, *arguments in runs} == {
        *("engine", "baselines", "end-to-end", "cold-start", "scheduler", "driver")
    }
    assert len({name for name, *_ in runs}) == len(runs)
    for _, *arguments in runs:
        options = command.parser("").parse_args(arguments)
        assert getattr(options, "device", device) == device


def test_all_goes_on_after_a_failure_and_tells_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Sequence[str]] = []

    def run(arguments: Sequence[str], check: bool) -> CompletedProcess[str]:
        started.append(arguments)  # the second fails
        return CompletedProcess(arguments, 4 if len(started) == 2 else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["all", "--device", "cpu", "--output", str(tmp_path)]) == 4
    assert len(started) == len(command.everything("cpu"))
    assert [Path(one[-1]).parent for one in started] == [tmp_path] * len(started)
