"""Operators written elsewhere: exact derivatives in every mode, of linear and non-linear ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from deepinv.physics import GaussianNoise
from scipy import sparse
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap

from vfm_inverse.operators import NumpyPhysics, ScipyPhysics, simpeg_physics, verify
from vfm_inverse.problem.inverse_problem import InverseProblem

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(3, 4))
X = torch.randn(5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def value(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.sin(MIX @ x.ravel())


def pull(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (MIX.T @ (np.cos(MIX @ x.ravel()) * w)).reshape(2, 2)


def push(x: np.ndarray[Any, Any], v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.cos(MIX @ x.ravel()) * (MIX @ v.ravel())


class Simulation:
    """A stand-in for a SimPEG simulation, which keeps its model as those do."""

    def dpred(self, m: Any) -> Any:
        self.model = m
        return value(m)

    def Jvec(self, m: Any, v: Any) -> Any:
        assert m.shape == v.shape == (4,)
        return push(m, v)

    def Jtvec(self, m: Any, v: Any) -> Any:
        assert v.shape == (3,)
        return pull(m, v).ravel()


def in_torch(x: Tensor) -> Tensor:
    return torch.sin(x.flatten(1) @ torch.from_numpy(MIX).T)


SIZES: dict[str, Any] = {"img_size": (2, 2), "obs_size": (3,)}
NONLINEAR = {
    "with jvp": NumpyPhysics(value, pull, jvp=push, **SIZES),
    "vjp only": NumpyPhysics(value, pull, **SIZES),
    "batched": NumpyPhysics(
        lambda x: np.sin(x.reshape(len(x), 4) @ MIX.T),
        lambda x, w: ((np.cos(x.reshape(len(x), 4) @ MIX.T) * w) @ MIX).reshape(-1, 2, 2),
        batched=True,
        **SIZES,
    ),
    "simulation": simpeg_physics(Simulation(), (2, 2), (3,)),
}


@pytest.fixture(params=NONLINEAR)
def physics(request: pytest.FixtureRequest) -> NumpyPhysics:
    return NONLINEAR[request.param]


def test_value_and_derivatives_are_those_of_torch(physics: NumpyPhysics) -> None:
    v, w = torch.randn_like(X), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(jvp(physics.A, (X,), (v,)), jvp(in_torch, (X,), (v,)))
    torch.testing.assert_close(vjp(physics.A, X)[1](w), vjp(in_torch, X)[1](w))
    torch.testing.assert_close(physics.A_vjp(X, w), vjp(in_torch, X)[1](w)[0])
    torch.testing.assert_close(jacrev(physics.A)(X), jacrev(in_torch)(X))
    torch.testing.assert_close(jacfwd(physics.A)(X), jacrev(in_torch)(X))


def test_vmap_and_gradients_a_sample(physics: NumpyPhysics) -> None:
    def one(x: Tensor) -> Tensor:
        return physics.A(x[None])[0]

    torch.testing.assert_close(vmap(one)(X), in_torch(X))
    rows = vmap(jacrev(one))(X)
    expected = vmap(jacrev(lambda x: in_torch(x[None])[0]))(X)
    torch.testing.assert_close(rows, expected)
    nested = vmap(vmap(one))(X.expand(2, *X.shape))
    torch.testing.assert_close(nested, in_torch(X).expand(2, 5, 3))


def test_gradcheck_in_both_modes(physics: NumpyPhysics) -> None:
    x = X[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(physics.A, x, check_forward_ad=True)


def test_it_is_certified(physics: NumpyPhysics) -> None:
    result = verify(physics, X.float())
    assert result.passed, str(result)
    assert result["forward mode"].passed and result["adjoint"].passed


def test_second_derivatives_are_refused_and_not_zero(physics: NumpyPhysics) -> None:
    with pytest.raises(NotImplementedError, match="second derivatives of an external"):
        hessian(lambda x: physics.A(x).square().sum())(X)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(physics.A(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of an external"):
        gradient.sum().backward()


def test_the_type_is_kept_and_the_input_is_not_shared(physics: NumpyPhysics) -> None:
    for dtype in (torch.float32, torch.float64):
        y = physics.A(X.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y, in_torch(X).to(dtype))
    identity = NumpyPhysics(
        lambda x: x, lambda x, w: w, img_size=(3,), obs_size=(3,), batched=True
    )
    x = torch.zeros(2, 3, dtype=torch.float64)
    identity.A(x).add_(1)
    assert float(x.abs().max()) == 0


def test_it_compiles() -> None:
    compiled = torch.compile(NONLINEAR["with jvp"].A, backend="aot_eager")
    torch.testing.assert_close(compiled(X), in_torch(X))


def test_a_graph_outlives_its_physics() -> None:
    x = X.clone().requires_grad_()
    y = NumpyPhysics(value, pull, **SIZES).A(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, vjp(in_torch, X)[1](torch.ones(5, 3).double())[0])


# Linear operators -------------------------------------------------------------------------------

MATRIX = sparse.random(6, 4, density=0.5, random_state=0, dtype=np.float64)


@pytest.mark.parametrize(
    "operator",
    [
        MATRIX,
        MATRIX.toarray(),
        LinearOperator(
            (6, 4),
            matvec=lambda x: MATRIX @ x,
            rmatvec=lambda y: MATRIX.T @ y,
            dtype=np.float64,
        ),
    ],
    ids=["sparse", "array", "functions"],
)
def test_a_scipy_operator_is_its_matrix(operator: Any) -> None:
    physics = ScipyPhysics(operator, (1, 4), (2, 3))
    x = torch.randn(5, 1, 4, dtype=torch.float64)
    expected = (x.flatten(1) @ torch.from_numpy(MATRIX.toarray()).T).reshape(5, 2, 3)
    torch.testing.assert_close(physics.A(x), expected)
    y = torch.randn(5, 2, 3, dtype=torch.float64)
    back = (y.flatten(1) @ torch.from_numpy(MATRIX.toarray())).reshape(5, 1, 4)
    torch.testing.assert_close(physics.A_adjoint(y), back)
    torch.testing.assert_close(vmap(lambda one: physics.A_adjoint(one[None])[0])(y), back)
    result = verify(physics, x)
    assert result.passed, str(result)
    # Second derivatives of a linear operator are exact.
    half = hessian(lambda x: 0.5 * physics.A(x).square().sum())(x[:1]).reshape(4, 4)
    torch.testing.assert_close(half, torch.from_numpy((MATRIX.T @ MATRIX).toarray()))
    leaf = y.clone().requires_grad_()
    assert torch.autograd.gradcheck(physics.A_adjoint, leaf, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(physics.A, x[:1].clone().requires_grad_())


def test_a_wrong_rmatvec_is_found() -> None:
    wrong = LinearOperator(
        (6, 4),
        matvec=lambda x: MATRIX @ x,
        rmatvec=lambda y: 1.01 * (MATRIX.T @ y),
        dtype=np.float64,
    )
    result = verify(ScipyPhysics(wrong), torch.randn(2, 4))
    assert result["adjoint"].passed is False and result["gradient"].passed is False


def test_a_pylops_operator_is_a_scipy_operator() -> None:
    pylops = pytest.importorskip("pylops")
    derivative = pylops.SecondDerivative((6, 5), axis=0)
    physics = ScipyPhysics(derivative, (1, 6, 5), (1, 6, 5))
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64)
    result = verify(physics, x)
    assert result.passed, str(result)
    rows = torch.stack([torch.from_numpy(derivative @ one.numpy().ravel()) for one in x])
    torch.testing.assert_close(physics.A(x).flatten(1), rows)


@pytest.mark.parametrize("name", ["Convolve1D", "composed", "Radon2D"])
def test_operators_of_pylops_are_certified(name: str) -> None:
    pylops = pytest.importorskip("pylops")
    make = {
        "Convolve1D": lambda: pylops.signalprocessing.Convolve1D(30, np.array([1.0, 2, 0.5]), 1),
        "composed": lambda: pylops.VStack([pylops.FirstDerivative(30), 3 * pylops.Identity(30)]),
        "Radon2D": lambda: pylops.signalprocessing.Radon2D(
            np.arange(6.0), np.arange(5.0), np.linspace(-1, 1, 5), engine="numpy"
        ),
    }
    operator = make[name]()
    result = verify(ScipyPhysics(operator), torch.from_numpy(RNG.normal(size=(2, 30))))
    assert result.passed, str(result)


@pytest.mark.filterwarnings("default")
def test_simulations_of_simpeg_are_certified() -> None:
    """Direct-current resistivity: non-linear, by finite volumes with adjoint sensitivities."""
    discretize = pytest.importorskip("discretize")
    dc = pytest.importorskip("simpeg.electromagnetics.static.resistivity")
    maps = pytest.importorskip("simpeg.maps")
    mesh = discretize.TensorMesh([[(5.0, 4)], [(5.0, 3)], [(5.0, 2)]], x0="CCN")
    line = np.linspace(-8, 8, 4)[:, None] * np.array([[1.0, 0, 0]])
    receivers = dc.receivers.Dipole(line[:-1], line[1:])
    survey = dc.Survey([dc.sources.Dipole([receivers], line[0], line[-1])])
    simulation = dc.Simulation3DNodal(mesh, survey=survey, sigmaMap=maps.ExpMap(mesh))
    physics = simpeg_physics(simulation, (2, 3, 4), (3,))
    x = torch.from_numpy(0.3 * RNG.normal(size=(2, 2, 3, 4)) - 3)
    result = verify(physics, x)
    assert result.passed, str(result)
    assert result["adjoint"].passed and result["forward mode"].passed
    # The axes as the docs say: the first axis of the mesh is the last of the array.
    model = x[0].numpy().transpose(2, 1, 0).ravel(order="F")
    torch.testing.assert_close(physics.A(x)[0], torch.from_numpy(simulation.dpred(model)))


@pytest.mark.filterwarnings("default")
def test_potential_fields_of_simpeg_ask_for_double_precision() -> None:
    discretize = pytest.importorskip("discretize")
    gravity = pytest.importorskip("simpeg.potential_fields.gravity")
    maps = pytest.importorskip("simpeg.maps")
    mesh = discretize.TensorMesh([[(10.0, 4)], [(10.0, 3)], [(10.0, 2)]], x0="CCN")
    places = np.array([[0.0, 0.0, 5.0], [10.0, -5.0, 5.0], [-12.0, 3.0, 6.0]])
    receivers = gravity.receivers.Point(places, components="gz")
    survey = gravity.survey.Survey(gravity.sources.SourceField([receivers]))
    for dtype, passes in ((np.float64, True), (np.float32, False)):
        simulation = gravity.simulation.Simulation3DIntegral(
            mesh,
            survey=survey,
            rhoMap=maps.IdentityMap(nP=mesh.nC),
            active_cells=np.ones(mesh.nC, bool),
            sensitivity_dtype=dtype,
        )
        physics = simpeg_physics(simulation, (2, 3, 4), (3,))
        result = verify(physics, torch.from_numpy(RNG.normal(size=(2, 2, 3, 4))))
        assert result.passed == passes, str(result)


def test_a_bridged_operator_makes_a_problem() -> None:
    physics = ScipyPhysics(MATRIX, noise_model=GaussianNoise(0.1))
    problem = InverseProblem(torch.randn(100, 4), physics=physics)
    x, y, _ = problem.simulate(7, seed=0)
    assert y.shape == (7, 6) and y.dtype == torch.float32
    x.requires_grad_()
    problem.log_likelihood(x, y).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScipyPhysics(MATRIX, (5,)), r"'img_size' must hold 4 numbers .*; got \(5,\)"),
        (lambda: ScipyPhysics(MATRIX, obs_size=(2, 2)), "'obs_size' must hold 6 numbers"),
        (lambda: ScipyPhysics(1j * np.eye(2)), "'operator' must be real; got complex128"),
        (lambda: ScipyPhysics(MATRIX).A(X), r"'x' must have shape \(batch, 4\)"),
        (lambda: ScipyPhysics(MATRIX).A_adjoint(X), r"'y' must have shape \(batch, 6\)"),
        (lambda: NONLINEAR["with jvp"].A(X.flatten(1)), r"'x' must have shape \(batch, 2, 2\)"),
        (
            lambda: NumpyPhysics(lambda x: x, pull, **SIZES).A(X),
            r"'function' must return shape \(3,\); got \(2, 2\)",
        ),
        (
            lambda: NumpyPhysics(value, lambda x, w: w, **SIZES).A_vjp(X, torch.ones(5, 3)),
            r"'vjp' must return shape \(2, 2\); got \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
