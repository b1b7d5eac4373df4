r"""The mode of the posterior by Gauss-Newton, and the Gaussian there.

With the misfit :math:`r` and its Jacobian :math:`J` (:mod:`vfm_inverse.gaussian.misfit`) the mode
minimises :math:`\tfrac12 |\xi|^2 + \tfrac{1}{2\beta} |r(\xi)|^2` at :math:`\beta = 1`. Each step
goes towards the minimum of the linearised problem,

.. math:: \xi^+ = J^\top (J J^\top + \beta I)^{-1} (J \xi - r),

by that one of a few step sizes that lowers the objective most, or none. The noise is inflated,
:math:`\beta > 1`, in the first steps, so that they do not follow the data into a valley that a
linear physics would have dug. Twice the minimum is, for linear physics, chi-square with m degrees
of freedom; where it is far above, the descent begins again elsewhere, and the lowest end is kept.

At the mode, :math:`J = U \operatorname{diag}(s) V^\top`, the Laplace approximation is

.. math:: \mathcal N(\xi^*, C), \qquad C = I - V \operatorname{diag}(1 - \lambda) V^\top, \qquad
          \lambda = \frac{1}{1 + s^2}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.gaussian.misfit import Misfit
from vfm_inverse.gaussian.normals import ContractedNormal

__all__ = ["laplace", "mode", "objective"]

INFLATION = (16.0, 4.0, *[1.0] * 6)
"""The noise variance of each Gauss-Newton step, in units of the true one."""

STEP_SIZES = (1.0, 0.5, 0.2, 0.05)

FALL = 1e-2
"""Fall of the objective, in nats, below which a descent has arrived."""

EXCESS = 1.5
"""Standard deviations by which a minimum may exceed its mean, as for linear physics, before the
descent begins again elsewhere."""

FEW, AGREE = 4, 0.5
"""Beginnings that are tried first; the others only where these end more than so many nats apart,
in several minima."""


def mode(misfit: Misfit, first: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest minimum found, ``(n, d)``, and the objective there, ``(n,)``, in nats.

    Args:
        misfit: of n observations.
        first: where all descents begin, ``(n, d)``.
        others: where those begin again that end too high, ``(k, n, d)``.
    """
    xi, minimum = descend(misfit, first)
    m = misfit.shape[0]
    poor = (~(minimum < m / 2 + EXCESS * (m / 2) ** 0.5)).nonzero().squeeze(1)
    for beginnings in (others[:FEW], others[FEW:]):
        k = len(beginnings)
        if not k or not len(poor):
            break
        again, value = descend(misfit[poor.repeat(k)], beginnings[:, poor].flatten(0, 1))
        again = torch.cat([xi[poor].unsqueeze(0), again.unflatten(0, (k, -1))])
        value = torch.cat([minimum[poor].unsqueeze(0), value.unflatten(0, (k, -1))])
        minimum[poor], best = value.min(0)
        xi[poor] = again[best, torch.arange(len(poor), device=best.device)]
        poor = poor[~(value.amax(0) - value.amin(0) < AGREE)]
    return xi, minimum


def descend(misfit: Misfit, xi: Tensor) -> tuple[Tensor, Tensor]:
    """A minimum from ``xi (n, d)`` on, and the objective there; each observation stops when it has
    arrived."""
    xi = xi.clone()
    minimum = objective(xi, misfit(xi), 1.0)
    sizes = xi.new_tensor(STEP_SIZES)[:, None, None]
    going = torch.arange(len(xi), device=xi.device)
    for inflation in INFLATION:
        if not len(going):
            break
        part, here = misfit[going], xi[going]
        residual, jacobian = part.linearize(here)
        towards = linear_minimum(here, residual, jacobian, inflation) - here
        tried = here + sizes * towards.nan_to_num(0.0, 0.0, 0.0)
        misfits = torch.cat([residual.unsqueeze(0), part(tried)])
        tried = torch.cat([here.unsqueeze(0), tried])
        best = objective(tried, misfits, inflation).argmin(0)
        row = torch.arange(len(going), device=xi.device)
        before = minimum[going]
        xi[going] = tried[best, row]
        minimum[going] = objective(tried[best, row], misfits[best, row], 1.0)
        if inflation == 1.0:
            going = going[before - minimum[going] > FALL]
    return xi, minimum


def objective(xi: Tensor, residual: Tensor, inflation: float) -> Tensor:
    """``|xi|^2 / 2 + |r|^2 / (2 inflation)``, ``(*batch,)``; infinite where the physics fails."""
    value = xi.square().sum(-1) / 2 + residual.square().sum(-1) / (2 * inflation)
    return value.nan_to_num(torch.inf, torch.inf)


def linear_minimum(xi: Tensor, residual: Tensor, jacobian: Tensor, inflation: float) -> Tensor:
    """The minimum ``(n, d)`` of the problem linearised at ``xi (n, d)``; the prior's where its
    derivatives are not finite."""
    j = jacobian.double().nan_to_num(0.0, 0.0, 0.0)
    offset = (j @ xi.double().unsqueeze(-1)).squeeze(-1) - residual.double()
    offset = offset.nan_to_num(0.0, 0.0, 0.0).unsqueeze(-1)
    m, d = j.shape[1:]
    few = m <= d
    gram = j @ j.mT if few else j.mT @ j
    gram.diagonal(dim1=-2, dim2=-1).add_(inflation)
    factor, _ = torch.linalg.cholesky_ex(gram)
    if few:
        solved = j.mT @ torch.cholesky_solve(offset, factor)
    else:
        solved = torch.cholesky_solve(j.mT @ offset, factor)
    return solved.squeeze(-1).to(xi)


def laplace(loc: Tensor, jacobian: Tensor) -> tuple[ContractedNormal, Tensor]:
    """The Gaussian ``N(loc, (I + J^T J)^-1)``, and ``U diag(s)``, ``(n, m, r)``: times its
    directions, ``J``.

    Directions that the data do not inform are zero columns of both, or have scale 1.

    Args:
        loc: its mean, ``(n, d)``.
        jacobian: ``J``, ``(n, m, d)``.
    """
    j = jacobian.double().nan_to_num(0.0, 0.0, 0.0)
    few = j.shape[1] <= j.shape[2]
    squares, vectors = torch.linalg.eigh(j @ j.mT if few else j.mT @ j)
    # Squares are told apart to what rounding leaves (in single precision 1e-10 of the largest, in
    # double 1e-14), and matter against a unit of noise.
    told = 1e-10 if loc.dtype == torch.float32 else 1e-14
    informed = squares > (told * squares[:, -1:]).clamp_min(1e-7)
    squares = torch.where(informed, squares, 0.0)
    if few:
        inverse = torch.where(informed, squares.rsqrt(), 0.0)
        basis = j.mT @ (vectors * inverse.unsqueeze(-2))
        weighted = vectors * squares.sqrt().unsqueeze(-2)
    else:
        basis = vectors * informed.unsqueeze(-2)
        weighted = j @ basis
    scale = (1 + squares).rsqrt()
    law = ContractedNormal(loc, basis.to(loc), scale.to(loc), validate_args=False)
    return law, weighted.to(loc)
