"""Which texts of a row the text encoder reads. Needs no torch: plans ask for it too."""

from collections.abc import Callable

from diffedit_batch.schema import EditRequest


def count_truncated(request: EditRequest, is_truncated: Callable[[str], bool]) -> int:
    """Texts of a request that the text encoder cannot read to the end."""
    used = {
        *request.source_prompt,
        *request.target_prompt,
        *request.inversion_text,
        *request.negative_text,
        *request.source_negative_text,
    }
    return sum(map(is_truncated, used))
