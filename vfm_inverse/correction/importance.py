r"""Pareto-smoothed importance sampling: draws of the map with weights :math:`p(u \mid y) / r(u)`
(:mod:`vfm_inverse.sampling.weights`)."""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.sampling.moves import draw
from vfm_inverse.sampling.target import Target
from vfm_inverse.sampling.weights import GOOD_SHAPE, MOST_FOLDED, smooth

__all__ = ["psis"]


@checked("correction", vfm="VariationalFlowMap")
@torch.no_grad()
def psis(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 4096,
    *,
    seed: int | None = None,
    **params: Tensor,
) -> Ensemble:
    """Weight the map's draws towards the exact posterior.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: draws for each observation.
        seed: of the draws; the global generator without one.
        params: parameters of the observations.

    Returns:
        Diagnostics ``k_hat`` (trust the weights below 0.7), ``ess``, and ``folded``, the share of
        draws at which a conditional map folds over itself (trust the weights below 0.01).

    Raises:
        ValueError: the posterior's or the draws' density is unknown (:class:`Target`).
    """
    y, params, batched = vfm.batch(y, params)
    with seeded(seed):
        target = Target(vfm, y, params)
        state, folded = draw(target, num_samples)
        log_weights, k_hat = smooth(state.log_prob - state.log_reference)
        field = target.field(state.u)
    good = (k_hat < GOOD_SHAPE) & (folded <= MOST_FOLDED)
    notes = tuple(
        f"k-hat {k:.2f}, folded {f:.1%}: "
        + ("the weights can be trusted" if trusted else "do not trust the weights")
        for k, f, trusted in zip(k_hat.tolist(), folded.tolist(), good.tolist(), strict=True)
    )
    return Ensemble.of(field, batched, log_weights, {"k_hat": k_hat, "folded": folded}, notes)
