"""The shape of the house: which way imports point, how long things are, what the docs list.

A room is a package, and rooms stand on floors. An import, wherever it stands in a file and
whatever it is for, goes to a lower floor or stays in its room, and files import one another in no
circle (``docs/house.md``).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "vfm_inverse": ROOT / "vfm_inverse",
    "vfm_inverse.operators": ROOT / "operators",
    "vfm_inverse.problems": ROOT / "problems",
}

FLOORS = (
    frozenset({"runtime"}),
    frozenset({"formats", "statistics"}),
    frozenset({"problem"}),
    frozenset({"operators", "gaussian"}),
    frozenset({"networks"}),
    frozenset({"flow", "problems"}),
    frozenset({"sampling"}),
    frozenset({"posterior"}),
    frozenset({"calibration", "training", "labelled"}),
    frozenset({"correction", "report", "declared"}),
    frozenset({"runs"}),
    frozenset({"cli"}),
    frozenset({"vfm_inverse"}),
)
"""Rooms from the ground up. The roof is the package's own face and ``python -m vfm_inverse``."""

FACES = {
    "calibration": ("calibrate", "from_draws", "grades", "merge", "posterior_sbc"),
    "cli": ("main",),
    "correction": ("auto", "guide", "ksd", "mcmc", "model", "psis", "refine", "smc"),
    "gaussian": ("ContractedNormal", "StandardNormal"),
    "labelled": ("load_observation", "save_netcdf", "to_xarray"),
    "networks": ("MLP", "UNet"),
    "posterior": ("Answer", "Condition", "VariationalFlowMap"),
    "problem": ("InverseProblem",),
    "problems": ("available", "load"),
    "report": ("write_report",),
    "runs": ("calibrate_run", "open_run", "report_run"),
    "training": ("fit",),
}
"""Names that may be imported from a room itself, whatever file they live in."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
"""Lines of a file; lines of code of a function, its signature among them."""

PROPER = frozenset({"Cholesky", "Gaussian", "Markov", "Pareto", "Pyro"})
"""Names that an argument's description may begin with."""


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
SOURCES = {name: file.read_text() for name, file in MODULES.items()}
TESTS = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in sorted((ROOT / "tests").rglob("*.py"))
}


def imports(source: str) -> Iterator[str]:
    """Every import of a file, late and type-only ones too; ``from a import b`` gives ``a.b``. A
    text that is the path of something in the package, as lazy faces hold them, counts as one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"vfm_inverse(\.\w+)+", node.value):
                yield node.value


def home(name: str, modules: Iterable[str]) -> str | None:
    """The file that an imported name is taken from: of ``a.b.c`` the module ``a.b.c``, or else
    ``a.b``, which is a face where it is a package. None for what is not ours."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules), None)


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which files each file imports from."""
    found = {
        name: {home(other, sources) for other in imports(text)} for name, text in sources.items()
    }
    return {
        name: {other for other in to if other not in (None, name)} for name, to in found.items()
    }


def room(module: str) -> str:
    """The package that a module stands in; the roof for the face of the whole."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else parts[0]


def floor(module: str) -> int:
    """The number of its floor.

    Raises:
        ValueError: the room is on none.
    """
    for number, rooms in enumerate(FLOORS):
        if room(module) in rooms:
            return number
    raise ValueError(f"'{room(module)}', of {module}, is on no floor of FLOORS")


def climbing(sources: Mapping[str, str]) -> list[str]:
    """Imports that go up, or across a floor into another room."""
    return [
        f"{module} imports {other}"
        for module, to in sorted(graph(sources).items())
        for other in sorted(to)
        if room(module) != room(other) and floor(module) <= floor(other)
    ]


def circles(sources: Mapping[str, str]) -> list[list[str]]:
    """Files that import one another, directly or through others: the strongly connected components
    of more than one file (Tarjan 1972)."""
    edges, index, low = graph(sources), {}, {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:
        index[file] = low[file] = len(index)
        stack.append(file)
        for other in sorted(edges[file]):
            if other not in index:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], index[other])
        if low[file] == index[file]:
            at = stack.index(file)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for file in sorted(edges):
        if file not in index:
            visit(file)
    return found


def long_functions(source: str) -> list[tuple[str, int]]:
    """Functions of more than :data:`LONGEST_FUNCTION` lines of code. Docstrings, blank lines and
    comments do not count; functions inside do."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            code |= set(range(token.start[0], token.end[0] + 1))
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, (*kinds, ast.ClassDef)) and ast.get_docstring(node) is not None:
            code -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lengths = [
        (node.name, len(code & set(range(node.lineno, (node.end_lineno or 0) + 1))))
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]
    return [(name, length) for name, length in lengths if length > LONGEST_FUNCTION]


def large_beginnings(source: str) -> list[str]:
    """Entries under ``Args``, ``Attributes`` and ``Raises`` whose description begins large."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            continue
        text = ast.get_docstring(node) or ""
        for section in re.findall(
            r"^(?:Args|Attributes|Raises):\n((?: {4}.*\n?|\n)*)", text, re.M
        ):
            for entry, word in re.findall(r"^ {4}(\S[^:\n]*):\s+(\w+)", section, re.M):
                name = word in PROPER or word[1:] != word[1:].lower()
                if word[0].isupper() and len(word) > 1 and not name:
                    found.append(f"{entry}: {word}")
    return found


