r"""Which noise is paired with which data in the flow loss.

The law of the noise must stay the law that sampling starts from, whatever the pairing: a coupling
may permute a batch of N(0, I) noise, but not change it. The adapter's coupling is the exception
that proves the rule: with probability ``alpha`` the noise is :math:`z \sim q(z \mid y)` of the
same simulation, whose average over observations is N(0, I) only if the adapter is good
(Variational Flow Maps, https://arxiv.org/abs/2603.07276, section 4).
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["COUPLINGS", "adapter_coupling", "independent", "minibatch_ot"]


def independent(x0: Tensor) -> Tensor:
    """Fresh N(0, I) noise for data ``x0 (n, d)``."""
    return torch.randn_like(x0)


def minibatch_ot(x0: Tensor) -> Tensor:
    """N(0, I) noise, permuted within the batch to the least sum of squared distances to
    ``x0 (n, d)``.

    Tong et al. 2023, https://arxiv.org/abs/2302.00482, section 3.2; the assignment is solved
    exactly.
    """
    noise = torch.randn_like(x0)
    cost = torch.cdist(x0.detach(), noise).square().cpu().numpy()
    _, columns = linear_sum_assignment(cost)
    return noise[torch.as_tensor(columns, device=x0.device)]


def adapter_coupling(x0: Tensor, z: Tensor, alpha: float) -> Tensor:
    """With probability ``alpha`` the adapter's draw ``z (n, d)`` for the same simulation, else
    N(0, I)."""
    chosen = torch.rand(x0.shape[0], 1, device=x0.device) < alpha
    return torch.where(chosen, z.detach(), torch.randn_like(x0))


COUPLINGS = {"independent": independent, "minibatch-ot": minibatch_ot}
