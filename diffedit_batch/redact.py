"""Secrets that people put into URIs, kept out of results, records, logs and messages."""

import re
from typing import Any

# A password may hold slashes, as those of S3 do; a port and a path may not be mistaken for one.
_USERINFO = r"(?:[^\s/@:]*:(?!\d+/)[^\s@]*@|[^\s/@]*@)"
_URI = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*://){_USERINFO}?([^\s?'\"<>]*)(?:\?[^\s'\"<>]*)?")
_CREDENTIALS = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://{_USERINFO}")
_SIGNATURE = re.compile(
    r"(?i)[?&](x-(amz|goog)-(signature|credential|security-token)|signature|sig|[a-z_-]*token)="
)
_KEY = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}|(?i:(?<=bearer )\S+)"
    r"|(?i:(?<=signature=)[^\s&]+|(?<=\bsig=)[^\s&]+)"
)


def redact(text: str) -> str:
    """The text with URIs bare of user, password and query, and without access keys and tokens."""
    return _KEY.sub("***", _URI.sub(r"\1\2", text))


def redact_tree(value: Any) -> Any:
    """The same for every text in nested dicts and lists."""
    if isinstance(value, dict):
        return {key: redact_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def has_credentials(uri: str) -> bool:
    """Whether a URI names a user or password."""
    return bool(_CREDENTIALS.match(uri))


def is_signed(uri: str) -> bool:
    """Whether whoever knows a URI may do what it says."""
    return "://" in uri and bool(_SIGNATURE.search(uri))
