"""Where, when and with what a measurement was made."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

_LIBRARIES = ("diffedit_batch", "torch", "diffusers", "transformers", "ray", "pyarrow", "pillow")
_PACKAGE = Path(__file__).resolve().parents[1]
_GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "power.draw", "power.limit")


def surroundings(device: str) -> dict[str, Any]:
    """Date, commit, hardware and versions, for the head of a report."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "hardware": _hardware(device),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _commit() -> str:
    """The commit of the code, marked where files were changed since; `unknown` outside git."""
    commit = _ask("git", "-C", str(_PACKAGE), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changes = _ask("git", "-C", str(_PACKAGE), "status", "--porcelain", "--", ".", "../jobs")
    return f"{commit} with changes" if changes else commit


def _hardware(device: str) -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads_of_torch": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        # What other processes do to the cores is part of the result.
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        answer = _ask(
            "nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader", "-i", "0"
        )
        hardware["gpu"] = {
            "name": gpu.name,
            "memory_gb": round(gpu.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            **dict(zip(_GPU_FIELDS, answer.split(", "), strict=False)),
        }
    return hardware


def _processor() -> str:
    """The model of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the engine does without Ray
            found[name] = None
    return found


def _ask(*command: str) -> str:
    """What a command says, or nothing where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
