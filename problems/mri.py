r"""mri: magnetic resonance imaging, accelerated. A complex picture from a few lines of k-space.

The scanner measures the Fourier transform of the magnetisation, line by line,

.. math:: y = M (F x + \sigma \varepsilon), \qquad x = |x| e^{i\phi},

with one coil, and the scan is as short as the mask :math:`M` has few lines (Lustig, Donoho and
Pauly 2007, https://doi.org/10.1002/mrm.21391). The middle of k-space, which has the large scales,
is always measured; the other lines are drawn anew for every sample and given as the parameter
``mask`` (1 = measured), so that one trained map serves all scans. The operator is deepinv's
``MRI``, with the unitary Fourier transform: noise has the same level in the picture as in k-space.

The magnitude is a phantom of random ellipses, or a photograph; the phase is smooth, a random
quadratic, as field inhomogeneities make it. There is no exact posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from deepinv.physics import MRI, GaussianNoise
from torch import Tensor

from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.shared.noise_levels import Sigma, noise_level
from vfm_inverse.problems.shared.phantoms import draw_phantoms, pixel_grid
from vfm_inverse.problems.shared.photographs import draw_patches, photograph

__all__ = ["draw_lines", "make"]

SIDE = 24.0
"""Side of the field of view in cm."""


def make(
    size: int = 24,
    acceleration: float = 3.0,
    center: float = 0.125,
    sigma: Sigma = 0.05,
    phase: float = 0.5,
    prior: Literal["phantoms", "photographs"] = "phantoms",
) -> InverseProblem:
    """Build the problem: fields and observations ``(2, size, size)``, real and imaginary part.

    Args:
        size: pixels along a side of 24 cm.
        acceleration: how many times fewer lines than ``size`` are measured, on average.
        center: share of the lines that are always measured, in the middle.
        sigma: noise standard deviation of either part, or a range ``(low, high)`` drawn per
            sample; the body has magnitude 1.
        phase: standard deviation of the coefficients of the phase, in radians.
        prior: magnitudes of random ellipses, or patches of photographs.

    Raises:
        ImportError: photographs are asked for, and scikit-image is not installed.
        ValueError: a setting is out of range.
    """
    if not 8 <= size <= 256 or phase < 0:
        raise ValueError(
            f"'size' must lie in [8, 256] and 'phase' not be negative; got {size} and {phase}"
        )
    if not 0 < center <= 1 / acceleration <= 1:
        raise ValueError(
            "'center' must lie in (0, 1 / acceleration] and 'acceleration' be at least 1; "
            f"got {center} and {acceleration}"
        )
    if prior not in ("phantoms", "photographs"):
        raise ValueError(f"'prior' must be 'phantoms' or 'photographs'; got {prior!r}")
    if prior == "photographs":
        photograph("camera.png")  # fail here, by name, if there are no photographs
    level, noise_params = noise_level(sigma)

    def params(num: int) -> dict[str, Tensor]:
        mask = draw_lines(num, size, acceleration, center)
        return {"mask": mask, **(noise_params(num) if noise_params else {})}

    axis = (np.arange(size) + 0.5) * SIDE / size
    wave = (np.arange(size) - size // 2) / SIDE
    part = ("part", ["real", "imaginary"])
    return InverseProblem(
        prior=_prior(prior, size, phase, "train"),
        test_prior=_prior(prior, size, phase, "test"),
        physics=MRI(mask=torch.ones(2, size, size), noise_model=GaussianNoise(level)),
        params=params,
        dims=("part", "y", "x"),
        coords={
            "part": part,
            "y": ("y", axis, {"units": "cm", "positive": "down"}),
            "x": ("x", axis, {"units": "cm"}),
        },
        units="1",
        long_name="transverse magnetisation",
        obs_dims=("part", "ky", "kx"),
        obs_coords={
            "part": part,
            "ky": ("ky", wave, {"units": "cm-1"}),
            "kx": ("kx", wave, {"units": "cm-1"}),
        },
        obs_units="1",
    )


def draw_lines(num: int, size: int, acceleration: float, center: float) -> Tensor:
    """Masks ``(num, 1, size, size)`` of zeros and ones, constant down a column.

    The middle columns are always 1, at least one of them; each of the others with the probability
    that makes ``size / acceleration`` on average.
    """
    width = max(1, round(center * size))
    first = (size - width + 1) // 2  # about size // 2, where the wave number is 0
    others = max(0.0, (size / acceleration - width) / max(1, size - width))
    measured = torch.rand(num, size) < others
    measured[:, first : first + width] = True
    return (
        measured.to(torch.get_default_dtype())[:, None, None, :]
        .expand(num, 1, size, size)
        .contiguous()
    )


def _prior(kind: str, size: int, phase: float, split: str) -> Callable[[int], Tensor]:
    """Complex pictures, as two channels."""
    if kind == "photographs":
        magnitudes: Callable[[int], Tensor] = partial(draw_patches, size=size, split=split)
    else:
        magnitudes = partial(draw_phantoms, size=size)
    down, right = pixel_grid(size).unbind(-1)
    terms = torch.stack([torch.ones_like(down), down, right, down * right, down**2, right**2])

    def draw(num: int) -> Tensor:
        angle = torch.einsum("nt,tyx->nyx", phase * torch.randn(num, len(terms)), terms)
        return magnitudes(num) * torch.stack([angle.cos(), angle.sin()], 1)

    return draw
