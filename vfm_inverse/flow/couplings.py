r"""Which noise is paired with which data in the flow loss, besides independent pairs.

The law of the noise must stay the law that sampling starts from, whatever the pairing: a coupling
may permute a batch of N(0, I) noise, but not change it. A map conditioned on the observation needs
this for every observation by itself, which a permutation across observations does not keep, so
couplings are for maps of the prior. The adapter's coupling is the exception that proves the rule:
with probability ``alpha`` the noise is :math:`z \sim q(z \mid y)` of the same simulation, whose
average over observations is N(0, I) only if the adapter is good (Variational Flow Maps,
https://arxiv.org/abs/2603.07276, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["COUPLINGS", "Coupling", "adapter", "independent", "minibatch_ot"]

Coupling = Callable[[Tensor, Tensor, Callable[[], Tensor], float], Tensor]
"""From the data ``x0 (n, d)``, noise ``(n, d)`` of the law that sampling starts from, a function
that draws the adapter's noise ``(n, d)`` for the same simulations, and ``alpha``: the noise
``(n, d)`` that each of the data is paired with."""


def independent(x0: Tensor, noise: Tensor, draw: Callable[[], Tensor], alpha: float) -> Tensor:
    """The noise as it came."""
    return noise


def minibatch_ot(x0: Tensor, noise: Tensor, draw: Callable[[], Tensor], alpha: float) -> Tensor:
    """The noise, permuted to the least sum of squared distances to the data.

    Tong et al. 2023, https://arxiv.org/abs/2302.00482, section 3.2; the assignment is solved
    exactly.
    """
    cost = torch.cdist(x0, noise).square().cpu().numpy()
    _, columns = linear_sum_assignment(cost)
    return noise[torch.as_tensor(columns, device=x0.device)]


def adapter(x0: Tensor, noise: Tensor, draw: Callable[[], Tensor], alpha: float) -> Tensor:
    """The noise, where with probability ``alpha`` the adapter's draw takes its place."""
    z = draw()
    chosen = torch.rand(noise.shape[0], 1, device=noise.device) < alpha
    return torch.where(chosen, z, noise)


COUPLINGS: dict[str, Coupling] = {
    "independent": independent,
    "minibatch-ot": minibatch_ot,
    "adapter": adapter,
}
