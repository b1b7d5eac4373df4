r"""Posterior SBC: calibration at the observation at hand.

SBC averages over the prior, most of which the data at hand exclude.  Posterior SBC takes the
posterior given :math:`y` as the prior: draw :math:`x \sim q(\cdot|y)`, simulate new data
:math:`y' \sim p(\cdot|x)` of the same experiment, and rank :math:`x` among draws from the
posterior given both, :math:`q(\cdot|y, y')`.  If :math:`q` is the posterior, the ranks are uniform
(Säilynoja, Schmitt, Bürkner, Vehtari 2025, arXiv 2502.03279).

**The posterior given both.**  A map that takes one observation has no :math:`q(\cdot|y, y')`,
except where the two together say what one of its observations would: for independent Gaussian
noise, :math:`y` and :math:`y'` say as much as their mean with standard deviation
:math:`\sigma/\sqrt2`, and a map that takes ``sigma`` answers that.  Its range of ``sigma`` in
training must reach so low.  Everyone else hands over ``both``.

**Why not by weights.**  Draws of :math:`q(\cdot|y)` weighted by :math:`p(y'|x)` come from the
posterior under the prior :math:`q(\cdot|y)`, whatever :math:`q` is: :math:`x` and they are
exchangeable by construction, and the check could never fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration.answers import ask, draws_of
from vfm_inverse.calibration.map_labels import MapLabels
from vfm_inverse.calibration.results import make_report
from vfm_inverse.calibration.settings import (
    check_counts,
    check_flags,
    check_functions,
    check_problem,
    check_quantities,
    seed_of,
    whole,
)
from vfm_inverse.calibration.simulations import CHUNK, Counting, new_tally
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.meanings import about
from vfm_inverse.statistics.quantities import Quantity

__all__ = ["posterior_sbc"]


def posterior_sbc(
    posterior_fn: Callable[..., Any],
    problem: InverseProblem,
    y: Tensor,
    params: Mapping[str, Tensor] | None = None,
    num_simulations: int = 500,
    num_draws: int = 500,
    *,
    both: Callable[..., Any] | None = None,
    seed: int = 0,
    quantities: Mapping[str, Quantity] | None = None,
    alpha: float = 0.05,
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.Dataset:
    """Check a posterior at one observation.

    Args:
        posterior_fn: ``(y, **params) -> posterior``, as :func:`calibrate` takes it.
        problem: with a ``likelihood`` of independent Gaussian noise and ``sigma`` among its
            parameters, unless ``both`` is given; simulates the new data.
        y: the observation, ``(1, *observation)``.
        params: its parameters, each ``(1, ...)``.
        num_simulations: number of new observations.
        num_draws: number of draws of the posterior given both, for each.
        both: ``(y, y_new, **params) -> posterior`` given both, each ``(batch, *observation)``.
        seed: fixes draws, new data and ties.
        quantities: test quantities by name, of ``(x, y, **params)`` with the pair's mean for ``y``
            and its ``sigma``, or the new data with ``both``; default ones unless given.
        alpha: probability with which the true posterior may fail.
        chunk: numbers that one call of ``sample`` asks for.
        progress: show a progress bar.

    Returns:
        As :func:`calibrate`; ``simulation`` counts new observations, and the skill compares with
        the posterior given ``y`` alone.

    Raises:
        TypeError: a setting, or what ``posterior_fn`` returns, is of another kind.
        ValueError: more than one observation, or noise that does not average.
    """
    num_simulations, num_draws, alpha = check_counts(num_simulations, num_draws, alpha)
    seed, chunk = seed_of(seed), whole(chunk, "chunk", 1)
    check_flags(progress=progress)
    check_quantities(quantities)
    check_functions(posterior_fn=posterior_fn)
    check_problem(problem)
    if both is not None:
        check_functions(both=both)
    y, given = problem.check_observation(y, params)
    if len(y) != 1:
        raise ValueError(f"'y' must hold one observation; got {len(y)}")
    scale = getattr(problem.likelihood, "noise_scale", None)
    averages = "sigma" in given and scale is not None and scale(**given) is not None
    if both is None and not averages:
        raise ValueError(
            "two observations say what one does only with independent Gaussian noise whose "
            "'sigma' is a parameter of the problem; give 'both', the posterior given two "
            "observations"
        )
    with torch.no_grad(), seeded(seed):
        posterior = ask(posterior_fn, "posterior_fn", y, given)
        shape = torch.Size([num_simulations, 1, *problem.field_shape])
        x = draws_of(posterior, "posterior_fn", shape, y.new_empty(0, dtype=problem.dtype))[:, 0]
        repeated = {k: v.expand(num_simulations, *v.shape[1:]) for k, v in given.items()}
        new = problem.observe(x, seed=None, **repeated)
    first = y.expand_as(new)
    density: Quantity | None = None
    if both is None:
        seen, answer = 0.5 * (first + new), posterior_fn
        repeated = {**repeated, "sigma": repeated["sigma"] / math.sqrt(2)}
        density = problem.log_likelihood
    else:
        seen, answer = new, _given_first(both, y)
        if problem.likelihood is not None:
            density = problem.log_likelihood  # of the new data; the first are the same for all
    tally = new_tally(quantities, num_draws, x, new, density=density, seed=seed)
    run = Counting(answer, x, seen, repeated, seed, num_draws, chunk, None, None)
    run.count(tally, {}, progress=progress)
    labels = MapLabels.of(x.shape[1:], problem.dims, problem.coords, problem.units)
    attrs = {"kind": "posterior SBC", "baseline": "the posterior given the first observation"}
    return make_report(tally, labels, alpha, {**attrs, **about(tally.quantities, x)})


def _given_first(both: Callable[..., Any], y: Tensor) -> Callable[..., Any]:
    def answer(new: Tensor, **params: Tensor) -> Any:
        return both(y.expand_as(new), new, **params)

    return answer
