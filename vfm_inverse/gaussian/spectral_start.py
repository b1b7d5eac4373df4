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
than on average: squared norms of the data of one fixed field. Among the strongest modes the
Hessian is taken whole (Rayleigh and Ritz), so that what a mask hides keeps its large scales.
Of the others, :math:`\lambda_k` is matched to their variance in the posterior, by solving for a
few :math:`e`: of all laws that are diagonal in these modes, the closest. Exact where
:math:`W^\top W` is diagonal and observations differ by such a factor; small scales inside of large
holes come out too sure, and those outside not sure enough. The mean is exact always, by conjugate
gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from vfm_inverse.gaussian.matrix_free import apply, chunks, noise_level, solve
from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.operator_start import FEW, LinearStart, operator_params
from vfm_inverse.gaussian.spectral_whitening import SpectralWhitening, smoothed
from vfm_inverse.gaussian.whitening_base import Whitening
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.scaling import over

__all__ = ["CosineModes", "SpectralStart"]

PROBES = 32
"""Random fields that the diagonal is estimated with."""

FIELDS_NUMBERS = 2**22
"""Most numbers in the fields of the modes that are looked at in each observation."""

SOLVED = 8
"""Of them, those that a linear system is solved for."""

INFORMED = 1e-3
"""Squared signal over noise above which a mode counts as informed."""


class CosineModes:
    """Modes of a whitening in an order of their own, the first of them rotated.

    Args:
        whitening: has the modes.
        order: indices ``(d,)``; entry ``j`` of coefficients belongs to mode ``order[j]``.
        rotation: orthonormal columns among the first ``r`` modes, ``(r, r)`` or one for each
            observation, ``(n, r, r)``.
    """

    def __init__(self, whitening: SpectralWhitening, order: Tensor, rotation: Tensor) -> None:
        self._whitening, self._order, self._rotation = whitening, order, rotation

    @property
    def shared(self) -> bool:
        """Whether all observations have the same columns."""
        return self._rotation.dim() == 2

    def project(self, x: Tensor) -> Tensor:
        """Coefficients ``(*sample, n, d)`` of vectors ``(*sample, n, d)``."""
        return self._rotated(self._whitening.modes(x)[..., self._order], self._rotation)

    def lift(self, coefficients: Tensor) -> Tensor:
        """The inverse of :meth:`project`."""
        return self._whitening.from_modes(
            self._placed(self._rotated(coefficients, self._rotation.mT))
        )

    def diagonal(self, weights: Tensor) -> Tensor:
        """Variance of every coordinate where the coefficients have the variances ``weights (n,
        d)``."""
        rank = self._rotation.shape[-1]
        first, rest = weights[..., :rank], weights[..., rank:]
        rest = torch.cat([torch.zeros_like(first), rest], -1)
        others = self._whitening.variance_of_modes(self._placed(rest))
        unit = torch.eye(rank, self._whitening.dim, dtype=weights.dtype, device=weights.device)
        unit = self._whitening.from_modes(self._placed(unit))
        if self.shared:
            return others + first @ (self._rotation.mT @ unit).square()
        for rows in chunks(len(first), unit.numel()):
            columns = self._rotation[rows].mT @ unit
            others[rows] += (first[rows].unsqueeze(-2) @ columns.square()).squeeze(-2)
        return others

    def __getitem__(self, rows: slice) -> CosineModes:
        """Those of some observations."""
        rotation = self._rotation if self.shared else self._rotation[rows]
        return CosineModes(self._whitening, self._order, rotation)

    @staticmethod
    def _rotated(coefficients: Tensor, rotation: Tensor) -> Tensor:
        rank = rotation.shape[-1]
        first = coefficients[..., :rank]
        if rotation.dim() == 2:
            first = first @ rotation
        else:
            first = (first.unsqueeze(-2) @ rotation).squeeze(-2)
        return torch.cat([first, coefficients[..., rank:]], -1)

    def _placed(self, coefficients: Tensor) -> Tensor:
        return torch.empty_like(coefficients).index_copy(-1, self._order, coefficients)


