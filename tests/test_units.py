"""No answer depends on a unit: any variable, channel or datum times 1e-30 to 1e30 gives the same
draws in the new unit, and a constant stays that constant to the last bit."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal

import vfm_inverse as vi
from vfm_inverse import correction
from vfm_inverse.operators import PointObservations
from vfm_inverse.problem.inverse_problem import InverseProblem

DOUBLE = torch.float64
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
REACH = {torch.float32: 14, torch.float64: 30}  # products of two must be normal numbers
SIZE, DATA, SIDE = 4, 3, 4


class Given(NamedTuple):
    """One problem up to its units."""

    entry: str
    after: str
    dtype: torch.dtype
    constant: int | None


class Matrix(LinearPhysics):
    """``y_j = E_j sum_i M_ji x_i / D_i`` along ``axis``: of a vector, or of channels."""

    def __init__(
        self, matrix: Tensor, left: Tensor, right: Tensor, sigma: Tensor, axis: int
    ) -> None:
        super().__init__(noise_model=GaussianNoise(sigma))
        self.register_buffer("matrix", left[:, None] * matrix / right)
        self.axis = axis

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return (x.movedim(self.axis, -1) @ self.matrix.mT).movedim(-1, self.axis)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return (y.movedim(self.axis, -1) @ self.matrix).movedim(-1, self.axis)


def draws(case: Given, variables: Tensor, data: Tensor) -> Tensor:
    """Posterior draws, over the units again."""
    generator = torch.Generator().manual_seed(0)
    dtype, entry = case.dtype, case.entry
    field = entry.startswith("field") or entry == "stations"
    count = 1 if entry == "stations" else len(variables)
    mixing = torch.randn(count, count, generator=generator, dtype=DOUBLE)
    matrix = torch.randn(len(data), count, generator=generator, dtype=DOUBLE)
    units = variables[:count].reshape(-1, *[1] * (2 * field))
    axis = torch.linspace(0, 1, SIDE, dtype=DOUBLE)
    smooth = torch.exp(-((axis[:, None] - axis) ** 2) / 0.1)

    def prior(num: int) -> Tensor:
        if field:
            z = torch.randn(num, count, SIDE, SIDE, dtype=DOUBLE)
            z = smooth @ z @ smooth.T + 0.2 * z + 1
            if case.constant is not None:
                z[:, 0, 0, case.constant] = 3.0
        else:
            z = torch.randn(num, count, dtype=DOUBLE) @ mixing.T + 2
            if case.constant is not None:
                z[:, case.constant] = 3.0
        return (z * units).to(dtype)

    options: dict = {}
    noise, one = 0.3 * data, torch.ones(1)
    left = data[:1].expand_as(data) if entry.endswith("matrix") else data
    physics = Matrix(matrix, left, variables[:count], one, -3 if field else -1)
    if entry in ("matrix", "field matrix"):
        physics.set_noise_model(GaussianNoise(noise[:1]))
        options = {"physics": physics}
    elif entry == "noise by datum":
        options = {
            "physics": physics,
            "params": lambda num: {"sigma": (noise * (0.5 + torch.rand(num, DATA, dtype=DOUBLE)))},
        }
    elif entry == "stations":
        unit = variables[0]
        options = {
            "physics": PointObservations((1, SIDE, SIDE), None, GaussianNoise(0.3)),
            "params": lambda num: {
                "coords": torch.rand(num, DATA, 2, dtype=DOUBLE),
                "mask": (torch.rand(num, DATA, dtype=DOUBLE) < 0.8).double(),
                "sigma": unit * (0.5 + torch.rand(num, DATA, dtype=DOUBLE)),
            },
        }
    elif entry == "field simulator":
        mix, scale = physics.to(dtype).A, noise[:, None, None].to(dtype)
        options = {"simulator": lambda x: mix(x) + scale * torch.randn_like(mix(x))}
    else:
        mix, scale = physics.to(dtype).A, noise.to(dtype)
        law = {"likelihood": lambda x: Independent(Normal(mix(x), scale), 1)}
        simulated = {"simulator": lambda x: mix(x) + scale * torch.randn_like(mix(x))}
        options = law if entry == "likelihood" else simulated
    problem = InverseProblem(prior, dtype=dtype, **options)
    vfm = vi.VariationalFlowMap.for_problem(
        problem,
        num_simulations=200,
        width=8,
        observation="adapter" if case.after == "psis" else "both",
        gaussian_start=case.after != "no start",
    )
    if case.after == "fit":
        vi.fit(vfm, problem, steps=2, batch_size=8, num_validation=8, progress=False)
    _, y, params = problem.simulate(2, split="test", seed=5)
    if case.after == "psis":
        ensemble = correction.psis(vfm, y, 100, seed=1, **params)
        torch.testing.assert_close(ensemble.weights.sum(0), torch.ones(2, dtype=dtype))
        x = ensemble.samples * (1 + ensemble.weights.reshape(100, 2, *[1] * units.dim()))
    else:
        torch.manual_seed(1)
        x = vfm(y, **params).sample((5,))
    if case.constant is not None and case.after != "psis":
        element = x[:, :, 0, 0, case.constant] if field else x[..., case.constant]
        unit = variables[0] if field else variables[case.constant]
        assert bool((element == (3 * unit).to(dtype)).all())
    return x.double() / units


@cache
def reference(case: Given) -> Tensor:
    return draws(case, torch.ones(SIZE, dtype=DOUBLE), torch.ones(DATA, dtype=DOUBLE))


ENTRIES = (
    "matrix",
    "noise by datum",
    "likelihood",
    "simulator",
    "stations",
    "field matrix",
    "field simulator",
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Given, Tensor, Tensor]:
    entry = draw(st.sampled_from(ENTRIES))
    after = draw(st.sampled_from(("draws", "fit", "no start", "psis")))
    if after == "psis" and entry.endswith("simulator"):
        after = "draws"
    dtype = draw(st.sampled_from((torch.float32, DOUBLE)))
    constant = draw(st.sampled_from((None, None, 0, 2)))
    reach = st.floats(-REACH[dtype], REACH[dtype])
    exponents = [draw(st.lists(reach, min_size=n, max_size=n)) for n in (SIZE, DATA)]
    variables, data = (10 ** torch.tensor(part, dtype=DOUBLE) for part in exponents)
    return Given(entry, after, dtype, constant), variables, data


def check(case: tuple[Given, Tensor, Tensor]) -> None:
    given_, variables, data = case
    expected = reference(given_)
    found = draws(given_, variables, data)
    size = expected.abs().mean()
    assert float((found - expected).abs().max() / size) < TOLERANCE[given_.dtype]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases())
def test_units_change_nothing(case: tuple[Given, Tensor, Tensor]) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(cases())
def test_units_change_nothing_at_length(case: tuple[Given, Tensor, Tensor]) -> None:
    check(case)
