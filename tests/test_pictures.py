"""Held-out observations are shown with the labels of their problem, tables at their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.labelled.write import observation_to_xarray
from vfm_inverse.report.pictures import held_out, station_places


@pytest.mark.parametrize("networks", ["fixed", "changing"])
def test_stations_of_a_problem_have_places_on_its_axes(networks: str) -> None:
    problem = problems.load("gaussian-field", size=16, networks=networks)
    _, y, params = problem.simulate(3, seed=0)
    seen = observation_to_xarray(y, problem, params)["observed"]
    where: Any = station_places(problem, seen, params)
    assert where.shape == (3, *y.shape[1:], 2)
    if networks == "fixed":
        np.testing.assert_allclose(where[1, :, 0], seen["station_y"])
        np.testing.assert_allclose(where[2, :, 1], seen["station_x"])
    else:
        shown = params["mask"].bool().numpy()
        assert np.isnan(where[~shown]).all()
        np.testing.assert_allclose(where[shown], params["coords"][params["mask"].bool()])


def test_data_without_places_have_none() -> None:
    problem = problems.load("travel-time")
    _, y, params = problem.simulate(2, seed=0)
    seen = observation_to_xarray(y, problem, params)["observed"]
    assert station_places(problem, seen, params) is None


def test_a_page_shows_dots_at_stations_and_the_long_name() -> None:
    problem = problems.load("gaussian-field", size=16)
    vfm = vi.VariationalFlowMap.for_problem(problem, width=8, num_simulations=300)
    (figure,) = held_out(vfm, problem, num=2).values()
    _, y, _ = problem.simulate(2, split="test", seed=0)
    dots = figure.axes[1].collections[-1]
    np.testing.assert_allclose(dots.get_array(), y[0])
    assert problem.long_name in {axes.get_ylabel() for axes in figure.axes}
