"""Steppers: order in the time step, invariants, known rates; and trajectories of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vfm_inverse.operators import (
    KuramotoSivashinsky,
    Lorenz63,
    Lorenz96,
    PointObservations,
    Trajectory,
    Vorticity,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def run(stepper: nn.Module, x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        x = stepper(x)
    return x


def plane(n: int) -> tuple[Tensor, Tensor]:
    """Coordinates ``x``, ``y`` on the periodic square of side 2 pi."""
    axis = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def vortices(n: int) -> Tensor:
    x, y = plane(n)
    return torch.sin(x) * torch.cos(2 * y) + torch.cos(3 * x + y) + 0.5 * torch.sin(2 * y - x)


def wave(n: int) -> Tensor:
    x = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.cos(x) * (1 + torch.sin(x))


STEPPERS: dict[str, tuple[Callable[[float], nn.Module], Tensor, float, float]] = {
    # name: (stepper of a time step, state, time, largest time step)
    "lorenz-63": (Lorenz63, torch.tensor([1.0, 2.0, 20.0]).double(), 0.5, 0.01),
    "lorenz-96": (Lorenz96, 3 + 2 * torch.sin(torch.arange(40.0).double() ** 2), 0.8, 0.05),
    # Stiff: the order shows once the time step resolves the linear part.
    "kuramoto-sivashinsky": (
        lambda dt: KuramotoSivashinsky(16, dt=dt),
        wave(16),
        1.0,
        0.05,
    ),
    "vorticity": (lambda dt: Vorticity(24, 1e-3, dt=dt), vortices(24), 1.0, 0.1),
}


@pytest.mark.parametrize(
    ("stepper", "given"),
    [(Lorenz63(), {"rayleigh": 28.0}), (Lorenz96(), {"forcing": 8.0})],
)
def test_derivatives_by_hand_are_those_of_the_steps(
    stepper: Lorenz63 | Lorenz96, given: dict[str, float]
) -> None:
    """A constant that a call gives goes the plain way, through autodiff of every operation."""
    size = 3 if isinstance(stepper, Lorenz63) else 7
    x = 4 + 3 * torch.randn(2, size, dtype=torch.float64)

    def by_hand(x: Tensor) -> Tensor:
        return stepper(stepper(x))

    def plain(x: Tensor) -> Tensor:
        return stepper(stepper(x, **given), **given)

    def energy(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: step(x).square().sum()

    torch.testing.assert_close(by_hand(x), plain(x))
    wanted = torch.func.vmap(torch.func.jacrev(plain))(x)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(by_hand))(x), wanted)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(by_hand))(x), wanted)
    curvature = torch.func.vmap(torch.func.hessian(energy(plain)))(x)
    for derivative in (torch.func.jacfwd, torch.func.jacrev):  # over the reverse mode
        found = torch.func.vmap(derivative(torch.func.jacrev(energy(by_hand))))(x)
        torch.testing.assert_close(found, curvature)


@pytest.mark.parametrize("name", STEPPERS)
def test_steppers_are_of_fourth_order(name: str) -> None:
    build, x, time, dt = STEPPERS[name]
    ends = [run(build(dt / 2**k), x, round(time / dt) * 2**k) for k in range(4)]
    gaps = [float((a - b).norm()) for a, b in zip(ends, ends[1:], strict=False)]
    orders = [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)]
    assert 3.8 < orders[-1] < 4.3, orders


def test_lorenz_63_rests_at_its_fixed_points() -> None:
    root = math.sqrt(8 / 3 * 27)
    fixed = torch.tensor([[0.0, 0, 0], [root, root, 27], [-root, -root, 27]], dtype=torch.float64)
    torch.testing.assert_close(run(Lorenz63(), fixed, 20), fixed, rtol=0, atol=1e-10)
    # Below the critical Rayleigh number 1 everything dies out.
    stepper = Lorenz63()
    x = torch.randn(50, 3).double()
    for _ in range(3000):
        x = stepper(x, rayleigh=0.5)
    assert float(x.abs().max()) < 1e-4


def test_lorenz_96_conserves_energy_but_for_damping_and_forcing() -> None:
    """``d/dt |x|^2 / 2 = -|x|^2 + F sum x``: the quadratic terms cancel."""
    x = torch.randn(5, 12, dtype=torch.float64)
    forcing = torch.tensor([0.0, 1, 2, 5, 8]).double()
    dt = 1e-6
    later = Lorenz96(dt)(x, forcing=forcing)
    rate = (later.square().sum(-1) - x.square().sum(-1)) / (2 * dt)
    torch.testing.assert_close(rate, -x.square().sum(-1) + forcing * x.sum(-1), rtol=0, atol=1e-3)
    rest = torch.full((3, 40), 8.0).double()
    torch.testing.assert_close(run(Lorenz96(), rest, 5), rest)


@pytest.mark.parametrize(
    ("stepper", "center", "exponent"),
    [(Lorenz63(0.02), [0.0, 0.0, 25.0], 0.906), (Lorenz96(0.05), [3.0] * 40, 1.68)],
)
def test_errors_grow_at_the_known_lyapunov_exponent(
    stepper: Lorenz63 | Lorenz96, center: list[float], exponent: float
) -> None:
    """Published: 0.906 (Sprott 2003) and 1.67-1.69 (Karimi and Paul 2010)."""
    x = torch.tensor(center) + 3 * torch.randn(64, len(center), dtype=torch.float64)
    x = run(stepper, x, 1500)
    offset = 1e-7 * torch.nn.functional.normalize(torch.randn_like(x), dim=-1)
    total, counted = 0.0, 0
    for number in range(2500):
        both = stepper(torch.cat([x, x + offset]))
        x, offset = both[:64], both[64:] - both[:64]
        growth = offset.norm(dim=-1, keepdim=True) / 1e-7
        offset = offset / growth
        if number >= 400:
            total, counted = total + float(growth.log().mean()), counted + 1
    assert total / (counted * stepper.dt) == pytest.approx(exponent, rel=0.06)


def test_kuramoto_sivashinsky_grows_and_damps_small_waves_at_its_linear_rate() -> None:
    n, length, steps, dt = 32, 22.0, 8, 0.25
    stepper = KuramotoSivashinsky(n, length, dt)
    for mode in (1, 2, 3, 5):
        k = 2 * math.pi * mode / length
        shape = torch.cos(2 * math.pi * mode * torch.arange(n).double() / n)
        end = run(stepper, 1e-8 * shape, steps)
        expected = 1e-8 * math.exp((k**2 - k**4) * steps * dt) * shape
        torch.testing.assert_close(end, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    x = torch.randn(3, n).double()
    torch.testing.assert_close(run(stepper, x, 40).mean(-1), x.mean(-1))


def test_kuramoto_sivashinsky_is_galilean() -> None:
    """``u + c`` moves at the speed c: after a whole number of cells it is the same, shifted."""
    n, length = 16, 22.0
    x = wave(n)
    cell = length / n
    stepper = KuramotoSivashinsky(n, length, dt=0.01)
    moved = run(stepper, x + cell, 100)
    torch.testing.assert_close(moved, run(stepper, x, 100).roll(1) + cell, rtol=0, atol=1e-7)


def test_an_eigenfunction_of_the_laplacian_only_decays() -> None:
    x, y = plane(16)
    vortex = torch.sin(2 * x) * torch.cos(y)
    stepper = Vorticity(16, viscosity=0.05, drag=0.1, dt=0.2)
    expected = vortex * math.exp(-(0.05 * 5 + 0.1) * 0.2 * 10)
    torch.testing.assert_close(run(stepper, vortex, 10), expected)
    # With a forcing of the same shape it settles where forcing and damping balance.
    settled = Vorticity(16, 0.05, 0.1, dt=0.2, forcing=vortex)
    rate = 0.05 * 5 + 0.1
    torch.testing.assert_close(run(settled, 0 * vortex, 600), vortex / rate, rtol=0, atol=1e-8)
    again = stepper(vortex / rate, forcing=vortex)
    torch.testing.assert_close(again, vortex / rate)


def test_vorticity_is_carried_by_its_own_flow() -> None:
    """The rate of change against ``-u . grad(omega)`` with the stream function by hand."""
    x, y = plane(32)
    psi_x = (
        torch.cos(x) * torch.cos(2 * y) / 5
        - 3 * torch.sin(3 * x + y) / 10
        - torch.cos(2 * y - x) / 10
    )
    psi_y = (
        -2 * torch.sin(x) * torch.sin(2 * y) / 5
        - torch.sin(3 * x + y) / 10
        + torch.cos(2 * y - x) / 5
    )
    w_x = torch.cos(x) * torch.cos(2 * y) - 3 * torch.sin(3 * x + y) - torch.cos(2 * y - x) / 2
    w_y = -2 * torch.sin(x) * torch.sin(2 * y) - torch.sin(3 * x + y) + torch.cos(2 * y - x)
    w, dt = vortices(32), 1e-5
    rate = (Vorticity(32, viscosity=0.0, dt=dt)(w) - w) / dt
    torch.testing.assert_close(rate, -(psi_y * w_x - psi_x * w_y), rtol=0, atol=1e-5)


def test_an_inviscid_flow_keeps_energy_and_enstrophy() -> None:
    stepper = Vorticity(24, viscosity=0.0, dt=0.02)
    w = vortices(24)

    def invariants(field: Tensor) -> Tensor:
        waves = torch.fft.fft2(field).abs().square() / field.numel() ** 2
        k = torch.fft.fftfreq(24, 1 / 24).double()
        square = k[:, None] ** 2 + k**2
        return torch.stack([(waves / square.clamp_min(1)).sum(), waves.sum()])

    later = run(stepper, w, 100)
    assert float((later - w).norm() / w.norm()) > 0.1, "nothing moved"
    torch.testing.assert_close(invariants(later), invariants(w), rtol=1e-6, atol=0)


def test_a_trajectory_is_seen_at_its_times() -> None:
    stepper = Lorenz96()
    x = 3 + torch.randn(2, 8).double()
    y = Trajectory(stepper, 3, every=2, observe=lambda state: state[..., ::2]).A(x)
    assert y.shape == (2, 3, 4)
    for number in range(3):
        torch.testing.assert_close(y[:, number], run(stepper, x, 2 * (number + 1))[:, ::2])
    first = Trajectory(stepper, 2, every=5, start=0).A(x)
    torch.testing.assert_close(first, torch.stack([x, run(stepper, x, 5)], 1))


def test_stations_and_parameters_reach_a_trajectory() -> None:
    stations = PointObservations((1, 12, 12), torch.rand(5, 2))
    stepper = Vorticity(12)
    physics = Trajectory(stepper, 2, observe=stations)
    w, force = torch.randn(3, 1, 12, 12), torch.randn(3, 1, 12, 12)
    forced = stepper(w, forcing=force)
    torch.testing.assert_close(physics.A(w, forcing=force)[:, 0], stations.A(forced))
    mask = torch.ones(3, 2, 5)
    mask[:, 1, 2:] = 0
    assert torch.equal(physics(w, mask=mask) == 0, mask == 0)
    assert [name for name, _ in physics.named_buffers() if name.startswith("stepper")]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Lorenz63(0.0), "'dt' must be positive; got 0.0"),
        (lambda: KuramotoSivashinsky(2), "'num_points' must be at least 4; got 2"),
        (lambda: KuramotoSivashinsky(8, length=-1.0), "'length' must be positive; got -1.0"),
        (lambda: Vorticity(8, viscosity=-1.0), "must not be negative; got -1.0 and 0.0"),
        (lambda: Vorticity(8)(torch.ones(8, 9)), r"'x' must have shape \(\*, 8, 8\)"),
        (lambda: Trajectory(Lorenz96(), 0), "must be positive .* got 0, 1 and 1"),
    ],
)
def test_wrong_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