# The floors -----------------------------------------------------------------------------------


def test_imports_go_to_a_lower_floor_or_stay_in_their_room() -> None:
    assert climbing(SOURCES) == []


def test_files_import_one_another_in_no_circle() -> None:
    assert circles(SOURCES) == []


def test_every_room_is_on_one_floor() -> None:
    rooms = [name for names in FLOORS for name in names]
    assert len(rooms) == len(set(rooms))
    assert set(rooms) == {room(module) for module in MODULES}


PLANTED = {
    "vfm_inverse.problem": "",
    "vfm_inverse.problem.checks": "",
    "vfm_inverse.flow.losses": "",
    "vfm_inverse.posterior": "from vfm_inverse.posterior.answer import Answer",
    "vfm_inverse.posterior.answer": "import torch\nfrom vfm_inverse.problem import checks",
    "vfm_inverse.posterior.variational": "from vfm_inverse.posterior.answer import Answer",
    "vfm_inverse.training.loop": "from vfm_inverse.posterior import Answer",
    "vfm_inverse.labelled.write": "",
}
"""A small house in order."""


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("problem.checks", "from vfm_inverse.posterior.answer import Answer", "posterior.answer"),
        ("problem.checks", "import vfm_inverse.flow.losses as losses", "flow.losses"),
        ("problem.checks", "def f():\n    from vfm_inverse.flow import losses", "flow.losses"),
        (
            "posterior.answer",
            "if TYPE_CHECKING:\n    from vfm_inverse.training.loop import fit",
            "training.loop",
        ),
        (
            "flow.losses",
            "HOMES = {'Answer': 'vfm_inverse.posterior.answer'}",
            "posterior.answer",
        ),
        ("training.loop", "from vfm_inverse.labelled.write import to_xarray", "labelled.write"),
        ("posterior.answer", "from vfm_inverse import __version__", ""),
    ],
)
def test_a_planted_import_upward_or_across_is_found(module: str, source: str, said: str) -> None:
    house = {"vfm_inverse": "", **PLANTED}
    assert climbing(house) == []
    named = f"vfm_inverse.{said}" if said else "vfm_inverse"
    house[f"vfm_inverse.{module}"] = source
    assert climbing(house) == [f"vfm_inverse.{module} imports {named}"]


def test_a_room_without_a_floor_is_found() -> None:
    with pytest.raises(ValueError, match="'cellar', of vfm_inverse.cellar.wine, is on no floor"):
        climbing({"vfm_inverse.cellar.wine": "import vfm_inverse.problem", **PLANTED})


@pytest.mark.parametrize(
    ("module", "source", "circle"),
    [
        (
            "posterior.answer",
            "def f():\n    from vfm_inverse.posterior.variational import VariationalFlowMap",
            ["posterior.answer", "posterior.variational"],
        ),
        (
            "posterior.answer",
            "if TYPE_CHECKING:\n    from vfm_inverse.posterior import Answer",
            ["posterior", "posterior.answer"],
        ),
        (
            "problem.checks",
            "from vfm_inverse.training import loop",
            ["posterior", "posterior.answer", "problem.checks", "training.loop"],
        ),
    ],
)
def test_a_planted_circle_is_found(module: str, source: str, circle: list[str]) -> None:
    assert circles(PLANTED) == []
    house = {**PLANTED, f"vfm_inverse.{module}": source}
    assert circles(house) == [[f"vfm_inverse.{name}" for name in circle]]


def test_imports_are_absolute_and_inside_the_package() -> None:
    for module in MODULES:
        for name in imports(SOURCES[module]):
            assert not name.startswith("."), f"{module} has the relative import {name}"
            assert name.split(".")[0] not in {"operators", "problems"}, (
                f"{module} imports bare {name}"
            )


def test_few_files_stand_beside_the_rooms() -> None:
    beside = {file.name for file in FOLDERS["vfm_inverse"].iterdir() if file.is_file()}
    assert beside <= {"__init__.py", "__main__.py", "py.typed"}


@pytest.mark.parametrize("name", [f"{room}.{name}" for room in FACES for name in FACES[room]])
def test_the_face_of_a_room_gives_its_names(name: str) -> None:
    face, _, own = name.partition(".")
    assert getattr(importlib.import_module(f"vfm_inverse.{face}"), own) is not None


# Length and dialect -----------------------------------------------------------------------------


