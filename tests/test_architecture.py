"""The shape of the code: which way imports point, how long a module is, what the docs list."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "vfm_inverse": ROOT / "vfm_inverse",
    "vfm_inverse.operators": ROOT / "operators",
    "vfm_inverse.problems": ROOT / "problems",
}
# These use the whole package on a user's behalf, from above.
FRONT_DOORS = {"vfm_inverse"} | {
    f"vfm_inverse.{name}"
    for name in (
        "checkpoint",
        "cli",
        "commands",
        "declared",
        "declared_physics",
        "demo",
        "inspection",
        "recipes",
        "runs",
        "verification",
    )
}


def module_files() -> dict[str, Path]:
    """Every module of the package by its import path."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            relative = file.relative_to(folder)
            if package == "vfm_inverse" and relative.parts[0] in {"operators", "problems"}:
                continue  # the same files, seen through the symbolic links
            parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
            found[".".join([package, *parts])] = file
    return found


MODULES = module_files()
CORE = [name for name in MODULES if not name.startswith(tuple(list(FOLDERS)[1:]))]


def imports(file: Path) -> Iterator[str]:
    """Every import of a file, inside functions too; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute_and_inside_the_package(module: str) -> None:
    for name in imports(MODULES[module]):
        assert not name.startswith("."), f"{module} has the relative import {name}"
        assert name.split(".")[0] not in {"operators", "problems"}, f"{module} imports bare {name}"


@pytest.mark.parametrize("module", [m for m in CORE if m not in FRONT_DOORS])
def test_the_core_imports_neither_operators_nor_problems(module: str) -> None:
    for name in imports(MODULES[module]):
        assert not within(name, "vfm_inverse.operators"), f"{module} imports {name}"
        assert not within(name, "vfm_inverse.problems"), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "vfm_inverse.operators")])
def test_operators_know_nothing_of_problems_and_training(module: str) -> None:
    for name in imports(MODULES[module]):
        for other in ("problems", "training", "posterior", "adapter", "flow_map", "objective"):
            assert not within(name, f"vfm_inverse.{other}"), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "vfm_inverse.problems")])
def test_problems_know_nothing_of_training(module: str) -> None:
    for name in imports(MODULES[module]):
        for other in ("training", "posterior", "adapter", "flow_map", "objective"):
            assert not within(name, f"vfm_inverse.{other}"), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_at_most_400_lines(module: str) -> None:
    lines = MODULES[module].read_text().count("\n")
    assert lines <= 400, f"{module} has {lines} lines"


def public_modules() -> list[str]:
    private = {
        "vfm_inverse",
        "vfm_inverse.cli",
        "vfm_inverse.commands",
        "vfm_inverse.console",
        "vfm_inverse.demo",
        "vfm_inverse.__main__",
    }
    return [name for name in MODULES if name not in private and "._" not in name]


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_docs(module: str) -> None:
    """autodoc shows what has a docstring, on a page that lists the module with its members."""
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    entry = re.search(rf"automodule:: {re.escape(module)}\n((?: +:.*\n)*)", pages)
    assert entry is not None, f"no page of docs/api has 'automodule:: {module}'"
    loaded = importlib.import_module(module)
    own = [
        n for n in loaded.__all__ if getattr(getattr(loaded, n), "__module__", module) == module
    ]
    # A package that only gathers names shows them where they live.
    assert ":members:" in entry[1] or not own, f"docs/api leaves out the members of {module}"
    assert loaded.__doc__, f"{module} has no docstring"
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", public_modules())
def test_a_module_states_its_public_names(module: str) -> None:
    assert hasattr(importlib.import_module(module), "__all__"), f"{module} has no __all__"


def test_the_lazy_names_of_the_package_exist() -> None:
    import vfm_inverse

    for name in vfm_inverse.__all__:
        assert getattr(vfm_inverse, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = vfm_inverse.nonsense
