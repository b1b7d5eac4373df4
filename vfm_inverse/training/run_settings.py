"""The settings of a run in its ``config.json``: what it was trained on, and with which arguments.

Beside the tables of :mod:`vfm_inverse.runtime.config` it holds

==================  ============================================================================
``folder``          where the files and modules of the problem are, absolute
``relative``        the same, seen from the run, for folders that were moved or copied together
``problem_sha256``  fingerprints of the physics and of a few prior samples (null where two draws
                    with one seed differ)
``sha256``          of all the rest
==================  ============================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from glob import glob
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import data_fingerprint, physics_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.config import Recipe, RunConfig
from vfm_inverse.runtime.files import CONFIG, replacing

__all__ = ["changed", "read_settings", "recipe_in", "remember", "write_settings"]

SAMPLES = 16
"""Prior samples of each split in the fingerprint: few, since they are read whenever a run is
opened."""


def write_settings(folder: str | Path, config: RunConfig, problem: InverseProblem) -> None:
    """Write the settings of a run, how its problem is made again, and a sum over them.

    Args:
        folder: of the run.
        config: what it was asked for.
        problem: of the run.
    """
    tables = asdict(config)
    if problem.recipe is not None:
        home = problem.recipe.folder.absolute()
        tables["folder"] = str(home)
        tables["relative"] = _relative(home, Path(folder).absolute())
    tables["problem_sha256"] = sums(problem)
    with replacing(Path(folder) / CONFIG) as temporary:
        text = json.dumps({**tables, "sha256": _sum(tables)}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What ``config.json`` of a run holds, without its sum.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or is not what was written.
    """
    path = Path(folder) / CONFIG
    try:
        tables = json.loads(path.read_bytes())
        stored = tables.pop("sha256", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"'{path}' is damaged: it is no table in JSON") from error
    # Runs of earlier versions have no sum, and none of the keys of a sum that was damaged.
    earlier = {"problem_kwargs"} if isinstance(tables.get("problem"), str | None) else set()
    known = {"folder", "relative", "problem_sha256", *asdict(RunConfig({})), *earlier}
    if tables.keys() - known or (stored is not None and stored != _sum(tables)):
        raise ValueError(
            f"'{path}' is damaged or was edited: it does not have the checksum it states"
        )
    if earlier:
        tables["problem"] = {"name": tables.get("problem"), **tables.pop("problem_kwargs", {})}
    return tables


def recipe_in(tables: Mapping[str, Any], folder: str | Path) -> Recipe | None:
    """How the problem of a run is made again; None where the settings do not say.

    Its files are looked for where they were, then where they were seen from the run, then in the
    current folder.

    Args:
        tables: what :func:`read_settings` gave.
        folder: of the run.
    """
    if not isinstance(tables.get("folder"), str):
        return None
    places = [tables["folder"], tables.get("relative"), Path.cwd()]
    homes = [(Path(folder) / place).resolve() for place in places if place is not None]
    found = [home for home in homes if _has_files(home, tables["problem"])]
    return Recipe(tables["problem"], [*found, *homes][0])


def _has_files(home: Path, table: Mapping[str, Any]) -> bool:
    """Whether the module or the prior of a problem is in a folder."""
    if "object" in table:
        module = str(table["object"]).partition(":")[0].partition(".")[0]
        return (home / f"{module}.py").is_file() or (home / module).is_dir()
    path = str(table.get("prior", {}).get("path", ""))
    return any(glob(path, root_dir=home)) or (home / path).exists()


def changed(tables: Mapping[str, Any], problem: InverseProblem) -> list[str]:
    """What of a problem is no longer as settings state it: ``"physics"``, ``"prior"``."""
    stored = tables.get("problem_sha256") or {}
    now = sums(problem) if stored else {}
    return [name for name, value in now.items() if stored.get(name) not in (None, value)]


def remember(
    folder: str | Path,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    settings: Mapping[str, Any],
) -> None:
    """Write the settings of a training, unless those of just this one are there already.

    Args:
        folder: of the run.
        vfm: the map, whose configuration stands for the section ``[model]``.
        problem: what it is trained on.
        settings: arguments of ``fit``, as JSON can hold them.
    """
    arguments = signature(VariationalFlowMap.for_problem).parameters
    model = {k: v for k, v in vfm.config.items() if k in arguments and k != "problem"}
    try:
        there = read_settings(folder)
    except (FileNotFoundError, ValueError):
        there = {}
    same = there.get("problem") == json.loads(json.dumps(table_of(problem)))
    for section, given in {"fit": settings, "model": model}.items():
        stated = there.get(section, {})
        # A name may stand for the same terms, and "auto" for what was chosen.
        same = same and all(
            given.get(name, value) == value
            for name, value in stated.items()
            if value not in ("auto", None) and name != "objective"
        )
    if not same or changed(there, problem):
        config = RunConfig(table_of(problem), model=model, fit=dict(settings))
        write_settings(folder, config, problem)


def table_of(problem: InverseProblem) -> dict[str, Any]:
    """The section ``[problem]``, as far as it is known."""
    if problem.recipe is not None:
        return problem.recipe.table
    return {"name": problem.name, **problem.kwargs}


def sums(problem: InverseProblem) -> dict[str, str | None]:
    """Fingerprints of the physics and of a few prior samples."""
    first, again = (data_fingerprint(problem, SAMPLES) for _ in range(2))
    return {"physics": physics_fingerprint(problem), "prior": first if first == again else None}


def _relative(home: Path, run: Path) -> str | None:
    try:
        return os.path.relpath(home.resolve(), run.resolve())
    except ValueError:  # another drive
        return None


def _sum(tables: Mapping[str, Any]) -> str:
    return sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
