r"""The Gaussian posterior in closed form, for linear physics with Gaussian noise.

In whitened coordinates :math:`x = m + D S\xi` the observation is :math:`y - A m = B \xi +
\sigma\varepsilon` with :math:`B = A D S`, and the posterior is a
:class:`~vfm_inverse.gaussian.normals.ContractedNormal` with

.. math:: B = U \operatorname{diag}(s) V^\top, \quad
   \lambda_i = \frac{\sigma^2}{\sigma^2 + s_i^2}, \quad
   V^\top \mu = \frac{s}{\sigma^2 + s^2} U^\top (y - A m)

(Wiener filter, kriging). Where the operator changes with the observation, and there are at most a
few hundred data, the same comes from the m x m Gram matrix of each, with :math:`W = B / \sigma`
row by row,

.. math:: W W^\top = U \operatorname{diag}(s^2) U^\top, \quad V = W^\top U / s, \quad
   \lambda_i = \frac{1}{1 + s_i^2}, \quad
   V^\top \mu = \frac{s}{1 + s^2} U^\top \sigma^{-1} (y - A m).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from vfm_inverse.gaussian.matrix_free import (
    NUMBERS,
    apply,
    chunks,
    noise_level,
    normal_products,
    posterior_mean,
)
from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.physics_frame import StartLaw
from vfm_inverse.gaussian.whitening import DENSE_LIMIT, Whitening
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.scaling import FittedBuffers

__all__ = [
    "FixedOperatorStart",
    "GaussianStart",
    "LinearStart",
    "SharedBasis",
    "VaryingOperatorStart",
    "apply",
    "is_conjugate",
    "noise_level",
    "operator_params",
]

CHUNK = 256
"""Fields sent through the physics at once while a start is fitted."""

GRAM_LIMIT = 256
"""Most data for which each observation has its own eigenvalue problem."""

FEW = 32
"""Draws of the parameters that shared directions are fitted on."""


RESOLVED = 8
"""Roundings of the strongest singular value below which a direction is none."""


class GaussianStart(FittedBuffers, ABC):
    """``forward(y, params)``: the approximation of ``p(xi | y)``, in whitened coordinates; a
    Gaussian, but for the law with the physics in its frame."""

    FITTED: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        for name in self.FITTED:
            self.register_buffer(name, torch.empty(0))
        for name in self.LATER:
            self.register_buffer(name, torch.ones(()))

    @property
    @abstractmethod
    def rank(self) -> int:
        """Largest number of informed directions."""

    @abstractmethod
    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Fit on simulations.

        Args:
            x: fields ``(n, *event)``.
            y: observations ``(n, *obs)``.
            params: their parameters, each ``(n, *shape)``.
            max_rank: most directions kept, where they are not all that the data inform.
        """

    @abstractmethod
    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> StartLaw:
        """The approximate posterior of observations ``(n, *obs)``."""


class SharedBasis(GaussianStart):
    """With informed directions ``basis (d, rank)`` that were fitted once."""

    basis: Tensor

    @property
    def rank(self) -> int:
        """Number of informed directions."""
        return self.basis.shape[1]


