"""DiffEdit for image datasets: a Parquet manifest in, edited PNGs and Parquet out.

Importing the package loads neither torch nor Ray; the names below load what they need when first
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffedit_batch.config import EditConfig, JobConfig, ModelConfig, ScoresConfig, load_config
    from diffedit_batch.engine.editor import DiffEditor
    from diffedit_batch.engine.requests import EditResult, ImageEdits
    from diffedit_batch.runtime.driver import run_job
    from diffedit_batch.runtime.ray_data import DiffEditBatch
    from diffedit_batch.schema import EditRequest

__version__ = "0.1.0"

_HOMES = {
    "DiffEditBatch": "diffedit_batch.runtime.ray_data",
    "DiffEditor": "diffedit_batch.engine.editor",
    "EditConfig": "diffedit_batch.config",
    "EditRequest": "diffedit_batch.schema",
    "EditResult": "diffedit_batch.engine.requests",
    "ImageEdits": "diffedit_batch.engine.requests",
    "JobConfig": "diffedit_batch.config",
    "ModelConfig": "diffedit_batch.config",
    "ScoresConfig": "diffedit_batch.config",
    "load_config": "diffedit_batch.config",
    "run_job": "diffedit_batch.runtime.driver",
}

__all__ = [
    "DiffEditBatch",
    "DiffEditor",
    "EditConfig",
    "EditRequest",
    "EditResult",
    "ImageEdits",
    "JobConfig",
    "ModelConfig",
    "ScoresConfig",
    "load_config",
    "run_job",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
