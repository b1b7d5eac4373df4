"""Maps as they are built and after a short training: every start, family, network and mode."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from deepinv.physics import Blur, Denoising, GaussianNoise, Inpainting, LinearPhysics
from deepinv.physics.functional import gaussian_blur
from torch import Tensor
from torch.distributions import (
    Dirichlet,
    Distribution,
    Gamma,
    Independent,
    LogNormal,
    Normal,
    Uniform,
)
from torch.distributions.transforms import ExpTransform

from tests.benchmarks.behaviour_common import (
    FIELD,
    VECTOR,
    Case,
    Results,
    answers,
    built,
    drawn,
    held_out,
    linear,
    normal,
    prefixed,
    stir,
    trained,
    weights,
)
from vfm_inverse import operators, problems
from vfm_inverse.problem import InverseProblem

SIDE = 46
"""Of a field that has too many numbers for a dense covariance."""


@dataclass(frozen=True)
class Variant:
    """A problem, and how its map is built and trained."""

    problem: Callable[[], InverseProblem]
    build: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)


def of_map(variant: Variant) -> Results:
    """A map before and after a short training, and with weights that it cannot ignore."""
    problem = variant.problem()
    vfm = built(problem, VECTOR, **variant.build)
    kinds = [type(one).__name__ for one in (vfm.start, vfm.whitening, vfm.features)]
    results: Results = {
        "kinds": kinds,
        "config": json.dumps(vfm.config, sort_keys=True, default=str),
        **prefixed("untrained", answers(vfm, problem)),
    }
    results["history"] = trained(vfm, problem, **variant.fit)
    results["note"] = vfm.training_note
    _, y, params = held_out(problem)
    results["trained"] = [weights(vfm), drawn(vfm(y, **params))]
    stir(vfm)
    return results | prefixed("stirred", answers(vfm, problem))


# Problems ----------------------------------------------------------------------------------------


def load(name: str, **settings: Any) -> Callable[[], InverseProblem]:
    """What makes a problem of the package."""
    return partial(problems.load, name, **settings)


def bounded(prior: Distribution) -> Callable[[], InverseProblem]:
    """What makes a problem whose prior has a support, seen number by number."""
    return lambda: InverseProblem(prior, likelihood=normal)


def transformed() -> InverseProblem:
    """Samples of positive vectors with a transform of the user's."""
    samples = torch.randn(300, 4, generator=torch.Generator().manual_seed(4)).exp()
    return InverseProblem(samples, likelihood=normal, transform=ExpTransform())


def simulated() -> InverseProblem:
    """A simulator alone, with a parameter that is an integer."""

    def observe(x: Tensor, gain: Tensor) -> Tensor:
        return gain[..., None] * x[..., :3] ** 3 + 0.1 * torch.randn_like(x[..., :3])

    return InverseProblem(
        Independent(Normal(torch.zeros(5), torch.ones(5)), 1),
        simulator=observe,
        params=lambda num: {"gain": torch.randint(1, 4, (num,))},
    )


def tables() -> InverseProblem:
    """A vector of waves, read where a table of stations says: no grid, no linear physics."""

    def read(x: Tensor, coords: Tensor, mask: Tensor, sigma: Tensor) -> Distribution:
        wave = torch.sin(3 * coords * (1 + torch.arange(x.shape[-1]))).sin() @ x.unsqueeze(-1)
        return Independent(Normal(wave.squeeze(-1) * mask, sigma), 1)

    def networks(num: int) -> dict[str, Tensor]:
        mask = (torch.arange(5) < torch.randint(1, 6, (num, 1))).float()
        sigma = 0.1 + torch.rand(num, 5)
        return {"coords": torch.rand(num, 5, 1), "mask": mask, "sigma": sigma}

    prior = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
    return InverseProblem(prior, likelihood=read, params=networks)


def smooth(num: int, side: int = SIDE) -> Tensor:
    """Large smooth fields ``(num, 1, side, side)``."""
    rate = torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side) ** 2
    modes = torch.fft.rfft2(torch.randn(num, 1, side, side)) / (1 + 200 * rate)
    return torch.fft.irfft2(modes, s=(side, side))


