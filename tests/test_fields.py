"""Heat, advection-diffusion, rays, potential fields and seismograms against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from scipy import integrate
from torch import Tensor

from vfm_inverse.operators import (
    AdvectionDiffusion,
    GravityAnomaly,
    HeatEquation,
    MagneticAnomaly,
    MatrixObservations,
    PointObservations,
    Seismogram,
    StraightRays,
    TimeWindows,
    join,
    ricker,
    verify,
    wind_of_stream_function,
)
from vfm_inverse.operators.grids import cell_centres, convolve
from vfm_inverse.operators.rays import ray_lengths


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def dense(physics: LinearPhysics, shape: tuple[int, ...], **params: Any) -> Tensor:
    """Matrix ``(m, d)`` in double precision."""
    size = int(np.prod(shape))
    units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return physics.A(units, **params).flatten(1).T


# Heat -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boundary", "shape"),
    [
        ("neumann", lambda s: torch.cos(2 * math.pi * s)),
        ("dirichlet", lambda s: torch.sin(2 * math.pi * s)),
        ("periodic", lambda s: torch.sin(2 * math.pi * s + 0.3)),
    ],
)
def test_a_mode_decays_at_its_rate(boundary: Any, shape: Any) -> None:
    """exp(-kappa k^2 t) with k = 2 pi / L along both axes."""
    kappa, times, spacing = 1.1e-4, (30.0, 120.0), (0.05, 0.02)
    down, right = cell_centres(10, 0.05), cell_centres(15, 0.02)
    field = shape(down / 0.5)[:, None] * shape(right / 0.3)
    physics = HeatEquation((1, 10, 15), times, kappa, spacing, boundary)
    rate = kappa * ((2 * math.pi / 0.5) ** 2 + (2 * math.pi / 0.3) ** 2)
    decay = torch.exp(-rate * torch.tensor(times, dtype=torch.float64))
    y = physics.A(field[None, None])
    torch.testing.assert_close(y[0], decay[:, None, None] * field, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("boundary", ["neumann", "dirichlet", "periodic"])
@pytest.mark.parametrize("size", [8, 9])
def test_heat_is_a_semigroup_that_starts_at_the_identity(boundary: Any, size: int) -> None:
    x = torch.randn(2, 1, size, dtype=torch.float64)
    y = HeatEquation((1, size), (0.0, 0.3, 1.0), 0.4, boundary=boundary).A(x)
    torch.testing.assert_close(y[:, :1], x)
    rest = HeatEquation((1, size), (0.7,), 0.4, boundary=boundary)
    torch.testing.assert_close(rest.A(y[:, 1:2]), y[:, 2:])
    kept = boundary != "dirichlet"
    assert torch.allclose(y.sum(-1), x.sum(-1)) == kept


def test_heat_spreads_a_point_as_the_kernel_does() -> None:
    """Far from the walls: a Gaussian of variance 2 kappa t."""
    kappa, time, spacing, size = 0.5, 8.0, 0.25, 161
    x = torch.zeros(1, 1, size, dtype=torch.float64)
    x[..., 80] = 1 / spacing
    y = HeatEquation((1, size), (time,), kappa, spacing).A(x)
    distance = cell_centres(size, spacing) - cell_centres(size, spacing)[80]
    kernel = torch.exp(-(distance**2) / (4 * kappa * time)) / math.sqrt(4 * math.pi * kappa * time)
    torch.testing.assert_close(y[0, 0], kernel, rtol=0, atol=1e-8)


def test_a_steady_source_is_the_integral_of_initial_states() -> None:
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    times = sorted(0.5 * 3.0 * (nodes + 1))
    states = HeatEquation((1, 5, 6), times, 0.6).A(x)
    weight = torch.from_numpy(weights * 1.5)[:, None, None]
    integral = (weight * states[0]).sum(0)
    heated = HeatEquation((1, 5, 6), (3.0,), 0.6, unknown="source").A(x)
    torch.testing.assert_close(heated[0, 0], integral, rtol=1e-11, atol=1e-11)


def test_each_field_may_have_its_diffusivity_and_its_derivative() -> None:
    physics = HeatEquation((1, 6), (0.5, 1.0))
    x = torch.randn(3, 1, 6, dtype=torch.float64)
    kappa = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    rows = [
        HeatEquation((1, 6), (0.5, 1.0), float(k)).A(x[i : i + 1]) for i, k in enumerate(kappa)
    ]
    torch.testing.assert_close(physics.A(x, diffusivity=kappa), torch.cat(rows))
    assert torch.autograd.gradcheck(lambda k: physics.A(x, diffusivity=k), kappa.requires_grad_())


# Advection and diffusion ------------------------------------------------------------------------


def test_a_wave_is_carried_and_decays_to_second_order() -> None:
    """sin(k (s - w t)) exp(-kappa k^2 t) along a periodic line."""
    errors = []
    for size in (32, 64, 128):
        spacing, speed, kappa, time = 1.0 / size, 0.7, 0.01, 0.9
        s = cell_centres(size, spacing)
        wind = torch.full((1, size), speed)
        physics = AdvectionDiffusion((1, size), (time,), wind, kappa, spacing)
        y = physics.A(torch.sin(2 * math.pi * s)[None, None])[0, 0]
        decay = math.exp(-kappa * (2 * math.pi) ** 2 * time)
        exact = decay * torch.sin(2 * math.pi * (s - speed * time))
        errors.append(float((y - exact).abs().max()))
    assert errors[-1] < 2e-3
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("boundary", ["periodic", "closed"])
def test_the_sum_is_conserved_and_energy_does_not_grow(boundary: Any) -> None:
    psi = torch.randn(12, 10, dtype=torch.float64)
    psi[-1], psi[:, -1] = 0, 0  # nothing crosses the outer faces
    wind = wind_of_stream_function(psi, (0.5, 0.8))
    for kappa in (0.0, 0.05):
        physics = AdvectionDiffusion(
            (1, 12, 10), (1.0, 5.0, 50.0), wind, kappa, (0.5, 0.8), boundary
        )
        x = torch.rand(2, 1, 12, 10, dtype=torch.float64)
        y = physics.A(x)
        total = x.sum((-2, -1)).expand(2, 3)
        torch.testing.assert_close(y.sum((-2, -1)), total, rtol=1e-12, atol=0)
        energy = torch.cat([x, y], 1).square().sum((-2, -1))
        assert bool((energy.diff(dim=1) <= 1e-12 * energy[:, :1]).all())
        # A constant stays one where the wind has no divergence.
        flat = torch.ones_like(x)
        torch.testing.assert_close(physics.A(flat), flat.expand(2, 3, 12, 10))


def test_the_step_is_the_exponential_of_the_scheme() -> None:
    """Against scipy's matrix exponential of the same finite volumes, built entry by entry."""
    size, kappa, h = 7, 0.2, 0.5
    wind = torch.randn(1, size, dtype=torch.float64)
    rate = np.zeros((size, size))
    for face in range(size - 1):  # between cell `face` and the next: closed at the end
        left, right = face, face + 1
        for cell, value in (
            (left, wind[0, face] / 2 + kappa / h),
            (right, wind[0, face] / 2 - kappa / h),
        ):
            rate[left, cell] -= float(value) / h
            rate[right, cell] += float(value) / h
    from scipy.linalg import expm

    physics = AdvectionDiffusion((1, size), (0.4,), wind, kappa, h, "closed", max_speed=20.0)
    torch.testing.assert_close(
        dense(physics, (1, size)), torch.from_numpy(expm(0.4 * rate)), rtol=0, atol=1e-6
    )


