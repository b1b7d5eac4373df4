r"""The Gaussian posterior for many data: on the leading directions of an averaged Hessian.

Directions :math:`V` and contractions are those of :math:`\mathbb E[W^\top W]` (Cui et al. 2014,
https://arxiv.org/abs/1403.4680), and what they leave out counts as noise. That law preconditions
conjugate gradients (Hestenes and Stiefel 1952) for the mean,

.. math:: (I + W^\top W)\, \mu = W^\top \sigma^{-1} (y - A m),

which a few products with the operator make exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vfm_inverse.gaussian.matrix_free import (
    apply,
    leading,
    noise_level,
)
from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.operator_start import (
    CHUNK,
    FEW,
    LinearStart,
    SharedBasis,
    operator_params,
)
from vfm_inverse.gaussian.whitening import DENSE_LIMIT
from vfm_inverse.runtime.arrays import rows_of

__all__ = ["TruncatedOperatorStart"]


AVERAGED = 8
"""Draws of the parameters that the Hessian of a large field is averaged over."""


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

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Average the Hessian over a few draws of the parameters and keep its leading
        directions."""
        params = rows_of(params, slice(FEW))
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
            one = rows_of(params, slice(i, i + 1))
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
        own = rows_of(params, slice(num))
        data = apply(self._physics, field.expand(num, *field.shape[1:]), own)
        if fixed:
            first = rows_of(params, slice(1))
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
