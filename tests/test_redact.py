from typing import Any

import pytest

from diffedit_batch.errors import ConfigError, ManifestError, RowError
from diffedit_batch.redact import has_credentials, is_signed, redact, redact_tree

CANARY = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        (f"s3://AKIA0123456789ABCDEF:{CANARY}@bucket/a.png", "s3://bucket/a.png"),
        (f"s3://key:{CANARY}/K7MDENG+x@bucket/a.png", "s3://bucket/a.png"),
        (f"https://{CANARY}@host/a.png", "https://host/a.png"),
        (f"https://user:{CANARY}@host:8080/a.png", "https://host:8080/a.png"),
        (f"https://host/a.png?X-Amz-Signature={CANARY}&x=1", "https://host/a.png"),
        (f"'https://host/a.png?sig={CANARY}': 403", "'https://host/a.png': 403"),
        (f"two https://a/b?t={CANARY} https://u:{CANARY}@c/d", "two https://a/b https://c/d"),
        (f"Authorization: Bearer {CANARY}", "Authorization: Bearer ***"),
        (f"Signature={CANARY}&x", "Signature=***&x"),
        ("key AKIA0123456789ABCDEF", "key ***"),
        ("hf_abcdefghijklmnopqrstuvwx", "***"),
    ],
)
def test_secrets_are_taken_out(text: str, bare: str) -> None:
    assert redact(text) == bare
    assert redact(bare) == bare


@pytest.mark.parametrize(
    "text",
    [
        "what? a dog/cat.png",
        "https://host:8080/a@2x.png",
        "s3://bucket/a:b/c.png",
        "a@b.example: c://",
        "/data/a?b=c.png",
        "ratio 3:4 @ 5",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert not has_credentials(text)


def test_uris_with_secrets_are_told() -> None:
    assert has_credentials("s3://key:word@bucket/a")
    assert has_credentials("https://user@host/a")
    assert is_signed("https://host/a?x=1&X-Amz-Signature=2")
    assert is_signed("https://host/a?access_token=2")
    assert not is_signed("https://host/a?size=2")
    assert not is_signed("/data/a?sig=2")


def test_every_error_is_bare_of_secrets() -> None:
    uri = f"https://user:{CANARY}@host/a?token={CANARY}"
    errors: list[Any] = [RowError("load", "X", uri), ConfigError("c", [uri])]
    errors.append(ManifestError(f"manifest {uri}", ["x"]))
    for error in errors:
        assert "https://host/a" in str(error)
        assert CANARY not in f"{error!s} {error!r} {vars(error)} {error.__reduce__()}"


def test_trees_are_cleaned_to_the_leaves() -> None:
    tree = {"a": [{"b": f"s3://k:{CANARY}@c"}, 1, None], "d": ("e", 0.5)}
    assert redact_tree(tree) == {"a": [{"b": "s3://c"}, 1, None], "d": ["e", 0.5]}