def test_each_field_may_have_its_wind() -> None:
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    winds = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    physics = AdvectionDiffusion((1, 5, 6), (0.7,), torch.zeros(2, 5, 6), 0.1, max_speed=4.0)
    rows = [
        AdvectionDiffusion((1, 5, 6), (0.7,), wind, 0.1, max_speed=4.0).A(x[i : i + 1])
        for i, wind in enumerate(winds)
    ]
    y = physics.A(x, wind=winds)
    torch.testing.assert_close(y, torch.cat(rows))
    torch.testing.assert_close(physics.A(x, wind=winds[0])[:1], y[:1])
    v = torch.randn_like(y)
    left, right = (v * y).sum(), (physics.A_adjoint(v, wind=winds) * x).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="'wind' must not exceed max_speed = 4; got"):
        physics.A(x, wind=10 * winds)


def test_each_field_may_have_its_diffusivity() -> None:
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    wind = torch.randn(2, 5, 6, dtype=torch.float64)
    kappa = torch.tensor([0.05, 0.3], dtype=torch.float64)

    def make(value: float) -> AdvectionDiffusion:
        return AdvectionDiffusion((1, 5, 6), (0.7,), wind, value, max_diffusivity=0.4)

    physics = make(0.1)
    rows = [make(float(value)).A(x[i : i + 1]) for i, value in enumerate(kappa)]
    torch.testing.assert_close(physics.A(x, diffusivity=kappa), torch.cat(rows))
    torch.testing.assert_close(physics.A(x, diffusivity=0.05)[:1], rows[0])
    result = verify(physics, x, diffusivity=kappa, wind=wind.expand(2, -1, -1, -1))
    assert result.passed, str(result)
    leaf = kappa.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda k: physics.A(x, diffusivity=k), leaf)
    with pytest.raises(ValueError, match="'diffusivity' must not exceed max_diffusivity = 0.4"):
        physics.A(x, diffusivity=0.5)
    with pytest.raises(ValueError, match="'diffusivity' must not be negative; got -0.1"):
        physics.A(x, diffusivity=-0.1)
    with pytest.raises(ValueError, match="'max_diffusivity' must be at least 'diffusivity', 0.1"):
        AdvectionDiffusion((1, 5, 6), (0.7,), wind, 0.1, max_diffusivity=0.01)


