"""Every linear operator: adjoint, derivatives, batches, types; and values known by hand."""

from __future__ import annotations

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor
from torch.func import jvp, vjp, vmap

from vfm_inverse import operators
from vfm_inverse.operators import MatrixObservations, PointObservations

EXAMPLES = {
    name: (physics, x)
    for name, physics, x in operators.examples()
    if isinstance(physics, LinearPhysics)
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> tuple[LinearPhysics, Tensor]:
    physics, x = EXAMPLES[request.param]
    return physics, x.double()


def mask_like(physics: LinearPhysics, y: Tensor) -> dict[str, Tensor]:
    if not isinstance(physics, PointObservations):
        return {}
    return {"mask": (torch.arange(y.numel()).reshape(y.shape) % 3 > 0).to(y)}


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