class SpectralStart(LinearStart):
    """Contracted along every mode of a :class:`SpectralWhitening`.

    The ``rank`` modes that are informed most have the Hessian that they have, in each observation
    where the operator varies; the adapter may change these.
    """

    FITTED = ("strength", "order", "probe", "level", "rotation", "fields")
    rotation: Tensor
    fields: Tensor
    strength: Tensor
    order: Tensor
    probe: Tensor
    level: Tensor
    _whitening: SpectralWhitening
    _rank = 0

    def __init__(
        self, physics: LinearPhysics, likelihood: Likelihood, whitening: Whitening
    ) -> None:
        if not isinstance(whitening, SpectralWhitening):
            raise ValueError(
                "'whitening' must be spectral for a spectral start; got "
                f"{type(whitening).__name__}"
            )
        super().__init__(physics, likelihood, whitening)

    @property
    def rank(self) -> int:
        """Modes that an adapter changes."""
        return self._rank

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Estimate the diagonal over a few draws of the parameters."""
        params = rows_of(params, slice(FEW))
        whitening = self._whitening
        amplitude = whitening.amplitude.flatten()
        num = len(next(iter(params.values()))) if params else 1
        draws = rows_of(params, torch.arange(PROBES) % num)
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
        strength = self._widened(strength, draws, factor, signs)
        self.order = strength.argsort(descending=True)
        self.strength = strength[self.order]
        most = max(1, FIELDS_NUMBERS // whitening.dim)
        self._rank = min(max_rank, most, max(1, int((strength > INFORMED).sum())))
        unit = torch.eye(self.rank, whitening.dim).to(amplitude)
        modes = CosineModes(whitening, self.order, unit[:, : self.rank])
        self.fields = whitening.color(modes.lift(unit))
        if (
            operator_params(self._physics, params)
            or noise_level(self._likelihood, draws, amplitude).shape[1] > 1
        ):
            return
        one = rows_of(draws, slice(1))
        values, rotation = torch.linalg.eigh(self._hessians(one, 1).squeeze(0))
        values = values.clamp_min(0) / factor[0].double()
        self.strength[: self.rank] = values.flip(0).to(amplitude)
        self.rotation = rotation.flip(1).to(amplitude).contiguous()
        self.fields = amplitude.new_zeros(0)

    def _hessians(self, params: Mapping[str, Tensor], num: int) -> Tensor:
        """``W^T W`` among the first modes, ``(n, rank, rank)``."""
        rank, found = self.rank or len(self.fields), []
        for rows in chunks(num, rank * self._whitening.dim):
            size = rows.stop - rows.start
            own = rows_of(params, rows)
            repeated = {name: value.repeat_interleave(rank, 0) for name, value in own.items()}
            fields = self.fields.repeat(size, *[1] * (self.fields.dim() - 1))
            data = apply(self._physics, fields, repeated).unflatten(0, (size, rank))
            w = data / noise_level(self._likelihood, own, data).unsqueeze(1)
            found.append((w @ w.mT).double())
        return torch.cat(found)

    def _widened(
        self, strength: Tensor, params: Mapping[str, Tensor], factor: Tensor, signs: Tensor
    ) -> Tensor:
        """Less strength, so that each mode has the variance that it has on average in the
        posterior, the others being unknown too: ``V^T (I + W^T W)^{-1} V`` on the diagonal."""
        signs, factor = signs[:SOLVED], factor[:SOLVED]
        own = rows_of(params, slice(SOLVED))
        whitening, scale = self._whitening, (1 + factor * strength).rsqrt()

        def precondition(r: Tensor) -> Tensor:
            return whitening.from_modes(scale.square() * whitening.modes(r))

        right = whitening.from_modes(signs / scale)
        x = solve(lambda v: v + self.products(v, own), right, precondition)
        ratio = self._settled(signs * whitening.modes(x) / scale).clamp_min(1)
        return ((1 + strength) / ratio - 1).clamp_min(0)

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
            own = rows_of(params, rows)
            fields = field.expand(rows.stop - rows.start, *field.shape)
            data = apply(self._physics, fields, own)
            found.append((data / noise_level(self._likelihood, own, like)).square().sum(1))
        return torch.cat(found)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        squares = self._squares(params, y).unsqueeze(1)
        factor = squares / self.level.clamp_min(torch.finfo(y.dtype).tiny)
        strength, rotation = factor * self.strength, self.rotation
        if not rotation.numel():
            values, vectors = torch.linalg.eigh(self._hessians(params, len(y)))
            first, rotation = values.clamp_min(0).flip(-1).to(y), vectors.flip(-1).to(y)
            strength = torch.cat([first, strength[:, first.shape[1] :].expand(len(y), -1)], 1)
        scale = (1 + strength).rsqrt().expand(len(y), -1)
        modes = CosineModes(self._whitening, self.order, rotation)
        centred = ContractedNormal(y.new_zeros(y.shape[0], self._whitening.dim), modes, scale)
        return ContractedNormal(self.mean(y, params, centred), modes, scale, validate_args=False)
