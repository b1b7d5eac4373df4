"""Every operator of the pack is certified; vectors and stations against values known by hand."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from torch import Tensor
from torch.func import jvp, vjp, vmap

from vfm_inverse import operators
from vfm_inverse.operators import AutogradAdjoint, MatrixObservations, PointObservations

EXAMPLES = {name: (physics, x) for name, physics, x in operators.examples()}
LINEAR = [name for name, (physics, _) in EXAMPLES.items() if isinstance(physics, LinearPhysics)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=LINEAR)
def example(request: pytest.FixtureRequest) -> tuple[LinearPhysics, Tensor]:
    physics, x = EXAMPLES[request.param]
    assert isinstance(physics, LinearPhysics)
    return physics, x.double()


def mask_like(physics: LinearPhysics, y: Tensor) -> dict[str, Tensor]:
    if not isinstance(physics, PointObservations):
        return {}
    return {"mask": (torch.arange(y.numel()).reshape(y.shape) % 3 > 0).to(y)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_operator_is_certified(name: str) -> None:
    """Required: dot products to 1e-10, a Taylor order of 1.95; see tests/test_verify.py."""
    physics, x = EXAMPLES[name]
    result = operators.verify(physics, x, name=name)
    assert result.passed, str(result)
    applied = {check.name for check in result.checks if check.passed}
    assert applied >= {"shapes", "adjoint", "gradient", "vjp", "forward mode", "batching"}
    assert applied >= {"determinism", "dtype", "noise"}
    assert ("linearity" in applied) == (name in LINEAR)


def test_every_operator_of_the_pack_is_among_the_examples() -> None:
    shown = {type(module) for physics, _ in EXAMPLES.values() for module in physics.modules()}
    public = [getattr(operators, name) for name in operators.__all__]
    classes = {one for one in public if isinstance(one, type) and issubclass(one, torch.nn.Module)}
    missing = classes - shown
    if find_spec("deepwave") is None:
        missing.discard(operators.FullWaveform)
    assert not missing
    assert len(EXAMPLES) == len(list(operators.examples())), "two examples have one name"


def test_the_docs_have_a_row_for_every_operator() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
    table = page.read_text().split("## Of this package\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    public = {name: getattr(operators, name) for name in operators.__all__}
    physics = [
        name for name, one in public.items() if isinstance(one, type) and issubclass(one, Physics)
    ]
    assert sorted(listed) == sorted(physics)


def test_the_adjoint_is_the_transpose(example: tuple[LinearPhysics, Tensor]) -> None:
    physics, x = example
    y = torch.randn_like(physics.A(x))
    for params in ({}, mask_like(physics, y)):
        forward = (physics.A(x, **params) * y).sum()
        backward = (x * physics.A_adjoint(y, **params)).sum()
        torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


def test_deepinv_agrees_that_it_is_the_transpose(example: tuple[LinearPhysics, Tensor]) -> None:
    physics, x = example
    assert abs(float(physics.adjointness_test(x))) < 1e-10


def test_the_operator_is_linear_with_equal_derivatives(
    example: tuple[LinearPhysics, Tensor],
) -> None:
    physics, x = example
    tangent = torch.randn_like(x)
    y, forward = jvp(physics.A, (x,), (tangent,))
    torch.testing.assert_close(forward, physics.A(tangent))
    torch.testing.assert_close(physics.A(2 * x - 3 * tangent), 2 * y - 3 * forward)
    cotangent = torch.randn_like(y)
    (pulled,) = vjp(physics.A, x)[1](cotangent)
    torch.testing.assert_close(pulled, physics.A_adjoint(cotangent))
    _, adjoint_tangent = jvp(physics.A_adjoint, (y,), (cotangent,))
    torch.testing.assert_close(adjoint_tangent, physics.A_adjoint(cotangent))


def test_vmap_gives_the_batch(example: tuple[LinearPhysics, Tensor]) -> None:
    physics, x = example
    y = physics.A(x)
    torch.testing.assert_close(vmap(lambda one: physics.A(one[None])[0])(x), y)
    torch.testing.assert_close(
        vmap(lambda one: physics.A_adjoint(one[None])[0])(y), physics.A_adjoint(y)
    )


def test_the_dtype_of_the_input_is_kept(example: tuple[LinearPhysics, Tensor]) -> None:
    physics, x = example
    for dtype in (torch.float32, torch.float64):
        y = physics.A(x.to(dtype))
        assert y.dtype == dtype and physics.A_adjoint(y).dtype == dtype


def test_nodes_and_midpoints_are_read_exactly() -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0], [0.25, 0.0], [0.5, 0.5]])
    physics = PointObservations((1, 3, 4), points)
    torch.testing.assert_close(physics.A(x), torch.tensor([[0.0, 11.0, 7.0, 2.0, 5.5]]))


def test_an_affine_field_is_interpolated_exactly_in_one_and_two_dimensions() -> None:
    points = torch.rand(20, 2, dtype=torch.float64)
    down, right = torch.meshgrid(
        torch.linspace(0, 1, 5).double(), torch.linspace(0, 1, 8).double(), indexing="ij"
    )
    field = torch.stack([1 + 2 * down - 3 * right, down * right])[None]
    expected = torch.stack([1 + 2 * points[:, 0] - 3 * points[:, 1], points[:, 0] * points[:, 1]])[
        None
    ]
    torch.testing.assert_close(PointObservations((2, 5, 8), points).A(field), expected)
    line = PointObservations((1, 5), points[:, :1])
    torch.testing.assert_close(line.A(down[None, None, :, 0]), points[None, :, 0])


def test_a_masked_station_reads_zero_without_noise_and_the_mask_is_not_kept() -> None:
    physics = PointObservations((1, 6), torch.rand(4, 1), GaussianNoise(0.1))
    x = torch.ones(2, 1, 6)
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    y = physics(x, mask=mask)
    assert torch.equal(y == 0, mask == 0)
    assert bool((physics(x) != 0).all())
    physics.update(mask=mask)
    assert physics.mask is None or torch.equal(physics.A(x) == 0, mask == 0)


@pytest.mark.parametrize(
    ("img_size", "points", "message"),
    [
        ((1, 5), torch.rand(3, 2), r"'points' must have shape \(N, 1\); got \(3, 2\)"),
        ((1, 5), torch.rand(0, 1), r"'points' must have shape \(N, 1\); got \(0, 1\)"),
        ((1, 5), torch.tensor([[1.2]]), r"'points' must lie in \[0, 1\]; got 1.2 to 1.2"),
        ((5,), torch.rand(3, 1), r"'img_size' must be \(C, L\) or \(C, H, W\)"),
        ((1, 5, 1), torch.rand(3, 2), r"'img_size' must be \(C, L\) or \(C, H, W\)"),
    ],
)
def test_wrong_stations_are_refused(
    img_size: tuple[int, ...], points: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PointObservations(img_size, points)


def test_a_matrix_must_have_two_dimensions() -> None:
    with pytest.raises(ValueError, match=r"'matrix' must have shape \(m, d\); got \(3,\)"):
        MatrixObservations(torch.ones(3))


def test_autograd_derives_the_transpose_of_any_linear_operator() -> None:
    matrix = torch.randn(3, 12, dtype=torch.float64)
    physics = AutogradAdjoint(Physics(A=lambda x: x.flatten(1) @ matrix.to(x).mT), (1, 3, 4))
    for dtype in (torch.float32, torch.float64):
        y = torch.randn(5, 3, dtype=dtype)
        expected = (y @ matrix.to(y)).reshape(5, 1, 3, 4)
        torch.testing.assert_close(physics.A_adjoint(y), expected)
    # It is differentiated like any other operator.
    y.requires_grad_()
    w = torch.randn(5, 1, 3, 4, dtype=torch.float64)
    (back,) = torch.autograd.grad((physics.A_adjoint(y) * w).sum(), y)
    torch.testing.assert_close(back, physics.A(w))


def test_autograd_takes_complex_data_and_parameters() -> None:
    def transform(x: Tensor, filter: Tensor) -> Tensor:
        return filter * torch.fft.fft(x, norm="ortho")

    physics = AutogradAdjoint(Physics(A=transform), (1, 6))
    x, filter = torch.randn(2, 1, 6).double(), torch.randn(2, 1, 6).double()
    y = torch.randn(2, 1, 6, dtype=torch.complex128)
    forward = (physics.A(x, filter=filter).conj() * y).real.sum()
    torch.testing.assert_close((x * physics.A_adjoint(y, filter=filter)).sum(), forward)


def test_what_is_not_linear_does_not_pass_for_it() -> None:
    physics = AutogradAdjoint(Physics(A=lambda x: x.square()), (1, 6))
    result = operators.verify(physics, torch.randn(2, 1, 6))
    assert result["linearity"].passed is False and result["adjoint"].passed is False


def test_an_adjoint_needs_the_shape_of_the_field() -> None:
    with pytest.raises(ValueError, match="'img_size' must be given: Physics does not say"):
        AutogradAdjoint(Physics())
