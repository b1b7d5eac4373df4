"""Markov chains that start at the map's draws: many short ones side by side, all observations at
once.

A chain that starts at a draw of a good approximation needs no long burn-in; R-hat over the split
chains says whether that was so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from vfm_inverse.correction.hamiltonian import hamiltonian
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.sampling.moves import ACCEPTANCE, State, adapt, mala, pcn
from vfm_inverse.sampling.target import Target
from vfm_inverse.sampling.tempering import split_rhat

__all__ = ["mcmc"]

METHODS = ("pcn", "mala", "hmc", "nuts")
KERNELS = {"pcn": pcn, "mala": mala}


@checked("correction", vfm="VariationalFlowMap", method="str")
def mcmc(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1024,
    *,
    method: str = "hmc",
    num_chains: int = 32,
    warmup: int = 200,
    thin: int | None = None,
    seed: int | None = None,
    **params: Tensor,
) -> Ensemble:
    """Run Markov chains from the map's draws.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: draws kept for each observation, a multiple of ``num_chains``.
        method: ``"hmc"``, trajectories whose metric the chains learn from one another; ``"pcn"``
            or ``"mala"``, single steps that take the map's own width for the posterior's; or
            ``"nuts"`` (Pyro's; one observation and one chain after the other, for reference).
        num_chains: chains for each observation.
        warmup: moves that adapt step and metric and are thrown away.
        thin: moves between two draws that are kept; 1 for ``hmc`` and 5 for ``pcn`` and ``mala``
            by default.
        seed: of the run; the global generator without one.
        params: parameters of the observations.

    Returns:
        Equally weighted draws. Diagnostics: split ``rhat`` and ``mcmc_ess``, both of the worst
        coordinate, and ``acceptance``.

    Raises:
        ValueError: the posterior's density is unknown (:class:`Target`), or an argument makes no
            sense.
    """
    if method not in METHODS:
        raise ValueError(f"'method' must be one of {METHODS}; got {method!r}")
    length, rest = divmod(num_samples, num_chains)
    if rest or length < 4:
        raise ValueError(
            "'num_samples' must be a multiple of 'num_chains' and at least four times as large; "
            f"got {num_samples} and {num_chains}"
        )
    thin = thin or (1 if method == "hmc" else 5)
    y, params, batched = vfm.batch(y, params)
    with seeded(seed):
        # Without the map's determinant, which a chain does not need and no gradient should pay.
        target = Target(vfm, y, params, direct=True)
        start = target.sample(num_chains)
        if method == "nuts":
            chains, accepted = nuts(target, start, length, warmup)
        elif method == "hmc":
            chains, accepted = hamiltonian(target, start, length, warmup, thin)
        else:
            chains, accepted = march(target, start, method, length, warmup, thin)
        figures = chain_figures(chains, accepted)
        with torch.no_grad():
            field = target.field(chains.flatten(0, 1))
        notes = tuple(
            f"{num_chains} chains of {method}, R-hat {r:.3f}, effective size {e:.0f}"
            for r, e in zip(figures["rhat"], figures["mcmc_ess"], strict=True)
        )
        return Ensemble.of(field, batched, None, figures, notes, num_chains)


@torch.no_grad()
def march(
    target: Target, u: Tensor, method: str, length: int, warmup: int, thin: int
) -> tuple[Tensor, Tensor]:
    """Chains ``(length, num_chains, n, d)`` from ``u (num_chains, n, d)``, and the share of moves
    accepted, ``(n,)``."""
    kernel = KERNELS[method]
    log_prob = target.log_prob(u)
    state = State(u, log_prob, log_prob)
    power = u.new_ones(target.num)
    step = torch.full_like(power, 0.5 if method == "pcn" else target.dim ** (-1 / 6))
    for i in range(warmup):
        state, accepted = kernel(target, state, step, power)
        step = adapt(step, accepted, ACCEPTANCE[method], i)
    kept, total = [], torch.zeros_like(power)
    for _ in range(length):
        for _ in range(thin):
            state, accepted = kernel(target, state, step, power)
            total += accepted / (length * thin)
        kept.append(state.u)
    return torch.stack(kept), total


def nuts(target: Target, u: Tensor, length: int, warmup: int) -> tuple[Tensor, Tensor]:
    """Pyro's No-U-Turn sampler on one observation and chain after the other."""
    chains = torch.empty(length, *u.shape, dtype=u.dtype, device=u.device)
    for i in range(target.num):
        one = target.rows(slice(i, i + 1))

        def potential(sites: dict[str, Any], one: Target = one) -> Tensor:
            return -one.differentiable(sites["u"][None, None])[0, 0]

        for c in range(u.shape[0]):
            kernel = NUTS(potential_fn=potential)
            sampler = MCMC(
                kernel,
                num_samples=length,
                warmup_steps=warmup,
                initial_params={"u": u[c, i].clone()},
                disable_progbar=True,
            )
            sampler.run()
            chains[:, c, i] = sampler.get_samples()["u"]
    return chains, torch.full((target.num,), math.nan, dtype=u.dtype, device=u.device)


def chain_figures(chains: Tensor, accepted: Tensor) -> dict[str, Tensor]:
    """Split R-hat and effective size of ``(length, num_chains, n, d)``, worst coordinates."""
    half = chains.shape[0] // 2
    split = torch.cat([chains[:half], chains[half : 2 * half]], 1).transpose(0, 1)
    size = effective_sample_size(chains, chain_dim=1, sample_dim=0)
    return {"rhat": split_rhat(split), "mcmc_ess": size.amin(-1), "acceptance": accepted}
