"""Objects that users name as ``module:object``, in modules that need not be installed.

Importing a module runs it. Nothing here is called for a name that a file brought along, unless the
user named the file as code too: settings, and the folder of a run.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vfm_inverse.runtime.calls import attempt
from vfm_inverse.runtime.config import check_keys

__all__ = ["call_object", "folder_of", "import_object"]


def import_object(target: str, folders: Sequence[str | Path] = ()) -> Any:
    """The object that ``module:object`` names; ``object`` may have dots.

    Args:
        target: where it is.
        folders: where modules are looked for, the current folder if none is given; they come
            before the installed ones, as ``python -m`` has it, and stay.

    Raises:
        ValueError: it is no such name, there is no such module or object, or the module fails.
    """
    module, _, path = target.partition(":")
    if not module.strip() or not path.strip():
        raise ValueError(f"an object must be named as module:object; got {target!r:.80}")
    searched = [str(Path(folder).absolute()) for folder in folders] or [str(Path.cwd())]
    for folder in reversed(searched):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        found: Any = attempt(import_module, module, module)
    except ValueError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{module}.".startswith(
            f"{missing.name}."
        ):
            where = ", ".join(f"'{folder}'" for folder in searched)
            raise ValueError(
                f"{missing}: '{target}' is neither installed nor in {where}"
            ) from error
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"'{module}' has no '{path}'")
        found = getattr(found, part)
    return found


def call_object(target: str, found: Any, arguments: Mapping[str, Any]) -> Any:
    """What a function or a class of the user's makes of the arguments of a settings file.

    Args:
        target: what the user calls it.
        found: the function, or an object that is used as it is and takes no arguments.
        arguments: by name.

    Raises:
        ValueError: an argument is unknown or missing, or the call fails.
    """
    if not callable(found) or isinstance(found, nn.Module):
        if arguments:
            raise ValueError(f"'{target}' is no function and takes no {sorted(arguments)}")
        return found
    try:
        signature = inspect.signature(found)
    except ValueError:  # of a class in C
        return attempt(found, target, **arguments)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        check_keys(target, arguments, found)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"'{target}' cannot be called with {sorted(arguments)}: {error}"
        ) from error
    return attempt(found, target, **arguments)


def folder_of(target: str) -> Path | None:
    """The folder that the module of an imported ``module:object`` was found from."""
    name = target.partition(":")[0]
    module: ModuleType | None = sys.modules.get(name)
    file = None if module is None else getattr(module, "__file__", None)
    if file is None:
        return None
    depth = name.count(".") + (Path(file).stem == "__init__")
    return Path(file).absolute().parents[depth]