def test_a_module_is_at_most_400_lines() -> None:
    for module in MODULES:
        lines = SOURCES[module].count("\n")
        assert lines <= LONGEST_FILE, f"{module} has {lines} lines"


def test_a_function_is_at_most_60_lines_of_code() -> None:
    for module in MODULES:
        assert long_functions(SOURCES[module]) == [], f"too long in {module}"


def test_a_planted_long_function_is_found() -> None:
    def written(lines: int) -> str:
        body = "\n".join("    x = 1  # one\n\n    # and a comment" for _ in range(lines - 1))
        return f'def f():\n    """Of two\n\n    lines."""\n{body}\n'

    assert long_functions(written(60)) == []
    assert long_functions(written(61)) == [("f", 61)]


def test_a_constant_is_explained_below_it() -> None:
    for file in [*SOURCES, *TESTS]:
        source = SOURCES.get(file) or TESTS[file]
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        above = [t.start[0] for t in tokens if t.type == tokenize.COMMENT and t.string[:2] == "#:"]
        assert not above, f"{file} explains constants by '#:' in the lines {above}"


def test_descriptions_of_arguments_begin_small() -> None:
    for file in [*SOURCES, *TESTS]:
        found = large_beginnings(SOURCES.get(file) or TESTS[file])
        assert found == [], f"{file} begins descriptions large: {found}"


def test_a_planted_large_beginning_is_found() -> None:
    entries = (
        "x: The field.\n        y: NaN is taken.\n        z: Gaussian, more\n            So: Long."
    )
    source = f'def f(x):\n    """Does.\n\n    Args:\n        {entries}\n    """\n'
    assert large_beginnings(source) == ["x: The"]


# Names and docs ---------------------------------------------------------------------------------


def public_modules() -> list[str]:
    """All but the package's own face, which docs/api/index.md lists by hand, and files that hold
    nothing besides what they say of themselves: the face of a room that gives no names."""
    own = {"vfm_inverse", "vfm_inverse.__main__"}
    return [name for name in MODULES if name not in own and "._" not in name and holds_code(name)]


def holds_code(module: str) -> bool:
    tree = ast.parse(SOURCES[module])
    return len(tree.body) > (ast.get_docstring(tree) is not None)


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_docs(module: str) -> None:
    """autodoc shows what has a docstring, on a page that lists the module with its members."""
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    entry = re.search(rf"automodule:: {re.escape(module)}\n((?: +:.*\n)*)", pages)
    assert entry is not None, f"no page of docs/api has 'automodule:: {module}'"
    loaded = importlib.import_module(module)
    # A face that only gathers names shows them where they live; constants live in files.
    constant = None if MODULES[module].name == "__init__.py" else module
    own = [
        n for n in loaded.__all__ if getattr(getattr(loaded, n), "__module__", constant) == module
    ]
    assert ":members:" in entry[1] or not own, f"docs/api leaves out the members of {module}"
    assert loaded.__doc__, f"{module} has no docstring"
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{module}.{name} has no docstring"


def test_a_module_states_its_public_names() -> None:
    for module in public_modules():
        assert hasattr(importlib.import_module(module), "__all__"), f"{module} has no __all__"


def test_the_lazy_names_of_the_package_exist() -> None:
    import vfm_inverse

    for name in vfm_inverse.__all__:
        assert getattr(vfm_inverse, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = vfm_inverse.nonsense


# The page of the house ---------------------------------------------------------------------------

HOUSE = (ROOT / "docs" / "house.md").read_text()


def test_the_picture_of_the_house_shows_the_floors() -> None:
    picture = HOUSE.partition("```text\n")[2].partition("```")[0]
    drawn = [re.findall(r"^.{10}(\w+) {2,}", floor, re.M) for floor in re.split("─+", picture)]
    assert [frozenset(rooms) for rooms in reversed(drawn)] == list(FLOORS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"[`<]((?:\w+\.)+\w+)[`>]", HOUSE))))
def test_what_the_page_names_is_there(name: str) -> None:
    """Of dotted names those that begin with a room, or with a class that stands on the page."""
    start, *rest = name.removeprefix("vfm_inverse.").split(".")
    if start in {found for rooms in FLOORS for found in rooms} and rest[-1] != "md":
        module = home(f"vfm_inverse.{start}.{'.'.join(rest)}", MODULES)
        assert module is not None
        value = importlib.import_module(module)
        for part in f"vfm_inverse.{start}.{'.'.join(rest)}".removeprefix(module).split(".")[1:]:
            value = getattr(value, part)


def test_the_files_that_the_page_sends_to_are_there() -> None:
    rows = [
        line for line in HOUSE.splitlines() if line.startswith("| ") and "assimilation" not in line
    ]
    named = [
        file for row in rows for file in re.findall(r"`([\w/]+\.py)", row) if "NAME" not in file
    ]
    roots = (ROOT, ROOT / "vfm_inverse")
    missing = [file for file in named if not any((root / file).is_file() for root in roots)]
    assert named and not missing
