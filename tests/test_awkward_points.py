"""No NaN where a formula divides by nothing: zero fields, ends that coincide, nothing observed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vfm_inverse import operators
from vfm_inverse.operators import (
    AdvectionDiffusion,
    Darcy,
    FirstArrivals,
    GravityAnomaly,
    HeatEquation,
    Lorenz96,
    PointObservations,
    StraightRays,
    Trajectory,
)
from vfm_inverse.problem.likelihood import Likelihood

EXAMPLES = {name: (physics, x) for name, physics, x in operators.examples()}
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
DTYPES = (torch.float32, torch.float64)


def derivatives_are_finite(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Value, gradient and directional derivative."""
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    (gradient,) = torch.autograd.grad(y.sum() + y.square().sum(), leaf)
    pushed = torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]
    return all(bool(torch.isfinite(one).all()) for one in (y, gradient, pushed))


@pytest.mark.parametrize("name", EXAMPLES)
def test_derivatives_exist_at_fields_without_contrast(name: str) -> None:
    physics, x = EXAMPLES[name]
    for value in (0.0, 1.0):
        assert derivatives_are_finite(physics.A, torch.full_like(x, value))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_receiver_at_its_source_hears_at_once(dtype: torch.dtype) -> None:
    physics = FirstArrivals((1, 7, 9), CORNERS[:3], CORNERS, spacing=0.5)
    x = torch.zeros(2, 1, 7, 9, dtype=dtype)
    times = physics.A(x).reshape(2, 3, 4)
    for source, receiver in ((0, 0), (1, 1), (2, 2), (2, 3)):
        assert bool((times[:, source, receiver] == 0).all())
    assert derivatives_are_finite(physics.A, x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_velocities_may_differ_by_many_orders(dtype: torch.dtype) -> None:
    """Single precision swallows the delay of a fast node behind slow ones."""
    x = 5 * torch.randn(4, 1, 7, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert float(x.max() - x.min()) > 25
    physics = FirstArrivals((1, 7, 9), CORNERS[:3], CORNERS, spacing=0.5)
    assert derivatives_are_finite(physics.A, x)


def test_a_ray_of_no_length_takes_no_time() -> None:
    ends = torch.tensor([[1.0, 1.0], [0.0, 0.0], [3.0, 2.0], [6.0, 2.0]])
    others = torch.tensor([[1.0, 1.0], [6.0, 9.0], [3.0, 8.0], [6.0, 9.0]])
    physics = StraightRays((1, 6, 9), ends, others)
    slowness = torch.ones(1, 1, 6, 9)
    # The last runs along the outer edge, which belongs to no cell.
    expected = torch.tensor([[0.0, 117**0.5, 6.0, 0.0]])
    torch.testing.assert_close(physics.A(slowness), expected)
    assert derivatives_are_finite(physics.A, torch.zeros(2, 1, 6, 9))


@pytest.mark.parametrize(
    "physics",
    [
        PointObservations((1, 6, 5), CORNERS),
        Darcy((1, 6, 5), CORNERS),
        FirstArrivals((1, 6, 5), CORNERS[:2], CORNERS[1:3]),
    ],
    ids=lambda physics: type(physics).__name__,
)
def test_where_nothing_is_observed_nothing_is_learned(physics: operators.Darcy) -> None:
    x = torch.randn(2, 1, 6, 5, requires_grad=True)
    nothing = torch.zeros(2, 4)
    assert bool((physics(x, mask=nothing) == 0).all())
    density = Likelihood(physics)(x, mask=nothing).log_prob(torch.zeros(2, 4))
    (gradient,) = torch.autograd.grad(density.sum(), x)
    assert bool((density == 0).all()) and bool((gradient == 0).all())
    if isinstance(physics, PointObservations):
        assert bool((physics.A_adjoint(torch.ones(2, 4), mask=nothing) == 0).all())


def test_nothing_observed_of_a_trajectory() -> None:
    physics = Trajectory(Lorenz96(), 2)
    x = torch.zeros(2, 5)
    assert bool((physics(x, mask=torch.zeros(2, 2, 5)) == 0).all())
    assert derivatives_are_finite(lambda x: physics.A(x, mask=torch.zeros(2, 2, 5)), x)


@pytest.mark.parametrize("unknown", ["initial", "source"])
def test_at_time_zero_and_without_diffusion(unknown: str) -> None:
    physics = HeatEquation((1, 6, 9), (0.0, 1.0), unknown=unknown)  # type: ignore[arg-type]
    x = torch.randn(2, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    assert derivatives_are_finite(lambda kappa: physics.A(x, diffusivity=kappa), torch.zeros(2))
    still = physics.A(x, diffusivity=torch.zeros(2))
    begin, end = (x, x) if unknown == "initial" else (torch.zeros_like(x), x)
    torch.testing.assert_close(still, torch.cat([begin, end], 1), atol=1e-5, rtol=1e-5)


def test_no_wind_and_no_diffusion_change_nothing() -> None:
    physics = AdvectionDiffusion((1, 6, 9), (0.0, 1.0), torch.zeros(2, 6, 9), max_diffusivity=1.0)
    x = torch.randn(2, 1, 6, 9)
    torch.testing.assert_close(physics.A(x), x.repeat(1, 2, 1, 1))
    assert derivatives_are_finite(lambda kappa: physics.A(x, diffusivity=kappa), torch.zeros(2))


def test_no_source_leaves_no_pressure() -> None:
    physics = Darcy((1, 6, 5), CORNERS, source=0.0)
    x = torch.randn(2, 1, 6, 5)
    assert bool((physics.A(x) == 0).all()) and derivatives_are_finite(physics.A, x)


def test_one_column_weighs_what_it_weighs() -> None:
    """A map of one cell, and one of one row."""
    for grid in ((1, 1), (1, 5)):
        physics = GravityAnomaly((1, *grid), (10.0, 20.0), 5.0)
        assert derivatives_are_finite(physics.A, torch.zeros(2, 1, *grid))
