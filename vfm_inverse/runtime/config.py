"""Settings of a training run: a TOML file, checked key by key before anything expensive starts.

.. code-block:: toml

   [problem]
   name = "photo-deblur"     # one of `vfm-inverse problems`
   size = 32                 # every other key is an argument of that problem

   [model]                   # arguments of VariationalFlowMap.for_problem
   observation = "both"

   [fit]                     # arguments of fit
   steps = 4000
   batch_size = 64

   [calibration]             # arguments of calibration.calibrate
   num_simulations = 500

A problem of your own is ``object = "mycode:make"`` in the place of the name, with the function's
arguments as further keys, or is declared by the tables ``[problem.prior]``, ``[problem.physics]``
and ``[problem.noise]`` (:mod:`vfm_inverse.declared.problem`). Paths and modules are looked for
beside the settings file, modules in the current folder first.

Only ``[problem]`` is required. A section or a key that nothing would read is refused, so that a
misspelt setting cannot pass for a default.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = [
    "DECLARED",
    "POINTS",
    "Recipe",
    "RunConfig",
    "check_keys",
    "read_config",
    "recipe_of",
    "refuse_unknown",
]

SECTIONS = ("problem", "model", "fit", "calibration")

DECLARED = ("prior", "physics", "noise")
"""Tables of a declared problem."""

POINTS = "point-observations"
"""The operator of stations, whose settings are its own."""


@dataclass(frozen=True)
class Recipe:
    """How a problem is made: the section ``[problem]``, and where its files and modules are.

    Args:
        table: one of ``name = ...``, ``object = "module:object"``, each with arguments as further
            keys, or the tables of a declared problem.
        folder: that paths are relative to.
    """

    table: dict[str, Any]
    folder: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        _check_problem(self.table)

    def __str__(self) -> str:
        return str(self.table.get("name") or self.table.get("object") or "a declared problem")


@dataclass(frozen=True)
class RunConfig:
    """Settings by the function they are handed to.

    Args:
        problem: the table of a :class:`Recipe`.
        model: arguments of ``VariationalFlowMap.for_problem``.
        fit: arguments of ``fit``.
        calibration: arguments of ``calibration.calibrate``.
    """

    problem: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> RunConfig:
        """Settings from the nested tables of a TOML file.

        Raises:
            ValueError: an unknown section, a section that is no table, or a problem that is of
                none or of several of the three forms.
        """
        refuse_unknown("section", tables, SECTIONS)
        for section in SECTIONS:
            if not isinstance(tables.get(section, {}), Mapping):
                raise ValueError(f"'{section}' must be a table; got {tables[section]!r}")
        given = {section: dict(tables.get(section, {})) for section in SECTIONS}
        _check_problem(given["problem"])
        return cls(**given)


def read_config(path: str | Path) -> RunConfig:
    """Read settings from a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not TOML, or not the format above.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return RunConfig.from_tables(tables)
    # TOMLDecodeError and UnicodeDecodeError are ValueErrors; tables may nest without end.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not a settings file: {error}") from error


def recipe_of(target: str) -> Recipe:
    """The recipe of what a command line calls a problem: a name, ``module:object`` or a settings
    file.

    Raises:
        FileNotFoundError: there is no such settings file.
        ValueError: it is no settings file.
    """
    if target.endswith(".toml"):
        return Recipe(read_config(target).problem, Path(target).absolute().parent)
    return Recipe({"object" if ":" in target else "name": target})


def check_keys(
    section: str,
    given: Mapping[str, Any],
    function: Callable[..., Any],
    *,
    reserved: Iterable[str] = (),
) -> None:
    """Refuse settings that ``function`` has no argument for.

    Args:
        section: where the settings stand, for the message.
        given: the settings.
        function: what they will be handed to.
        reserved: arguments that are not the user's to set here.

    Raises:
        ValueError: a key is unknown; the message suggests the nearest one.
    """
    taken = {"self", "cls", *reserved}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    accepted = [p.name for p in parameters if p.kind in named and p.name not in taken]
    refuse_unknown(f"key in [{section}]", given, accepted)


def _check_problem(table: Mapping[str, Any]) -> None:
    """Refuse a section ``[problem]`` that does not say in one way which problem it is."""
    forms = [form for form in ("name", "object") if form in table]
    declared = [part for part in DECLARED if isinstance(table.get(part), Mapping)]
    if not forms and declared:
        refuse_unknown("key in [problem]", table, DECLARED)
    elif len(forms) != 1 or not isinstance(table[forms[0]], str):
        raise ValueError(
            "[problem] must have a 'name' or an 'object', one string, or the tables "
            f"[problem.prior], [problem.physics] and [problem.noise]; got {dict(table)!r:.200}"
        )


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known.

    Args:
        what: they are, for the message.
        given, known: names.

    Raises:
        ValueError: one is unknown; the message suggests the nearest.
    """
    known = list(known)
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown {what}: {key!r}; {hint}")
