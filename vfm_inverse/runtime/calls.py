"""How public functions look at their arguments, and how what users hand in is called."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from vfm_inverse.runtime.settings import check_settings
from vfm_inverse.runtime.values import shorten, shown

__all__ = ["attempt", "check_kind", "checked", "raised_here"]

F = TypeVar("F", bound=Callable[..., Any])


def check_kind(value: Any, name: str, *kinds: str) -> None:
    """Refuse an argument that is of none of these classes of the package, or ``path`` or
    ``mapping``.

    The classes are named, not imported: this border stands below all of them.

    Raises:
        TypeError: it is of another type.
    """
    known = {one.__name__ for one in type(value).__mro__}
    if known & set(kinds) or ("path" in kinds and isinstance(value, str | os.PathLike)):
        return
    if "mapping" in kinds and isinstance(value, Mapping):
        return
    raise TypeError(f"'{name}' must be a {' or '.join(kinds)}; got {shown(value)}")


def checked(section: str | None = None, **kinds: str | tuple[str, ...]) -> Callable[[F], F]:
    """Decorate a public function: its arguments are checked when it is called.

    Args:
        section: of :data:`vfm_inverse.runtime.settings.SETTINGS`, with the ranges of its settings.
        kinds: classes of other arguments, for :func:`check_kind`; ``None`` passes where it is the
            default.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        defaults = {name: parameter.default for name, parameter in signature.parameters.items()}

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            for name, kind in kinds.items():
                value = given.arguments.get(name)
                if name in given.arguments and (value is not None or defaults[name] is not None):
                    check_kind(value, name, *((kind,) if isinstance(kind, str) else kind))
            if section is not None:
                given.arguments.update(check_settings(section, given.arguments))
            return function(*given.args, **given.kwargs)

        return call  # type: ignore[return-value]

    return decorate


def attempt(function: Callable[..., Any], argument: str, *args: Any, **kwargs: Any) -> Any:
    """Call what a user handed in as ``argument``.

    Raises:
        ValueError: it raised something, told in one sentence; what this package raises passes.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        if isinstance(error, ValueError | TypeError | OSError) and raised_here(error):
            raise
        raise ValueError(
            f"'{argument}' failed: {type(error).__name__}: {shorten(str(error))}"
        ) from error


def raised_here(error: BaseException) -> bool:
    """Whether an error was raised by this package itself, in words of its own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    # What torch raises from its own depths has many lines and no frame.
    return str(module).partition(".")[0] == "vfm_inverse" and "\n" not in str(error)
