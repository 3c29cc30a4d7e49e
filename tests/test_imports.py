"""Who may import whom (see docs/architecture.md), held by reading the imports of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffedit_batch

PACKAGE = Path(diffedit_batch.__file__).parent
EVERYBODY = {"errors", "schema", "config", "redact", "__init__"}
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "models": {"core"} | EVERYBODY,
    "engine": {"models", "core"} | EVERYBODY,
    "data": EVERYBODY,
    "demo": {"data"} | EVERYBODY,
    "report": {"data"} | EVERYBODY,
    "export": {"report", "data"} | EVERYBODY,
    "runtime": {"engine", "models", "data"} | EVERYBODY,
    "evaluation": {"engine", "models", "core", "data", "demo"} | EVERYBODY,
    "config": {"errors", "redact"},
    "schema": {"config"},
    "errors": {"redact"},
    "redact": set(),
    "terminal": {"runtime"} | EVERYBODY,
    "cli": {"commands", "flags", "terminal"} | EVERYBODY,
    "commands": {"runtime", "demo", "report", "export", "flags", "terminal"} | EVERYBODY,
    "flags": {"runtime"} | EVERYBODY,
    "benchmark": {"runtime", "engine", "models", "core", "data", "demo", "evaluation", "cli"}
    | EVERYBODY,
}
LIBRARIES = {
    "torch": {"core", "models", "engine", "runtime", "demo", "evaluation", "benchmark"},
    # The demo's training builds models; for those who compare, diffusers is the baseline.
    "diffusers": {"models", "demo", "evaluation", "benchmark"},
    "transformers": {"models", "demo"},
    "ray": {"runtime"},
    "duckdb": {"data"},
    "rich": {"terminal"},
    "pyarrow": {"data", "runtime", "report", "export", "demo", "schema", "evaluation", "benchmark"},
    "scipy": {"evaluation"},
    "skimage": {"evaluation"},
}
FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
MODULES = {f"diffedit_batch.{path.stem}" for path in PACKAGE.iterdir()}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "diffedit_batch":
                names |= {f"diffedit_batch.{alias.name}" for alias in node.names} & MODULES
    return names


def home(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_direction(path: Path) -> None:
    mine = home(path)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "diffedit_batch":
            other = rest[0] if rest else "__init__"
            assert other == mine or other in ALLOWED[mine], f"{mine} must not import {name}"
        elif top in LIBRARIES:
            assert mine in LIBRARIES[top], f"{mine} must not import {name}"
        assert not name.startswith("ray.data"), "reading a crafted Parquet with it can run code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_parquet_is_opened_in_one_place(path: Path) -> None:
    if path == PACKAGE / "data" / "parquet.py" or home(path) == "evaluation":  # reads its own
        return
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    readers = {
        "ParquetFile",
        "ParquetDataset",
        "read_table",
        "read_parquet",
        "read_schema",
        "dataset",
    }
    assert not names & readers, "use data.parquet.open_parquet"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return {name.partition(".")[0] for name in output.split()}


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    assert not loaded_by("import diffedit_batch") & {"torch", "ray", "diffusers", "pyarrow"}


def test_importing_the_engine_does_not_load_ray() -> None:
    loaded = loaded_by("import diffedit_batch.engine.editor, diffedit_batch.engine")
    assert "torch" in loaded
    assert "ray" not in loaded


def test_the_core_loads_torch_and_nothing_of_ours() -> None:
    loaded = loaded_by("import diffedit_batch.core.diffedit")
    assert not loaded & {"diffusers", "transformers", "ray", "pyarrow", "pydantic", "PIL"}


def test_the_command_line_the_driver_and_the_plan_load_neither_models_nor_ray() -> None:
    modules = ("cli", "runtime.driver", "runtime.plan")
    loaded = loaded_by(f"import {', '.join(f'diffedit_batch.{name}' for name in modules)}")
    assert not loaded & {"torch", "diffusers", "transformers", "ray", "duckdb"}


@pytest.mark.parametrize("name", diffedit_batch.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(diffedit_batch, name).__module__.startswith("diffedit_batch.")


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        diffedit_batch.nonsense  # noqa: B018
