import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from jobs_on_disk import (
    check_output,
    edits_of,
    job,
    results,
    write_config,
    write_manifest,
    write_pictures,
)
from outputs_on_disk import row, write_output

from diffedit_batch import cli
from diffedit_batch.runtime.driver import run_job
from diffedit_batch.runtime.filtering import filter_reasons
from diffedit_batch.runtime.status import read_status

THRESHOLDS = {
    "min_clip_text": 0.2,
    "min_mask_coverage": 0.01,
    "max_mask_coverage": 0.5,
    "max_lpips": 0.6,
}


@pytest.mark.parametrize(
    ("columns", "reasons"),
    [
        ({"clip_text": 0.2, "mask_coverage": 0.01}, []),
        ({"clip_text": 0.1999, "mask_coverage": 0.5}, ["clip_text < 0.2"]),
        (
            {"clip_text": -0.3, "mask_coverage": 0.51},
            ["clip_text < 0.2", "mask_coverage > 0.5"],
        ),
        ({"clip_text": None, "mask_coverage": 0.0}, ["mask_coverage < 0.01"]),
        ({}, []),
        ({"lpips": 0.6}, []),
        ({"lpips": 0.601}, ["lpips > 0.6"]),
        ({"status": "failed", "clip_text": 0.0}, None),
        ({"status": "unchanged", "mask_coverage": 0.0}, ["mask_coverage < 0.01"]),
    ],
)
def test_reasons_name_score_and_threshold(
    columns: dict[str, Any], reasons: list[str] | None
) -> None:
    assert filter_reasons({"status": "edited", **columns}, THRESHOLDS) == reasons


def test_what_does_not_pass_is_counted_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = write_output(
        tmp_path,
        [
            row("a", 1, filter_reasons=["clip_text < 0.2", "mask_coverage > 0.5"]),
            row("b", 2, filter_reasons=["clip_text < 0.2"]),
            row("c", 3, filter_reasons=[]),
            row("d", 4, filter_reasons=None),
        ],
    )
    status = read_status(uri)
    assert status["num_filtered"] == 2
    assert status["filter_reasons"] == {"clip_text < 0.2": 2, "mask_coverage > 0.5": 1}
    assert status["counts"] == {"edited": 4, "unchanged": 0, "failed": 0}
    assert cli.main(["status", uri]) == 0
    said = capsys.readouterr().out
    assert "2 rows do not pass the filter\n    clip_text < 0.2: 2\n" in said


@pytest.mark.ray
def test_thresholds_fill_a_column_and_redo_nothing(
    ray_here: None, tmp_path: Path, tiny_model: Path, tiny_clip: Path, random_lpips: Path
) -> None:
    rows = edits_of(write_pictures(tmp_path, 3))
    write_manifest(tmp_path, [*rows, {**rows[0], "id": "lost", "image": "nowhere.png"}])
    scores = {"clip": str(tiny_clip), "lpips": str(random_lpips)}
    # Coverage and likeness to the source are never above 1.
    limits = {"min_clip_text": 1.0, "min_clip_direction": -1.0, "min_clip_image": -1.0}
    limits["max_lpips"] = 1000.0
    config = job(
        tmp_path, tiny_model, scores=scores, filter=limits, output={"max_failed_fraction": 0.5}
    )
    state = run_job(config)
    assert state.counts == {"edited": 3, "failed": 1}
    assert (state.num_filtered, state.filter_reasons) == (3, {"clip_text < 1": 3})
    assert (state.counters.clip_encodes, state.counters.lpips_distances) == (6, 3)
    assert all((row["lpips"] is None) == (row["id"] == "lost") for row in results(tmp_path))
    by_id = {row["id"]: row["filter_reasons"] for row in results(tmp_path)}
    assert by_id == {**{row["id"]: ["clip_text < 1"] for row in rows}, "lost": None}
    record = json.loads((tmp_path / "output" / "runs" / f"{state.run_id}.json").read_text())
    assert (record["num_filtered"], record["filter_reasons"]) == (3, {"clip_text < 1": 3})
    assert record["clip"]["id"] == str(tiny_clip)
    digest = hashlib.sha256(random_lpips.read_bytes()).hexdigest()[:32]
    assert record["lpips"] == {"id": str(random_lpips), "revision": digest}
    other = config.model_copy(
        update={"filter": config.filter.model_copy(update={"min_clip_text": -1.0})}
    )
    assert not run_job(other).counts, "nothing to do"
    assert {row["id"]: row["filter_reasons"] for row in results(tmp_path)} == by_id


@pytest.mark.ray
def test_flagged_rows_that_are_dropped_fail_and_the_balance_holds(
    ray_here: None, tmp_path: Path, tiny_flagging_model: Path
) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 2)))
    allowed = {"max_failed_fraction": 1.0}
    config = job(tmp_path, tiny_flagging_model, safety={"policy": "drop"}, output=allowed)
    state = run_job(config)
    assert state.counts == {"failed": 2}
    assert state.failures == {"safety/Flagged": 2}
    assert state.num_flagged == 2
    for found in check_output(tmp_path, 2):
        assert (found["status"], found["is_flagged"]) == ("failed", True)
        assert found["filter_reasons"] is None
    assert run_job(config).num_skipped == 2


def test_a_policy_without_a_safety_checker_exits_2_before_anything_starts(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path, edits_of(write_pictures(tmp_path, 1)))
    path = write_config(job(tmp_path, tiny_model), tmp_path)
    for command in ("plan", "run"):
        assert cli.main([command, str(path), "--set=safety.policy=keep"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "has none (no safety_checker/config.json); set safety.policy: off" in message
        assert cli.main([command, str(path), "--set=scores.clip=./nowhere"]) == 2
        assert "scores.clip './nowhere': no such folder" in capsys.readouterr().err
        assert cli.main([command, str(path), "--set=scores.lpips=./alexnet.pth"]) == 2
        assert "/alexnet.pth': no such file" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
