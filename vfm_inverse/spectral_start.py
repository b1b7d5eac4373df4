r"""The Gaussian posterior of a large field, diagonal in the modes of its spectral whitening.

Blurs, noise, masks of single pixels: an operator that does everywhere about the same has a Hessian
:math:`W^\top W` that is nearly diagonal in the modes :math:`V` (cosines) in which the prior's
covariance is, and informs nearly all of them: a low rank would leave most of the field at the
prior's variance. Its diagonal is estimated with random signs :math:`e` (Bekas, Kokiopoulou and
Saad 2007, https://doi.org/10.1016/j.apnum.2007.01.003), for fields that are white so that strong
modes do not drown weak ones: with standard deviations :math:`a` of the modes,

.. math:: h_k = a_k\, \mathbb E\bigl[e_k\, (V^\top W^\top W V\, a^{-1} e)_k\bigr], \qquad
   \lambda_k = \frac{1}{1 + c\, h_k},

where the factor :math:`c` of an observation says how much stronger its operator over its noise is
than on average: squared norms of the data of one fixed field. Exact where :math:`W^\top W` is
diagonal and observations differ by such a factor. The mean is exact always, by conjugate
gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.matrix_free import apply, chunks, noise_level
from vfm_inverse.operator_start import LinearStart
from vfm_inverse.scaling import over
from vfm_inverse.spectral_whitening import SpectralWhitening, smoothed

__all__ = ["CosineModes", "SpectralStart"]

PROBES = 32
"""Random fields that the diagonal is estimated with."""

INFORMED = 1e-3
"""Squared signal over noise above which a mode counts as informed."""


class CosineModes:
    """Modes of a whitening in an order of their own.

    Args:
        whitening: has the modes.
        order: indices ``(d,)``; entry ``j`` of coefficients belongs to mode ``order[j]``.
    """

    def __init__(self, whitening: SpectralWhitening, order: Tensor) -> None:
        self._whitening, self._order = whitening, order

    def project(self, x: Tensor) -> Tensor:
        """Coefficients ``(*batch, d)`` of vectors ``(*batch, d)``."""
        return self._whitening.modes(x)[..., self._order]

    def lift(self, coefficients: Tensor) -> Tensor:
        """The inverse of :meth:`project`."""
        return self._whitening.from_modes(self._placed(coefficients))

    def diagonal(self, weights: Tensor) -> Tensor:
        """Variance of every coordinate where the coefficients have the variances ``weights``."""
        return self._whitening.variance_of_modes(self._placed(weights))

    def _placed(self, coefficients: Tensor) -> Tensor:
        return torch.empty_like(coefficients).index_copy(-1, self._order, coefficients)


class SpectralStart(LinearStart):
    """Contracted along every mode of a :class:`SpectralWhitening`.

    The adapter may change the ``rank`` modes that are informed most.
    """

    FITTED = ("strength", "order", "probe", "level")
    strength: Tensor
    order: Tensor
    probe: Tensor
    level: Tensor
    _whitening: SpectralWhitening
    _rank = 0

    @property
    def rank(self) -> int:
        """Modes that an adapter changes."""
        return self._rank

    def fit(self, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Estimate the diagonal over the given draws of the parameters."""
        whitening = self._whitening
        amplitude = whitening.amplitude.flatten()
        num = len(next(iter(params.values()))) if params else 1
        draws = {name: value[torch.arange(PROBES) % num] for name, value in params.items()}
        signs = torch.randint(2, (PROBES, whitening.dim)).to(amplitude) * 2 - 1
        white = whitening.from_modes(signs / amplitude)
        pull = self.products(white, draws)
        # Of the white field, without the prior's spectrum.
        gain = signs * whitening.modes(pull) / amplitude
        # A field whose data are about white: every datum counts alike.
        rough = (amplitude.square() * gain.mean(0)).clamp_min(0)
        self.probe = whitening.from_modes(signs[0] / (1 + rough).sqrt())
        squares = self._squares(draws, amplitude)
        self.level = squares.mean()
        factor = (squares / self.level.clamp_min(torch.finfo(squares.dtype).tiny)).unsqueeze(1)
        strength = amplitude.square() * self._settled(over(gain, factor)).clamp_min(0)
        self.order = strength.argsort(descending=True)
        self.strength = strength[self.order]
        self._rank = min(max_rank, max(1, int((strength > INFORMED).sum())))

    def _settled(self, gain: Tensor) -> Tensor:
        """Mean of estimates ``(n, d)``, drawn to that of the neighbours as far as chance explains
        the difference."""
        shape = self._whitening.inner_shape
        mean = gain.mean(0)
        error = gain.var(0) / len(gain)
        near = smoothed(mean.reshape(shape)).flatten()
        expected = smoothed(error.reshape(shape)).flatten()
        difference = smoothed((mean - near).square().reshape(shape)).flatten()
        share = (expected / difference.clamp_min(torch.finfo(gain.dtype).tiny)).clamp_max(1)
        return mean + share * (near - mean)

    def _squares(self, params: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Squared norm of the probe's data over their noise, ``(n,)``."""
        num = len(next(iter(params.values()))) if params else 1
        field = self._whitening.color(self.probe)
        found = []
        for rows in chunks(num, self._whitening.dim):
            own = {name: value[rows] for name, value in params.items()}
            fields = field.expand(rows.stop - rows.start, *field.shape)
            data = apply(self._physics, fields, own)
            found.append((data / noise_level(self._likelihood, own, like)).square().sum(1))
        return torch.cat(found)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        squares = self._squares(params, y).unsqueeze(1)
        factor = squares / self.level.clamp_min(torch.finfo(y.dtype).tiny)
        scale = (1 + factor * self.strength).rsqrt().expand(len(y), -1)
        modes = CosineModes(self._whitening, self.order)
        centred = ContractedNormal(y.new_zeros(y.shape[0], self._whitening.dim), modes, scale)
        return ContractedNormal(self.mean(y, params, centred), modes, scale, validate_args=False)
