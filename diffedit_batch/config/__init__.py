"""The configuration of a job: typed, frozen, unknown keys refused, every problem reported at once.

A file is complete in itself (no inheritance, no interpolation); `--set section.key=value` wins over
the file. Where `edit.*` leaves a key at null, the preset decides; `EditConfig.resolved()` shows
with what.
"""

from diffedit_batch.config.cluster import LABEL_CONDITION, ClusterConfig, EngineConfig
from diffedit_batch.config.edit import EditConfig, Preset
from diffedit_batch.config.files import InputConfig, OutputConfig
from diffedit_batch.config.fingerprints import ALGORITHM_VERSION, canonical_json, fingerprint
from diffedit_batch.config.job import ROWS_THAT_REPAY_COMPILING, FilterConfig, JobConfig
from diffedit_batch.config.loading import load_config
from diffedit_batch.config.models import (
    EMBEDDED,
    CaptionsConfig,
    ModelConfig,
    PromptsConfig,
    SafetyConfig,
    ScoresConfig,
)
from diffedit_batch.config.section import Section

__all__ = [
    "ALGORITHM_VERSION",
    "EMBEDDED",
    "LABEL_CONDITION",
    "ROWS_THAT_REPAY_COMPILING",
    "CaptionsConfig",
    "ClusterConfig",
    "EditConfig",
    "EngineConfig",
    "FilterConfig",
    "InputConfig",
    "JobConfig",
    "ModelConfig",
    "OutputConfig",
    "Preset",
    "PromptsConfig",
    "SafetyConfig",
    "ScoresConfig",
    "Section",
    "canonical_json",
    "fingerprint",
    "load_config",
]
