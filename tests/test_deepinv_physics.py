"""The deepinv physics that the docs list are certified; the others fail as the docs say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepinv
import pytest
import torch
from deepinv import physics as dinv
from deepinv.physics import GaussianNoise, Physics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

from vfm_inverse.operators import AutogradAdjoint, verify
from vfm_inverse.problem.likelihood import Likelihood

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
S = (1, 8, 8)
KERNEL = gaussian_blur(sigma=(1.0, 0.7))[..., :5, :5]
PADDINGS = ("circular", "constant", "reflect", "replicate", "valid")
Case = tuple[Physics, Tensor] | tuple[Physics, Tensor, dict[str, Tensor]]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=rng())


def complex_normal(*shape: int) -> Tensor:
    return torch.complex(normal(*shape), normal(*shape, seed=1))


def noise() -> GaussianNoise:
    return GaussianNoise(0.1)


def blur(**settings: Any) -> dinv.Blur:
    return dinv.Blur(filter=KERNEL, padding="circular", noise_model=noise(), **settings)


def cassi(mode: str = "ss") -> Physics:
    return dinv.CompressiveSpectralImaging((5, 8, 8), mode=mode, rng=rng(), noise_model=noise())


def tomography(**settings: Any) -> Physics:
    return dinv.Tomography(5, 8, **{"normalize": False, "noise_model": noise(), **settings})


FRAMES = (uniform(1, 1, 4, 8, 8) > 0.5).float().expand(1, 2, 4, 8, 8).clone()
LINES = FRAMES[:, :, 0].clone()
SHIFTS = torch.tensor([[-3, -3], [3, -3], [0, 0], [3, 3]])


def sequential() -> Physics:
    return dinv.SequentialMRI(FRAMES, img_size=(2, 8, 8), noise_model=noise())


def structured_phases() -> Physics:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        physics = dinv.StructuredRandomPhaseRetrieval((1, 8, 8), (1, 12, 12), 2)
    physics.set_noise_model(noise())
    return physics


def scattering(dtype: torch.dtype = torch.complex64) -> Physics:
    angle = 2 * torch.pi * torch.arange(5) / 5
    around = torch.stack([torch.cos(angle), torch.sin(angle)])
    return dinv.Scattering(
        8, receivers=around, transmitters=around, background_wavenumber=4.0, dtype=dtype
    )


def shifted() -> Physics:
    return dinv.VirtualLinearPhysics(
        physics=blur(),
        transform=deepinv.transform.Shift(),
        g_params={"x_shift": torch.tensor([2]), "y_shift": torch.tensor([1])},
    )


X = normal(2, *S)
SUPPORTED: dict[str, dict[str, Callable[[], Case]]] = {
    "Blur": {
        **{
            f"{pad}{' fft' if fft else ''}": lambda pad=pad, fft=fft: (
                dinv.Blur(filter=KERNEL, padding=pad, use_fft=fft, noise_model=noise()),
                X,
            )
            for pad in PADDINGS
            for fft in (False, True)
        },
        "volumes": lambda: (
            dinv.Blur(filter=uniform(1, 1, 3, 3, 3), padding="circular", noise_model=noise()),
            normal(2, 1, 5, 5, 5),
        ),
    },
    "BlurFFT": {"": lambda: (dinv.BlurFFT(S, filter=KERNEL, noise_model=noise()), X)},
    "SpaceVaryingBlur": {
        pad: lambda pad=pad: (
            dinv.SpaceVaryingBlur(
                filters=torch.stack([KERNEL, KERNEL.mT], 2),
                multipliers=uniform(1, 1, 2, 8, 8),
                padding=pad,
                noise_model=noise(),
            ),
            X,
        )
        for pad in PADDINGS
    },
    "TiledSpaceVaryingBlur": {
        "": lambda: (
            dinv.TiledSpaceVaryingBlur(
                filters=KERNEL.unsqueeze(2).repeat(1, 1, 9, 1, 1),
                patch_size=8,
                stride=4,
                noise_model=noise(),
            ),
            normal(2, 1, 16, 16),
        )
    },
    "Downsampling": {
        **{
            pad: lambda pad=pad: (
                dinv.Downsampling(S, filter=KERNEL, padding=pad, noise_model=noise()),
                X,
            )
            for pad in PADDINGS
        },
        "no filter": lambda: (dinv.Downsampling(S, filter=None, noise_model=noise()), X),
        "bicubic": lambda: (dinv.Downsampling(S, filter="bicubic", noise_model=noise()), X),
    },
    "DownsamplingMatlab": {"": lambda: (dinv.DownsamplingMatlab(noise_model=noise()), X)},
    "Upsampling": {
        pad: lambda pad=pad: (
            dinv.Upsampling((1, 16, 16), filter=KERNEL, padding=pad, noise_model=noise()),
            X,
        )
        for pad in PADDINGS[:-1]
    },
    "Inpainting": {
        "": lambda: (dinv.Inpainting(S, mask=0.5, rng=rng(), noise_model=noise()), X),
        "mask in the call": lambda: (
            dinv.Inpainting(S, mask=0.5, rng=rng(), noise_model=noise()),
            X,
            {"mask": (uniform(2, 1, 8, 8) > 0.3).float()},
        ),
    },
    "Demosaicing": {
        "": lambda: (dinv.Demosaicing((3, 8, 8), noise_model=noise()), normal(2, 3, 8, 8))
    },
    "Denoising": {"": lambda: (dinv.Denoising(noise_model=noise()), X)},
    "Decolorize": {"": lambda: (dinv.Decolorize(noise_model=noise()), normal(2, 3, 8, 8))},
    "HyperSpectralUnmixing": {
        "": lambda: (
            dinv.HyperSpectralUnmixing(M=uniform(3, 6), noise_model=noise()),
            normal(2, 3, 8, 8),
        )
    },
    "CompressedSensing": {
        "": lambda: (dinv.CompressedSensing(20, S, rng=rng(), noise_model=noise()), X),
        "channelwise": lambda: (
            dinv.CompressedSensing(
                20, (2, 8, 8), channelwise=True, rng=rng(), noise_model=noise()
            ),
            normal(2, 2, 8, 8),
        ),
    },
    "StructuredRandom": {
        "": lambda: (dinv.StructuredRandom(S, (1, 4, 4), rng=rng(), noise_model=noise()), X)
    },
    "SinglePixelCamera": {
        "fast": lambda: (dinv.SinglePixelCamera(20, S, rng=rng(), noise_model=noise()), X),
        "dense": lambda: (
            dinv.SinglePixelCamera(20, S, fast=False, rng=rng(), noise_model=noise()),
            X,
        ),
    },
    "MRI": {
        "": lambda: (
            dinv.MRI(LINES, img_size=(2, 8, 8), noise_model=noise()),
            normal(2, 2, 8, 8),
        )
    },
    "MultiCoilMRI": {
        "": lambda: (
            dinv.MultiCoilMRI(
                LINES,
                coil_maps=complex_normal(1, 3, 8, 8),
                img_size=(2, 8, 8),
                noise_model=noise(),
            ),
            normal(2, 2, 8, 8),
        )
    },
    "DynamicMRI": {
        "": lambda: (
            dinv.DynamicMRI(FRAMES, img_size=(2, 4, 8, 8), noise_model=noise()),
            normal(2, 2, 4, 8, 8),
        )
    },
    "Tomography": {
        "": lambda: (tomography(), X),
        "normalised": lambda: (tomography(normalize=True), X),
        "circle": lambda: (tomography(circle=True), X),
        "fan beam": lambda: (
            tomography(
                fan_beam=True,
                fan_parameters={
                    "n_detector_pixels": 12,
                    "detector_spacing": 1.0,
                    "pixel_spacing": 0.5,
                },
            ),
            X,
        ),
    },
    "PhaseRetrieval": {
        "": lambda: (
            dinv.PhaseRetrieval(dinv.CompressedSensing(20, S, rng=rng()), noise_model=noise()),
            X,
        )
    },
    "RandomPhaseRetrieval": {
        "": lambda: (
            dinv.RandomPhaseRetrieval(20, S, rng=rng(), noise_model=noise()),
            complex_normal(2, *S),
        )
    },
    "StructuredRandomPhaseRetrieval": {"": lambda: (structured_phases(), complex_normal(2, *S))},
    "Ptychography": {
        "": lambda: (
            dinv.Ptychography((1, 16, 16), shifts=SHIFTS, noise_model=noise()),
            complex_normal(2, 1, 16, 16),
        )
    },
    "PtychographyLinearOperator": {
        "": lambda: (
            dinv.PtychographyLinearOperator((1, 16, 16), shifts=SHIFTS),
            complex_normal(2, 1, 16, 16),
        )
    },
    "Scattering": {"": lambda: (scattering(), 0.1 * uniform(2, *S))},
    "Pansharpen": {
        "": lambda: (
            dinv.Pansharpen((3, 8, 8), factor=2, noise_color=noise(), noise_gray=noise()),
            normal(2, 3, 8, 8),
        )
    },
    "PhysicsCropper": {"": lambda: (dinv.PhysicsCropper(blur(), (2, 2)), X)},
    "VirtualLinearPhysics": {"": lambda: (shifted(), X)},
    "BlurMultiScaler": {"": lambda: (dinv.BlurMultiScaler(blur(), S, factors=(2,)), X)},
    "BlurFFTMultiScaler": {
        "": lambda: (
            dinv.BlurFFTMultiScaler(
                dinv.BlurFFT(S, filter=KERNEL, noise_model=noise()), S, factors=(2,)
            ),
            X,
        )
    },
    "InpaintingMultiScaler": {
        "": lambda: (
            dinv.InpaintingMultiScaler(
                dinv.Inpainting(S, mask=0.5, rng=rng(), noise_model=noise()), S, factors=(2,)
            ),
            X,
        )
    },
    "LinearPhysicsMultiScaler": {
        "": lambda: (dinv.LinearPhysicsMultiScaler(blur(), S, factors=(2,)), X)
    },
    "ComposedLinearPhysics": {
        "": lambda: (dinv.Downsampling(S, filter=None, noise_model=noise()) * blur(), X)
    },
    "StackedLinearPhysics": {"": lambda: (blur().stack(dinv.Denoising(noise_model=noise())), X)},
}
# Certified inside AutogradAdjoint, with the check that fails without it.
WRAPPED: dict[str, tuple[str, Callable[[], Case]]] = {
    "CompressiveSpectralImaging": ("adjoint", lambda: (cassi(), normal(2, 5, 8, 8))),
    "SequentialMRI": (
        "adjoint",
        lambda: (sequential(), normal(2, 2, 8, 8), {"mask": FRAMES.repeat(2, 1, 1, 1, 1)}),
    ),
    "LinearPhysics": (
        "adjoint",
        lambda: (
            dinv.LinearPhysics(
                A=lambda x, **kwargs: 2 * x.roll(1, -1), img_size=S, noise_model=noise()
            ),
            X,
        ),
    ),
}
# Not certified, with the checks that fail.
REFUSED: dict[str, tuple[set[str], Callable[[], Case]]] = {
    "Haze": ({"shapes"}, lambda: (dinv.Haze(noise_model=noise()), normal(2, 3, 8, 8))),
    "SinglePhotonLidar": (
        {"shapes", "batching"},
        lambda: (dinv.SinglePhotonLidar(bins=12), 3 + uniform(2, 3, 3, 4)),
    ),
    "SpatialUnwrapping": (
        {"gradient", "noise"},
        lambda: (dinv.SpatialUnwrapping(noise_model=noise()), X),
    ),
    "UltrasoundPlaneWave": (
        {"dtype", "adjoint"},
        lambda: (
            dinv.UltrasoundPlaneWave(
                (8, 8),
                torch.linspace(-0.28, 0.28, 3),
                torch.stack([torch.linspace(-1e-3, 1e-3, 4), torch.zeros(4)], -1),
                64,
                4e7,
            ),
            X,
        ),
    ),
}
NOT_INSTALLED = {"NonCartesianMRI", "PET", "RadioInterferometry", "TomographyWithAstra"}
# Made of others, and bases of others.
BASES = {
    "ComposedPhysics",
    "DecomposablePhysics",
    "Physics",
    "PhysicsMultiScaler",
    "StackedPhysics",
}
CASES = [(name, variant) for name, variants in SUPPORTED.items() for variant in variants]


def checked(case: Case, wrap: bool = False) -> Any:
    physics, x, *params = case
    if wrap:
        physics = AutogradAdjoint(physics, x.shape[1:])
    return verify(physics, x, **(params[0] if params else {}))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_physics_is_certified(name: str, variant: str) -> None:
    case = SUPPORTED[name][variant]()
    assert type(case[0]).__name__ == name
    result = checked(case)
    assert result.passed, str(result)
    applied = {check.name for check in result.checks if check.passed}
    assert applied >= {"shapes", "gradient", "batching", "determinism", "dtype"}
    if isinstance(case[0], dinv.LinearPhysics):
        assert applied >= {"adjoint", "linearity"}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_physics_is_certified_with_the_adjoint_of_autograd(name: str) -> None:
    failing, make = WRAPPED[name]
    assert checked(make())[failing].passed is False
    result = checked(make(), wrap=True)
    assert result.passed, str(result)
    assert result["adjoint"].passed


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_fails_as_the_docs_say(name: str) -> None:
    failing, make = REFUSED[name]
    result = checked(make())
    assert failing <= {check.name for check in result.checks if check.passed is False}


def rows(title: str) -> list[str]:
    """First column of the table under a heading of the page."""
    text = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE)))


def test_the_docs_list_what_is_tested() -> None:
    assert sorted(rows("Of deepinv")) == sorted([*SUPPORTED, *WRAPPED])
    assert sorted(rows("Not certified")) == sorted([*REFUSED, *NOT_INSTALLED])


def test_every_physics_of_deepinv_is_in_one_of_the_lists() -> None:
    classes = {
        name
        for name, value in vars(dinv).items()
        if isinstance(value, type) and issubclass(value, Physics)
    }
    assert classes == {*SUPPORTED, *WRAPPED, *REFUSED} | NOT_INSTALLED | BASES


def test_certifying_leaves_tomography_as_it_was() -> None:
    """Its adjoint is kept for one precision: before and after, that of the user."""
    physics = tomography()
    y = physics.A(X)
    before = physics.A_adjoint(y)
    assert verify(physics, X).passed
    assert torch.equal(physics.A_adjoint(y), before) and before.dtype == torch.float32


def test_coils_share_a_mask_in_the_density() -> None:
    physics, x = SUPPORTED["MultiCoilMRI"][""]()[:2]
    y = physics(x)
    law = Likelihood(physics)(x)
    seen = physics.mask[:, :, None].expand(y.shape) > 0
    expected = torch.distributions.Normal(physics.A(x), 0.1).log_prob(y)
    expected = torch.where(seen, expected, 0).flatten(1).sum(1)
    torch.testing.assert_close(law.log_prob(y), expected)
