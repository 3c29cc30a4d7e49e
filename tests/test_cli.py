import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_worker import FakeWorker
from jobs_on_disk import edits_of, job, write_config, write_manifest, write_pictures

import diffedit_batch
from diffedit_batch import cli
from diffedit_batch.config import load_config
from diffedit_batch.data.lease import hold_lease
from diffedit_batch.data.storage import Storage
from diffedit_batch.runtime import driver

ROOT = Path(diffedit_batch.__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file of a small job with the embedded model."""
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 3), per_picture=2))
    return write_config(job(tmp_path, Path("demo")), tmp_path)


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["plan"], ["prepare"], ["preview"], ["status"], ["report"], ["export"], ["demo"]],
)
def test_help_of_every_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage: diffedit-batch" in capsys.readouterr().out


@pytest.mark.parametrize("script", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.name)
def test_help_of_every_job(script: Path) -> None:
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage:" in done.stdout


def test_the_console_script_is_the_command_line() -> None:
    script = Path(sys.executable).parent / "diffedit-batch"
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == diffedit_batch.__version__


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_loads_and_names_every_key(path: Path) -> None:
    config = load_config(path)
    tree = yaml.safe_load(path.read_text())
    complete = json.loads(config.model_dump_json())
    assert tree.keys() == complete.keys()
    for section, keys in complete.items():
        if isinstance(keys, dict):
            assert tree[section].keys() == keys.keys(), section


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "x.yaml", "--limit", "0"],
        ["preview", "x.yaml", "-n", "0"],
        ["plan", "x.yaml", "--workers", "0"],
    ],
)
def test_bad_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2


def test_a_bad_config_lists_every_problem_and_exits_2(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["edit.guidance_scal=5", "seed=x", "edit.feather=-1"]
    code = cli.main(["run", str(config), *(f"--set={setting}" for setting in settings)])
    assert code == 2
    message = capsys.readouterr().err
    assert "edit.guidance_scal: unknown key; did you mean guidance_scale?" in message
    assert "seed:" in message
    assert "edit.feather:" in message


def test_a_bad_manifest_lists_every_problem_and_exits_2(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = edits_of(["000.png"]) * 2
    write_manifest(tmp_path, [{k: v for k, v in row.items() if k != "image"} for row in rows])
    assert cli.main(["run", str(config)]) == 2
    message = capsys.readouterr().err
    assert "column 'image' is missing" in message
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--where", "splt = 1"], "columns of the manifest: id, image, source_prompt"),
        (["--where", "id >"], "syntax error at or near"),
        (["--prune", "--limit", "3"], "cannot be combined with --limit or --where"),
        (["--prune", "--where", "true"], "cannot be combined with --limit or --where"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_bad_selection_exits_2(
    config: Path,
    tmp_path: Path,
    command: str,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([command, str(config), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--retry-failed", "config.yaml"], "'config.yaml' is not STAGE or STAGE/TYPE"),
        (["--retry-failed=load,lod/x"], "'lod/x' is not STAGE or STAGE/TYPE"),
        (["--force", "config.yaml"], "'config.yaml' is not a run id"),
        (["--force=yesterday"], "'yesterday' is not a run id"),
    ],
)
def test_a_flag_that_swallows_the_config_says_so(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", *flags])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def finished_rows(config: Path) -> None:
    """Let every row of the manifest fail at once, which takes no worker."""
    for image in config.parent.glob("*.png"):
        image.unlink()
    assert cli.main(["run", str(config), "--set=output.max_failed_fraction=1"]) == 0


def test_nothing_to_do_ends_before_ray_or_a_model_library_is_imported(config: Path) -> None:
    finished_rows(config)
    code = (
        "import sys; from diffedit_batch import cli\n"
        f"code = cli.main(['run', {str(config)!r}, '--set=output.max_failed_fraction=1'])\n"
        "print(code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, *modules = done.stderr.split()
    assert exit_code == "0"
    assert "6 rows: 0 new, 0 changed, 0 retried, 6 unchanged, 0 pruned" in done.stdout
    assert "nothing to do: all 6 rows are done" in done.stdout
    assert "6 of them failed (see --retry-failed)" in done.stdout
    loaded = {name.partition(".")[0] for name in modules}
    assert "pyarrow" in loaded
    assert not loaded & {"ray", "torch", "diffusers", "transformers", "accelerate", "duckdb"}


def test_the_job_for_schedules_retries_what_failed(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_rows(config)
    capsys.readouterr()
    arguments = [str(config), "--set=output.max_failed_fraction=1"]
    script = str(ROOT / "jobs" / "reprocess.py")
    for flags, retried in (([], 6), (["--retry-failed=worker"], 0)):
        done = subprocess.run(
            [sys.executable, script, *arguments, *flags], capture_output=True, text=True, check=True
        )
        kept = 6 - retried
        assert f"0 changed, {retried} retried, {kept} unchanged, 0 pruned" in done.stdout


def test_an_unknown_model_exits_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(config), "--set", "model.id=./nowhere"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_the_summary_as_json_however_a_run_ends(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)
    command = ["run", str(config), "--json"]

    def summary(*more: str) -> dict[str, Any]:
        exit_code = cli.main([*command, *more])
        document: dict[str, Any] = json.loads(capfd.readouterr().out)
        assert document["exit_code"] == exit_code
        return document

    document = summary()
    assert document["exit_code"] == 0
    assert document["counts"] == {"edited": 0, "unchanged": 6, "failed": 0}
    [worker] = document["workers"]
    assert worker["counts"] == {"unchanged": 6}
    [path] = (tmp_path / "output" / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert document.keys() - record.keys() == {"exit_code", "error"}
    assert document["run_id"] == record["run_id"]

    document = summary()
    assert (document["selected"]["unchanged"], document["workers"]) == (6, [])
    document = summary("--set", "edit.guidance_scal=5")
    assert set(document) == {"exit_code", "error"}
    assert document["exit_code"] == 2
    assert "unknown key" in document["error"]
    (tmp_path / "000.png").unlink()
    document = summary("--log-json")
    assert (document["exit_code"], document["counts"]["failed"]) == (3, 2)
    assert "2 of 6 rows failed" in document["error"]
    with hold_lease(Storage(str(tmp_path / "output")), "first"):
        assert summary("--if-locked=skip", "--force")["exit_code"] == 0
        assert summary("--force")["exit_code"] == 6

    assert cli.main(["run", str(config), "--quiet", "--set=output.max_failed_fraction=1"]) == 0
    assert capfd.readouterr() == ("", "")
    assert cli.main(["run", str(config), "--quiet", "--set=model.id=./nowhere"]) == 2
    assert "no such folder" in capfd.readouterr().err


def test_errors_as_json(config: Path) -> None:
    flags = ["--log-json", "--set=model.id=./nowhere"]
    command = [sys.executable, "-m", "diffedit_batch.cli", "run", str(config), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    error = json.loads(done.stderr)
    assert (error["level"], error["exit_code"]) == ("ERROR", 2)
    assert "no such folder" in error["message"]
