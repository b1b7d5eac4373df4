r"""Does an operator's noise follow the density that inversion will use?

Draws :math:`y` of ``physics(x)`` go through the distribution function of the law that
:class:`~vfm_inverse.problem.likelihood.Likelihood` states for them. If the law is right, :math:`u
= F(y \mid x)` is uniform and :math:`z = \Phi^{-1}(u)` standard normal (probability integral
transform; Dawid 1984, Journal of the Royal Statistical Society A 147, 278,
https://doi.org/10.2307/2981683). Of a law without a distribution function (counts, mixtures) the
randomised rank among draws of the law takes its place, which is uniform too.

Three tests at a joint level (Bonferroni): the mean of ``z``, the mean of its square (a wrong
standard deviation shows here first) and Kolmogorov-Smirnov on ``u``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepinv.physics import Physics
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, Independent

from vfm_inverse.problem.likelihood import Likelihood, restored
from vfm_inverse.problem.noise_laws import Observed

__all__ = ["LEVEL", "noise_p_value"]

LEVEL = 1e-4
"""A right noise model fails one check in ten thousand; the check's seed is fixed."""

NUM_VALUES, MAX_REPEATS = 20_000, 500
NUM_RANKED = 199


def noise_p_value(physics: Physics, x: Tensor, params: dict[str, Any]) -> tuple[float | None, str]:
    """p-value of "the noise of ``physics(x)`` has the density of ``Likelihood(physics)``".

    Args:
        physics: any deepinv ``Physics``.
        x: fields ``(batch, *event)``.
        params: parameters of the call, a tensor with the batch as its leading dimension.

    Returns:
        The p-value (0 where a draw lies outside the density's support), or ``None`` where the
        noise model has no density, and a remark.
    """
    try:
        likelihood = Likelihood(physics, event_dim=x.dim() - 1)
    except ValueError as error:
        return None, str(error)[:80]
    with torch.no_grad(), restored(physics):
        mean = physics.A(x, **params)
        repeats = min(max(1, -(-NUM_VALUES // (mean.numel() or 1))), MAX_REPEATS)
        fields = x.repeat(repeats, *[1] * (x.dim() - 1))
        calls = {
            key: value.repeat(repeats, *[1] * (value.dim() - 1))
            if isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)
            else value
            for key, value in params.items()
        }
        with _known(physics, fields, mean.repeat(repeats, *[1] * (mean.dim() - 1))):
            law = likelihood(fields, **calls)
            y = physics(fields, **calls)
        u, how = _uniform_scores(law, y)
    if len(u) == 0:
        return None, "no datum is seen"
    if not bool(torch.isfinite(u).all()):
        return 0.0, "draws lie where the density is not defined"
    z = torch.special.ndtri(u.clamp(1e-15, 1 - 1e-15))
    count = len(z)
    p_mean = 2 * stats.norm.sf(abs(float(z.sum())) / count**0.5)
    square = float(z.square().sum())
    p_square = 2 * min(stats.chi2.sf(square, count), stats.chi2.cdf(square, count))
    p_shape = stats.kstest(u.cpu().numpy(), "uniform").pvalue
    p_value = min(1.0, 3 * min(p_mean, p_square, p_shape))
    return p_value, f"{how} of {count} values; rms(z) {(square / count) ** 0.5:.3f}"


@contextmanager
def _known(physics: Physics, fields: Tensor, mean: Tensor) -> Iterator[None]:
    """``A(fields)`` is ``mean``: the noise is drawn many times, the operator may be slow."""
    evaluate = physics.A

    def remembered(x: Tensor, **params: Any) -> Tensor:
        if x.shape != fields.shape or not torch.equal(x, fields):
            return evaluate(x, **params)
        if params:  # which the operators that mask their noise store in `A`
            physics.update_parameters(**params)
        return mean.clone()

    own = vars(physics).get("A")
    vars(physics)["A"] = remembered
    try:
        yield
    finally:
        if own is None:
            del vars(physics)["A"]
        else:
            vars(physics)["A"] = own


def _uniform_scores(law: Distribution, y: Tensor) -> tuple[Tensor, str]:
    """Uniform scores of the data that are seen, ``(count,)``, and how they were made."""
    base = law.base_dist if isinstance(law, Independent) else law
    seen = torch.ones_like(y, dtype=torch.bool)
    if isinstance(base, Observed):
        base, seen = base.law, base.seen
    try:
        u = base.cdf(y)
        return u[seen].double(), "probability integral transform"
    except NotImplementedError:
        pass
    below, equal = torch.zeros_like(y), torch.zeros_like(y)
    for _ in range(NUM_RANKED):
        draw = base.sample()
        below += draw < y
        equal += draw == y
    # Ties are broken at random among the draws and the datum itself.
    u = (below + torch.rand_like(y) * (equal + 1)) / (NUM_RANKED + 1)
    return u[seen].double(), f"ranks among {NUM_RANKED} draws of the density"
