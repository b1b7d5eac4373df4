r"""Symmetries of a problem: what turns a simulation into another one that is as likely.

A rotation of a circle or a flip of a square leaves the prior and the noise as they are, and turns
the data as the field is turned: :math:`A(g x) = h A(x)`. Then :math:`(g x, h y)` is a simulation
wherever :math:`(x, y)` is, without a call of the physics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Symmetry", "check_symmetries"]

CLOSE = 1e-3
"""Difference of ``A(g x)`` and ``h A(x)``, over the spread of the data, that rounding explains."""


class Symmetry(NamedTuple):
    """A symmetry of prior, physics and noise.

    Attributes:
        field: ``g``, fields ``(n, *event)`` to fields.
        observation: ``h``, observations ``(n, *obs)`` to observations.
    """

    field: Callable[[Tensor], Tensor]
    observation: Callable[[Tensor], Tensor]


def check_symmetries(
    symmetries: Sequence[Symmetry],
    model: Callable[[Tensor], Tensor],
    x: Tensor,
) -> None:
    """Refuse what is no symmetry of the physics.

    Args:
        symmetries: to be checked.
        model: fields ``(n, *event)`` to data without noise.
        x: a few fields.

    Raises:
        ValueError: the data of a field that was turned are not those of the field, turned.
    """
    y = model(x)
    spread = (y - y.mean(0)).square().mean().sqrt()
    for number, symmetry in enumerate(symmetries):
        there, expected = model(symmetry.field(x)), symmetry.observation(y)
        if there.shape != expected.shape or not torch.isfinite(there - expected).all():
            off = torch.inf
        else:
            off = float((there - expected).square().mean().sqrt() / spread)
        if not off <= CLOSE:
            raise ValueError(
                f"'symmetries[{number}]' must turn the data as it turns the field; those of "
                f"{len(x)} fields differ by {off:.2g} of their spread"
            )
