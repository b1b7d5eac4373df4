r"""Densities of deepinv's noise models.

With the noise-free observation :math:`m = A(x)`, every datum is independent given ``x`` and has
one of

====================  ==========================================================================
GaussianNoise         :math:`y \sim \mathcal N(m, \sigma^2)`
LaplaceNoise          :math:`y \sim \mathrm{Laplace}(m, b)`
UniformNoise          :math:`y \sim \mathcal U(m - a, m + a)`
GammaNoise            :math:`y \sim \mathrm{Gamma}(\ell, \ell/m)`, variance :math:`m^2/\ell`
FisherTippettNoise    :math:`e^y \sim \mathrm{Gamma}(\ell, \ell e^{-m})`, for log-intensities
PoissonNoise          :math:`y = g k,\ k \sim \mathrm{Poisson}(m/g)`; without normalize y = k
LogPoissonNoise       :math:`y = -\log(k/N_0)/\mu,\ k \sim \mathrm{Poisson}(N_0 e^{-\mu m})`
PoissonGaussianNoise  :math:`y = g k + \sigma \epsilon,\ k \sim \mathrm{Poisson}(m/g)`
====================  ==========================================================================

The laws of counts (Poisson, log-Poisson) are densities with respect to the counting measure on
their lattice. A mean that a law does not allow (negative counts, say) is refused when drawing; the
density reads it as the smallest mean allowed, so that an optimiser on its way is not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import (
    FisherTippettNoise,
    GammaNoise,
    GaussianNoise,
    LaplaceNoise,
    LogPoissonNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
    UniformNoise,
    ZeroNoise,
)
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["LogPoisson", "Observed", "PoissonGaussian", "ScaledPoisson", "noise_law"]

Law = Callable[..., dist.TorchDistribution]


def noise_law(noise: NoiseModel) -> tuple[Law, tuple[str, ...]]:
    """The law of a datum under a noise model.

    Returns:
        ``law(mean, **parameters)``, which makes a distribution with an empty event shape, and the
        names of the parameters, as deepinv calls them.

    Raises:
        ValueError: zero noise, or a noise model without a density here; the text names the
            choices.
    """
    clip = getattr(noise, "clip_positive", False)

    def poisson(mean: Tensor, gain: Tensor) -> ScaledPoisson:
        unit = gain if noise.normalize else torch.ones_like(gain)
        return ScaledPoisson(mean / gain, unit, clip=clip)

    def poisson_gaussian(mean: Tensor, gain: Tensor, sigma: Tensor) -> PoissonGaussian:
        return PoissonGaussian(mean / gain, gain, sigma, clip=clip)

    # By exact class: a subclass may draw something else.
    laws: dict[type, tuple[Law, tuple[str, ...]]] = {
        FisherTippettNoise: (_fisher_tippett, ("l",)),
        GammaNoise: (_gamma, ("l",)),
        GaussianNoise: (_gaussian, ("sigma",)),
        LaplaceNoise: (_laplace, ("b",)),
        LogPoissonNoise: (LogPoisson, ("N0", "mu")),
        PoissonGaussianNoise: (poisson_gaussian, ("gain", "sigma")),
        PoissonNoise: (poisson, ("gain",)),
        UniformNoise: (_uniform, ("a",)),
    }
    if type(noise) is ZeroNoise:
        raise ValueError(
            "the physics has zero noise, so y given x has no density; give it a noise model, "
            "for example physics.set_noise_model(deepinv.physics.GaussianNoise(0.1))"
        )
    if type(noise) not in laws:
        raise ValueError(
            f"no density is known for the noise model {type(noise).__name__}; choose one of "
            f"{', '.join(law.__name__ for law in laws)}, or pass likelihood= (a callable "
            "returning a Distribution) or simulator="
        )
    return laws[type(noise)]


def _gaussian(mean: Tensor, sigma: Tensor) -> dist.TorchDistribution:
    return dist.Normal(mean, sigma, validate_args=False)


def _laplace(mean: Tensor, b: Tensor) -> dist.TorchDistribution:
    return dist.Laplace(mean, b, validate_args=False)


def _uniform(mean: Tensor, a: Tensor) -> dist.TorchDistribution:
    return dist.Uniform(mean - a, mean + a, validate_args=False)


def _gamma(mean: Tensor, l: Tensor) -> dist.TorchDistribution:  # noqa: E741  (deepinv's name)
    return _PositiveGamma(l, l / mean.clamp_min(_floor(mean)), mean)


def _fisher_tippett(mean: Tensor, l: Tensor) -> dist.TorchDistribution:  # noqa: E741
    intensity = dist.Gamma(l, l * torch.exp(-mean), validate_args=False)
    log = dist.transforms.ExpTransform().inv
    return dist.TransformedDistribution(intensity, [log], validate_args=False)


def _floor(mean: Tensor) -> float:
    """Smallest positive mean: far below any datum, far above underflow."""
    return torch.finfo(mean.dtype).eps


def _log_poisson_mass(k: Tensor, rate: Tensor) -> Tensor:
    # A count that was divided by a gain comes back a rounding error below zero.
    mass = torch.xlogy(k.clamp_min(0), rate) - rate - torch.lgamma(k.clamp_min(0) + 1)
    return torch.where(k > -1e-3, mass, -math.inf)


class _PositiveGamma(dist.Gamma):
    """Gamma law that is not drawn from where the mean it was asked for is not positive."""

    def __init__(self, concentration: Tensor, rate: Tensor, asked: Tensor) -> None:
        super().__init__(concentration, rate, validate_args=False)
        self._asked = asked

    def rsample(self, sample_shape: Any = (), generator: Any = None) -> Tensor:
        if not bool((self._asked > 0).all()):
            raise ValueError(
                "gamma noise needs a positive A(x); got a minimum of "
                f"{float(self._asked.min()):.3g}"
            )
        return super().rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        positive = value > 0
        density = super().log_prob(torch.where(positive, value, torch.ones_like(value)))
        return torch.where(positive, density, -math.inf)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _PositiveGamma:
        shape = torch.Size(batch_shape)
        parts = (self.concentration, self.rate, self._asked)
        return _PositiveGamma(*(part.expand(shape) for part in parts))


class _Elementwise(dist.TorchDistribution):
    """Base of the scalar laws below: parameters of one shape, no event."""

    support = constraints.real
    arg_constraints: dict[str, Any] = {}
    _names: tuple[str, ...] = ()

    def __init__(self, *values: Tensor, clip: bool = False) -> None:
        self._values = torch.broadcast_tensors(*values)
        self._clip = clip
        super().__init__(self._values[0].shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Elementwise:
        shape = torch.Size(batch_shape)
        return type(self)(*(value.expand(shape) for value in self._values), clip=self._clip)

    def _draw_counts(self, sample_shape: Any, rate: Tensor) -> Tensor:
        if not self._clip and bool((rate < 0).any()):
            raise ValueError(
                "Poisson counts need a non-negative A(x); got a minimum of "
                f"{float(rate.min()):.3g} counts. Use clip_positive=True in the noise model to "
                "read negative values as zero"
            )
        return torch.poisson(rate.clamp_min(0).expand(torch.Size(sample_shape) + rate.shape))


class ScaledPoisson(_Elementwise):
    """``y = unit * k`` with ``k ~ Poisson(rate)``; parameters ``(*batch)``."""

    def __init__(self, rate: Tensor, unit: Tensor, *, clip: bool = False) -> None:
        super().__init__(rate, unit, clip=clip)
        self.rate, self.unit = self._values

    @property
    def mean(self) -> Tensor:
        """``rate * unit``."""
        return self.rate * self.unit

    @property
    def variance(self) -> Tensor:
        """``rate * unit^2``."""
        return self.rate * self.unit.square()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch)``; ValueError at a negative rate, unless clipped."""
        with torch.no_grad():
            return self._draw_counts(sample_shape, self.rate) * self.unit

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the count ``value / unit``."""
        # In double precision, because k log k and log k! cancel to a few units.
        rate = self.rate.double().clamp_min(_floor(self.rate))
        return _log_poisson_mass(value.double() / self.unit.double(), rate).to(self.rate.dtype)


class LogPoisson(_Elementwise):
    """``y = -log(k / N0) / mu``, ``k ~ Poisson(N0 exp(-mu depth))``: a beam's optical depth.

    A beam of which no photon arrives reads infinity, as it does in deepinv.
    """

    def __init__(self, depth: Tensor, N0: Tensor, mu: Tensor, *, clip: bool = False) -> None:
        super().__init__(depth, N0, mu, clip=clip)
        self.depth, self.photons, self.mu = self._values

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch)``."""
        with torch.no_grad():
            rate = self.photons * torch.exp(-self.mu * self.depth)
            return -torch.log(self._draw_counts(sample_shape, rate) / self.photons) / self.mu

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the count that ``value`` stands for."""
        photons, mu = self.photons.double(), self.mu.double()
        rate = photons * torch.exp(-mu * self.depth.double())
        counts = photons * torch.exp(-mu * value.double())
        return _log_poisson_mass(counts, rate).to(self.depth.dtype)


class PoissonGaussian(_Elementwise):
    r"""``y = gain k + sigma eps``, ``k ~ Poisson(rate)``, ``eps`` standard normal.

    .. math:: p(y) = \sum_k \mathrm{Poisson}(k; r)\, \mathcal N(y; g k, \sigma^2),

    summed to rounding error at every rate with 81 terms. With :math:`c = y/g`, :math:`s =
    \sigma/g` the terms peak at the root of :math:`\log r - \log\kappa + (c - k)/s^2 = 0`,
    :math:`\kappa = k + 1/2` (:math:`\log\kappa` is the digamma function to second order), with
    width :math:`w = (1/\kappa + 1/s^2)^{-1/2}`. Up to :math:`w = 4` these are all integers within
    ten widths, beyond it every h-th one, :math:`h = \lfloor w/2 \rfloor`: the trapezoidal rule on
    a bell is exact to :math:`e^{-2\pi^2 (w/h)^2} \le e^{-78}`.
    """

    _half = 40

    def __init__(self, rate: Tensor, gain: Tensor, sigma: Tensor, *, clip: bool = False) -> None:
        super().__init__(rate, gain, sigma, clip=clip)
        self.rate, self.gain, self.sigma = self._values

    @property
    def mean(self) -> Tensor:
        """``rate * gain``."""
        return self.rate * self.gain

    @property
    def variance(self) -> Tensor:
        """``rate * gain^2 + sigma^2``."""
        return self.rate * self.gain.square() + self.sigma.square()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch)``; ValueError at a negative rate, unless clipped."""
        with torch.no_grad():
            counts = self._draw_counts(sample_shape, self.rate)
            return counts * self.gain + self.sigma * torch.randn_like(counts)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density; differentiable in the rate, the gain, sigma and the value."""
        rate = self.rate.double().clamp_min(_floor(self.rate))
        gain, sigma, y = self.gain.double(), self.sigma.double(), value.double()
        rate, gain, sigma, y = torch.broadcast_tensors(rate, gain, sigma, y)
        with torch.no_grad():
            counts, step = self._nodes(rate, y / gain, sigma / gain)
        residual = (y.unsqueeze(-1) - gain.unsqueeze(-1) * counts) / sigma.unsqueeze(-1)
        terms = _log_poisson_mass(counts, rate.unsqueeze(-1)) - 0.5 * residual**2
        total = torch.logsumexp(terms, -1)
        return (total + step.log() - sigma.log() - 0.5 * math.log(2 * math.pi)).to(self.rate.dtype)

    def _nodes(self, rate: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Counts to sum over, ``(*batch, 81)``, and their spacing ``(*batch)``."""
        # Newton on exp(u) + s^2 u = s^2 log r + c + 1/2, u = log kappa: convex and increasing, and
        # the start lies right of the root, so the iterates fall to it and never jump across. Far
        # from it a step shortens u by one, so 40 steps cover every ratio below exp(30).
        variance = scale.square()
        target = variance * rate.log() + centre + 0.5
        u = torch.maximum(rate, centre + 0.5).log()
        for _ in range(40):
            kappa = u.exp()
            u = u - (kappa + variance * u - target) / (kappa + variance)
        kappa = u.exp()
        width = (1 / kappa + 1 / variance).rsqrt()
        step = (width / 2).floor().clamp_min(1)
        offsets = torch.arange(-self._half, self._half + 1, dtype=rate.dtype, device=rate.device)
        return (kappa - 0.5).round().unsqueeze(-1) + step.unsqueeze(-1) * offsets, step


