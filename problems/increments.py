r"""increments: signals whose steps have heavy tails, denoised or deconvolved.

.. math:: x_i = \sum_{j \le i} u_j, \quad u_j \sim p_U \text{ independent}, \qquad
          y = h * x + \sigma \epsilon,

with Laplace, Student-t or Cauchy increments: sampled Lévy processes, on which methods of signal
recovery are held against the best possible one (Bohra, del Aguila Pla, Giovannelli and Unser 2022,
https://arxiv.org/abs/2203.09920). Under Cauchy increments a signal has no variance: it is a few
jumps, and all else is below the noise.

There is no closed form, but a gold standard: every such law is a normal one of random precision,
and elements given precisions, precisions given elements have standard laws
(:mod:`vfm_inverse.gaussian.scale_mixtures`). ``gibbs`` draws the one and then the other, in long
chains from the prior.
"""

from __future__ import annotations

from typing import Literal

import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import (
    Cauchy,
    Laplace,
    StudentT,
    TorchDistribution,
    TransformedDistribution,
    constraints,
)
from torch import Tensor
from torch.distributions import Transform

from vfm_inverse.gaussian.scale_mixtures import sweep
from vfm_inverse.operators import Seismogram
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.quantiles import elements_of
from vfm_inverse.runtime.randomness import seeded

__all__ = ["CumulativeSum", "gibbs", "make"]

Law = Literal["laplace", "student", "cauchy"]
LAWS = ("laplace", "student", "cauchy")

SIGNALS = 20000
"""Signals whose median power sets the noise."""


def make(
    law: Law = "laplace",
    length: int = 64,
    blur: float = 0.0,
    snr: float = 25.0,
    df: float = 3.0,
    sigma: float | None = None,
) -> InverseProblem:
    """Build the problem: signals and data, both ``(1, length)``.

    Args:
        law: of the increments, at scale 1: ``"laplace"``, ``"student"`` or ``"cauchy"``.
        length: of the signals.
        blur: standard deviation of a Gaussian low-pass kernel of sum 1, in samples; 0 for none.
        snr: signal-to-noise ratio in dB: of the median power of ``h * x``, since Cauchy increments
            have no mean power.
        df: degrees of freedom of the Student law.
        sigma: noise standard deviation, instead of ``snr``.

    Raises:
        ValueError: an unknown law, or a number out of its range.
    """
    if law not in LAWS:
        raise ValueError(f"'law' must be one of {LAWS}; got {law!r}")
    if length < 2 or not blur >= 0 or not df > 0:
        raise ValueError(
            "'length' must be at least 2, 'blur' at least 0 and 'df' positive; got "
            f"{length}, {blur} and {df}"
        )
    if sigma is not None and not sigma > 0:
        raise ValueError(f"'sigma' must be positive; got {sigma}")
    prior = TransformedDistribution(
        increments(law, length, df), [CumulativeSum()], validate_args=False
    )
    level = noise_of(prior, blur, snr) if sigma is None else sigma
    return InverseProblem(
        prior=prior,
        physics=Seismogram((1, length), kernel(blur), GaussianNoise(level)),
        units="1",
        obs_units="1",
        dims=("position",),
        obs_dims=("position",),
    )


def gibbs(
    y: Tensor,
    num_draws: int,
    sweeps: int = 10,
    *,
    sigma: float,
    law: Law = "laplace",
    blur: float = 0.0,
    df: float = 3.0,
    chains: int = 16,
    warmup: int = 500,
    chain_seed: int | None = None,
) -> Tensor:
    """Gold-standard posterior draws ``(num_draws, batch, 1, length)`` of ``y`` ``(batch, 1,
    length)``.

    Args:
        y: observations.
        num_draws: states that are returned, as many from each chain.
        sweeps: between two of them.
        sigma: noise standard deviation.
        law, blur, df: those of the problem.
        chains: for each observation; they begin at precisions of the prior.
        warmup: sweeps before the first state.
        chain_seed: of the chains; torch's global stream by default.

    Raises:
        ValueError: ``num_draws`` is no multiple of ``chains``.
    """
    if num_draws % chains:
        raise ValueError(f"'num_draws' must be a multiple of {chains} chains; got {num_draws}")
    length = y.shape[-1]
    physics = Seismogram((1, length), kernel(blur))
    steps = torch.eye(length, dtype=torch.float64).cumsum(-1)
    operator = physics.A(steps.unsqueeze(1)).squeeze(1).T.to(y.device)
    precision = operator.T @ operator / sigma**2
    shift = y.double().reshape(len(y), length) @ operator / sigma**2
    found = elements_of(increments(law, length, df))
    assert found is not None
    states = []
    with seeded(chain_seed):
        prior = increments(law, length, df).sample(torch.Size([chains, len(y)]))
        u = prior.squeeze(-2).to(y.device).double()
        for i in range(warmup + num_draws // chains * sweeps):
            u = sweep(u, found.law, precision, shift)
            if i >= warmup and (i - warmup + 1) % sweeps == 0:
                states.append(u.cumsum(-1).to(y))
    return torch.stack(states).flatten(0, 1).unsqueeze(-2)


def increments(law: Law, length: int, df: float) -> TorchDistribution:
    """The law of the increments, ``(1, length)``."""
    zeros = torch.zeros(1, length)
    laws: dict[str, TorchDistribution] = {
        "laplace": Laplace(zeros, 1.0, validate_args=False),
        "student": StudentT(df, zeros, 1.0, validate_args=False),
        "cauchy": Cauchy(zeros, 1.0, validate_args=False),
    }
    return laws[law].to_event(2)


def kernel(blur: float) -> Tensor:
    """Gaussian kernel ``(K,)`` of sum 1, cut at four standard deviations."""
    reach = round(4 * blur)
    t = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (t / blur).square()) if reach else torch.ones_like(t)
    return weights / weights.sum()


def noise_of(prior: TorchDistribution, blur: float, snr: float) -> float:
    """The noise standard deviation, three digits of it, at a signal-to-noise ratio in dB."""
    with seeded(0):
        x = prior.sample(torch.Size([SIGNALS]))
    clean = Seismogram(tuple(x.shape[1:]), kernel(blur)).A(x)
    power = clean.double().square().mean((-1, -2)).median()
    return float(f"{float(power.sqrt()) * 10 ** (-snr / 20):.3g}")


class CumulativeSum(Transform):
    """Sums ``x_i = u_1 + ... + u_i`` along the last axis, ``(*, d)`` to ``(*, d)``."""

    domain = codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.diff(dim=-1, prepend=torch.zeros_like(y[..., :1]))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zeros ``(*)``."""
        return x.new_zeros(x.shape[:-1])
