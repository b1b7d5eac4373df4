"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["lookup"]


def lookup(package: str, homes: Mapping[str, str], name: str) -> Any:
    """A name of a package, for its ``__getattr__``.

    Args:
        package: name of the package.
        homes: names to the modules that hold them.
        name: the one that is asked for.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in homes:
        raise AttributeError(f"module '{package}' has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)
