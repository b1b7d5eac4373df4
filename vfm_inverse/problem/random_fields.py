r"""Random fields on regular grids, as priors: Matérn fields, Karhunen-Loève expansions, facies.

A Matérn field has the covariance (Rasmussen and Williams 2006, https://gaussianprocess.org/gpml,
eq. 4.14), with one length scale an axis,

.. math:: k(r) = \sigma^2 \frac{2^{1-\nu}}{\Gamma(\nu)} s^\nu K_\nu(s), \qquad s = \sqrt{2\nu}\,
          \Bigl(\sum_d r_d^2 / \ell_d^2\Bigr)^{1/2}.

On a regular grid its covariance matrix is a block of a larger circulant one, whose eigenvalues
:math:`\lambda` are a Fourier transform of the covariance and non-negative if the period is large
enough. Real and imaginary part of :math:`F \sqrt{\lambda} (e_1 + i e_2)` are then two independent
draws with **exactly** that covariance (Dietrich and Newsam 1997,
https://doi.org/10.1137/S1064827592240555), in :math:`O(n \log n)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution, constraints
from scipy import special
from torch import Tensor

__all__ = ["MaternField", "expansion", "karhunen_loeve", "level_sets", "matern_covariance"]

# Nugget: smooth fields on fine grids are numerically singular in single precision.
NUGGET = 1e-5


def matern_covariance(
    shape: int | Sequence[int], nu: float, length_scale: float | Sequence[float]
) -> Tensor:
    """Covariance ``(d, d)`` of a field of unit variance at the nodes of a grid on the unit square.

    In double precision, with ``NUGGET`` on the diagonal.

    Args:
        shape: nodes along each axis; a number for a square. The first and the last lie on the
            boundary.
        nu: smoothness.
        length_scale: in units of the side, one number or one an axis.

    Raises:
        ValueError: a setting is out of range.
    """
    shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
    if min(shape) < 2:
        raise ValueError(f"'shape' must have axes >= 2; got {shape}")
    axes = [np.linspace(0, 1, side) for side in shape]
    covariance = torch.from_numpy(_dense(axes, nu, length_scale))
    return covariance + NUGGET * torch.eye(len(covariance), dtype=covariance.dtype)


class MaternField(TorchDistribution):
    """Matérn field over ``(1, *shape)``, drawn by fast Fourier transform.

    Args:
        shape: grid points along each axis, ``(L,)`` or ``(H, W)``.
        nu: smoothness: draws have fewer than ``nu`` derivatives.
        length_scale: one number or one an axis, in the unit of ``spacing``.
        std: standard deviation ``sigma``.
        mean: one number.
        spacing: distance of grid points, one number or one an axis; by default the first and the
            last point of each axis are at distance 1, as in ``matern_covariance``.
        dtype: of the draws.

    Draws come from the CPU's generator, so that a seed gives the same field on every device.

    Raises:
        ValueError: a setting is out of range, or the field is too smooth for its length scale: no
            circulant matrix of up to 16 times the grid's side has non-negative eigenvalues.
    """

    support = constraints.real
    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        shape: Sequence[int],
        nu: float = 1.5,
        length_scale: float | Sequence[float] = 0.25,
        std: float = 1.0,
        mean: float = 0.0,
        spacing: float | Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = tuple(shape)
        if len(shape) not in (1, 2) or min(shape) < 2:
            raise ValueError(f"'shape' must be (L,) or (H, W) with axes >= 2; got {shape}")
        if not std > 0:
            raise ValueError(f"'std' must be positive; got {std}")
        self.grid, self.nu, self.std = shape, nu, std
        self.length_scale = _per_axis("length_scale", length_scale, len(shape))
        self.spacing = _per_axis(
            "spacing",
            [1 / (side - 1) for side in shape] if spacing is None else spacing,
            len(shape),
        )
        self.dtype = dtype or torch.get_default_dtype()
        self._mean = mean
        self._root = self._embed()
        self._cholesky: Tensor | None = None
        super().__init__(torch.Size(), torch.Size((1, *shape)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``(1, *shape)``."""
        return torch.full(self.event_shape, self._mean, dtype=self.dtype)

    @property
    def variance(self) -> Tensor:
        """``(1, *shape)``."""
        return torch.full(self.event_shape, self.std**2, dtype=self.dtype)

    @property
    def covariance_matrix(self) -> Tensor:
        """Exact covariance of the flattened field, ``(d, d)`` in double precision."""
        axes = [step * np.arange(side) for step, side in zip(self.spacing, self.grid, strict=True)]
        return torch.from_numpy(self.std**2 * _dense(axes, self.nu, self.length_scale))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, 1, *shape)``."""
        sample_shape = torch.Size(sample_shape)
        num = sample_shape.numel()
        axes = tuple(range(-len(self.grid), 0))
        noise = torch.randn(2, -(-num // 2), *self._root.shape, dtype=self.dtype)
        waves = torch.fft.fftn(self._root.to(self.dtype) * torch.complex(*noise), dim=axes)
        fields = torch.cat([waves.real, waves.imag])[:num]
        for axis, side in zip(axes, self.grid, strict=True):
            fields = fields.narrow(axis, 0, side)
        return self._mean + fields.reshape(*sample_shape, 1, *self.grid)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of fields ``(*, 1, *shape)``, by a dense factor made at the first call."""
        if self._cholesky is None:
            self._cholesky = torch.linalg.cholesky(self.covariance_matrix)
        factor = self._cholesky.to(value.device)
        flat = (value.double() - self._mean).flatten(-len(self.event_shape))
        white = torch.linalg.solve_triangular(
            factor, flat.reshape(-1, len(factor)).mT, upper=False
        )
        square = white.square().sum(0).reshape(flat.shape[:-1])
        constant = factor.diagonal().log().sum() + 0.5 * len(factor) * math.log(2 * math.pi)
        return (-0.5 * square - constant).to(value.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaternField:
        """Only the empty batch: a prior is over one field."""
        if torch.Size(batch_shape):
            raise NotImplementedError("MaternField has no batch dimensions")
        return self

    def _embed(self) -> Tensor:
        """Square roots of the eigenvalues of the circulant, over the whole period."""
        for growth in (1, 2, 4, 8, 16):
            period = [2 * growth * (side - 1) for side in self.grid]
            around = [
                step * np.minimum(np.arange(size), size - np.arange(size))
                for step, size in zip(self.spacing, period, strict=True)
            ]
            lag = np.meshgrid(*around, indexing="ij")
            table = _matern(np.stack(lag, -1), self.nu, self.length_scale)
            eigenvalues = np.fft.fftn(table).real
            if eigenvalues.min() > -1e-12 * eigenvalues.max():
                scaled = self.std**2 * eigenvalues.clip(0) / eigenvalues.size
                return torch.from_numpy(np.sqrt(scaled))
        raise ValueError(
            f"'length_scale' {self.length_scale} with 'nu' {self.nu} is too smooth for a draw by "
            "Fourier transform; shorten it, or use matern_covariance in a MultivariateNormal"
        )


def karhunen_loeve(covariance: Tensor, num_modes: int) -> Tensor:
    """Leading modes ``B`` ``(d, r)`` of a covariance ``(d, d)``: the best ``B B^T`` of rank ``r``.

    Eigenvectors times the roots of their eigenvalues, largest first, so that ``B xi`` with ``xi ~
    N(0, I)`` is the truncated expansion. The share of the variance it keeps is ``B.square().sum()
    / covariance.trace()``.

    Raises:
        ValueError: ``num_modes`` is not between 1 and d.
    """
    if not 1 <= num_modes <= len(covariance):
        raise ValueError(f"'num_modes' must lie in [1, {len(covariance)}]; got {num_modes}")
    values, vectors = torch.linalg.eigh(covariance.double())
    modes = vectors[:, -num_modes:] * values[-num_modes:].clamp_min(0).sqrt()
    return modes.flip(-1)


def expansion(
    modes: Tensor, shape: Sequence[int], mean: Tensor | float = 0.0
) -> Callable[[int], Tensor]:
    """Prior ``num -> (num, *shape)`` of fields ``mean + B xi`` from modes ``B`` ``(d, r)``.

    ``mean`` broadcasts against ``shape``. Draws have torch's default dtype.
    """

    def draw(num: int) -> Tensor:
        basis = modes.to(torch.get_default_dtype())
        xi = torch.randn(num, basis.shape[1]).to(basis)  # one seed, one field on every device
        return mean + (xi @ basis.mT).reshape(num, *shape)

    return draw


def level_sets(field: Tensor, thresholds: Sequence[float], values: Sequence[float]) -> Tensor:
    """Facies: ``values[k]`` where the field lies between ``thresholds[k - 1]`` and ``[k]``.

    Two thresholds around zero with equal outer values give channels, the band along a level line;
    one gives two facies. A value on a threshold belongs to the upper facies.

    Args:
        field: any shape.
        thresholds: ascending, ``m`` of them.
        values: ``m + 1``.

    Raises:
        ValueError: the numbers do not fit, or the thresholds do not ascend.
    """
    if len(values) != len(thresholds) + 1 or list(thresholds) != sorted(set(thresholds)):
        raise ValueError(
            "'thresholds' must ascend and 'values' be one more; "
            f"got {list(thresholds)} and {list(values)}"
        )
    edges = torch.tensor(thresholds, dtype=field.dtype, device=field.device)
    chosen = torch.bucketize(field, edges, right=True)
    return torch.tensor(values, dtype=field.dtype, device=field.device)[chosen]


def _matern(lag: np.ndarray, nu: float, length_scale: float | Sequence[float]) -> np.ndarray:
    """Correlation at the lags ``(*, D)``."""
    scales = np.asarray(length_scale, dtype=float)
    if nu <= 0 or (scales <= 0).any():
        raise ValueError(f"'nu' and 'length_scale' must be positive; got {nu}, {length_scale}")
    s = math.sqrt(2 * nu) * np.linalg.norm(lag / scales, axis=-1)
    far = np.where(s > 0, s, 1.0)
    value = 2 ** (1 - nu) / special.gamma(nu) * far**nu * special.kv(nu, far)
    return np.where(s > 0, value, 1.0)


def _dense(
    axes: Sequence[np.ndarray], nu: float, length_scale: float | Sequence[float]
) -> np.ndarray:
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    return _matern(nodes[:, None] - nodes[None], nu, length_scale)


def _per_axis(name: str, value: float | Sequence[float], num_axes: int) -> tuple[float, ...]:
    values = (float(value),) * num_axes if isinstance(value, int | float) else tuple(value)
    if len(values) != num_axes or min(values) <= 0:
        raise ValueError(
            f"'{name}' must be positive, one number or one for each of {num_axes} axes; "
            f"got {value}"
        )
    return values
