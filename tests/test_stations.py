"""Tables of stations: nothing depends on their order or on padding, and with changing networks the
untrained map is the exact kriging posterior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.func import jvp

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.flow.adapter import Contraction
from vfm_inverse.gaussian.operator_start import VaryingOperatorStart
from vfm_inverse.labelled.write import load_observation, observation_to_xarray
from vfm_inverse.networks.encoders import FieldFeatures
from vfm_inverse.networks.stations import StationEncoder, StationFeatures, is_table, summary
from vfm_inverse.operators import PointObservations
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs.loading import load

SHAPES = {"coords": (6, 2), "mask": (6,), "sigma": (6,)}


def tables(num: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    """Random tables of six rows, of which the first is empty and the last full."""
    torch.manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([[0], [1], [3], [5], [6]])[:num]).float()
    params = {"coords": torch.rand(num, 6, 2), "mask": mask, "sigma": 0.1 + torch.rand(num, 6)}
    return torch.randn(num, 6) * mask, params


def with_other_padding(y: Tensor, params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    seen = params["mask"] > 0
    return torch.where(seen, y, 7.0), {
        "coords": torch.where(seen.unsqueeze(-1), params["coords"], 0.9),
        "mask": params["mask"],
        "sigma": torch.where(seen, params["sigma"], 3.0),
    }


def permuted(y: Tensor, params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(1))
    return y[:, order], {name: value[:, order] for name, value in params.items()}


def changing(**kwargs: object) -> InverseProblem:
    settings = {"size": 8, "num_points": 6, "sigma": (0.1, 0.5), "networks": "changing"}
    return problems.load("gaussian-field", **(settings | kwargs))


# The operator ---------------------------------------------------------------------------------


@pytest.mark.parametrize("img_size", [(1, 7), (2, 7), (1, 5, 6), (3, 5, 6)])
def test_changing_stations_read_as_fixed_ones_do(img_size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    points = torch.rand(3, 4, len(img_size) - 1)
    x = torch.randn(3, *img_size, dtype=torch.float64)
    physics = PointObservations(img_size, points[0])
    y = physics.A(x, coords=points)
    alone = [PointObservations(img_size, p).A(f[None]) for p, f in zip(points, x, strict=True)]
    torch.testing.assert_close(y, torch.cat(alone))
    # One network for all, the transpose, and a mask on top.
    torch.testing.assert_close(physics.A(x, coords=points[:1]), physics.A(x))
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).double()
    mask = mask if img_size[0] == 1 else mask.unsqueeze(1)
    v, params = torch.randn_like(y), {"coords": points, "mask": mask}
    forward = (physics.A(x, **params) * v).sum()
    torch.testing.assert_close(forward, (x * physics.A_adjoint(v, **params)).sum())
    torch.testing.assert_close(physics.A(x, **params), physics.A(x, coords=points) * mask)
    tangent = torch.randn_like(x)
    _, moved = jvp(lambda field: physics.A(field, **params), (x,), (tangent,))
    torch.testing.assert_close(moved, physics.A(tangent, **params))


def test_a_network_that_always_changes_needs_no_points_of_its_own() -> None:
    torch.manual_seed(0)
    points, x = torch.rand(3, 4, 2), torch.randn(3, 1, 5, 6)
    physics = PointObservations((1, 5, 6))
    torch.testing.assert_close(
        physics.A(x, coords=points), PointObservations((1, 5, 6), points[0]).A(x, coords=points)
    )
    with pytest.raises(ValueError, match="'coords' must be given"):
        physics.A(x)


def test_stations_off_the_grid_are_refused_unless_they_are_off() -> None:
    physics = PointObservations((1, 4, 4), torch.rand(2, 2))
    x, coords = torch.randn(1, 1, 4, 4), torch.tensor([[[0.5, 0.5], [0.5, 1.5]]])
    with pytest.raises(ValueError, match=r"'coords' must lie in \[0, 1\]; got 0.5 to 1.5"):
        physics.A(x, coords=coords)
    assert physics.A(x, coords=coords, mask=torch.tensor([[1.0, 0.0]]))[0, 1] == 0
    with pytest.raises(ValueError, match=r"'coords' must have shape \(batch, N, 2\)"):
        physics.A(x, coords=coords[0])


# Features and encoder -------------------------------------------------------------------------


def describe(y: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that the networks are given of tables, and the encoding."""
    torch.manual_seed(0)
    features = StationFeatures((6,), SHAPES)
    physics = PointObservations((1, 4, 4), torch.rand(6, 2))
    lifted = FieldFeatures((1, 4, 4), (6,), SHAPES, physics, with_start=False)
    encoder = StationEncoder(features.rows, 16)
    features.fit(*tables())
    lifted.fit(*tables(), None)
    encoded = encoder(features(y, params))
    return {"encoded": encoded, "lifted": lifted(y, params, None), "range": summary(y, params)}


