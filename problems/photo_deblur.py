"""photo-deblur: patches of photographs, blurred by a Gaussian kernel, noise of varying strength.

The blur is deepinv's ``Blur`` with reflecting edges: the observation lies on the grid of the
field, without the dark frame of zero padding or the wrap-around of circular padding, and its
adjoint is exact to rounding. sigma is drawn for every sample and given as a parameter, so that one
trained map serves them all. Grey values lie between 0 and 1, in draws too: the map works in
coordinates that differ from them within 0.02 of black and white alone. The prior exists as patches
only: there is no exact posterior. ``gaussian_prior_posterior`` is the baseline.
"""

from __future__ import annotations

from functools import partial

from deepinv.physics import Blur, GaussianNoise
from deepinv.physics.functional import gaussian_blur

from vfm_inverse.problem.bounded import SoftBox
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.gaussian_prior import gaussian_prior_posterior
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level
from vfm_inverse.problems.shared.photographs import draw_patches, photograph

__all__ = ["gaussian_prior_posterior", "make"]


def make(size: int = 32, sigma: Sigma = (0.02, 0.1), blur: float = 1.5) -> InverseProblem:
    """Build the problem: fields and observations ``(1, size, size)``, grey values in [0, 1].

    Args:
        size: side of a patch, in pixels; 32 and 64 are usual.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
        blur: standard deviation of the kernel, in pixels.

    Raises:
        ImportError: scikit-image, whose photographs these are, is not installed.
        ValueError: a setting is out of range.
    """
    if not 8 <= size <= 256 or not 0 < blur <= size / 8:
        raise ValueError(
            f"'size' must lie in [8, 256] and 'blur' in (0, size / 8]; got {size} and {blur}"
        )
    photograph("camera.png")  # fail here, by name, if there are no photographs
    level, params = noise_level(sigma)
    kernel = gaussian_blur(sigma=(blur, blur))
    return InverseProblem(
        prior=partial(draw_patches, size=size, split="train", dequantize=True),
        test_prior=partial(draw_patches, size=size, split="test", dequantize=True),
        transform=SoftBox(0.0, 1.0, margin=0.02),
        physics=Blur(filter=kernel, padding="reflect", noise_model=GaussianNoise(level)),
        params=params,
        dims=("y", "x"),
        coords={
            "y": ("y", range(size), {"long_name": "row", "units": "1"}),
            "x": ("x", range(size), {"long_name": "column", "units": "1"}),
        },
        units="1",
        obs_units="1",
        long_name="grey value",
    )
