"""Random fields: exact covariances, draws that have them, expansions, facies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from vfm_inverse.problem.priors import moments
from vfm_inverse.problem.random_fields import (
    NUGGET,
    MaternField,
    expansion,
    karhunen_loeve,
    level_sets,
    matern_covariance,
)

FIELDS: dict[str, dict[str, Any]] = {
    "square": {"shape": (6, 6)},
    "line, smooth and long": {"shape": (12,), "nu": 2.5, "length_scale": 0.7},
    "rough, stretched": {
        "shape": (5, 7),
        "nu": 0.5,
        "length_scale": (0.2, 0.6),
        "std": 2.0,
        "mean": 1.0,
        "spacing": (1 / 5, 1 / 7),
    },
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("case", FIELDS)
def test_the_circulant_holds_the_covariance_exactly(case: str) -> None:
    """The inverse transform of its eigenvalues, cut to the grid, against the dense matrix."""
    field = MaternField(**FIELDS[case])
    table = torch.fft.fftn(field._root.square()).real
    index = torch.cartesian_prod(*(torch.arange(side) for side in field.grid))
    index = index.reshape(-1, len(field.grid))
    lag = (index[:, None] - index[None]) % torch.tensor(table.shape)
    torch.testing.assert_close(
        table[tuple(lag.unbind(-1))], field.covariance_matrix, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("case", FIELDS)
def test_draws_have_mean_and_covariance(case: str) -> None:
    field = MaternField(**FIELDS[case])
    x = field.sample((40_001,)).flatten(1).double()
    assert x.shape == (40_001, math.prod(field.grid))
    spread = float(field.std)
    assert float((x.mean(0) - field.mean.flatten()).abs().max()) < 0.03 * spread
    assert float((torch.cov(x.mT) - field.covariance_matrix).abs().max()) < 0.04 * spread**2
    # The two halves of a complex draw are independent.
    assert float((x[:20_000] * x[20_001:]).mean(0).abs().max()) < 0.03 * spread**2 + field._mean**2


def test_density_and_moments_are_those_of_the_dense_normal() -> None:
    field = MaternField((4, 5), 0.5, 0.3, std=1.5, mean=-1.0)
    x = field.sample((2, 3))
    law = MultivariateNormal(torch.full((20,), -1.0).double(), field.covariance_matrix)
    expected = law.log_prob(x.double().flatten(2))
    torch.testing.assert_close(field.log_prob(x), expected.float(), rtol=1e-5, atol=1e-4)
    mean, covariance = moments(field) or pytest.fail("a Matérn field has moments")
    torch.testing.assert_close(mean, law.mean)
    torch.testing.assert_close(covariance, law.covariance_matrix)


def test_the_default_grid_is_that_of_matern_covariance() -> None:
    dense = matern_covariance((4, 6), 1.5, (0.3, 0.5))
    field = MaternField((4, 6), 1.5, (0.3, 0.5))
    torch.testing.assert_close(field.covariance_matrix + NUGGET * torch.eye(24), dense)


def test_a_seed_gives_the_same_field() -> None:
    field = MaternField((5, 5))
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(field.sample((3,)))
    assert torch.equal(*draws)


def test_modes_are_the_best_low_rank_square_root() -> None:
    covariance = matern_covariance(5, 1.5, 0.4)
    modes = karhunen_loeve(covariance, 25)
    torch.testing.assert_close(modes @ modes.mT, covariance)
    few = karhunen_loeve(covariance, 4)
    torch.testing.assert_close(few, modes[:, :4])
    values = torch.linalg.eigvalsh(covariance).flip(0)
    gap = torch.linalg.matrix_norm(covariance - few @ few.mT, 2)
    torch.testing.assert_close(gap, values[4])
    x = expansion(few, (1, 5, 5), mean=2.0)(20_000).flatten(1).double()
    torch.testing.assert_close(torch.cov(x.mT), few @ few.mT, rtol=0, atol=0.04)
    assert int(torch.linalg.matrix_rank(x[:100] - 2, atol=1e-3)) == 4


def test_level_sets_have_the_volumes_of_the_normal_law() -> None:
    field = MaternField((8, 8), length_scale=0.1).sample((4000,))
    channels = level_sets(field, (-0.3, 0.3), (-2.0, 2.0, -2.0))
    assert channels.shape == field.shape and set(channels.unique().tolist()) == {-2.0, 2.0}
    share = math.erf(0.3 / math.sqrt(2))
    assert float((channels > 0).float().mean()) == pytest.approx(share, abs=0.01)
    assert torch.equal(channels > 0, (field >= -0.3) & (field < 0.3))
    three = level_sets(torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0]), (0.0, 1.0), (5, 6, 7))
    assert three.tolist() == [5, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaternField((1, 4)), r"'shape' must be \(L,\) or \(H, W\) with axes >= 2"),
        (lambda: MaternField((4, 4), std=0), "'std' must be positive; got 0"),
        (lambda: MaternField((4, 4), nu=0), "'nu' and 'length_scale' must be positive; got 0"),
        (lambda: MaternField((4, 4), spacing=(1, 2, 3)), "one for each of 2 axes"),
        (lambda: MaternField((16,), nu=8.5, length_scale=60.0), "too smooth for a draw"),
        (lambda: matern_covariance((1, 4), 1.5, 0.2), r"'shape' must have axes >= 2"),
        (lambda: karhunen_loeve(torch.eye(3), 4), r"'num_modes' must lie in \[1, 3\]; got 4"),
        (lambda: level_sets(torch.ones(2), (0.0,), (1.0,)), "'values' be one more"),
        (lambda: level_sets(torch.ones(2), (1.0, 0.0), (1.0, 2, 3)), "'thresholds' must ascend"),
    ],
)
def test_wrong_settings_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
