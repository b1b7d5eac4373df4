"""Markov chains over standard conditional laws, for priors with heavy tails.

A chain alternates the two conditional laws of a scale mixture
(:mod:`vfm_inverse.gaussian.scale_mixtures`): every move is accepted, nothing is tuned and no
gradient is taken. It begins at a draw of the map, so that it hardly needs a warm-up; a jump that
could as well be at the next place is what it is slow to move, and R-hat tells of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vfm_inverse.correction.chains import chain_figures
from vfm_inverse.gaussian.scale_mixtures import ScaleMixture
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.likelihood import Likelihood
from vfm_inverse.problem.priors import LogPrior
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import Ensemble
from vfm_inverse.sampling.target import Map

__all__ = ["alternate", "gibbs", "posteriors_of"]


@checked("correction", vfm="VariationalFlowMap")
def gibbs(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1024,
    *,
    num_chains: int = 32,
    warmup: int = 32,
    thin: int = 2,
    seed: int | None = None,
    **params: Tensor,
) -> Ensemble:
    """Alternate the conditional laws of posteriors under a prior with heavy tails.

    Args:
        vfm: the map, of a problem with a prior of independent Laplace, Student-t or Cauchy
            elements or a linear function of them, linear physics and Gaussian noise.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: draws kept for each observation, a multiple of ``num_chains``.
        num_chains: chains for each observation, each from a draw of the map.
        warmup: sweeps that are thrown away.
        thin: sweeps between two draws that are kept.
        seed: of the run; the global generator without one.
        params: parameters of the observations.

    Returns:
        Equally weighted draws. Diagnostics: split ``rhat`` and ``mcmc_ess``, both of the worst
        element, of the inverse hyperbolic sine of it, since it may have no variance.

    Raises:
        ValueError: the problem is another one, or an argument makes no sense.
    """
    length, rest = divmod(num_samples, num_chains)
    if rest or length < 4:
        raise ValueError(
            "'num_samples' must be a multiple of 'num_chains' and at least four times as large; "
            f"got {num_samples} and {num_chains}"
        )
    y, params, batched = vfm.batch(y, params)
    with seeded(seed), torch.no_grad():
        posteriors = posteriors_of(vfm, y, params)
        if posteriors is None:
            raise ValueError(
                "'vfm' must be of a problem with Laplace, Student-t or Cauchy elements, linear "
                "physics and Gaussian noise, whose conditional laws are known; use "
                "correction.auto for all others"
            )
        x = vfm.posterior(y, params).sample(torch.Size([num_chains]))
        fields, _, figures = alternate(posteriors, x, length, warmup, thin)
        notes = tuple(
            f"{num_chains} chains over conditional laws, R-hat {r:.3f}, effective size {e:.0f}"
            for r, e in zip(figures["rhat"], figures["mcmc_ess"], strict=True)
        )
        return Ensemble.of(fields, batched, None, figures, notes, num_chains)


def posteriors_of(vfm: Map, y: Tensor, params: Mapping[str, Tensor]) -> ScaleMixture | None:
    """Posteriors of observations ``(n, *obs)`` whose conditional laws are known, or ``None``."""
    if not ScaleMixture.suits(vfm.log_prior, vfm.likelihood):
        return None
    assert isinstance(vfm.log_prior, LogPrior) and isinstance(vfm.likelihood, Likelihood)
    return ScaleMixture.of(vfm.log_prior, vfm.likelihood, y, params)


def alternate(
    posteriors: ScaleMixture,
    x: Tensor,
    length: int,
    warmup: int,
    thin: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Chains from fields ``x (num_chains, n, *event)``.

    Returns:
        Fields ``(length * num_chains, n, *event)``, the last of each chain ``(num_chains, n,
        *event)``, and the figures of :func:`chain_figures`.
    """
    t = posteriors.elements(x)
    kept = []
    for i in range(warmup + length * thin):
        t = posteriors.sweep(t)
        if i >= warmup and (i - warmup + 1) % thin == 0:
            kept.append(t)
        tick()
    chains = torch.stack(kept)
    accepted = torch.ones_like(t[0, :, 0])
    figures = {
        name: value.to(x) for name, value in chain_figures(chains.asinh(), accepted).items()
    }
    return posteriors.field(chains.flatten(0, 1), x), posteriors.field(t, x), figures
