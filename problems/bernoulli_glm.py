r"""bernoulli-glm: the filter of a neuron from the sum of what preceded its spikes.

.. math:: \theta = (\beta, f) \sim \mathcal N(0, B^{-1}), \quad
          s_t \sim \mathrm{Bernoulli}(\mathrm{sigmoid}((X\theta)_t)), \quad y = X^\top s.

The rows of the design ``X`` (100 x 10) are a one and the last nine values of a white-noise
stimulus. ``B`` is 1/2 for the offset and :math:`F^\top F` for the filter, :math:`F = D D +
\mathrm{diag}(\sqrt{i/9})_{i=0..8}`, :math:`D` first differences: smooth filters that fade out. The
datum is a sufficient statistic, so that in :math:`\theta`

.. math:: \log p(y \mid \theta) = \theta^\top y - \sum_t \log(1 + e^{(X\theta)_t})
          + \text{const}(y):

the posterior is log-concave and has no closed form.

Source: tasks T.5 and T.6 of Lueckmann et al. 2021 (https://arxiv.org/abs/2101.04653). The
benchmark's own design is a file, which ``design`` reads; the default one is drawn from a seed by
the same rule.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.distributions import MultivariateNormal, TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import softplus

from vfm_inverse.problem.inverse_problem import InverseProblem

__all__ = ["SpikeSum", "draw_design", "filter_prior", "make"]

BINS, LAGS = 100, 9


def make(design: str | None = None, seed: int = 0) -> InverseProblem:
    """Build the problem: ``theta`` ``(10,)``, ``y`` ``(10,)``.

    Args:
        design: path of a file of comma-separated numbers without a header, a row a time bin, the
            first column the offset's ones; as many unknowns as columns. Drawn from ``seed``
            without it.
        seed: of the stimulus.

    Raises:
        ValueError: the file does not hold a table of finite numbers with two columns or more.
    """
    rows = draw_design(seed) if design is None else _read(design)
    return InverseProblem(
        prior=filter_prior(rows.shape[1] - 1),
        likelihood=partial(spike_sum, rows=rows),
        units="1",
        obs_units="1",
    )


def spike_sum(theta: Tensor, rows: Tensor) -> SpikeSum:
    """Law of the statistics given filters ``theta (*batch, lags)``."""
    return SpikeSum(theta, rows.to(theta))


def draw_design(seed: int) -> Tensor:
    """Ones and a white-noise stimulus with its last values before time zero, ``(100, 10)``."""
    generator = torch.Generator().manual_seed(seed)
    stimulus = torch.cat([torch.zeros(LAGS - 1), torch.randn(BINS, generator=generator)])
    return torch.cat([torch.ones(BINS, 1), stimulus.unfold(0, LAGS, 1).flip(1)], 1)


def filter_prior(lags: int) -> MultivariateNormal:
    """The prior of an offset and a smooth filter, ``(1 + lags,)``."""
    difference = torch.eye(lags, dtype=torch.float64)
    difference -= torch.diag(torch.ones(lags - 1, dtype=torch.float64), -1)
    fading = torch.arange(lags, dtype=torch.float64) / lags
    f = difference @ difference + fading.sqrt().diag()
    covariance = torch.block_diag(torch.full((1, 1), 2.0).double(), torch.linalg.inv(f.T @ f))
    covariance = (covariance + covariance.T) / 2
    return MultivariateNormal(torch.zeros(1 + lags), covariance.to(torch.get_default_dtype()))


class SpikeSum(TorchDistribution):
    """Law of ``X^T s`` for ``theta`` ``(*, d)`` and the design ``X`` ``(bins, d)``."""

    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}

    def __init__(self, theta: Tensor, design: Tensor) -> None:
        self.theta, self.design = theta, design
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``(*sample_shape, *, d)``: spikes in every bin, then their sum."""
        with torch.no_grad():
            rate = torch.sigmoid(self.theta @ self.design.T)
            spikes = torch.bernoulli(rate.expand(*sample_shape, *rate.shape))
            return spikes @ self.design

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-likelihood of ``theta`` at the statistic ``(*, d)``: exact in ``theta``.

        It is not normalised in ``value``, for how many spike trains have that sum is left out: a
        constant of the posterior, but no evidence can be had from it.
        """
        return (self.theta * value).sum(-1) - softplus(self.theta @ self.design.T).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SpikeSum:
        """The same law over a larger batch."""
        return SpikeSum(self.theta.expand(torch.Size(batch_shape) + self.event_shape), self.design)


def _read(path: str) -> Tensor:
    values = np.loadtxt(path, delimiter=",", ndmin=2)  # a ValueError where it is no table
    if values.shape[1] < 2 or not np.isfinite(values).all():
        raise ValueError(
            "'design' must hold finite numbers in two columns or more; "
            f"{path} has shape {values.shape}"
        )
    return torch.from_numpy(values).to(torch.get_default_dtype())
