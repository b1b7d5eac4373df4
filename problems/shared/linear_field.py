"""What the problems with a Gaussian field under a linear operator share.

The prior is N(mean, C) with a Matérn covariance C of the cell centres, the data are linear with
white Gaussian noise, and the exact posterior follows from one decomposition (``conjugate``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from pyro.distributions import MultivariateNormal, TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import ReshapeTransform
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.random_fields import matern_covariance
from vfm_inverse.problems.shared.conjugate import ConjugateGaussian

__all__ = ["cell_axis", "cell_covariance", "linear_field_problem"]


def cell_covariance(size: int, nu: float, length_scale: float, std: float) -> Tensor:
    """Matérn covariance ``(size^2, size^2)`` of cells that fill the unit square.

    Args:
        size: cells along a side.
        nu: smoothness.
        length_scale: in units of the side.
        std: standard deviation of a cell.

    Raises:
        ValueError: a setting is not positive, or the size below 2.
    """
    if not std > 0:
        raise ValueError(f"'std' must be positive; got {std}")
    # Nodes at both ends of the side there, centres of cells here: their spacings differ.
    span = size / max(size - 1, 1)
    return std**2 * matern_covariance(size, nu, span * length_scale)


def cell_axis(name: str, size: int, spacing: float, units: str) -> dict[str, Any]:
    """The coordinate of the cell centres along an axis, from 0 at the outer face."""
    return {name: (name, (np.arange(size) + 0.5) * spacing, {"units": units})}


def linear_field_problem(
    physics: LinearPhysics,
    field_shape: Sequence[int],
    mean: float,
    covariance: Tensor,
    level: float,
    params: Callable[[int], dict[str, Tensor]] | None,
    **labels: Any,
) -> InverseProblem:
    """The problem with its exact posterior.

    Args:
        physics: linear, with Gaussian noise of standard deviation ``level``.
        field_shape: of one field, ``d`` numbers.
        mean: of every cell.
        covariance: ``(d, d)``, in double precision.
        level, params: as :func:`~vfm_inverse.problems.shared.noise_levels.noise_level` gives them.
        labels: handed on to :class:`~vfm_inverse.problem.inverse_problem.InverseProblem`.
    """
    shape = torch.Size(field_shape)
    size = shape.numel()
    with torch.no_grad():
        operator = physics.A(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    centre = torch.full((size,), mean)
    exact = ConjugateGaussian(centre, covariance, operator.flatten(1).mT, shape)

    def reference(y: Tensor, sigma: Tensor | float = level) -> TorchDistribution:
        return exact.posterior(y, sigma)

    return InverseProblem(
        prior=TransformedDistribution(
            MultivariateNormal(centre, covariance.to(torch.get_default_dtype())),
            [ReshapeTransform(torch.Size([size]), shape)],
        ),
        physics=physics,
        params=params,
        reference=reference,
        **labels,
    )
