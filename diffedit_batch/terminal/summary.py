"""What a run came to, as text and as JSON."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from diffedit_batch.redact import redact_tree

if TYPE_CHECKING:
    from diffedit_batch.runtime.plan import Plan
    from diffedit_batch.runtime.records import RunState

_MAX_NAMES = 8


def verdicts(counted: "RunState | Plan") -> str:
    """What becomes of the rows of a manifest, in one line."""
    from diffedit_batch.runtime.selection import VERDICTS

    numbers = ", ".join(f"{counted.selected[verdict]:,} {verdict}" for verdict in VERDICTS)
    return f"{counted.num_rows:,} {'row' if counted.num_rows == 1 else 'rows'}: {numbers}"


def summary_of(state: "RunState", output: str) -> str:
    """What a finished run did."""
    lines = [verdicts(state)]
    if not state.counts:
        lines.append(f"nothing to do: all {state.num_rows} rows are done in {output}")
        if state.num_failed_before:
            lines.append(f"  {state.num_failed_before} of them failed (see --retry-failed)")
        return "\n".join(lines)
    counts, counters = state.counts, state.counters
    lines.append(
        f"results of this run: {counts['edited']} edited, {counts['unchanged']} unchanged,"
        f" {counts['failed']} failed"
    )
    lines += failures_of(state)
    lines += filtered_of(state.num_filtered, dict(state.filter_reasons.most_common()))
    if state.num_flagged:
        lines.append(f"  {state.num_flagged} rows are flagged by the safety checker")
    lines += generated_of(state)
    if state.num_truncated_rows:
        lines.append(
            f"  {state.num_truncated_rows} rows have a prompt cut at the text encoder's limit"
        )
    lines.append(
        f"{state.seconds['total']:.1f} s; {counters.unet_evals} network evaluations in"
        f" {counters.unet_calls} calls, {counters.inversions} inversions,"
        f" {counters.vae_encodes} images encoded"
    )
    lines += _troubles_of(state)
    lines.append(f"results: {output}/results  record: runs/{state.run_id}.json")
    return "\n".join(lines)


def failures_of(state: "RunState") -> list[str]:
    """Lines on what failed, the most frequent first."""
    return [f"  failed at {kind}: {number}" for kind, number in state.failures.most_common()]


def filtered_of(num_rows: int, reasons: Mapping[str, int]) -> list[str]:
    """Lines on edits that are not good enough, if there are any, and why."""
    if not num_rows:
        return []
    why = [f"    {reason}: {number}" for reason, number in reasons.items()]
    return [f"  {num_rows} rows do not pass the filter", *why]


def generated_of(state: "RunState") -> list[str]:
    """A line on the texts that were generated, if there were any."""
    counters = state.counters
    if not counters.prompt_generations and not counters.captions:
        return []
    return [
        f"generated: prompts for {counters.prompt_generations} concepts,"
        f" captions of {counters.captions} images"
    ]


def json_of(state: "RunState | None", exit_code: int, error: str) -> str:
    """How a run ended, and what is in its record of what it did, as far as it came."""
    document = {"exit_code": exit_code, "error": error, **(state.as_dict() if state else {})}
    return json.dumps(redact_tree(document), indent=2)


def _troubles_of(state: "RunState") -> list[str]:
    """Which workers were lost, and where to read why."""
    names = [name or "one while it started" for name, _ in state.lost_workers]
    lines = []
    if names:
        more = ["..."] if len(names) > _MAX_NAMES else []
        lines.append(f"workers lost: {len(names)} ({', '.join(names[:_MAX_NAMES] + more)})")
    if state.logs and (names or state.failures):
        lines.append(f"log files of the workers, on their hosts: {state.logs}/worker-*-PID.*")
    return lines