def test_padding_has_no_influence_and_order_neither() -> None:
    first = describe(*tables())
    padded = describe(*with_other_padding(*tables()))
    shuffled = describe(*permuted(*tables()))
    for name, value in first.items():
        assert torch.isfinite(value).all(), name
        assert value[1:].std(0).max() > 1e-3, name
        torch.testing.assert_close(padded[name], value, rtol=0, atol=0)
        torch.testing.assert_close(shuffled[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("column", ["y", "coords", "sigma", "mask"])
def test_every_column_of_a_station_is_seen(column: str) -> None:
    y, params = tables()
    first = describe(y, params)
    changed = {"y": y.clone(), **{name: value.clone() for name, value in params.items()}}
    changed[column][2, 0] = 0.0 if column == "mask" else changed[column][2, 0] * 0.5
    second = describe(changed.pop("y"), changed)
    for name, value in first.items():
        assert (second[name][2] - value[2]).abs().max() > 1e-4, name
        torch.testing.assert_close(second[name][3], value[3])


def test_the_lifted_channels_are_local_means_and_their_weight() -> None:
    """One station on a node, with the error of the data's spread: half the value, log 2."""
    physics = PointObservations((1, 3, 3), torch.rand(2, 2))
    shapes = {"coords": (2, 2), "mask": (2,), "sigma": (2,)}
    features = FieldFeatures((1, 3, 3), (2,), shapes, physics, with_start=False)
    coords = torch.tensor([[[0.5, 1.0], [0.0, 0.0]]])
    params = {"coords": coords, "mask": torch.tensor([[1.0, 0.0]]), "sigma": torch.ones(1, 2)}
    value, density = features(torch.tensor([[3.0, 0.0]]), params, None)[0]
    expected = torch.zeros(3, 3)
    expected[1, 2] = 1.0
    torch.testing.assert_close(value, 1.5 * expected)
    torch.testing.assert_close(density, np.log(2) * expected)


def test_the_encoder_has_forward_and_reverse_derivatives_of_an_empty_table_too() -> None:
    features = StationFeatures((6,), SHAPES)
    encoder = StationEncoder(features.rows, 16).double()
    table = features(*tables()).double().requires_grad_()
    tangent = torch.randn_like(table)
    tangent[..., -1] = 0
    _, forward = jvp(encoder, (table.detach(),), (tangent,))
    weight = torch.randn_like(forward)
    (gradient,) = torch.autograd.grad(encoder(table), table, weight)
    torch.testing.assert_close((gradient * tangent).sum(), (forward * weight).sum())
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("network", ["mlp", "u-net"])
def test_fixed_stations_that_are_switched_off_keep_an_exact_start(network: str) -> None:
    made = problems.load("gaussian-field", size=8, num_points=5)
    problem = InverseProblem(
        made._splits.prior,
        physics=made.physics,
        params=lambda num: {"mask": (torch.rand(num, 5) < 0.5).float()},
    )
    vfm = VariationalFlowMap.for_problem(problem, network=network, num_simulations=500, width=8)
    x, y, _ = problem.simulate(2, seed=0)
    everything, first = torch.ones(2, 5), (torch.arange(5) < 1).float().expand(2, 5)
    y = made.observe(x, seed=0)
    exact = made.reference_posterior(y)
    mean = vfm.whitening.unwhiten(vfm.start(y, {"mask": everything}).loc)
    torch.testing.assert_close(mean, exact.mean, atol=1e-3, rtol=1e-3)
    torch.manual_seed(0)
    one = vfm(y * first, mask=first).sample((500,)).std(0).mean()
    torch.manual_seed(0)
    assert one > vfm(y, mask=everything).sample((500,)).std(0).mean() + 0.05


def test_what_is_no_table_is_refused() -> None:
    assert is_table((6,), SHAPES) and is_table((6,), {"coords": (6, 1)})
    # Without places the order of the data is all that tells them apart.
    assert not is_table((6,), {"mask": (6,)}) and not is_table((1, 6), {"coords": (6, 2)})
    with pytest.raises(ValueError, match="'param_shapes' must have 'coords'"):
        StationFeatures((6,), {"sigma": ()})


# Labelled tables ------------------------------------------------------------------------------


def labelled_table() -> xr.Dataset:
    rows = {
        "value": [1.0, np.nan, -2.0],
        "lat": [0.25, np.nan, 1.0],
        "lon": [0.5, 9.0, 0.0],
        "std": [0.1, np.nan, 0.3],
    }
    return xr.Dataset({name: ("station", np.array(column)) for name, column in rows.items()})


def test_a_labelled_table_loads() -> None:
    problem = changing()
    dataset = labelled_table().assign_coords(station=["A", "B", "C"])
    dataset["value"].attrs["units"] = "1"
    y, params = load_observation(dataset, problem)
    torch.testing.assert_close(y, torch.tensor([[1.0, -2.0, 0, 0, 0, 0]]))
    torch.testing.assert_close(params["mask"], torch.tensor([[1.0, 1.0, 0, 0, 0, 0]]))
    torch.testing.assert_close(params["sigma"][:, :2], torch.tensor([[0.1, 0.3]]))
    torch.testing.assert_close(params["coords"][0, :2], torch.tensor([[0.25, 0.5], [1.0, 0.0]]))
    # Several tables in a file, with the same stations; another axis and other names.
    several = dataset.rename(station="buoy", lat="y", lon="station_x", std="error_std")
    several["value"] = xr.concat([several["value"], 2 * several["value"]], "observation")
    y, params = load_observation(several, problem)
    torch.testing.assert_close(y[:, :2], torch.tensor([[1.0, -2.0], [2.0, -4.0]]))
    torch.testing.assert_close(params["coords"][1], params["coords"][0])
    assert problem.reference_posterior(y, **params).mean.isfinite().all()


def test_a_location_follows_the_coordinate_of_the_grid() -> None:
    """Uneven and descending coordinates are positions between nodes."""
    made = changing(size=5)
    problem = InverseProblem(
        made._splits.prior,
        physics=made.physics,
        params=lambda num: made.sample_params(num),
        dims=("lat", "lon"),
        coords={"lat": [50.0, 40.0, 20.0, 10.0, 0.0], "lon": [0.0, 1.0, 2.0, 3.0, 4.0]},
    )
    dataset = labelled_table().isel(station=[0])
    dataset["lat"][0], dataset["lon"][0] = 30.0, 3.5
    _, params = load_observation(dataset, problem)
    torch.testing.assert_close(params["coords"][0, 0], torch.tensor([1.5 / 4, 3.5 / 4]))


def test_observations_of_changing_networks_survive_a_file() -> None:
    problem = changing()
    _, y, params = problem.simulate(4, seed=0)
    again, read = load_observation(observation_to_xarray(y, problem, params), problem)
    torch.testing.assert_close(again, y, rtol=0, atol=0)
    torch.testing.assert_close(read["coords"], params["coords"], rtol=0, atol=0)
    seen = params["mask"] > 0
    torch.testing.assert_close(read["sigma"][seen], params["sigma"][seen])


def test_a_table_that_does_not_fit_is_refused() -> None:
    problem, table = changing(), labelled_table()
    with pytest.raises(ValueError, match="the table has 8 stations; the problem takes at most 6"):
        load_observation(xr.concat([table] * 4, "station"), problem)
    with pytest.raises(ValueError, match="1 stations lie outside the grid, which has 'y' from 0"):
        load_observation(table.assign(lat=table["lat"] + 0.5), problem)
    with pytest.raises(ValueError, match="the table lacks the stations' 'x'"):
        load_observation(table.drop_vars("lon"), problem)
    with pytest.raises(ValueError, match="there is no variable 'error_std'"):
        load_observation(table.drop_vars("std"), problem)
    with pytest.raises(ValueError, match="'error_std' must be positive"):
        load_observation(table.assign(std=-table["std"]), problem)


# The map --------------------------------------------------------------------------------------


def exact_moments(problem: InverseProblem, start: object, whitening: object, y, params):
    q = start(y, params)
    root = whitening.root.double()
    covariance = root @ q.covariance_matrix.double() @ root
    return whitening.unwhiten(q.loc).flatten(1), covariance


def test_the_start_is_exact_kriging_for_any_network() -> None:
    problem = changing(size=16, num_points=24, sigma=(0.05, 0.5))
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=500)
    assert isinstance(vfm.start, VaryingOperatorStart)
    _, y, params = problem.simulate(16, seed=4)
    params["mask"][0], params["mask"][1] = 0.0, 1.0
    y = problem.observe(problem.sample_prior(16, seed=4), seed=5, **params)
    exact = problem.reference_posterior(y, **params)
    mean, covariance = exact_moments(problem, vfm.start, vfm.whitening, y, params)
    std = exact.variance.flatten(1).sqrt()
    assert float(((mean - exact.mean.flatten(1)) / std).abs().max()) < 1e-3
    torch.testing.assert_close(covariance, exact.covariance_matrix.double(), atol=2e-5, rtol=2e-4)
    # No station: the prior, to the last bit.
    assert not vfm.start(y, params).loc[0].any() and bool(
        (vfm.start(y, params).scale[0] == 1).all()
    )


@pytest.mark.parametrize("observation", ["adapter", "context", "both"])
@pytest.mark.parametrize("network", ["mlp", "u-net"])
def test_a_map_answers_tables_whatever_their_padding_and_order(
    network: str, observation: str
) -> None:
    problem = changing()
    vfm = VariationalFlowMap.for_problem(
        problem, network=network, observation=observation, width=8, num_simulations=600
    )
    for parameter in vfm.networks.parameters():  # as after training
        torch.nn.init.normal_(parameter, std=0.05)
    y, params = tables()

    def draw(y: Tensor, params: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(3)
        return vfm(y, **params).sample((4,))

    first = draw(y, params)
    assert torch.isfinite(first).all()
    torch.testing.assert_close(draw(*with_other_padding(y, params)), first, rtol=0, atol=0)
    torch.testing.assert_close(draw(*permuted(y, params)), first, rtol=1e-3, atol=1e-3)
    louder = {**params, "sigma": 3 * params["sigma"]}
    assert (draw(y, louder)[:, 1:] - first[:, 1:]).abs().max() > 1e-2


def test_a_contraction_leaves_alone_what_is_not_informed() -> None:
    problem = changing()
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=500)
    start = vfm.start(*tables())
    q = Contraction(64, vfm.start.rank)(torch.randn(5, 2 * vfm.start.rank), start)
    assert bool((q.scale[0] == 1).all()) and bool((q.scale[-1] != start.scale[-1]).all())
    dense = torch.distributions.MultivariateNormal(q.loc, q.covariance_matrix)
    z = torch.randn(3, 5, 64)
    torch.testing.assert_close(q.log_prob(z), dense.log_prob(z), rtol=1e-4, atol=1e-3)


def test_a_table_map_is_stored_and_read_back(tmp_path) -> None:
    problem = changing()
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=500, width=8)
    vfm.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", warn=False)
    y, params = tables()
    torch.manual_seed(0)
    first = vfm(y, **params).sample((2,))
    torch.manual_seed(0)
    torch.testing.assert_close(again(y, **params).sample((2,)), first, rtol=0, atol=0)


@pytest.mark.parametrize("network", ["mlp", "u-net"])
def test_tables_of_a_simulator_are_encoded_as_a_set(network: str) -> None:
    """No physics to lift with: the context is the learned encoding."""
    exact = changing(size=4)

    def simulate(x: Tensor, **params: Tensor) -> Tensor:
        return exact.observe(x, **params)

    problem = InverseProblem(
        exact._splits.prior, simulator=simulate, params=lambda n: exact.sample_params(n)
    )
    vfm = VariationalFlowMap.for_problem(
        problem, num_simulations=500, width=8, network=network, gaussian_start=False
    )
    assert isinstance(vfm.features, StationFeatures)
    vi.fit(vfm, problem, steps=3, batch_size=8, num_validation=16, validations=1, progress=False)
    y, params = tables()
    torch.manual_seed(0)
    first = vfm(y, **params).sample((4,))
    torch.manual_seed(0)
    other = vfm(*with_other_padding(y, params)[:1], **with_other_padding(y, params)[1])
    torch.testing.assert_close(other.sample((4,)), first, rtol=0, atol=0)
