r"""darcy-64: the benchmark of Aristoff and Bangerth, 64 coefficients of an elliptic equation.

SIAM Review 65 (2023) 1074, https://doi.org/10.1137/21M1399464:

.. math:: -\nabla\cdot(\theta \nabla u) = 10 \text{ on } (0, 1)^2, \qquad u = 0 \text{ on the
          boundary},

with :math:`\theta` constant on 8 x 8 blocks, bilinear elements on 32 x 32 cells, and
:math:`u(i/14, j/14)`, i, j = 1..13, observed with sigma 0.05. The prior has the density
:math:`\prod_k \exp(-(\ln \theta_k)^2 / 8)` **with respect to theta**. In :math:`x = \ln \theta`,
the unknown here, the Jacobian :math:`e^x` completes the square to :math:`x_k \sim \mathcal N(4,
2^2)`: large coefficients, a solution close to zero, and an observation that sits far in the tail
of the prior.

``x`` is ``(1, 8, 8)``, down (y) and right (x), so that flattened it has the paper's index ``ix + 8
iy``. Observation ``13 i + j`` is at ``x = (i + 1)/14, y = (j + 1)/14``. The paper's truth is 1 but
for two blocks of four; the observation of the paper was made from it with a finer mesh. There is
no exact posterior; the paper gives means and covariances from 2 10^11 samples of a chain.
"""

from __future__ import annotations

import numpy as np
import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import Normal

from vfm_inverse.operators import Darcy
from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["make", "paper_truth"]


def make(sigma: float = 0.05, refine: int = 4) -> InverseProblem:
    """Build the problem: log-coefficients ``(1, 8, 8)``, observations ``(169,)``.

    Args:
        sigma: standard deviation of the noise.
        refine: finite elements along the side of a block; 4 in the paper.
    """
    node = torch.arange(1, 14, dtype=torch.float64) / 14
    x, y = torch.meshgrid(node, node, indexing="ij")
    points = torch.stack([y.flatten(), x.flatten()], -1)
    physics = Darcy(
        (1, 8, 8), points, source=10.0, refine=refine, noise_model=GaussianNoise(sigma)
    )
    centers = (np.arange(8) + 0.5) / 8
    return InverseProblem(
        prior=Normal(4.0, 2.0).expand([1, 8, 8]).to_event(3),
        physics=physics,
        dims=("y", "x"),
        coords={
            "y": ("y", centers, {"units": "1", "axis": "Y"}),
            "x": ("x", centers, {"units": "1", "axis": "X"}),
        },
        units="1",
        long_name="logarithm of the coefficient",
        obs_dims=("point",),
        obs_coords={
            "point": np.arange(169),
            "point_y": ("point", points[:, 0].numpy(), {"units": "1"}),
            "point_x": ("point", points[:, 1].numpy(), {"units": "1"}),
        },
        obs_units="1",
    )


def paper_truth() -> torch.Tensor:
    """The paper's ``ln theta``, ``(1, 8, 8)``: 0, and ``ln 0.1``, ``ln 10`` on two squares."""
    theta = torch.ones(1, 8, 8)
    theta[0, 1:3, 1:3] = 0.1
    theta[0, 5:7, 5:7] = 10.0
    return theta.log()
