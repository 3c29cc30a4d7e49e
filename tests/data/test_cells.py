from typing import Any

import pytest

from diffedit_batch.data.cells import MAX_PROMPT_BYTES, read_side
from diffedit_batch.errors import RowError


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"source_prompt": "a cat"}, (("a cat",), None)),
        ({"source_prompt": ["a cat", "cats"], "source_concept": None}, (("a cat", "cats"), None)),
        ({"source_prompt": None, "source_concept": " cat "}, ((), "cat")),
        ({"source_prompt": " ", "source_concept": "cat"}, ((), "cat")),
        ({"source_prompt": [], "source_concept": "cat"}, ((), "cat")),
        ({"source_concept": "cat"}, ((), "cat")),
    ],
    ids=str,
)
def test_a_side_is_given_by_prompts_or_by_concept(
    cells: dict[str, Any], expected: tuple[tuple[str, ...], str | None]
) -> None:
    assert read_side(cells, "source") == expected


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        ({"source_prompt": None}, "PromptMissing", "source_prompt is empty"),
        (
            {"source_prompt": None, "source_concept": "  "},
            "PromptMissing",
            "source_prompt is empty, and so is source_concept",
        ),
        ({"source_prompt": ["a cat", ""]}, "PromptMissing", "source_prompt is empty"),
        (
            {"source_prompt": "a cat", "source_concept": "cat"},
            "PromptAndConcept",
            "source_prompt and source_concept are both given; leave one of them empty",
        ),
        (
            {"source_concept": "x" * (MAX_PROMPT_BYTES + 1)},
            "PromptTooLong",
            f"source_concept is over {MAX_PROMPT_BYTES} bytes",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_both_neither_or_too_much_is_refused(
    cells: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(RowError) as refused:
        read_side(cells, "source")
    assert (refused.value.stage, refused.value.kind) == ("manifest", kind)
    assert str(refused.value) == message
