import pickle

import pytest

from diffedit_batch import errors
from diffedit_batch.errors import (
    ClusterError,
    ConfigError,
    DiffEditError,
    InterruptedRunError,
    LeaseLostError,
    ManifestError,
    ModelError,
    OutputHeldError,
    ProblemsError,
    RowError,
    StorageError,
    TooManyFailuresError,
)

EXIT_CODES: dict[type[DiffEditError], int] = {
    DiffEditError: 1,
    ConfigError: 2,
    ManifestError: 2,
    ModelError: 2,
    TooManyFailuresError: 3,
    ClusterError: 4,
    StorageError: 5,
    OutputHeldError: 6,
    LeaseLostError: 6,
    InterruptedRunError: 75,
}
PLAIN = [kind for kind in EXIT_CODES if not issubclass(kind, ProblemsError)]
EXAMPLES: list[DiffEditError] = [
    ConfigError("config a.yaml", ["edit.x: unknown key", "seed: is required"]),
    ManifestError("manifest m.parquet", []),
    RowError("load", "ImageNotFound", "no file 'a.png'"),
    *(kind(f"{kind.__name__}: why") for kind in PLAIN),
]


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_exit_codes_are_a_contract(kind: type[DiffEditError], code: int) -> None:
    assert kind.exit_code == code


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickling_keeps_type_message_and_attributes(error: DiffEditError) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)
        assert copy.exit_code == error.exit_code


def test_examples_cover_every_error() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DiffEditError) and kind is not ProblemsError
    }
    assert kinds == {type(error) for error in EXAMPLES}


def test_every_error_has_one_base() -> None:
    assert all(isinstance(error, DiffEditError) for error in EXAMPLES)


def test_docstring_draws_every_error() -> None:
    assert errors.__doc__ is not None
    for error in EXAMPLES:
        assert type(error).__name__ in errors.__doc__


def test_problems_are_listed_one_per_line() -> None:
    error = ConfigError("config a.yaml", ["one", "two"])
    assert str(error).splitlines() == ["config a.yaml", "  - one", "  - two"]
    assert error.problems == ["one", "two"]


def test_row_error_says_where_and_what() -> None:
    error = RowError("load", "ImageNotFound", "no file 'a.png'")
    assert (error.stage, error.kind, str(error)) == ("load", "ImageNotFound", "no file 'a.png'")
