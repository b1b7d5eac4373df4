r"""How far to trust a sample correlation, from the samples themselves.

The correlation :math:`R` of :math:`n` samples of :math:`d` numbers has :math:`d - n + 1`
directions without any variance where :math:`n \le d`, and far too little along many others.
Shrinking it towards a target :math:`T` of full rank gives

.. math:: C(w) = (1 - w) R + w\, T.

The weight is the one under which each sample is likeliest by all others: the mean over
:math:`i` of :math:`\log N(z_i; 0, C_{-i}(w))` is largest. Leaving out a sample changes a matrix by
one rank, so that all of them and all weights take one eigendecomposition (J. P. Hoffbeck and D. A.
Landgrebe, Covariance matrix estimation and classification with limited training data, IEEE
Transactions on Pattern Analysis and Machine Intelligence 18(7), 1996,
https://doi.org/10.1109/34.506799, there towards the covariance of all classes): in coordinates in
which :math:`T = I`, with :math:`G = (1 - w) \tfrac{n - 1}{n - 2} R + w I`,
:math:`r = n / (n - 1)`, :math:`\beta = r (1 - w) / (n - 2)` and :math:`h = z_i^\top G^{-1} z_i` of
samples less their mean,

.. math:: -2 \log N(r z_i; 0, C_{-i}) = \log |G| + \log(1 - \beta h) + \frac{r^2 h}{1 - \beta h}
          + \ldots

The factor :math:`r` leaves the sample out of the mean too: of samples less their common mean each
lies in the span of the others, and leaving it out would show nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shrinkage_weight", "shrunk"]

WEIGHTS = torch.linspace(-10, 4, 57, dtype=torch.float64).sigmoid()
"""The weights compared: from 0.00005 to 0.98."""

MORE_WEIGHTS = torch.cat([torch.linspace(-20, -10.25, 40, dtype=torch.float64).sigmoid(), WEIGHTS])
"""Those where samples are a few of very many: from 2e-9."""

FEWEST = 4
"""Samples below which nothing can be left out: only the target counts then."""

FLOOR = 1e-8
"""Variance that the target has along every direction besides its own: none may be singular."""

MOST_ROWS = 2048
"""Samples that are left out, one at a time; evenly spaced where there are more."""


def shrunk(
    z: Tensor, target: Tensor, correlation: Tensor | None = None, num: int | None = None
) -> Tensor:
    """The correlation ``C(w)`` ``(d, d)`` of samples ``z`` ``(n, d)`` of mean 0 and variance 1,
    with the weight of :func:`shrinkage_weight`; of ``num`` samples that these are among, whose
    ``correlation`` is known, where it is given."""
    if correlation is None:
        correlation = z.mT @ z / max(len(z) - 1, 1)
    target = (target + FLOOR * torch.eye(len(target)).to(target)) / (1 + FLOOR)
    w = shrinkage_weight(z, correlation, target, num)
    return (1 - w) * correlation + w * target


def shrinkage_weight(
    z: Tensor, correlation: Tensor, target: Tensor, num: int | None = None
) -> float:
    """The weight of the target under which samples predict each other best.

    Args:
        z: samples ``(n, d)`` of mean 0, without unit.
        correlation: their second moments ``(d, d)``, the sum of products over ``n - 1``.
        target: positive definite ``(d, d)``.
        num: of how many samples the correlation is, where ``z`` are some of them.
    """
    n = len(z) if num is None else num
    if n < FEWEST:
        return 1.0
    root = torch.linalg.cholesky(target)
    half = torch.linalg.solve_triangular(root, correlation, upper=False)
    white = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values, vectors = torch.linalg.eigh(white)
    rows = z[:: -(-len(z) // MOST_ROWS)]
    along = torch.linalg.solve_triangular(root, rows.mT, upper=False).mT @ vectors
    w = (WEIGHTS if num is None else MORE_WEIGHTS).to(z.device)
    spectrum = (1 - w) * (n - 1) / (n - 2) * values.clamp_min(0)[:, None] + w  # of G: (d, weights)
    h = along.square() @ spectrum.reciprocal()
    r = n / (n - 1)
    left = (1 - r * (1 - w) / (n - 2) * h).clamp_min(torch.finfo(h.dtype).eps)
    surprise = spectrum.log().sum(0) + (left.log() + r**2 * h / left).mean(0)
    return float(w[surprise.argmin()])
