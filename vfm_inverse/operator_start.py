r"""The Gaussian posterior in closed form, for linear physics with Gaussian noise.

In whitened coordinates :math:`x = m + D S\xi` the observation is :math:`y - A m = B \xi +
\sigma\varepsilon` with :math:`B = A D S`, and the posterior is a
:class:`~vfm_inverse.gaussian.ContractedNormal` with

.. math:: B = U \operatorname{diag}(s) V^\top, \quad
   \lambda_i = \frac{\sigma^2}{\sigma^2 + s_i^2}, \quad
   V^\top \mu = \frac{s}{\sigma^2 + s^2} U^\top (y - A m)

(Wiener filter, kriging). Where the operator changes with the observation, and there are at most a
few hundred data, the same comes from the m x m Gram matrix of each, with :math:`W = B / \sigma`
row by row,

.. math:: W W^\top = U \operatorname{diag}(s^2) U^\top, \quad V = W^\top U / s, \quad
   \lambda_i = \frac{1}{1 + s_i^2}, \quad
   V^\top \mu = \frac{s}{1 + s^2} U^\top \sigma^{-1} (y - A m).

With more data, :math:`V` and :math:`\lambda` are restricted to the leading directions of the
averaged Hessian :math:`\mathbb E[W^\top W]` (Cui et al. 2014, https://arxiv.org/abs/1403.4680),
and what they leave out counts as noise. That law preconditions conjugate gradients (Hestenes and
Stiefel 1952) for the mean,

.. math:: (I + W^\top W)\, \mu = W^\top \sigma^{-1} (y - A m),

which a few products with the operator make exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.likelihood import Likelihood
from vfm_inverse.matrix_free import (
    NUMBERS,
    apply,
    chunks,
    leading,
    noise_level,
    normal_products,
    posterior_mean,
)
from vfm_inverse.scaling import FittedBuffers
from vfm_inverse.whitening import DENSE_LIMIT, Whitening

__all__ = [
    "FixedOperatorStart",
    "GaussianStart",
    "LinearStart",
    "SharedBasis",
    "TruncatedOperatorStart",
    "VaryingOperatorStart",
    "apply",
    "noise_level",
    "operator_params",
]

CHUNK = 256
"""Fields sent through the physics at once while a start is fitted."""

GRAM_LIMIT = 256
"""Most data for which each observation has its own eigenvalue problem."""

AVERAGED = 8
"""Draws of the parameters that the Hessian of a large field is averaged over."""

RESOLVED = 8
"""Roundings of the strongest singular value below which a direction is none."""


class GaussianStart(FittedBuffers, ABC):
    """``forward(y, params)``: the Gaussian approximation of ``p(xi | y)``, in whitened
    coordinates."""

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
    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""


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

    def fit(self, params: Mapping[str, Tensor]) -> None:
        """Take the singular value decomposition of ``B``; ``params`` may hold noise levels
        only."""
        whitening = self._whitening
        like = whitening.mean
        if whitening.dim > DENSE_LIMIT:
            return self._fit_rows({name: value[:1] for name, value in params.items()})
        identity = torch.eye(whitening.dim, dtype=like.dtype, device=like.device)
        one = {name: value[:1] for name, value in params.items()}
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

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        parts = []
        for rows in chunks(len(y), self._num_data * self._whitening.dim):
            part = {name: value[rows] for name, value in params.items()}
            parts.append(self._posterior(y[rows], part))
        loc, basis, scale = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return ContractedNormal(loc, basis, scale, validate_args=False)

    def _posterior(self, y: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``(n, d)``, directions ``(n, d, rank)`` and scales ``(n, rank)``."""
        weight = noise_level(self._likelihood, params, y).double().reciprocal()
        mean, w = self._linearize(y, params)
        w = weight.unsqueeze(-1) * w.double()
        residual = weight * (y.flatten(1) - mean).double()
        # What is written where a mask hides the datum must not count, not even in rounding.
        residual = torch.where(w.any(-1), residual, 0.0)
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


