import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import outputs_on_disk
import pytest
import yaml
from fake_worker import FakeWorker
from jobs_on_disk import edits_of, job, write_manifest, write_pictures

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
    tree = job(tmp_path, Path("demo")).model_dump()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


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


def test_plan_counts_without_a_model(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "002.png").unlink()
    assert cli.main(["plan", str(config)]) == 0
    text = capsys.readouterr().out
    assert "6 rows: 6 new, 0 changed, 0 retried, 0 unchanged, 0 pruned" in text
    assert "to edit      4 rows of 2 images" in text
    assert "to fail      2 rows at once" in text
    assert "load/ImageNotFound       2  e.g. row '002-0'" in text
    assert cli.main(["plan", str(config), "--json", "--set", "edit.num_inference_steps=50"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # Two edits of one image: 2 source draws, 2 target draws each, 40 inverted levels, 80 each.
    assert plan["unet_evals"] == 2 * (2 + 2 * 2 + 40 + 2 * 80)
    assert not (tmp_path / "output").exists()


def test_plan_says_what_would_be_generated(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = edits_of(["000.png", "001.png"], per_picture=2)
    for row in rows[:3]:
        del row["target_prompt"]
        row["target_concept"] = "circle"
    rows[1]["target_concept"] = rows[1]["source_prompt"] = None
    rows[1].update(source_concept="star", target_concept="star", caption_with="blip")
    write_manifest(tmp_path, rows)
    settings = [f"--set={name}.id=owner/name" for name in ("prompts", "captions")]
    assert cli.main(["plan", str(config), *settings]) == 0
    text = capsys.readouterr().out
    assert "first        generate prompts for 2 concepts, captions of 1 image" in text
    assert cli.main(["plan", str(config), *settings, "--json", "--limit", "1"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["num_concepts"], plan["num_captions"]) == (1, 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_job_from_the_command_line(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", str(config)]) == 0
    text = capsys.readouterr().out
    assert "6 rows: 6 new, 0 changed, 0 retried, 0 unchanged, 0 pruned" in text
    assert "results of this run: 6 edited, 0 unchanged, 0 failed" in text

    output = str(tmp_path / "output")
    assert cli.main(["status", output]) == 0
    assert "complete: 6 edited, 0 unchanged, 0 failed" in capsys.readouterr().out
    assert cli.main(["status", output, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "complete"
    assert status["success"]["run_id"] == status["last_run"]["run_id"]

    assert cli.main(["run", str(config)]) == 0
    assert "nothing to do: all 6 rows are done" in capsys.readouterr().out

    assert cli.main(["plan", str(config), "--set", "seed=1"]) == 0
    text = capsys.readouterr().out
    assert "0 new, 6 changed" in text
    assert re.search(r"about \d+ s with 1 worker: .* worker-hours", text)
    assert "at the speed of run" in text

    monkeypatch.setattr(driver, "Worker", FakeWorker)
    (tmp_path / "000.png").unlink()
    assert cli.main(["run", str(config)]) == 3
    assert "2 of 6 rows failed, more than output.max_failed_fraction 0.1" in capsys.readouterr().err
    assert cli.main(["run", str(config), "--set", "output.max_failed_fraction=0.5"]) == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_summary_names_lost_workers_and_where_their_logs_are(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(driver, "Worker", FakeWorker)
    rows = edits_of(["000.png", "001.png"])
    rows[1]["target_prompt"] = "die"
    write_manifest(tmp_path, rows)
    assert cli.main(["run", str(config), "--set", "output.max_failed_fraction=0.5"]) == 0
    out, err = capsys.readouterr()
    [path] = (tmp_path / "output" / "runs").glob("*.json")
    record = json.loads(path.read_text())
    names = [lost["worker"] for lost in record["lost_workers"]]
    assert len(names) >= 3
    assert f"workers lost: {len(names)} ({', '.join(names)})" in out
    assert f"log files of the workers, on their hosts: {record['logs']}/worker-*-PID.*" in out
    assert f"worker {names[0]} died: " in err
    assert "worker process has died" in record["lost_workers"][0]["cause"]
    for worker in record["workers"]:
        assert list(Path("/").glob(worker["log_files"][1:])), "of the lost ones too"

    assert cli.main(["run", str(config), "--set", "output.max_failed_fraction=0.4"]) == 3
    assert "log files" not in capsys.readouterr().err, "Ray was not started"
    settings = ["--set", "output.max_failed_fraction=0.4", "--retry-failed"]
    assert cli.main(["run", str(config), *settings]) == 3
    assert f"log files of the workers: {record['logs']}" in capsys.readouterr().err


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


def test_the_plan_counts_what_the_job_then_does(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_here: None
) -> None:
    """Every kind of sharing side by side, and more edits of one image than one group takes."""
    rows = edits_of(["000.png"] * 1, per_picture=3) + edits_of(["001.png"], per_picture=3)
    rows[1]["caption"] = "a star on sand"
    rows[2]["negative_prompt"], rows[2]["source_negative_prompt"] = "sky", "brick"
    rows[3]["seed"], rows[4]["num_inference_steps"], rows[5]["guidance_scale"] = 3, 7, 1.0
    rows[5]["mask"] = "002.png"
    more = edits_of(["002.png"], per_picture=3) * 15
    rows += [{**row, "id": f"more-{i}"} for i, row in enumerate(more)]
    rows[6]["preset"] = rows[7]["preset"] = "diffusers"
    rows[7]["seed"], rows[8]["inversion_timestep"] = 4, "current"
    rows[9]["target_prompt"] = rows[9]["source_prompt"]
    rows[5]["num_seeds"], rows[7]["num_seeds"], rows[8]["num_seeds"] = 2, 2, 3
    write_manifest(tmp_path, rows)
    cli.main(["plan", str(config), "--json"])
    planned = json.loads(capsys.readouterr().out)["unet_evals"]
    assert cli.main(["run", str(config)]) == 0
    [record] = (tmp_path / "output" / "runs").glob("*.json")
    assert json.loads(record.read_text())["counters"]["unet_evals"] == planned


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_preview_with_the_embedded_model_from_the_command_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["preview", str(config), "-n", "2", "--sweep", "edit.mask_threshold=0.3,0.6"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preview: 2 rows, 2 variants of each; 1 kinds among the 6 rows looked at"
    assert lines[1].startswith("4 rows: 4 new, 0 changed, 0 retried, 0 unchanged, 0 pruned")
    page = tmp_path / "output-preview" / "report" / "index.html"
    assert lines[-1] == f"gallery: {page}"
    script = (page.parent / "data.js").read_text()
    assert '"variants": ["mask_threshold=0.3", "mask_threshold=0.6"]' in script
    assert not (tmp_path / "output").exists()
    assert cli.main([*arguments, "--to", str(tmp_path / "gallery")]) == 0
    text = capsys.readouterr().out
    assert "nothing to do: all 4 rows are done" in text
    assert (tmp_path / "gallery" / "index.html").exists()
    # The plan of the whole knows from it how long that takes.
    assert cli.main(["plan", str(config), "--workers", "3"]) == 0
    assert re.search(r"with 3 workers: .*\n +at the speed of run", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep", "edit.mask_treshold=0.3"], "did you mean edit.mask_threshold?"),
        (["--sweep", "edit.feather=-1"], "edit.feather: Input should be greater than or equal"),
        (["--where", "id = 'x'"], "has no rows for which --where is true"),
        (["--set", "output.uri=s3://bucket/out"], "name a folder that is with --to"),
    ],
)
def test_a_preview_that_cannot_be_made_exits_2_and_leaves_nothing(
    config: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["preview", str(config), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("output*"))


def test_status_of_a_folder_that_is_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", str(tmp_path)]) == 5
    assert "holds no output of this job" in capsys.readouterr().err


def test_report_says_where_the_gallery_is_and_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path)]) == 5
    assert "holds no results of this job" in capsys.readouterr().err
    rows = [outputs_on_disk.row("a", 1), outputs_on_disk.row("b", 2)]
    output = outputs_on_disk.write_output(tmp_path, rows)
    (tmp_path / "2.png").unlink()
    to = tmp_path / "gallery"
    assert cli.main(["report", output, "--to", str(to)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "2 rows; pictures: 7 made, 0 reused",
        "  no source: ImageNotFound: 1",
        f"gallery: {to}/index.html",
    ]
    for command in ("report", "export"):
        assert cli.main([command, output, "--to", str(tmp_path / "output" / "edited")]) == 2
    assert "name another folder with --to" in capsys.readouterr().err


def test_export_says_what_it_wrote_and_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = str(tmp_path / "dataset")
    assert cli.main(["export", str(tmp_path), "--to", to]) == 5
    assert "holds no results of this job" in capsys.readouterr().err
    rows = [outputs_on_disk.row("a", 1), outputs_on_disk.row("b", 2)]
    rows.append(outputs_on_disk.failure("c", "load", "ImageNotFound", "no file"))
    output = outputs_on_disk.write_output(tmp_path, rows)
    (tmp_path / "2.png").unlink()
    for arguments, num_files in (([], 1), (["--format", "imagefolder"], 8)):
        assert cli.main(["export", output, "--to", to, *arguments]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"2 rows in {num_files} files",
            "  left out: 1 that failed",
            "  no source_image: ImageNotFound: 1",
            f"dataset: {to}  card: README.md",
        ]
