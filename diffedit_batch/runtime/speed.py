"""How fast a worker is, as runs have recorded it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffedit_batch.config import JobConfig
from diffedit_batch.data.ledger import read_json
from diffedit_batch.data.storage import Storage


@dataclass(frozen=True)
class Speed:
    """What one worker needs.

    Attributes:
        seconds_per_eval: of its time for a network evaluation, with all that goes with it.
        load_seconds: until it can edit.
        num_rows: rows that were measured.
        source: where, for people to read.
    """

    seconds_per_eval: float
    load_seconds: float
    num_rows: int
    source: str


def recorded_speed(config: JobConfig, storages: Sequence[Storage]) -> Speed | None:
    """The speed of the newest finished run of the first of these outputs that has one with this
    model on this kind of device, or None.
    """
    for storage in storages:
        for name in reversed(storage.names("runs", ".json")):
            record = read_json(storage, f"runs/{name}")
            if record is not None and _is_like(record, config):
                return Speed(
                    seconds_per_eval=record["seconds"]["edit"] / record["counters"]["unet_evals"],
                    load_seconds=max((w["load_seconds"] for w in record["workers"]), default=0.0),
                    num_rows=sum(record["counts"].values()),
                    source=f"run {record['run_id']}",
                )
    return None


def _is_like(record: dict[str, Any], config: JobConfig) -> bool:
    """Whether a run says something about others of this config."""
    is_measured = record["outcome"] == "finished" and record["counters"]["unet_evals"]
    ran_on_cpu = record["config"]["cluster"]["gpus_per_worker"] == 0
    is_same_device = ran_on_cpu == (config.device == "cpu")
    return bool(
        is_measured
        and is_same_device
        and record["config"]["model"] == config.model.model_dump()
        and _reviewed_by(record["config"]) == _reviewed_by(config.model_dump())
    )


def _reviewed_by(config: dict[str, Any]) -> tuple[str | None, bool, bool]:
    """The CLIP model that looked at edits, whether LPIPS did, and whether the safety checker did;
    records of earlier versions know none of them.
    """
    scores = config.get("scores", {})
    is_checked = config.get("safety", {"policy": "off"})["policy"] != "off"
    return scores.get("clip"), scores.get("lpips") is not None, is_checked
