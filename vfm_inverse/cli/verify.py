"""What ``vfm-inverse verify`` certifies: operators of the pack, a problem, an object of yours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from vfm_inverse import operators, problems
from vfm_inverse.operators import Verification, verify
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.objects import import_object
from vfm_inverse.runtime.randomness import seeded

__all__ = ["verify_targets"]

Case = tuple[str, Physics, Tensor, dict[str, Any]]


def verify_targets(
    target: str | None, *, every: bool = False, seed: int = 0
) -> Iterator[Verification]:
    """Certify what the command line names, one operator at a time.

    Args:
        target: name of an operator of the pack (as ``operators.examples()`` calls it, or the first
            words of several), of a problem, or ``module:object``: a deepinv ``Physics`` with an
            ``img_size``, an ``InverseProblem``, a tuple ``(physics, x)`` or ``(physics, x,
            params)``, or a function of no arguments that returns one of these.
        every: all operators of the pack; ``target`` is then left out.
        seed: of inputs, directions and noise.

    Raises:
        ValueError: neither or both are given, the name is unknown, or the object is none of these.
    """
    if every == (target is not None):
        raise ValueError("give the name of what to verify, or --all, and not both")
    for name, physics, x, params in _examples() if target is None else _find(target, seed):
        yield verify(physics, x, name=name, seed=seed, **params)


def _examples() -> Iterator[Case]:
    for name, physics, x in operators.examples():
        yield name, physics, x, {}


def _find(target: str, seed: int) -> Iterator[Case]:
    if ":" in target:
        yield _of_object(target, import_object(target), seed)
        return
    # A problem may be called like an operator: both are meant.
    found = [one for one in _examples() if one[0] == target or one[0].startswith(f"{target}-")]
    if target in problems.available():
        found.append(_of_object(target, problems.load(target), seed))
    if not found:
        raise ValueError(
            f"unknown operator or problem '{target}'; operators: "
            f"{', '.join(name for name, *_ in _examples())}; problems: "
            f"{', '.join(problems.available())}; an object of yours is module:object"
        )
    yield from found


def _of_object(name: str, found: Any, seed: int) -> Case:
    if callable(found) and not isinstance(found, Physics):
        found = found()
    if isinstance(found, InverseProblem):
        if found.physics is None:
            raise ValueError(f"'{name}' has no physics, and so no operator to verify")
        x, params = found.sample_prior(3, seed=seed), found.sample_params(3, seed=seed)
        return name, found.physics, x, dict(params)
    if isinstance(found, Physics):
        size = found.img_size if isinstance(found, LinearPhysics) else None
        if size is None:
            raise ValueError(
                f"'{name}' does not say the size of its fields; give a tuple (physics, x)"
            )
        with seeded(seed):
            return name, found, torch.randn(2, *size), {}
    if isinstance(found, tuple) and len(found) in (2, 3) and isinstance(found[0], Physics):
        physics, x, *rest = found
        return name, physics, x, dict(rest[0]) if rest else {}
    raise ValueError(
        f"'{name}' must be a Physics, an InverseProblem, a tuple (physics, x[, params]) or a "
        f"function that returns one; got {type(found).__name__}"
    )
