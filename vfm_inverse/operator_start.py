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
from collections.abc import Callable, Mapping

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from vfm_inverse.gaussian import ContractedNormal
from vfm_inverse.likelihood import Likelihood
from vfm_inverse.scaling import FittedBuffers
from vfm_inverse.whitening import Whitening

__all__ = [
    "FixedOperatorStart",
    "GaussianStart",
    "LinearStart",
    "SharedBasis",
    "TruncatedOperatorStart",
    "VaryingOperatorStart",
    "apply",
    "noise_level",
]

CHUNK = 256
"""Fields sent through the physics at once while a start is fitted."""

GRAM_LIMIT = 256
"""Most data for which each observation has its own eigenvalue problem."""

GRAM_NUMBERS = 2**23
"""Numbers in the operators of the observations that are decomposed at once: bounds memory."""

MEAN_TOLERANCE, MEAN_STEPS = 1e-2, 100
"""Square of the mean's error, over the whole field and in posterior standard deviations, at which
conjugate gradients stop; and the most steps they take."""

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
        rows = max(1, GRAM_NUMBERS // (self._num_data * self._whitening.dim))
        parts = []
        for i in range(0, y.shape[0], rows):
            part = {name: value[i : i + rows] for name, value in params.items()}
            parts.append(self._posterior(y[i : i + rows], part))
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
    LATER = ("noise",)
    fields: Tensor
    truncation: Tensor
    noise: Tensor

    def fit(self, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Average the Hessian over the given draws of the parameters and keep its leading
        directions."""
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
        basis = vectors[:, -rank:]
        # Variance of an observed datum that the kept directions do not explain, over its noise.
        self.truncation = (values[:-rank].clamp_min(0).sum() / max(observed, 1.0)).to(
            whitening.mean
        )
        noise = noise_level(self._likelihood, params, hessian).square().mean(0).sqrt()
        self.noise = noise.to(whitening.mean)
        self.basis = basis.to(whitening.mean).contiguous()
        self.fields = whitening.color(self.basis.T)

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> ContractedNormal:
        """The Gaussian posterior of observations ``(n, *obs)``."""
        rows, rank = y.shape[0], self.rank
        repeated = {name: value.repeat_interleave(rank, 0) for name, value in params.items()}
        fields = self.fields.repeat(rows, *[1] * (self.fields.dim() - 1))
        data = apply(self._physics, fields, repeated).unflatten(0, (rows, rank))
        noise = noise_level(self._likelihood, params, y).double()
        total = noise.square() + self.truncation.double() * self.noise.double().square()
        g = data.double() * total.rsqrt().unsqueeze(1)
        values, rotation = torch.linalg.eigh(g @ g.mT)
        scale = (1 + values.clamp_min(0)).rsqrt().to(y)
        basis = self.basis @ rotation.to(y)
        prior = ContractedNormal(y.new_zeros(rows, len(basis[0])), basis, scale, False)
        return ContractedNormal(self._mean(y, params, prior), basis, scale, validate_args=False)

    @torch.enable_grad()
    def _mean(self, y: Tensor, params: Mapping[str, Tensor], centred: ContractedNormal) -> Tensor:
        """The posterior mean ``(n, d)``, from the approximate covariance of ``centred``."""
        noise = noise_level(self._likelihood, params, y)
        xi = torch.zeros_like(centred.loc, requires_grad=True)
        data = apply(self._physics, self._whitening.unwhiten(xi), params)

        def adjoint(residual: Tensor) -> Tensor:
            """Of a residual in units of the noise."""
            return torch.autograd.grad(data, xi, residual / noise, retain_graph=True)[0]

        def hessian(v: Tensor) -> Tensor:
            with torch.no_grad():
                moved = apply(self._physics, self._whitening.color(v), params)
            return v + adjoint(moved / noise)

        pull = adjoint((y.flatten(1) - data.detach()) / noise)
        with torch.no_grad():
            covariance = centred.scale.square()

            def precondition(r: Tensor) -> Tensor:
                along = centred.project(r)
                rest = r - centred.lift(along)
                # Once more: what rounding left of it along precise directions outweighs them.
                rest = rest - centred.lift(centred.project(rest))
                return rest + centred.lift(covariance * along)

            return solve(hessian, pull, precondition)


def solve(
    operator: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Solutions ``(n, d)`` of ``operator(x) = right`` for symmetric positive operators, by
    preconditioned conjugate gradients."""
    x = precondition(right)
    residual = right - operator(x)
    direction = corrected = precondition(residual)
    size = (residual * corrected).sum(-1, keepdim=True)
    for _ in range(MEAN_STEPS):
        if float(size.max()) < MEAN_TOLERANCE:
            break
        moved = operator(direction)
        step = size / (direction * moved).sum(-1, keepdim=True).clamp_min(1e-30)
        x, residual = x + step * direction, residual - step * moved
        corrected = precondition(residual)
        before, size = size, (residual * corrected).sum(-1, keepdim=True)
        direction = corrected + size / before.clamp_min(1e-30) * direction
    return x


def noise_level(likelihood: Likelihood, params: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Standard deviation of Gaussian noise, ``(n or 1, m or 1)``: per observation, per datum, or
    for all."""
    sigma = likelihood.noise_scale(**params)
    if sigma is None:
        raise ValueError(f"'likelihood' must have Gaussian noise; got {likelihood!r}")
    rows = sigma.shape[0] if "sigma" in params else 1
    return sigma.to(like).reshape(rows, -1)


def apply(physics: Physics, x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """Noise-free flat data ``(n, m)`` of fields ``(n, *event)``; one set of parameters serves all
    fields."""
    params = {
        name: value.expand(x.shape[0], *value.shape[1:]) if value.shape[0] == 1 else value
        for name, value in params.items()
    }
    data: Tensor = physics.A(x, **params)
    return data.flatten(1)
