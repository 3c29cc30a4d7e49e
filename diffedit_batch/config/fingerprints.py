"""Hashes of what decides about pixels."""

import hashlib
import json
from collections.abc import Sequence

ALGORITHM_VERSION = 1
"""Part of every fingerprint: raise it when the same inputs give other pixels."""

_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def fingerprint(parts: Sequence[object]) -> str:
    """32 hex digits that change when any of the JSON-able `parts` does."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:32]


def canonical_json(value: object) -> bytes:
    """The one way to write a JSON-able value, for hashes of it."""
    return _ENCODER.encode(value).encode()
