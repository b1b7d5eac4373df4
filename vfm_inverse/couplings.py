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

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["COUPLINGS", "adapter_coupling", "minibatch_ot"]

COUPLINGS = ("independent", "minibatch-ot", "adapter")


def minibatch_ot(x0: Tensor, noise: Tensor) -> Tensor:
    """The noise ``(n, d)``, permuted to the least sum of squared distances to the data ``(n, d)``.

    Tong et al. 2023, https://arxiv.org/abs/2302.00482, section 3.2; the assignment is solved
    exactly.
    """
    cost = torch.cdist(x0, noise).square().cpu().numpy()
    _, columns = linear_sum_assignment(cost)
    return noise[torch.as_tensor(columns, device=x0.device)]


def adapter_coupling(noise: Tensor, z: Tensor, alpha: float) -> Tensor:
    """The noise ``(n, d)``, where with probability ``alpha`` the adapter's draw ``z (n, d)`` for
    the same simulation takes its place."""
    chosen = torch.rand(noise.shape[0], 1, device=noise.device) < alpha
    return torch.where(chosen, z, noise)
