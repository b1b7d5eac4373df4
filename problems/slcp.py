r"""slcp: a simple likelihood and a complex posterior, four symmetric modes in five dimensions.

.. math:: \theta \sim \mathcal U[-3, 3]^5, \quad y = (y_1, \dots, y_4), \quad
          y_i \sim \mathcal N\Bigl(\begin{pmatrix} \theta_1 \\ \theta_2 \end{pmatrix},
          \begin{pmatrix} s_1^2 & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 \end{pmatrix}
          + 10^{-6} I\Bigr), \quad
          s_1 = \theta_3^2,\ s_2 = \theta_4^2,\ \rho = \tanh\theta_5.

The signs of :math:`\theta_3` and :math:`\theta_4` cannot be told: every mode has three mirror
images of equal weight, besides the cuts at the edges of the box. There is no exact posterior.

Source: Papamakarios, Sterratt and Murray 2019 (https://arxiv.org/abs/1805.07226), as task T.3 of
Lueckmann et al. 2021 (https://arxiv.org/abs/2101.04653).
"""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import ReshapeTransform
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.boxes import uniform_box

__all__ = ["four_points", "make"]

POINTS = 4
JITTER = 1e-6  # on the diagonal of the covariance, as the benchmark has it


def make() -> InverseProblem:
    """Build the problem: ``theta`` ``(5,)``, ``y`` ``(8,)``, the four points one after another."""
    return InverseProblem(
        prior=uniform_box(5, 3), likelihood=four_points, units="1", obs_units="1"
    )


def four_points(theta: Tensor) -> TorchDistribution:
    """``p(y | theta)`` for ``theta`` ``(*, 5)``, over ``(*, 8)``."""
    square_1, square_2 = theta[..., 2] ** 4, theta[..., 3] ** 4
    rho = torch.tanh(theta[..., 4])
    variance_1 = square_1 + JITTER
    # The Cholesky factor in closed form: written so, nothing cancels where rho is nearly 1.
    free = (JITTER + square_1 * (1 - rho) * (1 + rho)) / variance_1
    l_11, l_22 = variance_1.sqrt(), (JITTER + square_2 * free).sqrt()
    l_21 = rho * theta[..., 2] ** 2 * theta[..., 3] ** 2 / l_11
    rows = [torch.stack([l_11, torch.zeros_like(rho)], -1), torch.stack([l_21, l_22], -1)]
    shape = (*theta.shape[:-1], POINTS, 2)
    points = MultivariateNormal(
        theta[..., None, :2].expand(shape),
        scale_tril=torch.stack(rows, -2).unsqueeze(-3).expand(*shape, 2),
        validate_args=False,
    )
    flat = ReshapeTransform(torch.Size([POINTS, 2]), torch.Size([2 * POINTS]))
    return TransformedDistribution(points.to_event(1), [flat], validate_args=False)
