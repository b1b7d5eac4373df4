r"""student-t: heavy tails along axes that no coordinate shares, linear data.

.. math:: x = s\, Q t, \quad t_i \sim \mathrm{Student}(\nu) \text{ independent}, \quad
          s = \sqrt{(\nu - 2) / \nu}, \qquad y = A x + \sigma \epsilon,

``Q`` a random rotation, unit variance. An outlier in the data may be an outlier of any one
:math:`t_i`, and where several explain it the posterior has several modes.

There is no closed form, but a gold standard: :math:`t_i` is :math:`\mathcal N(0, 1/w_i)` with
:math:`w_i \sim \mathrm{Gamma}(\nu/2, \nu/2)`, and both conditional laws are standard, with
:math:`H = s A Q`,

.. math:: t \mid w, y \sim \mathcal N(\Lambda^{-1} H^\top y / \sigma^2,\; \Lambda^{-1}), \quad
          \Lambda = H^\top H / \sigma^2 + \mathrm{diag}(w), \qquad
          w_i \mid t \sim \mathrm{Gamma}\bigl(\tfrac{\nu + 1}2, \tfrac{\nu + t_i^2}2\bigr).

``gibbs`` alternates them in one chain a draw, so that its draws are independent and only the
number of sweeps is to be judged: more of them must not change the answer.
"""

from __future__ import annotations

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import StudentT, TransformedDistribution, constraints
from torch import Tensor
from torch.distributions import Transform

from vfm_inverse.operators import MatrixObservations
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level
from vfm_inverse.runtime.randomness import seeded

__all__ = ["Rotation", "gibbs", "make"]


def make(
    dim: int = 8, obs_dim: int = 4, df: float = 3.0, sigma: Sigma = 0.3, seed: int = 0
) -> InverseProblem:
    """Build the problem.

    Args:
        dim: length of ``x``.
        obs_dim: length of ``y``.
        df: degrees of freedom, above 2, so that there is a variance.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
        seed: of rotation and operator.

    Raises:
        ValueError: a size is not positive, or ``df`` not above 2.
    """
    rotation, matrix = _setting(dim, obs_dim, df, seed)
    level, params = noise_level(sigma)
    zeros = torch.zeros(dim)
    law = StudentT(df, zeros, _scale(df), validate_args=False).to_event(1)
    return InverseProblem(
        prior=TransformedDistribution(
            law, [Rotation(rotation.to(torch.get_default_dtype()))], validate_args=False
        ),
        physics=MatrixObservations(matrix.to(torch.get_default_dtype()), GaussianNoise(level)),
        params=params,
        units="1",
        obs_units="1",
    )


def gibbs(
    y: Tensor,
    num_draws: int,
    sweeps: int = 500,
    *,
    sigma: Tensor | float = 0.3,
    dim: int = 8,
    df: float = 3.0,
    seed: int = 0,
    chain_seed: int | None = None,
) -> Tensor:
    """Gold-standard posterior draws ``(num_draws, batch, dim)`` of ``y`` ``(batch, obs_dim)``.

    Args:
        y: observations.
        num_draws: independent chains, of which the last states are returned.
        sweeps: of each chain.
        sigma: noise standard deviation, a number or ``(batch,)``.
        dim, df, seed: those of the problem.
        chain_seed: of the chains; torch's global stream by default.
    """
    rotation, matrix = _setting(dim, y.shape[-1], df, seed)
    operator = _scale(df) * (matrix @ rotation).to(y.device)
    noise = torch.as_tensor(sigma, device=y.device).double().reshape(-1, 1, 1) ** 2
    precision = operator.T @ operator / noise
    shift = (y.double().unsqueeze(-2) @ operator / noise).mT
    with seeded(chain_seed):
        t = torch.zeros(num_draws, len(y), dim, dtype=torch.float64, device=y.device)
        shape = torch.tensor((df + 1) / 2, dtype=torch.float64, device=y.device)
        for _ in range(sweeps):
            w = torch.distributions.Gamma(shape, (df + t**2) / 2).sample()
            root = torch.linalg.cholesky(precision + torch.diag_embed(w))
            mean = torch.cholesky_solve(shift.expand(*t.shape, 1), root)
            noise_t = torch.randn_like(t).unsqueeze(-1)
            t = (mean + torch.linalg.solve_triangular(root.mT, noise_t, upper=True)).squeeze(-1)
    return (_scale(df) * t @ rotation.T.to(y.device)).to(y.dtype)


class Rotation(Transform):
    """``x = Q u`` for vectors ``(*, d)`` and an orthogonal matrix ``Q`` ``(d, d)``."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def _call(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).mT

    def _inverse(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zeros ``(*)``."""
        return x.new_zeros(x.shape[:-1])


def _scale(df: float) -> float:
    return ((df - 2) / df) ** 0.5


def _setting(dim: int, obs_dim: int, df: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rotation ``(dim, dim)`` and operator ``(obs_dim, dim)``, in double precision."""
    if dim < 1 or obs_dim < 1:
        raise ValueError(f"'dim' and 'obs_dim' must be positive; got {dim} and {obs_dim}")
    if not df > 2:
        raise ValueError(f"'df' must be above 2; got {df}")
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    matrix = torch.randn(obs_dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return rotation, matrix
