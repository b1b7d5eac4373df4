r"""L-C2ST: is the posterior right at the observation at hand?

A classifier :math:`d(x, y)` learns to tell truths :math:`(x_i, y_i)` from posterior draws
:math:`(\tilde x_i, y_i)` of the same observations.  Where the posterior is exact nothing can be
learned and :math:`d = 1/2`; at one observation the statistic is

.. math:: t(y_o) = \frac1S \sum_s \big(d(\tilde x_s, y_o) - \tfrac12\big)^2,
   \qquad \tilde x_s \sim q(x | y_o)

(Linhart et al. 2023, arXiv 2306.03580).  One training serves every :math:`y_o`.

**p-value.**  When all posteriors are exact, truth and draw of one observation are exchangeable.
The classifier is trained again on data with each pair swapped or not by a fair coin; the law of
:math:`t` over the swaps is its null law, and :math:`p = (1 + \#\{t_b \ge t\}) / (1 + B)` has an
exact level, however well or badly the classifier learns.  (The paper permutes the labels of all
points; swaps within a pair keep every :math:`y_i` as it is.)  Exactness is under the hypothesis
that the posterior is right at all observations: a classifier that generalises badly may carry a
fault seen elsewhere over to :math:`y_o`.

All :math:`1 + B` perceptrons, two hidden layers, train together as stacked weights on the same
minibatches from the same initial weights: a swap is a sign in the loss, and data are never copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from vfm_inverse.runtime.arrays import real_tensor
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.meanings import with_long_names
from vfm_inverse.statistics.quantities import needs_double

__all__ = ["Training", "local_c2st", "null_statistics"]

NUMBERS = 2**24
"""Numbers in one layer of all networks at once, in the evaluation at the observations."""

LONG_NAMES = {
    "statistic": "mean square of classifier probability minus one half",
    "p_value": "share of null classifiers with at least this statistic",
    "null_statistic": "statistic of the classifiers trained on swapped pairs",
    "probability": "probability that a draw is a truth: above one half where draws are too few",
}


class Training(NamedTuple):
    """How the classifiers are trained, as :func:`local_c2st` explains it."""

    num_null: int = 99
    steps: int = 300
    batch_size: int = 256
    width: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 1e-3
    seed: int = 0


DEFAULT = Training()
"""What is trained unless told otherwise."""


def local_c2st(
    draws: Tensor,
    truth: Tensor,
    y: Tensor,
    observed_draws: Tensor,
    observed: Tensor,
    *,
    num_null: int = DEFAULT.num_null,
    steps: int = DEFAULT.steps,
    batch_size: int = DEFAULT.batch_size,
    width: int = DEFAULT.width,
    learning_rate: float = DEFAULT.learning_rate,
    weight_decay: float = DEFAULT.weight_decay,
    seed: int = DEFAULT.seed,
    alpha: float = 0.05,
) -> xr.Dataset:
    """Test the posterior at given observations by classifiers trained on simulations.

    Fields and observations are flattened and standardised: right for vectors and small fields. For
    large ones hand over a few features of both instead.

    Args:
        draws: ``(num_simulations, *event)``, one posterior draw for each observation ``y``.
        truth: ``(num_simulations, *event)``.
        y: ``(num_simulations, *observation)``.
        observed_draws: ``(num_draws, num_observed, *event)``, posterior draws at ``observed``.
        observed: ``(num_observed, *observation)``, the observations in question.
        num_null: number of classifiers trained on swapped pairs; the least p-value is
            ``1 / (num_null + 1)``.
        steps: steps of AdamW.
        batch_size: pairs in a step.
        width: units in each hidden layer.
        learning_rate: initial step size, with a cosine decay to zero.
        weight_decay: weight decay of AdamW.
        seed: fixes weights, minibatches and swaps.
        alpha: probability with which the test fails at an observation if all posteriors are exact.

    Returns:
        Dataset over ``observation``, ``null`` and ``draw`` with ``statistic``, ``p_value``,
        ``null_statistic`` and ``probability``; ``attrs`` hold ``verdict`` (``"fail"`` when the
        smallest p-value times the number of observations is at most ``alpha``) and ``reason``.

    Raises:
        ValueError: shapes that do not belong together, values that are not finite, a number below
            its least value, or too few null classifiers for any rejection.
    """
    training = Training(num_null, steps, batch_size, width, learning_rate, weight_decay, seed)
    given = _Given(draws, truth, y, observed_draws, observed)._asdict().items()
    data = _Given(*(real_tensor(value, name).detach() for name, value in given))
    _check(data)
    _check_training(training, alpha, len(data.observed))
    statistic, probability = null_statistics(*data, training=training)
    p_value = (1 + (statistic[1:] >= statistic[0]).sum(0)) / (1 + num_null)
    verdict, reason = _verdict(statistic, p_value, alpha)
    report = xr.Dataset(
        {
            "statistic": ("observation", statistic[0]),
            "p_value": ("observation", p_value),
            "null_statistic": (("null", "observation"), statistic[1:]),
            "probability": (("draw", "observation"), probability),
        },
        attrs={
            "verdict": verdict,
            "reason": reason,
            "alpha": alpha,
            "seed": seed,
            "num_simulations": len(data.truth),
        },
    )
    return with_long_names(report, LONG_NAMES)


def null_statistics(
    draws: Tensor,
    truth: Tensor,
    y: Tensor,
    observed_draws: Tensor,
    observed: Tensor,
    *,
    training: Training = DEFAULT,
) -> tuple[np.ndarray, np.ndarray]:
    """Statistics behind :func:`local_c2st`, whose arguments these are.

    Returns:
        ``(1 + num_null, num_observed)``, the classifier's own first, and the probabilities of the
        observed draws ``(num_draws, num_observed)``.
    """
    num, dim, num_observed = len(truth), math.prod(truth.shape[1:]), len(observed)
    pairs = torch.stack([truth, draws]).reshape(2, num, dim)
    # One scale for both sides, so that a swap does not change it.
    centre, scale = _moments(pairs.flatten(0, 1))
    seen = y.reshape(num, -1).to(pairs)
    shift, unit = _moments(seen)
    seen = ((seen - shift) / unit).expand(2, -1, -1)
    inputs = torch.cat([(pairs - centre) / scale, seen], dim=-1)
    count = 1 + training.num_null
    # A stream of its own: data simulated with the same seed must not know the swaps.
    with seeded(int(np.random.SeedSequence([training.seed, 7]).generate_state(1)[0])):
        signs = torch.randint(2, (count, num)).mul(2).sub(1).to(inputs)
        signs[0] = 1
        weights = _initial(count, inputs.shape[-1], training.width, inputs)
        batches = [
            torch.randperm(num)[: training.batch_size].to(inputs.device)
            for _ in range(training.steps)
        ]
    _train(weights, inputs, signs, batches, training.learning_rate, training.weight_decay)

    at = observed.reshape(num_observed, -1).to(inputs)
    at = ((at - shift) / unit).expand(len(observed_draws), -1, -1)
    x = observed_draws.reshape(*at.shape[:2], dim).to(inputs)
    points = torch.cat([(x - centre) / scale, at], dim=-1).flatten(0, 1)
    statistics, probability = [], []
    with torch.no_grad():
        # Rows of whole draws, so that every piece holds all observations.
        rows = max(1, NUMBERS // (count * training.width * num_observed)) * num_observed
        for part in points.split(rows):
            value = _forward(weights, part).sigmoid().unflatten(1, (-1, num_observed))
            statistics.append((value - 0.5).square().sum(1).double())
            probability.append(value[0])
    statistic = torch.stack(statistics).sum(0).div(len(observed_draws)).cpu().numpy()
    return statistic, torch.cat(probability).cpu().numpy()


def _initial(count: int, inputs: int, width: int, like: Tensor) -> list[Tensor]:
    """Weights and biases of ``count`` equal networks, each layer ``(count, in, out)``."""
    layers = []
    for fan_in, fan_out in ((inputs, width), (width, width), (width, 1)):
        weight = torch.randn(fan_in, fan_out) * math.sqrt(2 / fan_in)
        if fan_out == 1:
            weight = 0.1 * weight  # begin near d = 1/2
        for value in (weight, torch.zeros(1, fan_out)):
            layers.append(value.to(like).repeat(count, 1, 1).requires_grad_())
    return layers


def _forward(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Logits ``(count, n)`` of all networks at ``(n, inputs)``."""
    w1, b1, w2, b2, w3, b3 = weights
    hidden = functional.silu(x @ w1 + b1)
    hidden = functional.silu(torch.baddbmm(b2, hidden, w2))
    return torch.baddbmm(b3, hidden, w3).squeeze(-1)


