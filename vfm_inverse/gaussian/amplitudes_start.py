r"""The start that knows several amplitudes: a mixture of Gaussian posteriors.

For linear physics, Gaussian noise and a prior that is the mixture of
:mod:`vfm_inverse.gaussian.amplitudes`, with the precision :math:`G = B^\top \Sigma^{-1} B` of the
data, :math:`B = A D S`, and :math:`g = B^\top \Sigma^{-1} (y - A m)`,

.. math:: p(\xi \mid y, k) = \mathcal N\bigl(P_k^{-1} g,\; P_k^{-1}\bigr), \qquad
          P_k = D_k^{-1} + G,

.. math:: p(k \mid y) \propto w_k\, \mathcal N\bigl(y; A m, B D_k B^\top + \Sigma\bigr)
          \propto w_k \exp\Bigl(\tfrac12 g^\top P_k^{-1} g
          - \tfrac12 \log\det P_k - \tfrac12 \log\det D_k\Bigr).

Where the operator is fixed, one eigendecomposition of :math:`D_k^{1/2} G D_k^{1/2}` for each class
serves every observation and noise level. Where it comes with the observation, each has a Cholesky
factor for each class, and one is kept for those that it allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from vfm_inverse.gaussian.amplitude_mixture import RARE, AmplitudeMixture, Part, Rescaled
from vfm_inverse.gaussian.amplitudes import Amplitudes
from vfm_inverse.gaussian.matrix_free import apply, chunks, noise_level
from vfm_inverse.gaussian.normals import ContractedNormal
from vfm_inverse.gaussian.operator_start import (
    CHUNK,
    VaryingOperatorStart,
    operator_params,
)
from vfm_inverse.gaussian.precise_normal import PreciseNormal
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.runtime.arrays import rows_of

__all__ = ["AmplitudesStart"]


class _Fixed(NamedTuple):
    """What a fixed operator says of fields, for noise of level 1.

    Attributes:
        columns: ``B Q``, ``(m, d)``.
        offset: data of the prior mean, ``(m,)``.
        classes: for each, ``D^{1/2}`` and its inverse, the informed directions and ``D^{1/2}`` of
            them, and the eigenvalues.
    """

    columns: Tensor
    offset: Tensor
    classes: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


class AmplitudesStart(VaryingOperatorStart):
    """For a prior that is known by samples.

    Args:
        physics, likelihood, whitening, num_data: as for :class:`VaryingOperatorStart`.
    """

    def __init__(
        self, physics: LinearPhysics, likelihood: Likelihood, whitening: Whitening, num_data: int
    ) -> None:
        super().__init__(physics, likelihood, whitening, num_data)
        self.amplitudes = Amplitudes()
        self._fixed: _Fixed | None = None

    def fit(self, x: Tensor, y: Tensor, params: Mapping[str, Tensor], max_rank: int) -> None:
        """Find the classes among the fields."""
        self.amplitudes.fit(self._whitening.whiten(x), self._whitening)
        self._fixed = None

    def forward(self, y: Tensor, params: Mapping[str, Tensor]) -> AmplitudeMixture:
        """The mixture of posteriors of observations ``(n, *obs)``."""
        noise = noise_level(self._likelihood, params, y)
        if noise.shape[1] == 1 and not operator_params(self._physics, params):
            return self._of_fixed(y, params, noise)
        return self._of_varying(y, params)

    @torch.no_grad()
    def _decomposed(self, params: Mapping[str, Tensor]) -> _Fixed:
        """Decompose once, from the whitening and the classes: nothing of it is stored."""
        like = self.amplitudes.basis
        if self._fixed is not None and self._fixed.offset.device == like.device:
            return self._fixed
        one, classes = rows_of(params, slice(1)), self.amplitudes
        fields = (self._whitening.color(part) for part in classes.basis.T.split(CHUNK))
        columns = torch.cat([apply(self._physics, part, one) for part in fields]).T.double()
        mean = self._whitening.unwhiten(torch.zeros_like(like[:1]))
        gram, basis, found = columns.T @ columns, classes.basis.double(), []
        for k, std in enumerate(classes.stds().double()):
            squares, vectors = torch.linalg.eigh(std[:, None] * gram * std)
            told = 1e-10 if like.dtype == torch.float32 else 1e-14
            informed = squares > told * squares[-1]
            squares, vectors = squares[informed], vectors[:, informed]
            root, inverse = (classes.power_of_root(k, power) for power in (0.5, -0.5))
            own, lifted = basis @ vectors, basis @ (std[:, None] * vectors)
            found.append((root, inverse, own.to(like), lifted.to(like), squares))
        self._fixed = _Fixed(columns, apply(self._physics, mean, one)[0], found)
        return self._fixed

    def _of_fixed(
        self, y: Tensor, params: Mapping[str, Tensor], noise: Tensor
    ) -> AmplitudeMixture:
        fixed, classes = self._decomposed(params), self.amplitudes
        precision = noise.double().square().reciprocal().expand(len(y), 1)
        pull = precision * ((y.flatten(1) - fixed.offset).double() @ fixed.columns)
        pull = (pull @ classes.basis.double().T).to(y)
        weights, along = [], []
        for k, (_, _, _, lifted, squares) in enumerate(fixed.classes):
            total = 1 + precision * squares
            h = (pull @ lifted).double()
            along.append((h / total, total.rsqrt()))
            evidence = 0.5 * (h.square() / total - total.log()).sum(1)
            weights.append(evidence + classes.weights[k].log())
        probabilities = kept(torch.stack(weights, 1)).to(y)
        parts = []
        for k, (root, inverse, own, lifted, _) in enumerate(fixed.classes):
            rows = probabilities[:, k].nonzero()[:, 0]
            mean, scale = (part[rows].to(y) for part in along[k])
            scale = scale.expand_as(mean)
            law = ContractedNormal(mean @ own.T, own, scale, validate_args=False)
            log_det = classes.stds()[k].log().sum()
            parts.append(Part(rows, Rescaled(law, root, inverse, lifted, log_det)))
        return AmplitudeMixture(classes, probabilities, parts)

    def _of_varying(self, y: Tensor, params: Mapping[str, Tensor]) -> AmplitudeMixture:
        classes = self.amplitudes
        inverses = [classes.power_of_root(k, -1.0).double() for k in range(len(classes.weights))]
        log_dets = 2 * classes.stds().double().log().sum(1)
        weights: list[Tensor] = []
        found: list[list[list[Tensor]]] = [[[], [], []] for _ in inverses]
        for rows in chunks(len(y), self._num_data * self._whitening.dim):
            pull, gram = self._precision(y[rows], rows_of(params, rows))
            terms = []
            for k, inverse in enumerate(inverses):
                factor = torch.linalg.cholesky(inverse + gram)
                half = torch.linalg.solve_triangular(factor, pull.unsqueeze(-1), upper=False)
                log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
                terms.append(0.5 * (half.square().sum((-2, -1)) - log_det - log_dets[k]))
            probabilities = kept(torch.stack(terms, 1) + classes.weights.double().log())
            weights.append(probabilities.to(y))
            for k, inverse in enumerate(inverses):
                mine = probabilities[:, k].nonzero()[:, 0]
                if not len(mine):
                    continue
                factor = torch.linalg.cholesky(inverse + gram[mine])
                loc = torch.cholesky_solve(pull[mine].unsqueeze(-1), factor).squeeze(-1)
                for store, value in zip(found[k], (mine + rows.start, loc, factor), strict=True):
                    store.append(value.to(y) if value.is_floating_point() else value)
        dim, parts = self._whitening.dim, []
        none = [y.new_zeros(0, dtype=torch.int64), y.new_zeros(0, dim), y.new_zeros(0, dim, dim)]
        for stores in found:
            own, loc, factor = (
                torch.cat([*store, one]) for store, one in zip(stores, none, strict=True)
            )
            parts.append(Part(own, PreciseNormal(loc, factor)))
        return AmplitudeMixture(classes, torch.cat(weights), parts)

    def _precision(self, y: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``g (n, d)`` and ``G (n, d, d)`` of each observation, in double precision."""
        residual, w = self._in_noise(y, params)
        return (residual.unsqueeze(-2) @ w).squeeze(-2), w.mT @ w


def kept(log_weights: Tensor) -> Tensor:
    """Probabilities ``(n, K)`` from their logs up to a constant; the rare are zero."""
    probabilities = log_weights.softmax(1)
    probabilities = torch.where(probabilities > RARE, probabilities, 0.0)
    return probabilities / probabilities.sum(1, keepdim=True)
