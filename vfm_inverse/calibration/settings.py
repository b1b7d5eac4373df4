"""Ranges of the settings of a check, each refused by its name."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from vfm_inverse.runtime.settings import brief

__all__ = [
    "check_counts",
    "check_flags",
    "check_functions",
    "check_optional",
    "check_problem",
    "check_quantities",
    "level_of",
    "seed_of",
    "shard_of",
    "whole",
]


def whole(given: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number in its range; 10.0 is one, True and NaN are none.

    Raises:
        TypeError: it is no number.
        ValueError: it is not whole, or out of range.
    """
    value = _number(given)
    if value is None:
        raise TypeError(f"'{name}' must be a whole number; got {brief(given)}")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"'{name}' must be a whole number; got {value}")
    if value < least:
        raise ValueError(f"'{name}' must be at least {least}; got {value}")
    if most is not None and value > most:
        raise ValueError(f"'{name}' must be at most {most}; got {value}")
    return int(value)


def check_counts(num_simulations: Any, num_draws: Any, alpha: Any) -> tuple[int, int, float]:
    """Numbers of simulations and draws, at least two each, and the level of a test.

    Raises:
        TypeError, ValueError: one of them is no number, or out of range.
    """
    num = whole(num_simulations, "num_simulations", 2, 2**31 - 1)
    draws = whole(num_draws, "num_draws", 2, 2**31 - 2)  # ranks are kept in 32 bits
    return num, draws, level_of(alpha)


def level_of(alpha: Any) -> float:
    """The probability ``alpha`` of a false alarm, inside (0, 1)."""
    value = _number(alpha)
    if value is None:
        raise TypeError(f"'alpha' must be a number between 0 and 1; got {brief(alpha)}")
    if not 0 < value < 1:
        raise ValueError(f"'alpha' must lie between 0 and 1; got {value}")
    return float(value)


def seed_of(seed: Any) -> int:
    """A seed: a whole number from 0 to 2^63 - 1."""
    return whole(seed, "seed", 0, 2**63 - 1)


def shard_of(shard: Any) -> tuple[int, int]:
    """The ``(index, count)`` of a part.

    Raises:
        TypeError, ValueError: it is no such pair.
    """
    if isinstance(shard, str | Mapping) or not hasattr(shard, "__len__") or len(shard) != 2:
        raise TypeError(f"'shard' must be (index, count); got {brief(shard)}")
    index, count = (whole(value, "shard", 0) for value in shard)
    if not index < count:
        raise ValueError(
            f"'shard' must be (index, count) with 0 <= index < count; got {(index, count)}"
        )
    return index, count


def check_flags(**flags: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: one of them is another thing, such as ``"no"``, which Python takes for true.
    """
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"'{name}' must be True or False; got {brief(value)}")


def check_functions(**functions: Any) -> None:
    """Refuse what cannot be called for a posterior.

    Raises:
        TypeError: one of them is another thing.
    """
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"'{name}' must be a function that returns a posterior; got {brief(function)}"
            )


def check_optional(provenance: Any, baseline: Any, path: Any) -> None:
    """Refuse what is neither ``None`` nor of its kind.

    Raises:
        TypeError: no mapping, no function, or no path.
    """
    if not isinstance(provenance, Mapping | None):
        raise TypeError(f"'provenance' must be a mapping; got {type(provenance).__name__}")
    if baseline is not None:
        check_functions(baseline=baseline)
    if not isinstance(path, str | PathLike | None):
        raise TypeError(f"'path' must be the path of a file; got {type(path).__name__}")


def check_problem(problem: Any) -> None:
    """Refuse what cannot simulate.

    Raises:
        TypeError: it is no problem.
    """
    if not callable(getattr(problem, "simulate", None)):
        raise TypeError(f"'problem' must be an InverseProblem; got {brief(problem)}")


def check_quantities(quantities: Any) -> None:
    """Refuse test quantities that are no functions by name; ``None`` stands for the default ones.

    Raises:
        TypeError: no mapping of names to functions.
        ValueError: none at all.
    """
    if quantities is None:
        return
    if not isinstance(quantities, Mapping):
        raise TypeError(
            "'quantities' must map names to functions (x, y, **params); got "
            f"{type(quantities).__name__}"
        )
    if not quantities:
        raise ValueError("'quantities' must name at least one quantity; got none")
    for name, quantity in quantities.items():
        if not isinstance(name, str) or not callable(quantity):
            raise TypeError(
                f"'quantities' must map names to functions (x, y, **params); got {name!r}: "
                f"{type(quantity).__name__}"
            )


def _number(value: Any) -> int | float | None:
    """A Python, NumPy or torch number; None for anything else, truth values included."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)
