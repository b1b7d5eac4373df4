r"""Kernel Stein discrepancy: can these draws be told from the posterior, without a single truth?

With the score :math:`s(u) = \nabla \log p(u \mid y)` and the inverse multiquadric kernel
:math:`k(u, v) = (1 + |u - v|^2 / \ell^2)^{-1/2}` the Stein kernel

.. math:: h(u, v) = s(u) \cdot s(v)\, k + s(u) \cdot \nabla_v k + s(v) \cdot \nabla_u k
          + \operatorname{tr} \nabla_u \nabla_v k

has mean zero under the posterior, whose constant it does not need. The statistic is the mean of h
over pairs of different draws; its law for draws of the posterior comes from multinomial bootstrap
weights (Liu, Lee and Jordan 2016, https://arxiv.org/abs/1602.03253, section 4; kernel: Gorham and
Mackey 2017, https://arxiv.org/abs/1703.01717).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.target import Target

__all__ = ["ksd", "stein_test"]


@checked("correction", vfm="VariationalFlowMap")
@torch.no_grad()
def ksd(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1000,
    *,
    num_bootstrap: int = 1000,
    seed: int | None = None,
    **params: Tensor,
) -> dict[str, Tensor]:
    """Test the map's draws against the posterior of each observation.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: draws for each observation.
        num_bootstrap: bootstrap replicates.
        seed: of draws and bootstrap; the global generator without one.
        params: parameters of the observations.

    Returns:
        ``ksd``, the statistic, and ``p_value``, each ``(n,)`` or a scalar: small if the draws are
        not the posterior's.

    Raises:
        ValueError: the posterior's density is unknown (:class:`Target`).
    """
    y, params, batched = vfm.batch(y, params)
    with seeded(seed):
        target = Target(vfm, y, params)
        u = target.sample(num_samples)
        figures = [
            stein_test(u[:, i], score, num_bootstrap)
            for i, score in enumerate(target.score(u)[1].unbind(1))
        ]
    result = {
        "ksd": torch.stack([a for a, _ in figures]),
        "p_value": torch.stack([b for _, b in figures]),
    }
    return result if batched else {name: value.squeeze(0) for name, value in result.items()}


def stein_test(
    samples: Tensor, score: Tensor, num_bootstrap: int = 1000, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Statistic and p-value of ``samples (num, d)`` with the target's ``score (num, d)``.

    Args:
        samples: the draws.
        score: gradient of the target's log density at them.
        num_bootstrap: bootstrap replicates.
        scale: length of the kernel; the median distance between draws by default.
    """
    num = samples.shape[0]
    squared = torch.cdist(samples, samples).square()
    if scale is None:
        scale = (
            float(squared[~torch.eye(num, dtype=torch.bool, device=squared.device)].median())
            ** 0.5
        )
    base = 1 + squared / scale**2
    kernel = base.rsqrt()
    # grad_u k = -(u - v) / scale^2 base^(-3/2), and grad_v k is its negative.
    slope = base.pow(-1.5) / scale**2
    inner = score @ samples.T
    own = (score * samples).sum(1)
    difference = own[:, None] - inner  # s(u) . (u - v)
    trace = slope * samples.shape[1] - 3 * squared / scale**4 * base.pow(-2.5)
    h = (score @ score.T) * kernel + (difference + difference.T) * slope + trace
    h = h.fill_diagonal_(0)
    statistic = h.sum() / (num * (num - 1))
    counts = torch.multinomial(
        torch.full((num_bootstrap, num), 1 / num, device=h.device), num, replacement=True
    )
    weights = torch.zeros(num_bootstrap, num, dtype=h.dtype, device=h.device)
    weights.scatter_add_(1, counts, torch.ones_like(counts, dtype=h.dtype))
    weights = weights / num - 1 / num
    replicates = ((weights @ h) * weights).sum(1)
    # The statistic in the units of the replicates, a V-statistic without its diagonal.
    larger = (replicates >= h.sum() / num**2).sum()
    return statistic, (1 + larger) / (1 + num_bootstrap)
