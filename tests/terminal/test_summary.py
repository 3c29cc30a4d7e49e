import json

from diffedit_batch.runtime.records import RunState
from diffedit_batch.terminal.summary import json_of, summary_of


def test_what_is_not_good_enough_and_what_is_flagged() -> None:
    state = RunState("run", num_rows=3, seconds={"total": 1.0})
    state.count({"status": "edited", "filter_reasons": ["clip_text < 0.2"]})
    both = ["mask_coverage > 0.5", "clip_text < 0.2"]
    state.count({"status": "edited", "filter_reasons": both, "is_flagged": True})
    state.count({"status": "edited", "filter_reasons": []})
    lines = summary_of(state, "out").splitlines()
    at = lines.index("  2 rows do not pass the filter")
    assert lines[at + 1 : at + 4] == [
        "    clip_text < 0.2: 2",
        "    mask_coverage > 0.5: 1",
        "  1 rows are flagged by the safety checker",
    ]
    said = json.loads(json_of(state, 0, ""))
    assert (said["num_filtered"], said["num_flagged"]) == (2, 1)
    assert said["filter_reasons"] == {"clip_text < 0.2": 2, "mask_coverage > 0.5": 1}


def test_nothing_is_said_where_all_is_well() -> None:
    state = RunState("run", num_rows=1, seconds={"total": 1.0})
    state.count({"status": "edited", "filter_reasons": []})
    assert "filter" not in summary_of(state, "out")
    assert "flagged" not in summary_of(state, "out")