class Observed(dist.TorchDistribution):
    """A law of which only the data under the mask are seen: the others are 0 and carry nothing.

    Args:
        law: distribution with batch shape ``(*batch)`` and no event.
        mask: bool ``(*batch)``.
    """

    support = constraints.real
    arg_constraints: dict[str, Any] = {}

    def __init__(self, law: dist.TorchDistribution, mask: Tensor) -> None:
        self.law, self.seen = law, mask
        self.has_rsample = law.has_rsample
        super().__init__(law.batch_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of the law, 0 where not seen."""
        return self._keep(self.law.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of the law, 0 where not seen."""
        return self._keep(self.law.variance)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradient, where the law can."""
        return self._keep(self.law.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch)``, 0 where not seen."""
        return self._keep(self.law.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the law, 0 where not seen, whatever the value there."""
        # 1, the mean that `Likelihood` sets there, stands in for data that are not seen: at 0 a
        # gamma law may have an infinite density, whose gradient would spoil the others'.
        value = torch.where(self.seen, value, torch.ones_like(value))
        return self._keep(self.law.log_prob(value))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Observed:
        """The same law over a larger batch."""
        shape = torch.Size(batch_shape)
        return Observed(self.law.expand(shape), self.seen.expand(shape))

    def _keep(self, value: Tensor) -> Tensor:
        return torch.where(self.seen, value, torch.zeros_like(value))
