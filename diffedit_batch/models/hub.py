"""Models of the hub on a cluster: one commit for a whole run, one download for a whole node.

Imports no model library: the driver has use for it.
"""

import logging
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from filelock import FileLock
from huggingface_hub import constants, get_cached_repo_tree, is_offline_mode, resolve_revision
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from diffedit_batch.config import (
    EMBEDDED,
    CaptionsConfig,
    JobConfig,
    ModelConfig,
    PromptsConfig,
    ScoresConfig,
)
from diffedit_batch.errors import ModelError
from diffedit_batch.models.identity import ModelIdentity

logger = logging.getLogger(__name__)

AnyModelConfig = ModelConfig | PromptsConfig | CaptionsConfig | ScoresConfig

SINGLE_MODEL = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files of a model that is no pipeline, with its tokenizer."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCK_PATIENCE_S = 300.0
"""Some shared storage keeps the locks of the dead, and this one only saves requests."""


def pin(
    config: JobConfig, sections: Iterable[str], *, is_here: bool
) -> tuple[JobConfig, dict[str, str]]:
    """The job with branches and tags of hub models replaced by the commits they mean now.

    Workers that come late then load what the first ones did, whatever has become of the branch, and
    nodes that have a commit ask nobody.

    Args:
        config: the job.
        sections: of its models: `model`, `scores`, `prompts`, `captions`.
        is_here: whether workers share this machine's cache. Where they do not, a model that cannot
            be looked up from here is left for them to find.

    Returns:
        The job, and the commits by section.

    Raises:
        ModelError: there is no such model or revision, or with `is_here` no way to tell.
    """
    commits: dict[str, str] = {}
    for name in sections:
        section: AnyModelConfig = getattr(config, name)
        if section.id == EMBEDDED or Path(section.id).expanduser().is_dir():
            continue
        try:
            revision = resolve_revision(
                section.id, revision=section.revision, local_files_only=section.local_files_only
            )
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise cannot_load(section, None, error) from None
        except (RevisionResolutionError, HfHubHTTPError, httpx2.TransportError) as error:
            if is_here:
                raise cannot_load(section, None, error) from None
            logger.info("%s cannot be looked up from here: %s", section.id, error)
        else:
            commits[name] = revision.resolved
    pinned = {
        name: getattr(config, name).model_copy(update={"revision": commit})
        for name, commit in commits.items()
    }
    return config.model_copy(update=pinned), commits


def fetch(config: AnyModelConfig, identity: ModelIdentity, download: Callable[..., Any]) -> str:
    """The folder with a model's files; those of the hub are downloaded where they are missing.

    One process of a node downloads, the others wait and find what it left; a commit that is there
    as a whole takes no request at all.

    Args:
        config: which model.
        identity: of it.
        download: called with `revision` and `local_files_only`, returns the folder of the cache.
            What it raises is raised.
    """
    if identity.is_folder:
        return identity.source
    if config.local_files_only or is_offline_mode():
        return str(download(revision=config.revision, local_files_only=True))
    found = _find(config, download)
    if found is not None:
        return found
    with _one_at_a_time(config.id):
        found = _find(config, download)
        return found or str(download(revision=config.revision, local_files_only=False))


def cannot_load(
    config: AnyModelConfig, identity: ModelIdentity | None, error: Exception
) -> ModelError:
    """An error that says what was tried, what went wrong and what to do.

    Args:
        config: which model.
        identity: of it; None: of the hub.
        error: what went wrong.
    """
    if identity is not None and identity.is_folder:
        tried = f"folder {identity.source}, safetensors only"
        advice = "Check that the folder is whole, as `save_pretrained` writes it."
    else:
        is_offline = config.local_files_only or is_offline_mode()
        variant = f", variant {config.variant or 'none'}" if isinstance(config, ModelConfig) else ""
        tried = (
            f"hub, revision {config.revision or 'main'}{variant},"
            f" safetensors only{', offline' if is_offline else ''}"
        )
        revision = f" --revision {config.revision}" if config.revision else ""
        advice = (
            f"Offline, {socket.gethostname()} must have it in its cache, {constants.HF_HUB_CACHE}:"
            f" run `hf download {config.id}{revision}` with the same HF_HOME where the hub can be"
            " reached, or set the id to a local folder. HF_HUB_OFFLINE and local_files_only say"
            " whether the hub is asked."
            if is_offline
            else "Check the id, that this machine reaches the hub or has it in its cache"
            f" (`hf download {config.id}`), or set the id to a local folder. Gated models need"
            " `hf auth login`."
        )
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return ModelError(f"cannot load model {config.id!r} ({tried}): {reason}\n  {advice}")


def _find(config: AnyModelConfig, download: Callable[..., Any]) -> str | None:
    """The folder of a commit of which all files are there."""
    if not _COMMIT.fullmatch(config.revision or ""):
        return None  # only the hub knows what a branch means now
    try:
        get_cached_repo_tree(config.id, revision=config.revision)
        return str(download(revision=config.revision, local_files_only=True))
    except (CachedRepoTreeNotFoundError, FileNotFoundError):
        return None


@contextmanager
def _one_at_a_time(model_id: str) -> Iterator[None]:
    """Keep the other processes of this node out; for their sake a lock that cannot be had is none.

    huggingface_hub has a lock for each file, which keeps files from being downloaded twice. Still
    all processes would ask for the list of files, and the hub limits how often it answers.
    """
    path = Path(constants.HF_HUB_CACHE) / ".locks" / f"models--{model_id.replace('/', '--')}.lock"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path, timeout=_LOCK_PATIENCE_S))
        except (OSError, NotImplementedError) as error:
            logger.warning("%s is downloaded without a lock: %s", model_id, error)
        yield
