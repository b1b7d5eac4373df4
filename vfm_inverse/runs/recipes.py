"""Problems from their recipes, and the folder of a run from what it remembers.

A problem is one of the package by its name, an object of the user's by ``module:object``, or is
declared by tables of a settings file. The folder of a run is trusted as code is: what its
``config.json`` names is imported. A checkpoint by itself never has anything imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vfm_inverse import problems
from vfm_inverse.declared.problem import declare
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs import checkpoint
from vfm_inverse.runtime.config import Recipe
from vfm_inverse.runtime.files import CONFIG, MODEL
from vfm_inverse.runtime.objects import call_object, folder_of, import_object
from vfm_inverse.runtime.warnings import CalibrationWarning
from vfm_inverse.training.run_settings import changed, read_settings, recipe_in

if TYPE_CHECKING:
    from vfm_inverse.gaussian.whitening import Whitening
    from vfm_inverse.posterior.variational import VariationalFlowMap

__all__ = ["make_problem", "open_folder"]

REMEDY = "name it: '--problem module:object', or problem= in Python"


def make_problem(recipe: Recipe) -> InverseProblem:
    """The problem of a recipe, which it keeps as ``problem.recipe``.

    Raises:
        ValueError: a name or an argument is unknown, or the object is no problem and makes none.
    """
    if "name" in recipe.table:
        return _of_package(recipe)
    if "object" in recipe.table:
        problem, recipe = _of_object(recipe)
    else:
        problem = declare(recipe.table, recipe.folder)
    problem.recipe = recipe
    if problem.rebuild is None:
        problem.rebuild = partial(make_problem, recipe)
    return problem


def _of_package(recipe: Recipe) -> InverseProblem:
    arguments = dict(recipe.table)
    name = arguments.pop("name")
    try:
        return problems.load(name, **arguments)
    except ValueError as error:
        if name in problems.available():
            raise
        raise ValueError(f"{error}; one of your own is module:object") from error


def _of_object(recipe: Recipe) -> tuple[InverseProblem, Recipe]:
    arguments = dict(recipe.table)
    target = arguments.pop("object")
    found = import_object(target, [recipe.folder, Path.cwd()])
    problem = call_object(target, found, arguments)
    if not isinstance(problem, InverseProblem):
        raise ValueError(
            f"'{target}' must be an InverseProblem or a function that returns one; got "
            f"{type(problem).__name__}"
        )
    problem.name = problem.name or target
    problem.kwargs = problem.kwargs or arguments
    return problem, Recipe(recipe.table, folder_of(target) or recipe.folder)


def open_folder(
    folder: str | Path,
    problem: InverseProblem | None = None,
    device: str | torch.device = "cpu",
    whitening: Whitening | None = None,
    *,
    warn: bool = True,
    stacklevel: int = 2,
) -> tuple[VariationalFlowMap, InverseProblem]:
    """The trained map of a run and its problem, made again from the settings of the run.

    Args:
        folder: of the run.
        problem: to be used instead.
        device, whitening, warn: as for :func:`vfm_inverse.runs.loading.load`.
        stacklevel: whose line a warning names, as in :func:`warnings.warn`.

    Raises:
        FileNotFoundError: there is no trained map in the folder.
        ValueError: the map cannot be read, or its problem cannot be made.

    Warns:
        CalibrationWarning: the problem is no longer the one that the map was trained on.
    """
    folder, tables = Path(folder), {}
    if (folder / MODEL).is_file() and (folder / CONFIG).is_file():
        try:
            tables = read_settings(folder)
        except ValueError as error:
            # The map may be of a problem of the package, which its own file names.
            warnings.warn(str(error), UserWarning, stacklevel=stacklevel + 1)
    if problem is None and tables:
        problem = _remembered(tables, folder)
    found = checkpoint.open_map(
        folder / MODEL, problem, device, whitening, warn=warn, stacklevel=stacklevel + 1
    )
    if parts := changed(tables, found[1]):
        warnings.warn(
            f"the {' and the '.join(parts)} of {found[1].name or 'the problem'} changed since the "
            f"map in '{folder}' was trained: its draws are those of the problem as it was",
            CalibrationWarning,
            stacklevel=stacklevel + 1,
        )
    return found


def _remembered(tables: Mapping[str, Any], folder: Path) -> InverseProblem | None:
    """The problem that the settings of a run name; None for one of the package, which the
    checkpoint names too."""
    recipe = recipe_in(tables, folder)
    if recipe is None:
        if tables["problem"].get("name") in problems.available():
            return None
        raise ValueError(
            f"'{folder}' is of a problem of your own, and its '{CONFIG}' does not say how to make "
            f"it; {REMEDY}"
        )
    try:
        return make_problem(recipe)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise ValueError(
            f"the problem of the run '{folder}' ({recipe}) cannot be made again: {error}. If its "
            f"code or its files are elsewhere now, {REMEDY}"
        ) from error