def levels(num: int) -> dict[str, Tensor]:
    """Noise that varies."""
    return {"sigma": 0.1 + 0.4 * torch.rand(num)}


def masks(num: int) -> dict[str, Tensor]:
    """Missing pixels, and noise that varies."""
    return {"mask": (torch.rand(num, 1, SIDE, SIDE) < 0.6).float(), **levels(num)}


def large(
    physics: Callable[[], LinearPhysics], params: Callable[[int], dict[str, Tensor]] | None = None
) -> Callable[[], InverseProblem]:
    """What makes a problem of a large field."""

    def make() -> InverseProblem:
        operator = physics()
        operator.set_noise_model(GaussianNoise(0.2))
        return InverseProblem(smooth, physics=operator, params=params)

    return make


def read_at_points() -> LinearPhysics:
    """Thirty numbers of a large field."""
    points = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    return operators.PointObservations((1, SIDE, SIDE), points)


def squared() -> InverseProblem:
    """A large field, some of whose squares are seen: a wide regression."""

    def observe(x: Tensor) -> Distribution:
        seen = x.flatten(-3)[..., :510]
        return Independent(Normal(seen**2 + seen, 0.2), 1)

    return InverseProblem(partial(smooth, side=92), likelihood=observe)


def in_double() -> InverseProblem:
    """The linear problem in double precision."""
    return linear().to(dtype=torch.float64)


INPAINTING = partial(Inpainting, (1, SIDE, SIDE), mask=torch.ones(1, SIDE, SIDE))
BLUR = partial(Blur, gaussian_blur(sigma=(1.0, 1.0)), "reflect")
KRIGING = load("gaussian-field", size=9, num_points=6)
MOONS = load("two-moons")
CHANGING = {"networks": "changing", "sigma": [0.1, 0.5]}
LARGE = {**FIELD, "max_rank": 8, "num_simulations": 256}
PRIOR_MAP = {"observation": "adapter"}
TWELVE, TEN = ({"steps": num, "log_every": 2} for num in (12, 10))
FOUR = {"steps": 4, "log_every": 2, "batch_size": 8, "num_validation": 8}

FAMILIES = ("contraction", "diagonal", "low-rank", "full", "mixture", "spline")