class TruncatedOperatorStart(LinearStart, SharedBasis):
    """For many data: the mean exact, the covariance on directions that all observations share.

    Exact for a linear-Gaussian problem when ``basis`` spans every direction that some operator
    informs; otherwise the directions left out keep the prior's variance, and count as white noise
    for the others.
    """

    FITTED = ("basis", "fields", "truncation")
    LATER = ("noise", "strength")
    fields: Tensor
    truncation: Tensor
    noise: Tensor
    strength: Tensor

    def fit(self, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Average the Hessian over the given draws of the parameters and keep its leading
        directions."""
        whitening = self._whitening
        noise = noise_level(self._likelihood, params, whitening.mean.double())
        self.noise = noise.square().mean(0).sqrt().to(whitening.mean)
        if whitening.dim > DENSE_LIMIT:
            basis, rest, observed = self._leading(params, max_rank)
        else:
            basis, rest, observed = self._decomposed(params, max_rank)
        # Variance of an observed datum that the kept directions do not explain, over its noise.
        self.truncation = (rest / max(observed, 1.0)).to(whitening.mean)
        self.basis = basis.to(whitening.mean).contiguous()
        if self.strength.dim() == 0:
            self.fields = whitening.color(self.basis.T)

    def _decomposed(
        self, params: Mapping[str, Tensor], max_rank: int
    ) -> tuple[Tensor, Tensor, float]:
        """Directions, eigenvalues of the others together, and data that are observed, from the
        d x d Hessian."""
        whitening = self._whitening
        dim, device = whitening.dim, whitening.mean.device
        identity = torch.eye(dim, dtype=whitening.mean.dtype, device=device)
        hessian = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        columns = whitening.color(identity)
        num = len(next(iter(params.values()))) if params else 1
        observed = 0.0
        for i in range(num):
            one = {name: value[i : i + 1] for name, value in params.items()}
            b = torch.cat([apply(self._physics, c, one) for c in columns.split(CHUNK)]).double()
            observed += float((b.abs().sum(0) > 0).sum()) / num
            b = b / noise_level(self._likelihood, one, b)
            hessian += b @ b.T / num
        values, vectors = torch.linalg.eigh(hessian)
        rank = min(max_rank, int((values > 1e-6 * values[-1]).sum()))
        return vectors[:, -rank:], values[:-rank].clamp_min(0).sum(), observed

    def _leading(
        self, params: Mapping[str, Tensor], max_rank: int
    ) -> tuple[Tensor, Tensor, float]:
        """The same by products, of a Hessian averaged over few draws."""
        whitening, like = self._whitening, self._whitening.mean
        fixed = self.noise.numel() == 1 and not operator_params(self._physics, params)
        num = 1 if fixed or not params else min(AVERAGED, len(next(iter(params.values()))))

        def product(xi: Tensor) -> Tensor:
            total = torch.zeros_like(xi)
            for i in range(num):
                one = {k: v[i : i + 1].expand(len(xi), *v.shape[1:]) for k, v in params.items()}
                total += self.products(xi, one) / num
            return total

        values, basis = leading(product, like, max_rank)
        keep = values > 1e-6 * values[0]
        basis = basis[:, keep]
        signs = torch.randint(2, (AVERAGED, whitening.dim)).to(like) * 2 - 1
        others = signs - (signs @ basis) @ basis.T
        rest = (others * product(others)).sum(1).double().mean().clamp_min(0)
        field = whitening.color(signs[:1])
        own = {name: value[:num] for name, value in params.items()}
        data = apply(self._physics, field.expand(num, *field.shape[1:]), own)
        if fixed:
            first = {name: value[:1] for name, value in params.items()}
            square = noise_level(self._likelihood, first, values).square().squeeze()
            self.strength = (values[keep] * square).to(like)
            rest = rest * square / self.noise.square().squeeze()
        return basis, rest, float((data != 0).sum() / num)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        rows, rank = y.shape[0], self.rank
        noise = noise_level(self._likelihood, params, y).double()
        total = noise.square() + self.truncation.double() * self.noise.double().square()
        if self.strength.dim():
            # In units of the noise on average: no unit leaves the range.
            scale = (1 + self.strength.double() / total).rsqrt().to(y).expand(rows, -1)
            prior = ContractedNormal(y.new_zeros(rows, len(self.basis)), self.basis, scale, False)
            return ContractedNormal(self.mean(y, params, prior), self.basis, scale, False)
        repeated = {name: value.repeat_interleave(rank, 0) for name, value in params.items()}
        fields = self.fields.repeat(rows, *[1] * (self.fields.dim() - 1))
        data = apply(self._physics, fields, repeated).unflatten(0, (rows, rank))
        g = data.double() * total.rsqrt().unsqueeze(1)
        values, rotation = torch.linalg.eigh(g @ g.mT)
        scale = (1 + values.clamp_min(0)).rsqrt().to(y)
        basis = self.basis @ rotation.to(y)
        prior = ContractedNormal(y.new_zeros(rows, len(basis[0])), basis, scale, False)
        return ContractedNormal(self.mean(y, params, prior), basis, scale, validate_args=False)


def operator_params(physics: Physics, params: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that belong to the operator rather than to its noise model."""
    return params.keys() - physics.noise_model.state_dict().keys()
