"""What every section of a config is: typed, frozen, unknown keys refused."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from diffedit_batch.errors import ConfigError

Dtype = Literal["float32", "float16", "bfloat16"]
M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def off(value: object) -> object:
    """`off`, which YAML reads as false."""
    return "off" if value is False else value


def validated(model: type[M], tree: Mapping[str, object], where: str) -> M:
    """A section, or a whole config, from plain values.

    Raises:
        ConfigError: keys are missing, unknown or wrong; names them all, after `where`.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(model, entry) for entry in error.errors(include_url=False)]
        raise ConfigError(where, problems) from None


def _problem(model: type[BaseModel], entry: Any) -> str:
    path = [str(part) for part in entry["loc"]]
    dotted = ".".join(path)
    if entry["type"] == "extra_forbidden":
        for section in path[:-1]:
            inner = model.model_fields[section].annotation
            assert isinstance(inner, type), "sections are plain classes"
            model = inner
        close = difflib.get_close_matches(path[-1], model.model_fields, 1)
        return f"{dotted}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    if entry["type"] == "missing":
        return f"{dotted}: is required"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message} (got {entry['input']!r})"
