"""photo-inpaint: patches of photographs with missing pixels or a missing box, and noise.

The operator is deepinv's ``Inpainting``. For every sample a mask is drawn, given as the parameter
``mask`` (1 = seen): with probability one half single pixels are kept, a fraction drawn from
``keep``; otherwise one box is missing, each side drawn from a quarter to a half of the patch's.
Missing data read 0. There is no exact posterior; ``gaussian_prior_posterior`` is the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from deepinv.physics import GaussianNoise, Inpainting
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.gaussian_prior import gaussian_prior_posterior
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level
from vfm_inverse.problems.shared.photographs import draw_patches, photograph

__all__ = ["draw_masks", "gaussian_prior_posterior", "make"]


def make(
    size: int = 32, sigma: Sigma = (0.02, 0.1), keep: Sequence[float] = (0.3, 0.7)
) -> InverseProblem:
    """Build the problem: fields and observations ``(1, size, size)``, grey values in [0, 1].

    Args:
        size: side of a patch, in pixels; 32 and 64 are usual.
        sigma: noise standard deviation, or a range ``(low, high)`` drawn per sample.
        keep: range of the fraction of pixels that a random mask keeps.

    Raises:
        ImportError: scikit-image, whose photographs these are, is not installed.
        ValueError: a setting is out of range.
    """
    if not 8 <= size <= 256:
        raise ValueError(f"'size' must lie in [8, 256]; got {size}")
    if len(keep) != 2 or not 0 < keep[0] <= keep[1] <= 1:
        raise ValueError(f"'keep' must be a range 0 < low <= high <= 1; got {tuple(keep)}")
    photograph("camera.png")  # fail here, by name, if there are no photographs
    level, noise_params = noise_level(sigma)

    def params(num: int) -> dict[str, Tensor]:
        return {"mask": draw_masks(num, size, keep), **(noise_params(num) if noise_params else {})}

    axis = {"units": "1"}
    return InverseProblem(
        prior=partial(draw_patches, size=size, split="train"),
        test_prior=partial(draw_patches, size=size, split="test"),
        physics=Inpainting(
            (1, size, size), mask=torch.ones(1, size, size), noise_model=GaussianNoise(level)
        ),
        params=params,
        dims=("y", "x"),
        coords={
            "y": ("y", range(size), {"long_name": "row", **axis}),
            "x": ("x", range(size), {"long_name": "column", **axis}),
        },
        units="1",
        obs_units="1",
        long_name="grey value",
    )


def draw_masks(num: int, size: int, keep: Sequence[float]) -> Tensor:
    """Masks ``(num, 1, size, size)`` of zeros and ones, half of them random pixels, half boxes."""
    fraction = keep[0] + (keep[1] - keep[0]) * torch.rand(num, 1, 1)
    pixels = torch.rand(num, size, size) < fraction
    side = torch.randint(size // 4, size // 2 + 1, (num, 2))
    corner = (torch.rand(num, 2) * (size - side + 1)).long()
    offset = torch.arange(size) - corner.unsqueeze(-1)
    inside = (offset >= 0) & (offset < side.unsqueeze(-1))
    box = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
    random = torch.rand(num, 1, 1) < 0.5
    return torch.where(random, pixels, box).to(torch.get_default_dtype()).unsqueeze(1)
