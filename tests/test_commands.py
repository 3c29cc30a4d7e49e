import json
import re
from pathlib import Path

import outputs_on_disk
import pytest
from fake_worker import FakeWorker
from jobs_on_disk import edits_of, job, write_config, write_manifest, write_pictures

from diffedit_batch import cli
from diffedit_batch.runtime import driver


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file of a small job with the embedded model."""
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 3), per_picture=2))
    return write_config(job(tmp_path, Path("demo")), tmp_path)


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


def test_a_demo_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main(["demo", str(tmp_path / "file" / "demo")]) == 5
    said = capsys.readouterr().err
    assert said == (
        f"error: the demo cannot be written to {tmp_path}/file/demo: Not a directory;"
        " name another folder\n"
    )
