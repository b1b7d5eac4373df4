"""Non-linear operators: derivatives of every one, and solutions known in closed form."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from deepinv.physics import GaussianNoise, Physics
from scipy import linalg
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap

from vfm_inverse import operators
from vfm_inverse.operators import (
    Darcy,
    FirstArrivals,
    FullWaveform,
    PointObservations,
    verify,
)
from vfm_inverse.operators.darcy import solve_darcy
from vfm_inverse.operators.masked import MaskedPhysics
from vfm_inverse.operators.upwind import first_arrivals
from vfm_inverse.problem.likelihood import Likelihood

EXAMPLES = {
    name: (physics, x)
    for name, physics, x in operators.examples()
    if isinstance(physics, MaskedPhysics)
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> tuple[Physics, Tensor]:
    physics, x = EXAMPLES[request.param]
    return physics, x.double()


def test_the_remainder_of_the_linearisation_is_of_second_order(
    example: tuple[Physics, Tensor],
) -> None:
    """Taylor: ``|A(x + h v) - A(x) - h J v| = O(h^2)``, with J v in both modes."""
    physics, x = example
    v = torch.randn_like(x)
    y, forward = jvp(physics.A, (x,), (v,))
    assert float(forward.abs().max()) > 1e-3 * float(y.abs().max()), "the derivative is empty"
    steps = [1e-2 / 2**k for k in range(4)]
    remainders = [float((physics.A(x + h * v) - y - h * forward).norm()) for h in steps]
    orders = [math.log2(a / b) for a, b in zip(remainders, remainders[1:], strict=False)]
    assert orders[-1] >= 1.95, orders
    w = torch.randn_like(y)
    pulled = physics.A_vjp(x, w)
    torch.testing.assert_close((pulled * v).sum(), (w * forward).sum(), rtol=1e-10, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad((physics.A(leaf) * w).sum(), leaf)
    torch.testing.assert_close(plain, pulled, rtol=1e-12, atol=1e-12)


def test_a_batch_is_its_samples_in_turn(example: tuple[Physics, Tensor]) -> None:
    physics, x = example
    y = physics.A(x)
    one_by_one = torch.cat([physics.A(sample[None]) for sample in x])
    torch.testing.assert_close(y, one_by_one, rtol=1e-12, atol=1e-12)
    mapped = vmap(lambda sample: physics.A(sample[None])[0])(x)
    torch.testing.assert_close(mapped, y, rtol=1e-12, atol=1e-12)
    alone = x[:1]
    torch.testing.assert_close(jacrev(physics.A)(alone), jacfwd(physics.A)(alone))


def test_the_dtype_is_kept_and_single_precision_is_close(
    example: tuple[Physics, Tensor],
) -> None:
    physics, x = example
    y, single = physics.A(x), physics.A(x.float())
    assert y.dtype == torch.float64 and single.dtype == torch.float32
    torch.testing.assert_close(single.double(), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def test_missing_data_read_zero_without_noise(example: tuple[Physics, Tensor]) -> None:
    physics, x = example
    y = physics.A(x)
    mask = (torch.arange(y.numel()).reshape(y.shape) % 3 > 0).to(y)
    assert torch.equal(physics(x, mask=mask) == 0, mask == 0)
    assert bool((physics(x) != 0).all())
    law = Likelihood(physics, event_dim=x.dim() - 1)(x, mask=mask)
    seen = law.log_prob(y * mask)
    torch.testing.assert_close(law.log_prob(y * mask + 7 * (1 - mask)), seen)


def test_wrong_fields_are_refused(example: tuple[Physics, Tensor]) -> None:
    physics, x = example
    if isinstance(physics, Darcy | FirstArrivals):
        with pytest.raises(ValueError, match=r"'x' must have shape \(batch, 1, "):
            physics.A(x[..., :-1])


def assemble(theta: np.ndarray) -> np.ndarray:
    """Dense stiffness matrix of the inner nodes, element by element with 2 x 2 Gauss points."""
    height, width = theta.shape
    matrix = np.zeros((height + 1, width + 1, height + 1, width + 1))
    gauss = (1 + np.array([-1, 1]) / math.sqrt(3)) / 2
    local = np.zeros((4, 4))
    for s in gauss:
        for t in gauss:
            d_x = np.array([-(1 - s), 1 - s, -s, s]) * width
            d_y = np.array([-(1 - t), -t, 1 - t, t]) * height
            local += (np.outer(d_x, d_x) + np.outer(d_y, d_y)) / (4 * width * height)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for i in range(height):
        for j in range(width):
            for a, (da, ea) in enumerate(corners):
                for b, (db, eb) in enumerate(corners):
                    matrix[i + da, j + ea, i + db, j + eb] += theta[i, j] * local[a, b]
    inner = matrix[1:-1, 1:-1, 1:-1, 1:-1]
    size = (height - 1) * (width - 1)
    return inner.reshape(size, size)


def test_darcy_against_a_dense_assembly() -> None:
    theta = torch.randn(3, 7, 5, dtype=torch.float64).exp()
    f = torch.rand(3, 7, 5, dtype=torch.float64)
    p = solve_darcy(theta, f)
    assert p.shape == (3, 8, 6)
    assert all(float(edge.abs().max()) == 0 for edge in (p[:, 0], p[:, -1], p[..., 0], p[..., -1]))
    for index in range(3):
        load = np.zeros((8, 6))
        for down in (0, 1):
            for right in (0, 1):
                load[down : down + 7, right : right + 5] += f[index].numpy() / (4 * 35)
        expected = linalg.solve(assemble(theta[index].numpy()), load[1:-1, 1:-1].ravel())
        np.testing.assert_allclose(p[index, 1:-1, 1:-1].numpy().ravel(), expected, rtol=1e-12)


def test_darcy_has_the_solution_of_poissons_equation_in_second_order() -> None:
    """Constant permeability 3 and the load of ``sin(pi x) sin(2 pi y)``, at element midpoints."""
    errors = []
    for size in (16, 32, 64):
        node = torch.arange(size + 1, dtype=torch.float64) / size
        y, x = torch.meshgrid(node, node, indexing="ij")
        exact = torch.sin(math.pi * x) * torch.sin(2 * math.pi * y)
        middle = (node[1:] + node[:-1]) / 2
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        f = 3 * 5 * math.pi**2 * torch.sin(math.pi * x) * torch.sin(2 * math.pi * y)
        p = solve_darcy(torch.full_like(f, 3.0)[None], f[None])[0]
        errors.append(float((p - exact).abs().max()))
    assert errors[-1] < 2e-3
    assert math.log2(errors[0] / errors[1]) > 1.95 and math.log2(errors[1] / errors[2]) > 1.95


def test_darcy_scales_with_permeability_and_source() -> None:
    physics, x = Darcy((1, 6, 6), torch.rand(9, 2)), torch.randn(2, 1, 6, 6).double()
    y = physics.A(x)
    torch.testing.assert_close(physics.A(x + math.log(4.0)), y / 4)
    torch.testing.assert_close(physics.A(x, source=5.0), 5 * y)
    torch.testing.assert_close(
        physics.A(x, source=torch.tensor([1.0, 3.0])), y * y.new_tensor([[1], [3]])
    )
    field = torch.rand(2, 1, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: physics.A(x, source=f), field)


def test_darcy_blocks_are_cells_of_equal_permeability() -> None:
    points, x = torch.rand(9, 2), torch.randn(2, 1, 3, 4).double()
    fine = x.repeat_interleave(3, -1).repeat_interleave(3, -2)
    blocks = Darcy((1, 3, 4), points, refine=3).A(x)
    torch.testing.assert_close(blocks, Darcy((1, 9, 12), points).A(fine))


def test_darcy_second_derivatives_in_reverse_mode() -> None:
    physics = Darcy((1, 3, 4), torch.rand(4, 2))
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(physics.A, x)


def test_darcy_of_an_overflowing_field_leaves_the_rest_of_the_batch_alone() -> None:
    x = torch.zeros(2, 1, 4, 4)
    x[1, 0, 1, 1] = 1e4
    physics = operators.Darcy((1, 4, 4), torch.rand(3, 2))
    y = physics.A(x)
    assert y[1].isnan().all()
    torch.testing.assert_close(y[0], physics.A(x[:1])[0])


def test_darcy_survives_the_contrasts_of_the_benchmark_in_single_precision() -> None:
    physics = Darcy((1, 8, 8), torch.rand(20, 2), source=10.0, refine=4)
    x = (4 + 2 * torch.randn(200, 1, 8, 8)).requires_grad_()
    y = physics.A(x)
    exact = physics.A(x.double())
    assert float((y - exact).detach().abs().max()) < 1e-3 * float(exact.detach().abs().max())
    assert bool(torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all())


def test_constant_velocity_gives_distances_in_first_order() -> None:
    sources = torch.tensor([[0.5, 0.5], [0.03, 0.11], [0.0, 1.0]]).double()
    errors = []
    for size in (17, 33, 65):
        physics = FirstArrivals((1, size, size), sources, torch.rand(4, 2), spacing=3 / (size - 1))
        times = physics.times(torch.full((1, 1, size, size), math.log(2.0)).double())
        errors.append(float((times[0] - physics.distance / 2).abs().max()) * 2 / 3)
        at_most = 2.0 / (size - 1) * math.log(size)  # h log(1/h), of the unit square
        assert errors[-1] < at_most
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0]
    # Along the axes of the source the scheme is exact.
    torch.testing.assert_close(times[0, 0, 32], physics.distance[0, 32] / 2)


def test_a_layered_medium_refracts_the_head_wave() -> None:
    """A fast layer carries the first arrival: down, along and up beats the direct way."""
    v = torch.ones(1, 1, 41, 161).double()
    v[..., 20:, :] = 4.0
    ends = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    physics = FirstArrivals((1, 41, 161), *ends, spacing=0.05)
    depth, length, ratio = 1.0 - 0.025, 8.0, 1 / 4
    expected = length * ratio + 2 * depth * math.sqrt(1 - ratio**2)
    assert expected < 0.5 * length
    assert float(physics.A(v.log())) == pytest.approx(expected, rel=0.05)


def test_times_satisfy_the_upwind_scheme() -> None:
    delay = torch.rand(5, 9, 11).double() + 0.2
    known = torch.zeros(9, 11, dtype=torch.bool)
    known[3, 4] = known[8, 0] = True
    t = first_arrivals(delay, torch.zeros_like(delay), known)
    around = torch.nn.functional.pad(t, (1, 1, 1, 1), value=1e9)
    a = torch.minimum(around[:, :-2, 1:-1], around[:, 2:, 1:-1])
    b = torch.minimum(around[:, 1:-1, :-2], around[:, 1:-1, 2:])
    residual = (t - a).clamp_min(0) ** 2 + (t - b).clamp_min(0) ** 2 - delay**2
    assert float(residual[:, ~known].abs().max()) < 1e-12
    assert float(t[:, known].abs().max()) == 0


def test_travel_times_scale_and_their_derivatives_are_nodewise_delays() -> None:
    """T is homogeneous in the slowness: sum over nodes of dT/dx is -T."""
    physics, x = EXAMPLES["first-arrivals"]
    assert isinstance(physics, FirstArrivals)
    x = x.double().requires_grad_()
    y = physics.A(x)
    torch.testing.assert_close(physics.A(x + math.log(2.0)), y / 2)
    for datum in range(y.shape[1]):
        (slope,) = torch.autograd.grad(y[:, datum].sum(), x, retain_graph=True)
        assert float(slope.max()) <= 1e-12
        torch.testing.assert_close(slope.sum((1, 2, 3)), -y[:, datum])


def test_travel_times_second_derivatives_in_reverse_mode() -> None:
    physics = FirstArrivals((1, 4, 5), torch.rand(1, 2), torch.rand(2, 2), near=1)
    x = 0.3 * torch.randn(1, 1, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(physics.A, x.requires_grad_())


def test_equal_paths_leave_finite_gradients() -> None:
    """Where fronts meet on a constant field every tie is met."""
    points = torch.tensor([[0.5, 0.5]]), torch.rand(6, 2)
    physics = FirstArrivals((1, 9, 9), *points)
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    (slope,) = torch.autograd.grad(physics.A(x).sum(), x)
    torch.testing.assert_close(slope.sum(), -physics.A(x).sum())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Darcy((1, 1, 1), torch.rand(2, 2)), "at least two elements a side"),
        (lambda: Darcy((2, 4, 4), torch.rand(2, 2)), r"'img_size' must be \(1, h, w\)"),
        (
            lambda: Darcy((1, 4, 4), torch.rand(2, 2), source=torch.ones(4, 4)),
            r"'source' must be a number or have shape \(1, 4, 4\); got \(4, 4\)",
        ),
        (lambda: Darcy((1, 4, 4), 2 * torch.ones(2, 2)), r"'points' must lie in \[0, 1\]"),
        (
            lambda: FirstArrivals((1, 5, 5), torch.rand(1, 2), torch.rand(1, 2), near=0.5),
            "'near' at least 1; got 1.0 and 0.5",
        ),
        (
            lambda: FirstArrivals((1, 1, 5), torch.rand(1, 2), torch.rand(1, 2)),
            r"'img_size' must be \(1, H, W\) with axes >= 2; got \(1, 1, 5\)",
        ),
    ],
)
def test_wrong_settings_are_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


def waveform_physics() -> FullWaveform:
    sources, receivers = torch.tensor([[2, 3], [2, 16]]), torch.tensor([[2, 5], [2, 12], [17, 9]])
    time = torch.arange(80) * 0.002 - 0.06
    squared = (math.pi * 20 * time) ** 2
    ricker = (1 - 2 * squared) * torch.exp(-squared)
    return FullWaveform((1, 20, 20), sources, receivers, ricker, 10.0, 0.002, 4000.0)


def test_waveforms_without_deepwave_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepwave", None)
    with pytest.raises(ImportError, match=r"pip install 'vfm-inverse\[waves\]'"):
        waveform_physics()


def test_waveforms_have_the_derivative_of_a_taylor_test() -> None:
    pytest.importorskip("deepwave")
    physics = waveform_physics()
    x = (math.log(2000.0) + 0.05 * torch.randn(2, 1, 20, 20)).double()
    v, w = 0.1 * torch.randn_like(x), torch.randn_like(physics.A(x))
    y = physics.A(x)
    assert y.shape == (2, 2, 3, 80) and float(y.abs().max()) > 0
    torch.testing.assert_close(physics.A(x[1:]), y[1:])
    slope = float((physics.A_vjp(x, w) * v).sum())
    remainders = [
        abs(float((w * (physics.A(x + h * v) - y)).sum()) - h * slope) for h in (0.04, 0.02, 0.01)
    ]
    assert math.log2(remainders[1] / remainders[2]) >= 1.9, remainders


@pytest.mark.filterwarnings("ignore:At least six grid cells:UserWarning")  # the check's own fields
def test_waveforms_are_certified_where_the_time_step_is_stable() -> None:
    """Where it is not, deepwave resamples, and its backward pass is not that of the resampling."""
    pytest.importorskip("deepwave")
    coarse = waveform_physics()
    stable = 0.55 * coarse.spacing / (math.sqrt(2) * coarse.max_velocity)
    every = math.ceil(coarse.dt / stable)
    x = math.log(2000.0) + 0.05 * torch.randn(2, 1, 20, 20)
    fine = torch.nn.functional.interpolate(
        coarse.wavelet[None, None], scale_factor=every, mode="linear"
    )[0, 0]
    physics = FullWaveform(
        (1, 20, 20),
        coarse.sources,
        coarse.receivers,
        fine,
        coarse.spacing,
        coarse.dt / every,
        coarse.max_velocity,
        every=every,
        pml_width=8,
    )
    assert physics.A(x).shape == coarse.A(x).shape
    result = verify(physics, x)
    assert result.passed, str(result)


def test_sources_and_receivers_of_waves_change_places() -> None:
    """Reciprocity: Green's function of the wave equation is symmetric."""
    pytest.importorskip("deepwave")
    physics = waveform_physics()
    x = math.log(2000.0) + 0.2 * torch.randn(1, 1, 20, 20).double()
    ends = physics.sources[:1], physics.receivers[2:]
    there, back = (
        FullWaveform((1, 20, 20), start, end, physics.wavelet, 10.0, 0.001, 4000.0).A(x)
        for start, end in (ends, ends[::-1])
    )
    assert float(there.abs().max()) > 0
    torch.testing.assert_close(there, back, rtol=0, atol=1e-3 * float(there.abs().max()))


def test_waves_have_a_greatest_velocity() -> None:
    pytest.importorskip("deepwave")
    physics = waveform_physics()
    fast = torch.full((1, 1, 20, 20), math.log(4000.0))
    y = physics.A(fast)
    torch.testing.assert_close(physics.A(fast + 1), y, rtol=0, atol=1e-4 * float(y.abs().max()))


def test_sensors_of_darcy_are_point_observations_of_the_pressure() -> None:
    points = torch.rand(9, 2)
    physics = Darcy((1, 5, 6), points, noise_model=GaussianNoise(0.1))
    x = torch.randn(2, 1, 5, 6)
    expected = PointObservations((1, 6, 7), points).A(physics.pressure(x))
    torch.testing.assert_close(physics.A(x), expected)
