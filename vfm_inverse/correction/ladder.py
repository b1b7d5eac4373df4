"""The ladder of corrections: climb until the diagnostics are satisfied, observation by
observation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vfm_inverse.correction.bars import Bars
from vfm_inverse.correction.chains import chain_figures
from vfm_inverse.correction.conditionals import alternate, posteriors_of
from vfm_inverse.correction.hamiltonian import hamiltonian
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.ensemble import Ensemble, effective_size
from vfm_inverse.sampling.moves import State, draw
from vfm_inverse.sampling.target import Target
from vfm_inverse.sampling.tempering import anneal
from vfm_inverse.sampling.weights import GOOD_SHAPE, MOST_FOLDED, smooth

__all__ = ["RUNGS", "auto"]

RUNGS = ("psis", "smc", "mcmc", "gibbs")
FIGURES = ("rung", "k_hat", "rhat", "folded", "acceptance")

UNFOLDING_STEPS = 4
"""Steps of the map that are tried where fewer leave folds or bad weights."""

SWEEPS = 32
"""Sweeps over conditional laws before the draws of a chain, where these laws are known."""

LENGTH, WARMUP = 32, 200
"""Draws kept of each Markov chain and moves before them."""

THINNING = (2, 8, 32)
"""Moves between two draws of a chain; the next where the chains of an observation disagree."""

MOST_STAGES = 100.0
"""Most stages of tempering, as :func:`stages_needed` expects them, with which it is tried."""

AT_ONCE = 2**28
"""Draws times squared dimensions of the observations that are taken at once: 64 of up to 64
dimensions, one of a thousand."""

GOOD_SHARE = 0.1
"""Least share of effective draws with which importance weights are accepted."""

GOOD_RHAT = 1.05
"""Largest R-hat with which groups of particles or chains are said to agree."""


@checked("correction", vfm="VariationalFlowMap", prior_map="VariationalFlowMap")
def auto(
    vfm: VariationalFlowMap,
    y: Tensor,
    num_samples: int = 1024,
    *,
    prior_map: VariationalFlowMap | None = None,
    seed: int | None = None,
    progress: bool = False,
    **params: Tensor,
) -> Ensemble:
    """Correct the map's draws with the cheapest method that holds for each observation.

    Importance weights are taken where k-hat stays below 0.7, a tenth of the draws is effective and
    a conditional map does not fold over itself (more steps, or a spline adapter, make it less
    likely to); the other observations are given to tempered sequential Monte Carlo, unless the
    draws are so far off that it could not arrive, accepted if independent groups of particles
    agree (R-hat up to 1.05), and what is left to Hamiltonian Markov chains, which go on with more
    moves to a draw where they disagree. Where the density of the draws is unknown, the chains are
    the first rung. Where the conditional laws of the posterior are known
    (:func:`vfm_inverse.correction.gibbs`), chains over them are.

    A conditional map needs the density of the prior or a map of the prior, in whose noise the
    rungs are then climbed: chains start at the draws of ``vfm``, and the answer is exact for the
    prior that ``prior_map`` has learned.

    Observations are taken a few at a time, so that memory does not grow with their number. When
    interrupted (Ctrl-C) it returns what it has: ``interrupted`` is then true, and observations
    that were not finished have the map's own draws, ``satisfied`` 0 and a note that says so.

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        num_samples: draws for each observation, a multiple of 32 and at least 128.
        prior_map: a map of the prior of the same problem
            (:func:`vfm_inverse.correction.fit_prior`).
        seed: of the run; the global generator without one.
        progress: show a progress bar by observation, with the rung and its moves.
        params: parameters of the observations.

    Returns:
        Diagnostics ``rung`` (0, 1, 2, 3: psis, smc, mcmc, gibbs), ``ess``, and ``k_hat`` and
        ``rhat`` where they were computed, not a number elsewhere; ``satisfied`` is 1 where the
        last rung's own diagnostic is good. ``notes`` says in a sentence what was done for each
        observation.

    Raises:
        ValueError: the posterior's density is unknown (:class:`Target`), ``prior_map`` is of
            another problem or no map of a prior, or an argument makes no sense.
    """
    if num_samples < 4 * LENGTH or num_samples % LENGTH:
        raise ValueError(
            f"'num_samples' must be a multiple of {LENGTH} and at least {4 * LENGTH}; got "
            f"{num_samples}"
        )
    y, params, batched = vfm.batch(y, params)
    if prior_map is not None:
        check_prior_map(vfm, prior_map)
    model = prior_map or vfm
    result = Climb(y.new_empty(num_samples, len(y), *vfm.event_shape))
    size = max(1, AT_ONCE // (num_samples * max(model.whitening.dim, 64) ** 2))
    reached, interrupted = 0, False
    with seeded(seed), torch.no_grad(), Bars(len(y), progress) as bars:
        try:
            for rows in torch.arange(len(y), device=y.device).split(size):
                part = rows_of(params, rows)
                climb(result, vfm, Target(model, y[rows], part), rows, num_samples, bars)
                bars.done(len(rows))
                reached += len(rows)
        except KeyboardInterrupt:
            interrupted = True
            rest = torch.arange(reached, len(y), device=y.device)
            for rows in rest[result.left_of(rest)].split(size):
                part = rows_of(params, rows)
                result.give_up(rows, vfm.posterior(y[rows], part).raw.sample((num_samples,)))
    return result.ensemble(batched, told_prior(model), interrupted)


def check_prior_map(vfm: VariationalFlowMap, prior_map: VariationalFlowMap) -> None:
    """Refuse what is no map of the prior, or one of another problem, by its shapes."""
    if prior_map.observation != "adapter":
        raise ValueError(
            "'prior_map' must be a map of the prior (observation='adapter'), as "
            f"correction.fit_prior makes it; got observation={prior_map.observation!r}"
        )
    for name in ("event_shape", "observation_shape", "param_shapes"):
        here, there = getattr(vfm, name), getattr(prior_map, name)
        if here != there:
            raise ValueError(
                f"'prior_map' must be of the problem of 'vfm', with {name} {here}; got {there}"
            )


def told_prior(model: VariationalFlowMap) -> str:
    """What a note says of the prior."""
    if model.observation != "adapter":
        return ""
    verdict = model.config.get("prior", {}).get("verdict", "not checked")
    return f"; for the prior as a map learned it ({verdict})"


def climb(
    result: Climb,
    vfm: VariationalFlowMap,
    target: Target,
    rows: Tensor,
    num_samples: int,
    bars: Bars,
) -> None:
    """All rungs for the observations ``rows``, whose posteriors are ``target``."""
    if not target.prior_map:
        run_conditionals(result, target, rows, num_samples // LENGTH, bars)
        left = result.left_of(rows)
        if not len(left):
            return
        target, rows = target.rows(left), rows[left]
    if not target.direct:
        # More steps, each nearer to the identity, unfold a map that folds over itself.
        for steps in dict.fromkeys((target.steps, max(target.steps, UNFOLDING_STEPS))):
            bars.rung("psis")
            climb_with(result, target, rows, steps, num_samples, bars)
            if target.prior_map or not len(result.left_of(rows)):
                break
    if len(result.left_of(rows)):
        run_chains(result, vfm, target, rows, num_samples // LENGTH, bars)


def climb_with(
    result: Climb, target: Target, rows: Tensor, steps: int, num_samples: int, bars: Bars
) -> None:
    """Weigh, and temper, the draws of so many steps of the map for the observations that are
    left."""
    left = result.left_of(rows)
    part = target.rows(left, steps)
    rows = rows[left]
    state, folded = draw(part, num_samples)
    log_ratio = state.log_prob - state.log_reference
    result.weigh(rows, part.field(state.u), *smooth(log_ratio), folded)
    # Tempering is no more exact than weights under a map that folds.
    again = ~result.finished[rows] & (folded <= MOST_FOLDED)
    again &= stages_needed(log_ratio, part.dim) <= MOST_STAGES
    if again.any():
        bars.rung("smc")
        tempered = part.rows(again.nonzero().squeeze(1))
        drawn = State(*(value[:, again] for value in state[:3]))
        state, found = anneal(tempered, drawn)
        result.settle(1, rows[again], tempered.field(state.u), found)


def run_conditionals(
    result: Climb, target: Target, rows: Tensor, num_chains: int, bars: Bars
) -> None:
    """Chains over conditional laws, where these are known, longer ones until they agree."""
    vfm, y, params = target.vfm, target.y, target.params
    if posteriors_of(vfm, y[:1], rows_of(params, slice(1))) is None:
        return
    x = target.field(target.sample(num_chains))
    for thin in THINNING:
        bars.rung("gibbs", moves=SWEEPS + LENGTH * thin)
        posteriors = posteriors_of(vfm, y, params)
        assert posteriors is not None
        fields, x, found = alternate(posteriors, x, LENGTH, SWEEPS, thin, bars.move)
        result.settle(3, rows, fields, found)
        again = ~result.finished[rows]
        if not again.any():
            break
        rows, y, x = rows[again], y[again], x[:, again]
        params = rows_of(params, again)


def run_chains(
    result: Climb,
    vfm: VariationalFlowMap,
    target: Target,
    rows: Tensor,
    num_chains: int,
    bars: Bars,
) -> None:
    """Markov chains for the observations that are left, longer ones until they agree."""
    left = result.left_of(rows)
    part, rows = target.rows(left), rows[left]
    if target.prior_map and vfm is not target.vfm:
        # Draws of the map that saw the observation, as noise of the map of the prior.
        u = part.locate(vfm.posterior(part.y, part.params).raw.sample((num_chains,)))
    else:
        part, u = part.without_map(part.sample(num_chains))
    for thin in THINNING:
        bars.rung("mcmc", moves=WARMUP + LENGTH * thin)
        chains, accepted = hamiltonian(part, u, LENGTH, WARMUP, thin, bars.move)
        found = chain_figures(chains, accepted)
        result.settle(2, rows, part.field(chains.flatten(0, 1)), found)
        again = ~result.finished[rows]
        if not again.any():
            break
        rows, part, u = rows[again], part.rows(again), chains[-1][:, again]


def stages_needed(log_ratio: Tensor, dim: int) -> Tensor:
    """Stages that tempering will take from draws with log-weights ``(num, n)``, about, ``(n,)``.

    The first power is one over the spread of the log-weights. At the power b the misfit of a
    Gaussian posterior in d dimensions varies by ``sqrt(d / 2) / b``, so that a stage, which the
    weights allow a rise of one over this, multiplies b by ``1 + sqrt(2 / d)``.
    """
    low, high = log_ratio.quantile(log_ratio.new_tensor([0.25, 0.75]), 0)
    spread = (high - low).nan_to_num(torch.inf).clamp_min(1.0)
    return spread.log() / math.log1p(math.sqrt(2 / dim))


class Climb:
    """What the rungs have found so far.

    Args:
        samples: where the draws go, ``(num, n, *event)``.
    """

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples
        self.log_weights = samples.new_zeros(samples.shape[:2])
        nan = torch.full_like(self.log_weights[0], torch.nan)
        self.figures = {name: nan.clone() for name in FIGURES}
        self.finished = torch.zeros_like(nan, dtype=torch.bool)

    def left_of(self, rows: Tensor) -> Tensor:
        """Places in ``rows`` of the observations that no rung satisfies yet."""
        return (~self.finished[rows]).nonzero().squeeze(1)

    def weigh(
        self, rows: Tensor, samples: Tensor, log_weights: Tensor, k_hat: Tensor, folded: Tensor
    ) -> None:
        """The first rung, for the observations ``rows``."""
        share = effective_size(log_weights.softmax(0)) / len(log_weights)
        good = (k_hat < GOOD_SHAPE) & (share >= GOOD_SHARE) & (folded <= MOST_FOLDED)
        self.samples[:, rows], self.log_weights[:, rows] = samples, log_weights
        self.figures["k_hat"][rows], self.figures["folded"][rows] = k_hat, folded
        self.figures["rung"][rows[good]] = 0.0
        self.finished[rows[good]] = True

    def settle(
        self, rung: int, rows: Tensor, samples: Tensor, found: Mapping[str, Tensor]
    ) -> None:
        """A later rung, for the observations ``rows`` among those left."""
        self.samples[:, rows], self.log_weights[:, rows] = samples, 0.0
        self.figures["rung"][rows] = float(rung)
        for name in ("rhat", "acceptance"):
            self.figures[name][rows] = found[name]
        self.finished[rows[found["rhat"] <= GOOD_RHAT]] = True

    def give_up(self, rows: Tensor, samples: Tensor) -> None:
        """Interrupted: the map's own draws for the observations ``rows``."""
        self.samples[:, rows], self.log_weights[:, rows] = samples, 0.0
        for figure in self.figures.values():
            figure[rows] = torch.nan

    def ensemble(self, batched: bool, prior: str, interrupted: bool) -> Ensemble:
        """Draws, weights and figures of all observations.

        Args:
            batched: whether there is a dimension of observations.
            prior: what notes add about the prior.
            interrupted: whether the work was.
        """
        columns = (self.figures[name].tolist() for name in FIGURES[:4])
        notes = tuple(sentence(prior, *row) for row in zip(*columns, strict=True))
        figures = {**self.figures, "satisfied": self.finished.to(self.log_weights)}
        ensemble = Ensemble.of(self.samples, batched, self.log_weights, figures, notes)
        return replace(ensemble, interrupted=interrupted)


def sentence(prior: str, rung: float, k_hat: float, rhat: float, folded: float) -> str:
    """What was done for one observation, and why."""
    if math.isnan(rung):
        return "interrupted: draws of the map, not corrected"
    why = "the density of the draws is unknown" if math.isnan(k_hat) else f"k-hat {k_hat:.2f}"
    if folded > MOST_FOLDED:
        why = f"the map folds at {folded:.1%} of the draws"
    if rung == 0:
        return f"weighted: {why}{prior}"
    agree = "agree" if rhat <= GOOD_RHAT else "still disagree: do not trust these draws"
    if rung == 3:
        done = f"chains over conditional laws; chains {agree}, R-hat {rhat:.3f}"
    elif rung == 1:
        done = f"tempered ({why}, or few draws effective); groups {agree}, R-hat {rhat:.3f}"
    else:
        done = f"Markov chains ({why}, no other rung held); chains {agree}, R-hat {rhat:.3f}"
    return f"{done}{prior}"
