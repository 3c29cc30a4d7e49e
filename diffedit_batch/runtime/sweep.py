"""Values to be tried side by side: `--sweep edit.mask_threshold=0.3,0.4,0.5`."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from diffedit_batch.config import EditConfig
from diffedit_batch.errors import ConfigError
from diffedit_batch.schema import EDIT_PARAMETERS

MAX_VARIANTS = 24
"""More pictures of one row nobody compares."""


def read_sweeps(sweeps: Sequence[str], edit: EditConfig) -> list[Mapping[str, Any]]:
    """The variants that some sweeps ask for: every combination of their values, by column of the
    manifest. Without sweeps, a single variant that changes nothing.

    Args:
        sweeps: each `KEY=VALUE,VALUE,...`, the key one that a row may have: `edit.*` or `seed`.
        edit: the parameters of the job, which every value must fit.

    Raises:
        ConfigError: names every problem.
    """
    problems: list[str] = []
    axes: dict[str, list[Any]] = {}
    for sweep in sweeps:
        key, equals, texts = (part.strip() for part in sweep.partition("="))
        name = key.removeprefix("edit.")
        if not equals:
            problems.append(f"{sweep}: expected KEY=VALUE,VALUE,...")
        elif problem := _key_problem(key):
            problems.append(f"{key}: {problem}")
        elif name in axes:
            problems.append(f"{key}: is given twice; name all its values in one --sweep")
        else:
            axes[name], wrong = _read_values(name, texts, edit)
            problems += [f"{key}: {problem}" for problem in wrong]
    num_variants = 1
    for values in axes.values():
        num_variants *= len(values)
    if num_variants > MAX_VARIANTS:
        problems.append(f"{num_variants} combinations are more than {MAX_VARIANTS}")
    if problems:
        raise ConfigError("--sweep", problems)
    variants: list[Mapping[str, Any]] = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    for variant in variants:
        try:
            edit.override({name: value for name, value in variant.items() if name != "seed"})
        except ConfigError as error:
            problems += [f"{label(variant)}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError("--sweep", problems)
    return variants


def label(variant: Mapping[str, Any]) -> str:
    """A variant as people read it; the same for the same values, whatever else is swept."""
    return ", ".join(f"{name}={_written(value)}" for name, value in variant.items())


def _key_problem(key: str) -> str:
    known = [*(f"edit.{name}" for name in EDIT_PARAMETERS), "seed"]
    if key in known:
        return ""
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]}?" if close else "known are seed and the keys of edit"
    return f"is no key that a row may have; {hint}"


def _read_values(name: str, texts: str, edit: EditConfig) -> tuple[list[Any], list[str]]:
    """The values of one key, and what is wrong with others."""
    values, problems = [], []
    for text in texts.split(","):
        try:
            value = _read_value(name, text.strip(), edit)
        except ConfigError as error:
            problems += [problem.removeprefix(f"{name}: ") for problem in error.problems]
        else:
            if value in values:
                problems.append(f"{text.strip()} is given twice")
            values.append(value)
    return values, problems


def _read_value(name: str, text: str, edit: EditConfig) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if value is None:
        raise ConfigError(name, [f"{text!r} is no value"])
    if name != "seed":
        return getattr(edit.override({name: value}), name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ConfigError(name, [f"{text!r} is not in 0..2^63-1"])
    return value


def _written(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