def _train(
    weights: list[Tensor],
    inputs: Tensor,
    signs: Tensor,
    batches: Sequence[Tensor],
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Minimise the sum of all networks' logistic losses; AdamW keeps them independent."""
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    with torch.enable_grad():
        for batch in batches:
            logits = _forward(weights, inputs[:, batch].flatten(0, 1))
            first, second = logits.unflatten(1, (2, -1)).unbind(1)
            sign = signs[:, batch]
            loss = functional.softplus(-sign * first) + functional.softplus(sign * second)
            optimizer.zero_grad(set_to_none=True)
            loss.mean(1).sum().backward()
            optimizer.step()
            schedule.step()


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(d,)`` of ``(n, d)``; one where an element is constant."""
    wide = values.double() if needs_double(values) else values
    scale, centre = torch.std_mean(wide, dim=0)
    return centre.to(values), torch.where(scale > 0, scale, 1).to(values)


class _Given(NamedTuple):
    """Simulations to learn from and draws to be asked about, as :func:`local_c2st` takes them."""

    draws: Tensor
    truth: Tensor
    y: Tensor
    observed_draws: Tensor
    observed: Tensor


def _check(data: _Given) -> None:
    draws, truth, y, observed_draws, observed = data
    if draws.shape != truth.shape or len(truth) < 2:
        raise ValueError(
            "'draws' and 'truth' must be (num_simulations, *event) with at least 2 simulations; "
            f"got {tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    if len(y) != len(truth) or y.shape[1:] != observed.shape[1:]:
        raise ValueError(
            f"'y' must hold {len(truth)} observations of shape {tuple(observed.shape[1:])}; "
            f"got {tuple(y.shape)}"
        )
    if observed_draws.ndim < 2 or observed_draws.shape[1:] != (len(observed), *truth.shape[1:]):
        raise ValueError(
            f"'observed_draws' must be (num_draws, {len(observed)}, *event) with the event of "
            f"'truth' {tuple(truth.shape[1:])}; got {tuple(observed_draws.shape)}"
        )
    for name, value in data._asdict().items():
        if not value.isfinite().all():
            raise ValueError(f"'{name}' must be finite")


def _check_training(training: Training, alpha: float, num_observed: int) -> None:
    for name in ("num_null", "steps", "batch_size", "width"):
        if (value := getattr(training, name)) < 1:
            raise ValueError(f"'{name}' must be at least 1; got {value}")
    if not 0 < alpha < 1:
        raise ValueError(f"'alpha' must lie between 0 and 1; got {alpha}")
    if alpha * (training.num_null + 1) < num_observed - 1e-9:
        raise ValueError(
            f"'num_null' must be at least {math.ceil(num_observed / alpha) - 1} for "
            f"{num_observed} observations at alpha {alpha}; got {training.num_null}"
        )


def _verdict(statistic: np.ndarray, p_value: np.ndarray, alpha: float) -> tuple[str, str]:
    """``"pass"`` or ``"fail"``, and why, of ``(1 + num_null, num_observed)``."""
    num_observed, worst = len(p_value), int(p_value.argmin())
    adjusted = min(1.0, float(p_value[worst]) * num_observed)
    failed = adjusted <= alpha + 1e-12
    return "fail" if failed else "pass", (
        f"a classifier {'tells' if failed else 'does not tell'} draws from truths at observation "
        f"{worst} of {num_observed} better than chance (p = {adjusted:.2g} after correction; "
        f"statistic {statistic[0, worst]:.2g}, null median "
        f"{np.median(statistic[1:, worst]):.2g})"
    )
