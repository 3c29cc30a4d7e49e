"""A row on its way through an editor, up to the result it becomes.

Legend: C channels, H x W pixels.
"""

import time
from dataclasses import dataclass

from torch import Tensor

from diffedit_batch.core.acts import Edit
from diffedit_batch.engine.pixels import to_bytes
from diffedit_batch.engine.preparing import PreparedEdits
from diffedit_batch.engine.requests import EditResult
from diffedit_batch.errors import RowError
from diffedit_batch.models.transfer import HostCopy
from diffedit_batch.schema import EditRequest


@dataclass(eq=False)
class Row:
    """One seed of a request, under way.

    Attributes:
        request: with this seed.
        prepared: the picture and all its edits.
        started: when it was admitted, by `time.perf_counter`.
        num_truncated_prompts: see `EditResult`; known once it has started.
    """

    request: EditRequest
    prepared: PreparedEdits
    started: float
    num_truncated_prompts: int = 0

    def failed(self, error: Exception) -> EditResult:
        """Its result where it cannot be edited."""
        kinds = {ValueError: "InvalidParameter", FloatingPointError: "NonFiniteResult"}
        kind = kinds.get(type(error), "OutOfMemory")
        return EditResult(
            request=self.request,
            original=self.prepared.edits.picture,
            error=RowError("edit", kind, " ".join(str(error).split())),
            seconds=time.perf_counter() - self.started,
        )


class LeavingRow:
    """A row whose edit is on its way to the host.

    Args:
        row: which.
        edit: what became of it.
        image: the edit decoded, (3, H, W) in -1..1, or None where there was nothing to change.
    """

    def __init__(self, row: Row, edit: Edit, image: Tensor | None) -> None:
        self.row = row
        tensors = {"mask": edit.mask.pixel}
        if edit.difference is not None:
            tensors["difference"] = edit.difference
        if image is not None:
            tensors["is_finite"] = image.isfinite().all()
            tensors["working"] = to_bytes(image)
        self._copy = HostCopy(tensors)

    @property
    def is_here(self) -> bool:
        """Whether `result` returns at once."""
        return self._copy.is_here

    def result(self) -> EditResult:
        """What the row becomes.

        Raises:
            FloatingPointError: the edited picture is not finite.
        """
        tensors = {name: tensor.numpy() for name, tensor in self._copy.wait().items()}
        if not tensors.get("is_finite", True):
            raise FloatingPointError("the edited picture is not finite")
        return EditResult(
            request=self.row.request,
            original=self.row.prepared.edits.picture,
            working=tensors.get("working"),
            working_mask=tensors["mask"],
            difference=tensors.get("difference"),
            num_truncated_prompts=self.row.num_truncated_prompts,
            seconds=time.perf_counter() - self.row.started,
        )
