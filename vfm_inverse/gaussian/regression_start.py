r"""The linear regression of the field on the observation, for physics of any kind.

The joint second moments of :math:`(\xi, y)` over simulations, :math:`\xi` the whitened field, give
the linear regression of :math:`\xi` on :math:`y`, the gain of an ensemble Kalman filter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.operator_start import SharedBasis
from vfm_inverse.gaussian.whitening import DENSE_LIMIT, Whitening
from vfm_inverse.runtime.scaling import center_and_spread, over

__all__ = ["RegressionStart"]

WIDE = 2**22
"""Numbers of a singular value decomposition above which a regression is done by inner products of
its simulations."""

REGRESSED = 2**24
"""Numbers in the fields, or observations, of such a regression."""


class RegressionStart(SharedBasis):
    """Linear regression of the whitened field on the observation.

    Args:
        whitening: coordinates of the start.
    """

    FITTED = ("center", "gain", "basis", "scale")
    LATER = ("spread",)
    center: Tensor
    spread: Tensor
    gain: Tensor
    scale: Tensor

    _whitening: Whitening

    def __init__(self, whitening: Whitening) -> None:
        super().__init__()
        # Not registered: it is the map's.
        object.__setattr__(self, "_whitening", whitening)

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Fit on simulations, fewer of large fields."""
        num, size = len(x), max(self._whitening.dim, y[0].numel())
        if min(num, y[0].numel()) * self._whitening.dim > WIDE:
            num = min(num, DENSE_LIMIT, max(256, REGRESSED // size))
        self.regress(self._whitening.whiten(x[:num]), y[:num], max_rank)

    def regress(self, xi: Tensor, y: Tensor, max_rank: int) -> None:
        """Fit on pairs ``xi (n, d)``, ``y (n, *obs)``."""
        num, like = xi.shape[0], xi
        data = y.flatten(1)
        self.center, self.spread = center_and_spread(data)
        size = int((self.spread > 0).sum())  # data that vary
        wide = min(num, size) * xi.shape[1] > WIDE
        # Beyond that in the type that came and without copies of the right singular vectors.
        exact = like.dtype if wide else torch.float64
        deviation = over(data - self.center, self.spread).to(exact) / num**0.5
        xi = (xi - xi.mean(0)).to(exact) / num**0.5
        if wide:
            left, singular = _left(_gram(deviation))
        else:
            left, singular, right = torch.linalg.svd(deviation, full_matrices=False)
        # Directions in which no datum varies would explain something by chance.
        told = 1e-6 if wide else 1e-12
        varies = (singular > told * singular[0]) | (torch.arange(len(singular)) == 0).to(y.device)
        left, singular = left[:, varies], singular[varies]
        # Ridge at the size of the sampling error of a correlation.
        filtered = singular / (singular.square() + max(size, 1) / num)
        if wide:
            mixing, strength = _left(left.T @ _gram(xi) @ left)
            mixing, strength = mixing[:, :max_rank].T, strength[:max_rank]
            informed = strength > told * strength[0]
            mixing, strength = mixing[informed], strength[informed]
            directions = (xi.T @ (left @ mixing.T / strength).to(exact)).double()
        else:
            cross = xi.T @ left  # d x m: xi against the whitened data
            directions, strength, mixing = torch.linalg.svd(cross, full_matrices=False)
        # Of the variance that the sample happens to have along a direction, as the strongest have
        # more than one. Chance alone explains a fraction m/n.
        along = (xi @ directions.to(exact)).double()
        variance = along.square().sum(0)
        chance = min(size / num, 0.5)
        explained = (strength.square() / variance - chance) / (1 - chance)
        keep = explained > 0
        keep[max_rank:] = False
        if not keep.any():
            keep[0] = True
        self.basis = directions[:, keep].to(like).contiguous()
        to_basis = strength[keep, None] * mixing[keep]
        # What the ridge leaves, times what it leaves less here than of a fresh simulation.
        shrunk = singular * filtered
        left_over = (along[:, keep] - (left * shrunk) @ to_basis.T).square().sum(0)
        fresh = left_over / (1 - shrunk.sum() / num) ** 2
        self.scale = fresh.clamp(1e-6, 1).sqrt().to(like)
        if wide:
            weights = (to_basis * filtered / singular) @ left.T
            self.gain = weights.to(like) @ deviation
        else:
            self.gain = ((to_basis * filtered) @ right[varies]).to(like)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        coefficients = over(y.flatten(1) - self.center, self.spread) @ self.gain.T
        return ContractedNormal(
            coefficients @ self.basis.T,
            self.basis,
            self.scale.expand(y.shape[0], -1),
            validate_args=False,
        )


def _gram(rows: Tensor) -> Tensor:
    """Inner products ``(n, n)`` of rows ``(n, d)`` in double precision."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for columns in rows.split(2**12, 1):
        total += columns.double() @ columns.double().T
    return total


def _left(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values, the largest first, of what has this Gram
    matrix."""
    squares, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1), squares.clamp_min(0).sqrt().flip(0)