class LinearStart(GaussianStart):
    """In closed form, from linear physics and Gaussian noise.

    Args:
        physics: linear physics.
        likelihood: gives the noise level of an observation.
        whitening: coordinates of the start.
    """

    _physics: LinearPhysics
    _whitening: Whitening

    def __init__(
        self, physics: LinearPhysics, likelihood: Likelihood, whitening: Whitening
    ) -> None:
        super().__init__()
        # Not registered: the physics is the problem's, neither trained nor stored here, and the
        # whitening is the map's.
        object.__setattr__(self, "_physics", physics)
        object.__setattr__(self, "_whitening", whitening)
        self._likelihood = likelihood

    def products(self, xi: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """``W^T W xi`` for vectors ``(n, d)``, each with parameters of its own."""
        return normal_products(self._physics, self._likelihood, self._whitening, xi, params)

    def mean(self, y: Tensor, params: Mapping[str, Tensor], centred: ContractedNormal) -> Tensor:
        """The posterior mean ``(n, d)``, exact, from an approximate covariance."""
        return posterior_mean(self._physics, self._likelihood, self._whitening, y, params, centred)


class FixedOperatorStart(LinearStart, SharedBasis):
    """Exact for one linear operator, Gaussian noise and a Gaussian prior, at any noise level."""

    FITTED = ("left", "basis", "singular", "offset")
    left: Tensor
    singular: Tensor
    offset: Tensor

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Take the singular value decomposition of ``B``; ``params`` may hold noise levels
        only."""
        whitening = self._whitening
        like = whitening.mean
        if whitening.dim > DENSE_LIMIT:
            return self._fit_rows(rows_of(params, slice(1)))
        identity = torch.eye(whitening.dim, dtype=like.dtype, device=like.device)
        one = rows_of(params, slice(1))
        columns = torch.cat(
            [apply(self._physics, whitening.color(c), one) for c in identity.split(CHUNK)]
        )
        left, singular, right = torch.linalg.svd(columns.T.double(), full_matrices=False)
        # What moves the data by less, against the strongest, than rounding does (in single
        # precision a millionth) is uninformed.
        informed = singular > RESOLVED * torch.finfo(like.dtype).eps * singular[0]
        self.left, self.basis = left[:, informed].to(like), right[informed].T.contiguous().to(like)
        self.singular = singular[informed].to(like)
        mean = whitening.unwhiten(torch.zeros_like(like))
        self.offset = apply(self._physics, mean[None], one)[0]

    def _fit_rows(self, one: Mapping[str, Tensor]) -> None:
        """The same from the m x m Gram matrix, where there are few data of a large field."""
        whitening, like = self._whitening, self._whitening.mean
        mean = whitening.unwhiten(torch.zeros_like(like))
        self.offset = apply(self._physics, mean[None], one)[0]
        num = len(self.offset)
        rows = like.new_empty(num, whitening.dim)
        unit = torch.eye(num, dtype=like.dtype, device=like.device)
        for part in chunks(num, whitening.dim):
            with torch.enable_grad():
                xi = torch.zeros_like(rows[part], requires_grad=True)
                data = apply(self._physics, whitening.color(xi), one)
                (rows[part],) = torch.autograd.grad(data, xi, unit[part])
        gram = like.new_zeros(num, num, dtype=torch.float64)
        for columns in rows.split(NUMBERS // num, 1):
            gram += columns.double() @ columns.double().T
        squares, left = torch.linalg.eigh(gram)
        told = 1e-10 if like.dtype == torch.float32 else 1e-14
        informed = squares > told * squares[-1]
        squares, left = squares[informed].flip(0), left[:, informed].flip(1)
        self.singular, self.left = squares.sqrt().to(like), left.to(like).contiguous()
        self.basis = rows.T @ (left * squares.rsqrt()).to(like)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        noise = noise_level(self._likelihood, params, y)
        # In units of the noise, and squared in double precision: no unit leaves the range.
        strength = (self.singular / noise).double()
        total = 1 + strength.square()
        residual = ((y.flatten(1) - self.offset) / noise) @ self.left
        coefficients = (strength / total).to(y) * residual
        return ContractedNormal(
            coefficients @ self.basis.T,
            self.basis,
            total.rsqrt().to(y).expand_as(coefficients),
            validate_args=False,
        )


class VaryingOperatorStart(LinearStart):
    """As exact where masks, stations, kernels or noise levels per datum come with each
    observation.

    Informed directions are ordered by strength, the strongest last; each points to where its
    observation moves the mean. Where there are fewer than ``rank``, the rest are zero columns of
    scale 1, which change nothing.

    Args:
        physics, likelihood, whitening: as for every :class:`LinearStart`.
        num_data: m, numbers in one observation.
    """

    FITTED = ()
    _num_data: int

    def __init__(
        self, physics: LinearPhysics, likelihood: Likelihood, whitening: Whitening, num_data: int
    ) -> None:
        super().__init__(physics, likelihood, whitening)
        self._num_data = num_data

    @property
    def rank(self) -> int:
        """Largest number of informed directions."""
        return min(self._num_data, self._whitening.dim)

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Nothing: each observation has directions of its own."""

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        parts = []
        for rows in chunks(len(y), self._num_data * self._whitening.dim):
            part = rows_of(params, rows)
            parts.append(self._posterior(y[rows], part))
        loc, basis, scale = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return ContractedNormal(loc, basis, scale, validate_args=False)

    def _posterior(self, y: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``(n, d)``, directions ``(n, d, rank)`` and scales ``(n, rank)``."""
        residual, w = self._in_noise(y, params)
        squares, left = (part[..., -self.rank :] for part in torch.linalg.eigh(w @ w.mT))
        coefficients = (left.mT @ residual.unsqueeze(-1)).squeeze(-1)
        # Squares are told apart to what rounding leaves (in single precision 1e-10 of the largest,
        # in double 1e-14), and matter against a unit of noise.
        told = 1e-10 if y.dtype == torch.float32 else 1e-14
        informed = squares > (told * squares[:, -1:]).clamp_min(1e-7)
        squares = torch.where(informed, squares, 0.0)
        sign = torch.where(coefficients < 0, -1.0, 1.0)
        inverse = torch.where(informed, sign * squares.rsqrt(), 0.0)
        basis = w.mT @ (left * inverse.unsqueeze(-2))
        along = squares * inverse * coefficients / (1 + squares)
        loc = (basis @ along.unsqueeze(-1)).squeeze(-1)
        return loc.to(y), basis.to(y), (1 + squares).rsqrt().to(y)

    def _in_noise(self, y: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Data without those of the prior mean, ``(n, m)``, and ``B (n, m, d)``, in units of the
        noise and double precision."""
        weight = noise_level(self._likelihood, params, y).double().reciprocal()
        mean, w = self._linearize(y, params)
        w = weight.unsqueeze(-1) * w.double()
        residual = weight * (y.flatten(1) - mean).double()
        # What is written where a mask hides the datum must not count, not even in rounding.
        return torch.where(w.any(-1), residual, 0.0), w

    @torch.enable_grad()
    def _linearize(self, y: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Data of the prior mean, ``(n, m)``, and ``B`` of each observation, ``(n, m, d)``."""
        n, m = y.shape[0], self._num_data
        xi = y.new_zeros(n * m, self._whitening.dim, requires_grad=True)
        repeated = {name: value.repeat_interleave(m, 0) for name, value in params.items()}
        data = apply(self._physics, self._whitening.unwhiten(xi), repeated)
        # Row j of B is the gradient of datum j, so every datum gets a field of its own.
        unit = torch.eye(m, dtype=y.dtype, device=y.device).repeat(n, 1)
        (rows,) = torch.autograd.grad(data, xi, unit)
        return data.detach()[::m], rows.unflatten(0, (n, m))


def operator_params(physics: Physics, params: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that belong to the operator rather than to its noise model."""
    return params.keys() - physics.noise_model.state_dict().keys()


def is_conjugate(problem: InverseProblem) -> bool:
    """Whether the posterior is Gaussian, and a start exact: linear physics, Gaussian noise of
    known size, and a prior that is stated as a Gaussian."""
    physics, likelihood = problem.physics, problem.likelihood
    if not (isinstance(physics, LinearPhysics) and isinstance(likelihood, Likelihood)):
        return False
    params = problem.simulate(2, seed=0)[2] if problem.has_gaussian_prior else {}
    return problem.has_gaussian_prior and likelihood.noise_scale(**params) is not None
