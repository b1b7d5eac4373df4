r"""Classes of amplitude: how strong a field is, scale by scale.

One Gaussian has one amplitude. Pictures have many: a patch of sky and a patch of grass share their
principal components and differ in how much of each they hold. A prior that is known by samples is
therefore described as a mixture of K Gaussians in its whitened coordinates,

.. math:: \xi \mid k \sim \mathcal N(0, D_k), \qquad
          D_k = Q \operatorname{diag}(a_{k, b(i)})\, Q^\top, \qquad \sum_k w_k a_{kb} = 1,

with the principal components :math:`Q` in order of their strength, and bands :math:`b` of 1, 3,
12, 48, 192, ... of them, as octaves of a picture hold. The classes come from k-means of the log
power of prior samples in the bands (Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489); on
average over them :math:`\xi` keeps unit variance. With K = 1, :math:`D = I`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfm_inverse.gaussian.whitening import DenseWhitening, Whitening
from vfm_inverse.runtime.scaling import FittedBuffers

__all__ = ["CLASSES", "Amplitudes", "bands_of", "num_bands"]

CLASSES = 16
"""Classes of amplitude, K."""

ROUNDS = 30
"""Rounds of k-means."""

FREEDOM = 12
"""Components of a band beyond which its log power is no surer a sign of the class: one band shall
not decide alone."""


class Amplitudes(FittedBuffers):
    """The mixture, over coordinates ``(d,)``.

    Attributes:
        basis: principal components as columns, ``(d, d)``.
        band: which band each of them is in, ``(d,)``.
        variances: by class and band, ``(K, B)``.
        weights: of the classes, ``(K,)``.
    """

    basis: Tensor
    band: Tensor
    variances: Tensor
    weights: Tensor

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("basis", torch.empty(0, 0))
        self.register_buffer("band", torch.empty(0, dtype=torch.int64))
        self.register_buffer("variances", torch.ones(1, 1))
        self.register_buffer("weights", torch.ones(1))

    def fit(self, xi: Tensor, whitening: Whitening) -> None:
        """Fit on whitened prior samples ``(n, d)``.

        Raises:
            ValueError: the whitening has no principal components.
        """
        if not isinstance(whitening, DenseWhitening):
            raise ValueError(
                "'start' must not be 'amplitudes' unless the whitening is 'dense'; got "
                f"{type(whitening).__name__}"
            )
        vectors = torch.linalg.eigh(whitening.root.double())[1]
        self.basis = vectors.flip(1).to(xi).contiguous()
        self.band = bands_of(xi.shape[1]).to(xi.device)
        power = self.band_power(xi)
        counts = torch.bincount(self.band).to(xi)
        log_power = ((power + 1) / (counts + 1)).log() * counts.clamp_max(FREEDOM).sqrt()
        own = kmeans(log_power, min(self.classes, len(xi)))
        members = torch.nn.functional.one_hot(own).to(xi)
        members = members[:, members.sum(0) > 0]
        self.weights = members.mean(0)
        variances = (members.T @ power) / (members.sum(0)[:, None] * counts)
        self.variances = variances / (self.weights @ variances)

    def band_power(self, xi: Tensor) -> Tensor:
        """Sums of squares of ``xi (*, d)`` over each band, ``(*, B)``."""
        squares = (xi @ self.basis).square()
        member = torch.nn.functional.one_hot(self.band).to(xi)
        return squares @ member

    def stds(self) -> Tensor:
        """Standard deviations along the principal components, ``(K, d)``."""
        return self.variances[:, self.band].sqrt()

    def power_of_root(self, k: int, power: float) -> Tensor:
        """``D_k^power``, ``(d, d)``; a half for its root."""
        scale = self.variances[k, self.band] ** power
        return (self.basis * scale) @ self.basis.T

    def log_joint(self, xi: Tensor) -> Tensor:
        """``log w_k N(xi; 0, D_k)`` for ``xi (*, d)`` up to a constant, ``(*, K)``."""
        counts = torch.bincount(self.band).to(self.variances)
        log_det = self.variances.log() @ counts
        quadratic = self.band_power(xi) @ self.variances.reciprocal().T
        return self.weights.log() - 0.5 * (quadratic + log_det)


def bands_of(dim: int) -> Tensor:
    """The band of each of ``dim`` principal components, ``(dim,)``: 1, 3, 12, 48, ... of them."""
    ends = [1]
    while ends[-1] < dim:
        ends.append(4 * ends[-1])
    return torch.bucketize(torch.arange(dim), torch.tensor(ends), right=True)


def num_bands(dim: int) -> int:
    """B, the number of bands of ``dim`` principal components."""
    return int(bands_of(dim)[-1]) + 1


def kmeans(points: Tensor, classes: int) -> Tensor:
    """The class of each of ``points (n, b)``, ``(n,)``."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randperm(len(points), generator=generator)[:classes]
    centers = points[first.to(points.device)]
    own = torch.cdist(points, centers).argmin(1)
    for _ in range(ROUNDS):
        member = torch.nn.functional.one_hot(own, classes).to(points)
        count = member.sum(0)[:, None]
        centers = torch.where(count > 0, (member.T @ points) / count.clamp_min(1), centers)
        own = torch.cdist(points, centers).argmin(1)
    return own
