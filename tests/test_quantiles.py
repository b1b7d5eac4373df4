"""Normal coordinates of laws with heavy tails: against SciPy's quantiles, far out, and back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from deepinv.physics import GaussianNoise
from pyro.distributions import (
    Cauchy,
    Gumbel,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution

from vfm_inverse.operators import MatrixObservations
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.quantiles import Quantile, quantile_of
from vfm_inverse.problems.increments import CumulativeSum

ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
LAWS: dict[str, tuple[Distribution, Any]] = {
    "laplace": (Laplace(ZERO, ONE), stats.laplace()),
    "cauchy": (Cauchy(ZERO, ONE), stats.cauchy()),
    "student": (StudentT(3 * ONE), stats.t(3)),
    "student-light": (StudentT(30 * ONE), stats.t(30)),
}


def far(num: int = 2001) -> Tensor:
    return torch.linspace(-11.5, 11.5, num, dtype=torch.float64)


def quantile_error(link: Quantile, reference: Any) -> float:
    """Largest relative error of the link at :func:`far`, in the tail where it is accurate."""
    v = far()
    at = v.numpy()
    exact = torch.from_numpy(np.sign(at) * -reference.ppf(stats.norm.cdf(-np.abs(at))))
    return float(((link(v) - exact).abs() / (exact.abs() + 1e-3)).max())


@pytest.mark.parametrize("name", LAWS)
def test_links_are_quantiles_far_out_in_both_tails(name: str) -> None:
    law, reference = LAWS[name]
    assert quantile_error(Quantile(law), reference) < 1e-6


def test_a_link_of_another_law_is_found_out() -> None:
    assert quantile_error(Quantile(StudentT(3.01 * ONE)), stats.t(3)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAWS)
def test_links_go_back_and_have_finite_gradients(name: str, dtype: torch.dtype) -> None:
    link = Quantile(LAWS[name][0], loc=0.5, scale=2.0)
    v = torch.cat([far(), torch.tensor([-40.0, -12.0, 12.0, 40.0]).double()]).to(dtype)
    v.requires_grad_()
    x = link(v)
    inside = x.abs() < 0.01 * torch.finfo(dtype).max
    # Near 0 single precision has x to 1e-7 of its location.
    torch.testing.assert_close(
        link.inv(x)[inside], v[inside], atol=1e-9 if dtype.itemsize == 8 else 1e-6, rtol=1e-6
    )
    assert bool((x.diff()[:2000] > 0).all())
    (gradient,) = torch.autograd.grad(x.sum(), v)
    assert bool(gradient.isfinite().all())
    if dtype == torch.float64:
        rate = link.log_abs_det_jacobian(v, x)[:2001]
        torch.testing.assert_close(rate, gradient[:2001].log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_linked_normals_has_the_density_of_the_prior(name: str) -> None:
    law = LAWS[name][0]
    loc, scale = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([1.0, 0.5, 30.0]).double()
    shifted = {
        "laplace": lambda: Laplace(loc, scale),
        "cauchy": lambda: Cauchy(loc, scale),
    }.get(name, lambda: StudentT(law.df, loc, scale))()  # type: ignore[attr-defined]
    direct = TransformedDistribution(shifted.to_event(1), [CumulativeSum()])
    link = quantile_of(direct)
    assert link is not None
    linked = TransformedDistribution(Normal(ZERO, ONE).expand([3]).to_event(1), [link])
    x = direct.sample(torch.Size([200]))
    torch.testing.assert_close(linked.log_prob(x), direct.log_prob(x), atol=1e-7, rtol=1e-7)
    wrong = quantile_of(TransformedDistribution(Laplace(loc, 1.1 * scale).to_event(1), []))
    assert wrong is not None
    planted = TransformedDistribution(
        Normal(ZERO, ONE).expand([3]).to_event(1), [wrong, CumulativeSum()]
    )
    assert float((planted.log_prob(x) - direct.log_prob(x)).abs().mean()) > 0.05


def test_a_link_of_a_law_that_is_not_symmetric() -> None:
    link, v = Quantile(Gumbel(ZERO, ONE)), far()[700:1301]
    exact = stats.gumbel_r.ppf(stats.norm.cdf(v.numpy()))
    torch.testing.assert_close(link(v), torch.from_numpy(exact), atol=1e-6, rtol=1e-6)


def test_links_refuse_what_is_no_law_on_the_line() -> None:
    with pytest.raises(ValueError, match=r"'law' must be of one number; got batch shape \(3,\)"):
        Quantile(Laplace(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="integrates to"):
        Quantile(Cauchy(torch.tensor(1e75, dtype=torch.float64), ONE))


def test_only_heavy_tails_of_independent_elements_have_links() -> None:
    assert quantile_of(Cauchy(torch.zeros(3), torch.ones(3)).to_event(1)) is not None
    for other in (
        Normal(torch.zeros(3), 1.0).to_event(1),
        LogNormal(torch.zeros(3), torch.ones(3)),
        StudentT(torch.tensor([3.0, 4.0])),
        lambda num: torch.randn(num, 3),
    ):
        assert quantile_of(other) is None


def test_a_problem_works_in_normal_coordinates_where_asked() -> None:
    prior = Laplace(torch.zeros(3), torch.ones(3)).to_event(1)
    problem = InverseProblem(
        prior=prior,
        physics=MatrixObservations(torch.eye(3), GaussianNoise(0.1)),
        transform=quantile_of(prior),
    )
    assert copy.deepcopy(problem.transform) == problem.transform
    vfm = VariationalFlowMap.for_problem(problem, num_simulations=500)
    x, _, _ = problem.simulate(2000, seed=1)
    xi = vfm.whitening.whiten(x)
    assert abs(float(xi.pow(4).mean()) - 3) < 0.8  # of a Laplace variable it is 6
    torch.testing.assert_close(vfm.whitening.unwhiten(xi), x, atol=1e-4, rtol=1e-4)
