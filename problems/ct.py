r"""ct: X-ray tomography from few angles. A slice of a body, from its shadows.

A ray that crosses the slice is weakened by :math:`e^{-y}` (Beer and Lambert), and the sinogram is

.. math:: y(\theta, s) = \int \mu\, d\ell + \sigma \varepsilon

over the parallel rays of direction :math:`\theta` (the Radon transform). Some hundred angles would
determine the slice (Natterer 2001, The Mathematics of Computerized Tomography,
https://doi.org/10.1137/1.9780898719284, chapter 3); there are 12 here, so that the
prior decides what lies between the streaks. With ``arc`` below 180 degrees the edges
along the missing directions are unseen.

The operator is deepinv's ``Tomography``, which adds pixels up along a ray, so that the unknown is
the attenuation of one pixel: :math:`\mu` times its width. There is no exact posterior;
``gaussian_prior_posterior`` is the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from deepinv.physics import GaussianNoise, Tomography
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.gaussian_prior import gaussian_prior_posterior
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level
from vfm_inverse.problems.shared.phantoms import draw_phantoms
from vfm_inverse.problems.shared.photographs import draw_patches, photograph

__all__ = ["ParallelBeam", "gaussian_prior_posterior", "make"]

SIDE, WATER = 32.0, 0.2
"""Side of the slice in cm, and attenuation of water at 60 keV per cm."""

CHUNK = 512
"""Pictures that are turned at once."""


class ParallelBeam(Tomography):
    """deepinv's ``Tomography`` with the exact adjoint in every precision, and in bounded memory.

    Its own adjoint by backpropagation is exact too, but only in the dtype of the construction; the
    one without interpolates, and is off by some tenths of a percent. It turns every picture of a
    batch by every angle at once, which for the thousands that a start is fitted on is too much.
    """

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Sinograms ``(batch, C, num_rays, num_angles)`` of pictures ``(batch, C, W, W)``."""
        return torch.cat([super(ParallelBeam, self).A(part) for part in x.split(CHUNK)])

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        """Back-projection, ``(batch, C, num_rays, num_angles)`` to ``(batch, C, W, W)``."""
        zero = y.new_zeros(*y.shape[:2], self.img_width, self.img_width)
        return torch.func.vjp(self.A, zero)[1](y)[0]


def make(
    size: int = 32,
    num_angles: int = 12,
    arc: float = 180.0,
    sigma: Sigma = 0.05,
    prior: Literal["phantoms", "photographs"] = "phantoms",
) -> InverseProblem:
    """Build the problem: fields ``(1, size, size)``, sinograms ``(1, num_rays, num_angles)``.

    Args:
        size: pixels along a side of 32 cm; the slice is turned within its circumscribed square, so
            that there are about ``1.41 size`` rays at every angle.
        num_angles: directions, evenly spaced over the arc.
        arc: in degrees; 180 is a full scan.
        sigma: noise standard deviation of the sinogram, or a range ``(low, high)`` drawn per
            sample. 0.05 is that of 400 photons; the body casts a shadow of up to 6.
        prior: bodies of random ellipses with the attenuation of water, or patches of photographs
            on that scale.

    Raises:
        ImportError: photographs are asked for, and scikit-image is not installed.
        ValueError: a setting is out of range.
    """
    if not 8 <= size <= 256 or num_angles < 1 or not 0 < arc <= 180:
        raise ValueError(
            "'size' must lie in [8, 256], 'num_angles' be positive and 'arc' in (0, 180]; "
            f"got {size}, {num_angles} and {arc}"
        )
    if prior not in ("phantoms", "photographs"):
        raise ValueError(f"'prior' must be 'phantoms' or 'photographs'; got {prior!r}")
    angles = arc * torch.arange(num_angles) / num_angles
    level, params = noise_level(sigma)
    physics = ParallelBeam(
        angles,
        size,
        normalize=False,
        noise_model=GaussianNoise(level),
        dtype=torch.get_default_dtype(),
    )
    spacing = SIDE / size
    axis = (np.arange(size) + 0.5) * spacing
    num_rays = physics.A(torch.zeros(1, 1, size, size)).shape[-2]
    splits = {split: _prior(prior, size, WATER * spacing, split) for split in ("train", "test")}
    return InverseProblem(
        prior=splits["train"],
        test_prior=splits["test"],
        physics=physics,
        params=params,
        dims=("y", "x"),
        coords={
            "y": ("y", axis, {"units": "cm", "positive": "down"}),
            "x": ("x", axis, {"units": "cm"}),
        },
        units="1",
        long_name="attenuation of one pixel",
        obs_dims=("ray", "angle"),
        obs_coords={
            "ray": ("ray", spacing * (np.arange(num_rays) - (num_rays - 1) / 2), {"units": "cm"}),
            "angle": ("angle", angles.numpy(), {"units": "degree"}),
        },
        obs_units="1",
    )


def _prior(kind: str, size: int, scale: float, split: str) -> Callable[[int], Tensor]:
    """Fields of the split, times ``scale``."""
    if kind == "photographs":
        photograph("camera.png")  # fail here, by name, if there are no photographs
        draw: Callable[[int], Tensor] = partial(draw_patches, size=size, split=split)
    else:
        draw = partial(draw_phantoms, size=size)
    return lambda num: scale * draw(num)
