"""Which edits are good enough, by the thresholds of the config."""

from collections.abc import Mapping
from typing import Any


def filter_reasons(columns: Mapping[str, Any], thresholds: Mapping[str, float]) -> list[str] | None:
    """Why a row is not good enough, such as `clip_text < 0.2`; empty where it is, None where it
    failed.

    A reason names its threshold: rows of earlier runs may have been judged by another one. A score
    that does not exist (no map behind an own mask, no background outside a mask of everything)
    misses none.

    Args:
        columns: of its result.
        thresholds: by `min_` or `max_` and the name of a score.
    """
    if columns["status"] == "failed":
        return None
    reasons = []
    for key, threshold in thresholds.items():
        side, _, score = key.partition("_")
        value = columns.get(score)
        if value is None:
            continue
        if side == "min" and value < threshold:
            reasons.append(f"{score} < {threshold:g}")
        if side == "max" and value > threshold:
            reasons.append(f"{score} > {threshold:g}")
    return reasons