# Rays -------------------------------------------------------------------------------------------


def test_rays_have_the_lengths_known_by_hand() -> None:
    """Cells of 1 by 2 m: across, down, diagonal, along a line between cells, and beside."""
    ends = [
        ((0.5, 0.0), (0.5, 6.0)),
        ((0.0, 3.0), (2.0, 3.0)),
        ((0.0, 0.0), (2.0, 4.0)),
        ((1.0, 1.0), (1.0, 3.0)),
        ((0.5, -5.0), (0.5, 1.0)),
        ((9.0, 0.0), (9.0, 6.0)),
    ]
    sources, receivers = (torch.tensor(side) for side in zip(*ends, strict=True))
    physics = StraightRays((1, 2, 3), sources, receivers, (1.0, 2.0))
    lengths = dense(physics, (1, 2, 3)).reshape(6, 2, 3)
    diagonal = math.sqrt(5)
    expected = [
        [[2, 2, 2], [0, 0, 0]],
        [[0, 1, 0], [0, 1, 0]],
        [[diagonal, 0, 0], [0, diagonal, 0]],
        [[0, 0, 0], [1, 1, 0]],
        [[1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    torch.testing.assert_close(lengths, torch.tensor(expected).double())


def test_lengths_add_up_and_integrate_polynomials() -> None:
    """Inside the grid the pieces of a ray add up to its length; a linear slowness converges."""
    sources, receivers = 5 * torch.rand(2, 60, 2, dtype=torch.float64)
    whole = (receivers - sources).norm(dim=1)
    for size in (1, 4, 16, 50):
        physics = StraightRays((1, size, size), sources, receivers, 5 / size)
        times = physics.A(torch.ones(1, 1, size, size, dtype=torch.float64))[0]
        torch.testing.assert_close(times, whole, rtol=1e-11, atol=0)
    slowness = cell_centres(50, 0.1)[:, None] + 2 * cell_centres(50, 0.1)
    middle = (sources + receivers) / 2
    exact = whole * (middle[:, 0] + 2 * middle[:, 1])
    times = physics.A(slowness[None, None])[0]
    torch.testing.assert_close(times, exact, rtol=0.02, atol=0.02)


def test_only_what_is_crossed_is_kept() -> None:
    sources, receivers = torch.rand(2, 20, 2)
    ray, cell, length = ray_lengths(sources, receivers, (64, 64), 1 / 64)
    assert len(ray) == len(cell) == len(length) < 20 * 2 * 64
    assert float(length.min()) > 0 and int(cell.max()) < 64**2


# Potential fields -------------------------------------------------------------------------------


def test_a_far_prism_attracts_as_a_point() -> None:
    """G m z / r^3, to the order (size / distance)^2."""
    physics = GravityAnomaly((1, 1, 9), (999.5, 1000.5), 1.0)
    field = dense(physics, (1, 1, 9))[4]  # the middle station, prisms along a line
    offset = torch.arange(-4.0, 5.0, dtype=torch.float64)
    r = (offset**2 + 1000.0**2).sqrt()
    point = 6.67430e-11 * 1000.0 / r**3 * 1e5
    torch.testing.assert_close(field, point, rtol=1e-6, atol=0)


def test_a_near_prism_attracts_as_its_integral() -> None:
    physics = GravityAnomaly((2, 3, 3), (5.0, 9.0, 20.0), (4.0, 6.0))
    columns = dense(physics, (2, 3, 3)).reshape(9, 2, 3, 3)
    for layer, row, column in ((0, 1, 1), (0, 0, 2), (1, 2, 1)):
        x, y = 4.0 * (row - 1), 6.0 * (column - 1)
        low, high = ((5.0, 9.0), (9.0, 20.0))[layer]
        value, _ = integrate.tplquad(
            lambda zeta, eta, xi: zeta / (xi**2 + eta**2 + zeta**2) ** 1.5,
            *(x - 2, x + 2, y - 3, y + 3, low, high),
            epsabs=1e-11,
        )
        measured = float(columns[4, layer, row, column])  # at the station over cell (1, 1)
        assert measured == pytest.approx(6.67430e-11 * 1e5 * value, rel=1e-9)


def test_a_wide_layer_attracts_as_a_slab() -> None:
    """Bouguer's 2 pi G rho h, less what lies beyond the edges."""
    physics = GravityAnomaly((1, 301, 301), (1.0, 2.0), 1.0)
    middle = float(physics.A(torch.full((1, 1, 301, 301), 2670.0).double())[0, 0, 150, 150])
    slab = 2 * math.pi * 6.67430e-11 * 2670.0 * 1e5
    assert 0.98 * slab < middle < slab


def test_gravity_is_asymmetric_as_its_source() -> None:
    """An anomaly in one corner: the convolution is not flipped."""
    x = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    x[0, 0, 1, 5] = 1000.0
    y = GravityAnomaly((1, 5, 7), (1.0, 2.0)).A(x)
    assert int(y.argmax()) == 1 * 7 + 5
    torch.testing.assert_close(y[..., 0:3, :], y[..., 0:3, :].flip(-2))


def dipole(offset: Tensor, depth: float, inclination: float, declination: float) -> Tensor:
    """Total-field anomaly of a small unit volume: F chi / (4 pi) (3 (f.r)^2 / r^2 - 1) / r^3."""
    dip, turn = math.radians(inclination), math.radians(declination)
    f = torch.tensor(
        [math.cos(dip) * math.cos(turn), math.cos(dip) * math.sin(turn), math.sin(dip)]
    ).double()
    r = torch.cat([offset, torch.full_like(offset[:, :1], depth)], 1)
    distance = r.norm(dim=1)
    return 50_000 / (4 * math.pi) * (3 * (r @ f) ** 2 / distance**2 - 1) / distance**3


@pytest.mark.parametrize(
    "angles", [(90.0, 0.0), (0.0, 0.0), (0.0, 90.0), (55.0, 20.0), (-30.0, 70.0)]
)
def test_a_far_prism_is_a_dipole(angles: tuple[float, float]) -> None:
    physics = MagneticAnomaly((1, 41, 41), (39.5, 40.5), 1.0, *angles)
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1.0
    y = physics.A(x)[0, 0]
    axis = torch.arange(-20.0, 21.0, dtype=torch.float64)
    # From the station to the source.
    offset = -torch.cartesian_prod(axis, axis)
    expected = dipole(offset, 40.0, *angles).reshape(41, 41)
    scale = float(expected.abs().max())
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-3 * scale)


def test_a_near_prism_magnetises_as_its_dipoles() -> None:
    physics = MagneticAnomaly((1, 3, 3), (5.0, 9.0), (4.0, 6.0), 55.0, 20.0)
    columns = dense(physics, (1, 3, 3)).reshape(9, 3, 3)
    for row, column in ((1, 1), (0, 2), (2, 0)):

        def density(zeta: float, eta: float, xi: float) -> float:
            return float(dipole(torch.tensor([[xi, eta]]).double(), zeta, 55.0, 20.0))

        x, y = 4.0 * (row - 1), 6.0 * (column - 1)
        nodes, weights = np.polynomial.legendre.leggauss(12)
        total = sum(
            wa * wb * wc * density(7 + 2 * c, y + 3 * b, x + 2 * a)
            for a, wa in zip(nodes, weights, strict=True)
            for b, wb in zip(nodes, weights, strict=True)
            for c, wc in zip(nodes, weights, strict=True)
        )
        assert float(columns[4, row, column]) == pytest.approx(2 * 3 * 2 * total, rel=1e-6)


def test_the_field_at_the_pole_adds_up_to_laplace() -> None:
    """Three orthogonal directions: the trace of the second derivatives vanishes."""
    angles = [(90.0, 0.0), (0.0, 0.0), (0.0, 90.0)]
    maps = [dense(MagneticAnomaly((1, 4, 5), (2.0, 3.0), 1.0, *one), (1, 4, 5)) for one in angles]
    assert float(sum(maps).abs().max()) < 1e-9 * float(maps[0].abs().max())


# Seismograms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 13, 41])
def test_the_trace_is_numpy_s_convolution(length: int) -> None:
    x, wavelet = torch.randn(2, 3, 20).double(), torch.randn(length).double()
    y = Seismogram((3, 20), wavelet).A(x)
    c = length // 2
    for trace, reflectivity in zip(y.flatten(0, 1), x.flatten(0, 1), strict=True):
        full = np.convolve(reflectivity.numpy(), wavelet.numpy())
        torch.testing.assert_close(trace, torch.from_numpy(full[c : c + 20]))


def test_convolution_in_two_dimensions_is_scipy_s() -> None:
    from scipy.signal import convolve2d

    x, kernel = torch.randn(6, 9).double(), torch.randn(3, 7).double()
    expected = convolve2d(x.numpy(), kernel.numpy(), mode="same")
    torch.testing.assert_close(convolve(x, kernel, 2), torch.from_numpy(expected))


def test_each_field_may_have_its_wavelet() -> None:
    physics = Seismogram((1, 20), ricker(30.0, 0.004))
    x = torch.randn(2, 1, 20).double()
    wavelets = torch.stack([ricker(f, 0.004, 15) for f in (20.0, 40.0)])
    rows = [Seismogram((1, 20), w).A(x[i : i + 1]) for i, w in enumerate(wavelets)]
    y = physics.A(x, wavelet=wavelets)
    torch.testing.assert_close(y, torch.cat(rows))
    v = torch.randn_like(y)
    pulled = physics.A_adjoint(v, wavelet=wavelets)
    torch.testing.assert_close((v * y).sum(), (pulled * x).sum(), rtol=1e-12, atol=1e-12)


def test_the_ricker_wavelet_peaks_at_its_frequency() -> None:
    interval, frequency = 0.001, 30.0
    wavelet = ricker(frequency, interval, 2001)
    spectrum = torch.fft.rfft(wavelet).abs()
    peak = float(torch.fft.rfftfreq(2001, interval)[spectrum.argmax()])
    assert peak == pytest.approx(frequency, abs=0.3)
    assert float(wavelet[1000]) == 1 and abs(float(wavelet.sum())) < 1e-9
    # Zeros at t = 1 / (sqrt(2) pi f).
    short = ricker(frequency, 1 / (math.sqrt(2) * math.pi * frequency), 3)
    assert abs(float(short[0])) < 1e-12
    assert abs(float(ricker(frequency, 0.004)[0])) < 1e-5


# Joint observations and time windows ------------------------------------------------------------


def test_joint_observations_are_theirs_side_by_side() -> None:
    points, heat = torch.rand(4, 2), HeatEquation((1, 5, 6), (0.5, 1.0))
    stations = PointObservations((2, 5, 6), points) * heat
    rays = StraightRays((1, 5, 6), 5 * points[:3], 5 * points[1:])
    both = join(stations, rays)
    x = torch.randn(3, 1, 5, 6)
    y = both.A(x)
    torch.testing.assert_close(y[:, :8], stations.A(x).flatten(1))
    torch.testing.assert_close(y[:, 8:], rays.A(x))
    kappa = torch.tensor([0.1, 1.0, 2.0])
    torch.testing.assert_close(
        both.A(x, diffusivity=kappa)[:, :8], stations.A(x, diffusivity=kappa).flatten(1)
    )
    assert isinstance(both, LinearPhysics) and float(both.noise_model.sigma) == pytest.approx(0.1)


def test_a_joint_of_nonlinear_operators_is_not_linear() -> None:
    from vfm_inverse.operators.bridges import examples

    physics = dict((name, one) for name, one, _ in examples())["numpy-function"]
    both = join(physics, HeatEquation((1, 6), (1.0,)))
    assert not isinstance(both, LinearPhysics)
    assert both.A(torch.randn(2, 1, 6)).shape == (2, 11)


def test_time_windows_average() -> None:
    x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 2, 2)
    physics = TimeWindows((4, 2, 2), (0.0, 1.0, 2.0, 5.0), [(0.0, 2.0), (5.0, 9.0), (1.0, 1.0)])
    torch.testing.assert_close(physics.A(x)[0, :, 0, 0], torch.tensor([1.0, 3.0, 1.0]))


# Refusals ---------------------------------------------------------------------------------------

WIND = torch.zeros(2, 4, 5)
ENDS = torch.rand(3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeatEquation((2, 5), (1.0,)), r"'img_size' must be \(1, L\)"),
        (lambda: HeatEquation((1, 5), (1.0, 1.0)), "'times' must increase from 0"),
        (lambda: HeatEquation((1, 5), ()), "'times' must increase from 0"),
        (lambda: HeatEquation((1, 5), (1.0,), -1.0), "'diffusivity' must be positive; got -1"),
        (lambda: HeatEquation((1, 5), (1.0,), spacing=0.0), "'spacing' must be a positive number"),
        (lambda: HeatEquation((1, 5), (1.0,), spacing=(1, 2)), "one for each of 1 axes"),
        (lambda: HeatEquation((1, 5), (1.0,), boundary="open"), "'boundary' must be one of"),  # type: ignore[arg-type]
        (lambda: HeatEquation((1, 5), (1.0,), unknown="sink"), "'unknown' must be 'initial'"),  # type: ignore[arg-type]
        (
            lambda: AdvectionDiffusion((1, 4, 6), (1.0,), WIND),
            r"shape \(2, 4, 6\); got \(2, 4, 5\)",
        ),
        (lambda: AdvectionDiffusion((1, 4, 5), (1.0,), WIND, -0.1), "must not be negative"),
        (lambda: AdvectionDiffusion((1, 4, 5), (1.0,), WIND + 2, max_speed=1), "'max_speed' must"),
        (lambda: AdvectionDiffusion((1, 4, 5), (1.0,), WIND, boundary="open"), "'periodic' or"),  # type: ignore[arg-type]
        (lambda: wind_of_stream_function(torch.zeros(3)), r"'psi' must have shape \(H, W\)"),
        (lambda: StraightRays((1, 5), ENDS, ENDS), r"'img_size' must be \(1, H, W\)"),
        (lambda: StraightRays((1, 5, 5), ENDS, ENDS[:2]), r"'receivers' must have shape \(N, 2\)"),
        (lambda: StraightRays((1, 5, 5), ENDS / 0, ENDS), "'sources' must be finite"),
        (lambda: StraightRays((1, 5, 5), ENDS + 9, ENDS + 8), "a ray that crosses the grid"),
        (lambda: GravityAnomaly((1, 5, 5), (0.0, 1.0)), "'depths' must be 2 interfaces"),
        (lambda: GravityAnomaly((2, 5, 5), (1.0, 2.0)), "'depths' must be 3 interfaces"),
        (lambda: MagneticAnomaly((5, 5), (1.0, 2.0)), r"'img_size' must be \(C, H, W\)"),
        (lambda: MagneticAnomaly((1, 5, 5), (1, 2), field_strength=0), "'field_strength' must"),
        (lambda: Seismogram((1, 9), torch.ones(4)), r"with K odd; got \(4,\)"),
        (lambda: Seismogram((1, 9), torch.ones(2, 3)), r"'wavelet' must have shape \(K,\)"),
        (lambda: ricker(0.0, 1.0), "'frequency' and 'interval' must be positive"),
        (lambda: ricker(1.0, 1.0, 4), "'length' must be odd; got 4"),
        (lambda: join(), "at least one operator"),
        (
            lambda: join(
                MatrixObservations(torch.eye(2), GaussianNoise(0.1)),
                MatrixObservations(torch.eye(2), GaussianNoise(0.2)),
            ),
            "'noise_model' must be given",
        ),
        (lambda: TimeWindows((3, 5), (1.0, 2.0), [(0, 1)]), "with T = 2 times"),
        (lambda: TimeWindows((2, 5), (1.0, 2.0), [(0, 1), (3, 4)]), r"\(3, 4\) holds none"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_joint_operator_is_updated_as_its_parts_are() -> None:
    heat = HeatEquation((1, 6), (1.0,), 0.5)
    both = join(heat, HeatEquation((1, 6), (2.0,), 0.5))
    x = torch.randn(2, 1, 6, dtype=torch.float64)
    before = both.A(x)
    both.update(diffusivity=torch.tensor(1.0))
    torch.testing.assert_close(both.A(x)[:, :6], before[:, 6:])  # twice as fast, half as long
