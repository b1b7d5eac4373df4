r"""A posterior that is a mixture over classes of amplitude, as one law with a frame.

With :math:`p(k \mid y)` and a Gaussian for each class k, whose frame is :math:`\zeta = F_k(\xi)`,
a point of the frame is :math:`(\zeta, u) \in \mathbb R^{d+1}`: the class is read from u,

.. math:: k(u) = \min\{k : \Phi(u) \le p(1 \mid y) + \dots + p(k \mid y)\}, \qquad
          \xi = F_{k(u)}^{-1}(\zeta),

so that N(0, I) in the frame gives the mixture, and what is made of noise stays a function of it.
The other way, a field has a class drawn from :math:`p(k \mid \xi) \propto w_k \mathcal N(\xi; 0,
D_k)`, and u is drawn where k(u) is that class. If :math:`\xi` has the mixture's law given y, then
:math:`(\zeta, u) \sim \mathcal N(0, I)`. A class drawn from :math:`p(k \mid y)` instead would not
be that of the field, and the frame too wide or too narrow for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.special import ndtr, ndtri

from vfm_inverse.gaussian.amplitudes import Amplitudes
from vfm_inverse.gaussian.frames import Framed
from vfm_inverse.gaussian.normals import ContractedNormal, StandardNormal
from vfm_inverse.gaussian.precise_normal import PreciseNormal

__all__ = ["AmplitudeMixture", "Classes", "Part", "Rescaled", "classes_of"]

RARE = 1e-3
"""Probability of a class given the observation below which it is left out."""

EDGE = 1e-3
"""Share of a class's interval at either end that no u is drawn in: rounding shall not move it to
the next class."""


@dataclass(frozen=True)
class Classes:
    """How classes are read from the last coordinate of a frame.

    Attributes:
        bounds: where each class ends on the scale of Phi(u), ``(n, K)``; from the last one that
            the observation allows on infinite.
        numbers: what a network sees of each class, ``(K, B)``.
    """

    bounds: Tensor
    numbers: Tensor

    @staticmethod
    def of(probabilities: Tensor, numbers: Tensor) -> Classes:
        """From ``p(k | y)``, ``(n, K)``."""
        bounds = probabilities.double().cumsum(-1)
        later = probabilities.flip(-1).cumsum(-1).flip(-1) - probabilities
        return Classes(torch.where(later > 0, bounds, torch.inf), numbers)

    def __getitem__(self, rows: slice) -> Classes:
        """Of some of the observations."""
        return Classes(self.bounds[rows], self.numbers)

    def read(self, u: Tensor) -> Tensor:
        """The class at ``u (*sample, n)``, ``(*sample, n)``."""
        place = ndtr(u.double())
        return (place.unsqueeze(-1) > self.bounds).sum(-1)

    def coordinate(self, k: Tensor) -> Tensor:
        """A u at which the class is ``k (*sample, n)``, drawn from N(0, 1) there."""
        bounds = self.bounds.clamp_max(1).expand(*k.shape, -1)
        upper = bounds.gather(-1, k.unsqueeze(-1)).squeeze(-1)
        lower = bounds.gather(-1, (k - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
        lower = torch.where(k > 0, lower, 0.0)
        share = EDGE + (1 - 2 * EDGE) * torch.rand_like(upper)
        return ndtri(lower + share * (upper - lower)).to(self.numbers)

    def beside(self, context: Tensor, u: Tensor) -> Tensor:
        """Features ``(n, C, ...)`` and what the class at ``u (*sample, n)`` adds to them, for
        every sample: ``(k n, C + B, ...)``."""
        numbers = self.numbers[self.read(u)].flatten(0, -2)
        numbers = numbers.reshape(*numbers.shape, *[1] * (context.dim() - 2))
        repeated = context.expand(u.numel() // len(context), *context.shape).flatten(0, 1)
        return torch.cat([repeated, numbers.expand(-1, -1, *context.shape[2:])], 1)


class Rescaled(Framed):
    """The Gaussian of ``D^{1/2} e`` for observations of one class, ``e`` a contracted normal.

    Args:
        law: of ``e``, batch shape ``(r,)``.
        root, inverse: ``D^{1/2}`` and ``D^{-1/2}``, symmetric, ``(d, d)``.
        lifted: ``D^{1/2} V`` of the directions of ``law``, ``(d, rank)``.
        log_det: of ``D^{1/2}``.
    """

    def __init__(
        self, law: ContractedNormal, root: Tensor, inverse: Tensor, lifted: Tensor, log_det: Tensor
    ) -> None:
        self.law, self.root, self.inverse = law, root, inverse
        self.lifted, self.log_det = lifted, log_det

    @property
    def mean(self) -> Tensor:
        """Mean, ``(r, d)``."""
        return self.law.mean @ self.root

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, ``(r, d)``."""
        gain = 1 - self.law.scale.square()
        return self.root.square().sum(0) - gain @ self.lifted.square().T

    def standardize(self, z: Tensor) -> Tensor:
        """Coordinates ``(*sample, r, d)`` in which the law is N(0, I)."""
        return self.law.standardize(z @ self.inverse)

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """The inverse of :meth:`standardize`."""
        return self.law.unstandardize(zeta) @ self.root

    def standard(self) -> StandardNormal:
        """N(0, I)."""
        return self.law.standard()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, r, d)``, ``(*sample, r)``."""
        return self.law.log_prob(value @ self.inverse) - self.log_det


class Part(NamedTuple):
    """The Gaussian of one class.

    Attributes:
        rows: the observations that allow it, ``(r,)``.
        law: of each of these.
    """

    rows: Tensor
    law: Rescaled | PreciseNormal


class AmplitudeMixture(Framed, TorchDistribution):
    """``sum_k p(k | y) N(mu_k, C_k)`` over vectors ``(d,)``, batch shape ``(n,)``; its frame has
    ``d + 1`` coordinates.

    Args:
        amplitudes: the classes.
        probabilities: ``p(k | y)``, ``(n, K)``, zero where a class is left out.
        parts: the Gaussian of each class.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self, amplitudes: Amplitudes, probabilities: Tensor, parts: Sequence[Part]
    ) -> None:
        self.amplitudes, self.probabilities, self.parts = amplitudes, probabilities, parts
        self.classes = Classes.of(probabilities, amplitudes.variances.log())
        dim = len(amplitudes.band)
        super().__init__(probabilities.shape[:1], torch.Size([dim]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean, ``(n, d)``."""
        return self._averaged(lambda law: law.mean)

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, ``(n, d)``: within classes and between them."""
        square = self._averaged(lambda law: law.variance + law.mean.square())
        return square - self.mean.square()

    def standardize(self, z: Tensor) -> Tensor:
        """A point ``(*sample, n, d + 1)`` of the frame for each ``z (*sample, n, d)``, of a class
        that is drawn."""
        log_joint = self.amplitudes.log_joint(z)
        log_joint = torch.where(self.probabilities > 0, log_joint, -torch.inf)
        k = torch.distributions.Categorical(logits=log_joint, validate_args=False).sample()
        zeta = self._by_class(k, z, lambda law, part: law.standardize(part))
        return torch.cat([zeta, self.classes.coordinate(k).unsqueeze(-1)], -1)

    def unstandardize(self, zeta: Tensor) -> Tensor:
        """``z (*sample, n, d)`` at points ``(*sample, n, d + 1)`` of the frame."""
        k = self.classes.read(zeta[..., -1])
        return self._by_class(k, zeta[..., :-1], lambda law, part: law.unstandardize(part))

    def standard(self) -> StandardNormal:
        """N(0, I) in ``d + 1`` dimensions."""
        like = self.amplitudes.variances
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return StandardNormal(zero, self.batch_shape[0], self.event_shape[0] + 1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws ``(*sample, n, d)``; no gradient reaches the classes."""
        return self.unstandardize(self.standard().rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of ``value (*sample, n, d)``, ``(*sample, n)``."""
        terms = value.new_full((len(self.parts), *value.shape[:-1]), -torch.inf)
        for k, (rows, law) in enumerate(self.parts):
            if len(rows):
                weight = self.probabilities[rows, k].log()
                terms[k][..., rows] = law.log_prob(value[..., rows, :]) + weight
        return terms.logsumexp(0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AmplitudeMixture:
        """Itself: there is one law for each observation."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        raise ValueError(
            f"'batch_shape' must stay {tuple(self.batch_shape)}, one per observation; got "
            f"{tuple(batch_shape)}"
        )

    def _averaged(self, value: Callable[[Rescaled | PreciseNormal], Tensor]) -> Tensor:
        """Averages over the classes of something ``(r, d)`` of each."""
        like = self.amplitudes.variances
        total = like.new_zeros(self.batch_shape + self.event_shape)
        for k, (rows, law) in enumerate(self.parts):
            if len(rows):
                total.index_add_(0, rows, self.probabilities[rows, k, None] * value(law))
        return total

    def _by_class(
        self, k: Tensor, x: Tensor, function: Callable[[Rescaled | PreciseNormal, Tensor], Tensor]
    ) -> Tensor:
        """What the law of its class ``k (*sample, n)`` makes of each of ``x (*sample, n, d)``."""
        out = torch.zeros_like(x)
        for number, (rows, law) in enumerate(self.parts):
            if len(rows):
                mine = (k[..., rows] == number).unsqueeze(-1)
                made = function(law, x[..., rows, :])
                out[..., rows, :] = torch.where(mine, made, out[..., rows, :])
        return out


def classes_of(q: TorchDistribution) -> Classes | None:
    """The classes in the frame of a law, where it has some."""
    return q.classes if isinstance(q, AmplitudeMixture) else None