VARIANTS: dict[str, Variant] = {
    # Every family, under a map of the prior and under a conditional one.
    **{f"linear, {one}": Variant(linear, {"adapter": one}) for one in FAMILIES},
    **{
        f"linear, {one}, map of the prior": Variant(linear, {"adapter": one, **PRIOR_MAP})
        for one in FAMILIES
    },
    # Modes, steps and precision.
    "linear, context": Variant(linear, {"observation": "context"}),
    "linear, four steps": Variant(linear, {"steps": 4, "adapter": "full"}),
    "linear, context, four steps": Variant(linear, {"steps": 4, "observation": "context"}),
    "linear, map of the prior, four steps": Variant(linear, {"steps": 4, **PRIOR_MAP}),
    "linear, half precision": Variant(linear, {"precision": "half", "adapter": "full"}, TWELVE),
    "linear, double precision": Variant(in_double, {"adapter": "full"}),
    # Without a Gaussian start, other whitenings.
    "linear, no start": Variant(linear, {"gaussian_start": False}),
    "linear, no start, diagonal": Variant(
        linear, {"gaussian_start": False, "adapter": "diagonal", **PRIOR_MAP}, TWELVE
    ),
    "linear, low-rank whitening": Variant(linear, {"whitening": "low-rank"}, TWELVE),
    "linear, identity whitening": Variant(linear, {"whitening": "identity"}, TWELVE),
    # Vectors that are not Gaussian, priors with bounds.
    "moons": Variant(MOONS),
    "moons, mixture": Variant(MOONS, {"adapter": "mixture"}),
    "moons, spline, map of the prior": Variant(MOONS, {"adapter": "spline", **PRIOR_MAP}),
    "mixture prior": Variant(load("mixture-linear", dim=5, obs_dim=2), {"adapter": "full"}),
    "checkerboard": Variant(load("checkerboard", sigma=[0.05, 0.5]), {"adapter": "mixture"}),
    "student": Variant(load("student-t", dim=5, obs_dim=3)),
    "spikes": Variant(load("bernoulli-glm"), {}, TWELVE),
    "box": Variant(bounded(Independent(Uniform(torch.zeros(3), torch.arange(1.0, 4)), 1))),
    "half-line": Variant(bounded(Independent(Gamma(torch.full((3,), 2.0), torch.ones(3)), 1))),
    "log-normal": Variant(bounded(Independent(LogNormal(torch.zeros(3), torch.ones(3)), 1))),
    "simplex": Variant(bounded(Dirichlet(torch.tensor([1.0, 2.0, 3.0])))),
    "own transform": Variant(transformed, {"adapter": "full"}),
    "simulator": Variant(simulated, {"adapter": "full"}),
    "simulator, context": Variant(simulated, {"observation": "context"}, TWELVE),
    # Signals and dynamics.
    "signal": Variant(
        load("seismic-deconvolution", length=40), {"network": "u-net", **FIELD}, TEN
    ),
    "lorenz": Variant(
        load("lorenz96-window", sites=12, num_times=3), {"adapter": "low-rank"}, TWELVE
    ),
    # Stations: fixed ones, tables on a grid, tables by themselves.
    "field": Variant(KRIGING, FIELD, TWELVE),
    "field, spline": Variant(KRIGING, {**FIELD, "adapter": "spline"}, TWELVE),
    "field, map of the prior": Variant(KRIGING, {**FIELD, **PRIOR_MAP}, TWELVE),
    "field, context": Variant(KRIGING, {**FIELD, "observation": "context"}, TWELVE),
    "stations": Variant(load("gaussian-field", size=9, num_points=6, **CHANGING), FIELD, TWELVE),
    "stations, small field": Variant(
        load("gaussian-field", size=6, num_points=4, **CHANGING), {"adapter": "diagonal"}, TWELVE
    ),
    "stations, no grid": Variant(tables, {"adapter": "full"}, TWELVE),
    "stations, no grid, context": Variant(tables, {"observation": "context"}, TWELVE),
    "log-normal field": Variant(load("lognormal-field"), {"adapter": "low-rank"}, TWELVE),
    # Other physics.
    "darcy": Variant(load("darcy", size=9, num_points=12), FIELD, TWELVE),
    "darcy, small": Variant(
        load("darcy", size=6, num_points=12, prior="expansion", num_modes=10), {}, TWELVE
    ),
    "eikonal": Variant(load("travel-time-eikonal", size=8, num_points=3), PRIOR_MAP, TEN),
    # Pictures.
    "deblur": Variant(load("photo-deblur", size=12), FIELD, TWELVE),
    "inpaint, truncated": Variant(
        load("photo-inpaint", size=20), {**FIELD, "max_rank": 16}, {"steps": 6, "log_every": 2}
    ),
    "mri": Variant(load("mri", size=8), {**FIELD, "adapter": "low-rank"}, TEN),
    # Fields too large for a dense covariance.
    "large, masks, spectral": Variant(large(INPAINTING, masks), LARGE, FOUR),
    "large, blur, spectral": Variant(large(BLUR, levels), {**LARGE, **PRIOR_MAP}, FOUR),
    "large, points, exact": Variant(large(read_at_points), LARGE, FOUR),
    "large, low-rank whitening, truncated": Variant(
        large(Denoising), {**LARGE, "whitening": "low-rank"}, FOUR
    ),
    "large, wide regression": Variant(
        squared, {**LARGE, "num_simulations": 520, "network": "mlp"}, FOUR
    ),
}

CASES: dict[str, Case] = {f"map {name}": partial(of_map, one) for name, one in VARIANTS.items()}
