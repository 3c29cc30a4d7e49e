"""What the cells of a row say: texts, concepts and edit parameters, checked one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffedit_batch.config import EditConfig
from diffedit_batch.errors import ConfigError, RowError

MAX_PROMPT_BYTES = 8_192
_INTEGER = (int, int | None)


def read_texts(cells: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """A text column's cell as one or several texts; None where it is null or an empty list.

    Raises:
        RowError: a text is too long.
    """
    cell = cells.get(name)
    if cell is None or cell == []:
        return None
    texts = tuple([text or "" for text in cell]) if isinstance(cell, list) else (cell,)
    _check_length(name, texts)
    return texts


def read_side(cells: Mapping[str, Any], side: str) -> tuple[tuple[str, ...], str | None]:
    """The prompts of the `source` or `target` of an edit and None, or no prompts and the concept
    they are generated from.

    Raises:
        RowError: there are both or neither, a prompt is empty, or a text is too long.
    """
    prompt, concept = f"{side}_prompt", f"{side}_concept"
    prompts = read_texts(cells, prompt) or ()
    has_prompts = any(text.strip() for text in prompts)
    word = (cells.get(concept) or "").strip()
    if word and has_prompts:
        raise RowError(
            "manifest",
            "PromptAndConcept",
            f"{prompt} and {concept} are both given; leave one of them empty",
        )
    if word:
        _check_length(concept, [word])
        return (), word
    if not has_prompts or not all(text.strip() for text in prompts):
        neither = f", and so is {concept}" if concept in cells and not has_prompts else ""
        raise RowError("manifest", "PromptMissing", f"{prompt} is empty{neither}")
    return prompts, None


def read_edit(edit: EditConfig, overrides: Mapping[str, Any], *, has_clip: bool) -> EditConfig:
    """The parameters of a row: those of the job, with the row's own over them.

    Args:
        edit: those of the job.
        overrides: the row's own.
        has_clip: whether there is a CLIP model to choose an edit by.

    Raises:
        RowError: one is of the wrong type, out of range, or asks for a model that is not there.
    """
    values = {
        name: read_integer(value) if EditConfig.model_fields[name].annotation in _INTEGER else value
        for name, value in overrides.items()
    }
    try:
        read = edit.override(values).resolved()
    except ConfigError as error:
        raise RowError("manifest", "InvalidParameter", "; ".join(error.problems)) from None
    if read.asks_clip and not has_clip:
        problem = f"keep_best: {read.keep_best} needs a CLIP model, see scores.clip"
        raise RowError("manifest", "InvalidParameter", problem)
    return read


def read_integer(value: Any) -> Any:
    """30 for 30.0, as tables write integers of a column with nulls; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_length(name: str, texts: Sequence[str]) -> None:
    for text in texts:
        # A character has at most 4 bytes: only long texts need be encoded to be measured.
        is_long = 4 * len(text) > MAX_PROMPT_BYTES
        if is_long and len(text.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
            raise RowError("manifest", "PromptTooLong", f"{name} is over {MAX_PROMPT_BYTES} bytes")
