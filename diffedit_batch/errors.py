"""Every error this package raises on purpose.

    DiffEditError
    |- ConfigError          a key of the configuration is unknown, missing or out of range
    |- ManifestError        the manifest, or a file of corrected texts, cannot be used as a whole
    |- ModelError           a model could not be loaded
    |- ClusterError         workers could not be had or kept
    |- StorageError         the output could not be read or written
    |- OutputHeldError      another run writes to the output; this one did nothing
    |- LeaseLostError       another run has taken the output over from this one
    |- TooManyFailuresError more rows failed than allowed
    |- InterruptedRunError  stopped on request; resumable
    `- RowError             one row cannot be edited; it becomes a `failed` result, the others go on

`exit_code` is what the command line returns for it (see `docs/running.md`).
"""

from collections.abc import Sequence

from diffedit_batch.redact import redact

STAGES = ("manifest", "prompts", "captions", "load", "edit", "safety", "worker")
"""Where a row may fail."""


class DiffEditError(Exception):
    """Base of all errors raised on purpose; messages are bare of secrets in URIs."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class ProblemsError(DiffEditError):
    """Several problems of one input, reported at once."""

    exit_code = 2

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.problems = [redact(problem) for problem in problems]
        super().__init__(what + "".join(f"\n  - {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by their message, which is not how this one is built.
        what = str(self.args[0]).split("\n", 1)[0]
        return (type(self), (what, self.problems))


class ConfigError(ProblemsError):
    """A key of the configuration is unknown, missing or out of range."""


class ManifestError(ProblemsError):
    """The manifest, or a file of prompts or captions, cannot be used as a whole."""


class ModelError(DiffEditError):
    """A model could not be loaded; the message says what was tried and what to do."""

    exit_code = 2


class TooManyFailuresError(DiffEditError):
    """More rows failed than `output.max_failed_fraction` allows."""

    exit_code = 3


class ClusterError(DiffEditError):
    """Workers could not be had or kept; running the same command again continues."""

    exit_code = 4


class StorageError(DiffEditError):
    """The output could not be read or written."""

    exit_code = 5


class OutputHeldError(DiffEditError):
    """Another run writes to the output; the message says which. This one has changed nothing."""

    exit_code = 6


class LeaseLostError(DiffEditError):
    """Another run has taken the output over, because this one was silent for too long."""

    exit_code = 6


class InterruptedRunError(DiffEditError):
    """Stopped on request; running the same command again continues."""

    exit_code = 75


class RowError(DiffEditError):
    """One row cannot be edited.

    Attributes:
        stage: where it happened, one of `STAGES`.
        kind: a stable name to group failures by, e.g. `ImageUnreadable`.
    """

    def __init__(self, stage: str, kind: str, message: str) -> None:
        self.stage = stage
        self.kind = kind
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.stage, self.kind, str(self)))
