"""Configs from files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from diffedit_batch.config.job import JobConfig
from diffedit_batch.config.section import validated
from diffedit_batch.errors import ConfigError


def load_config(path: str | Path, settings: Iterable[str] = ()) -> JobConfig:
    """The job a YAML file describes, with `section.key=value` settings applied over it.

    Raises:
        ConfigError: the file cannot be read, or any keys are wrong; names them all.
    """
    where = f"config {path}"
    try:
        tree = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(where, [f"cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(where, [f"is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(where, ["must be a mapping of sections: model, edit, input, output, ..."])
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        *sections, leaf = key.strip().split(".")
        node: Any = tree
        for section in sections:
            if isinstance(node, dict):
                if node.get(section) is None:  # absent, or a heading with nothing below it
                    node[section] = {}
                node = node[section]
        if not equals or not leaf or not isinstance(node, dict):
            problems.append(f"--set {setting}: expected section.key=value")
        else:
            node[leaf] = value
    if problems:
        raise ConfigError(where, problems)
    return validated(JobConfig, tree, where)
