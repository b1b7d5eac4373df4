"""Problems that users bring: every kind of prior, operator, noise and grid trains, draws, is
checked and comes out labelled."""

from __future__ import annotations

from collections.abc import Callable

import deepinv as dinv
import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import vfm_inverse as vi
from vfm_inverse import calibration
from vfm_inverse.networks.encoders import FieldFeatures
from vfm_inverse.problem.inverse_problem import InverseProblem


def waves(num: int, length: int = 16) -> Tensor:
    """Smooth 1-D fields, two channels."""
    phase = 6.28 * torch.rand(num, 2, 1)
    return (
        1 + torch.sin(torch.linspace(0, 6.28, length) + phase) + 0.05 * torch.randn(num, 2, length)
    )


class Squared(dinv.physics.Physics):
    """A non-linear operator without an adjoint."""

    def A(self, x: Tensor, gain: Tensor | None = None, **kwargs: object) -> Tensor:
        y = x.square()
        return y if gain is None else y * gain.reshape(-1, *[1] * (x.dim() - 1))


def squares() -> InverseProblem:
    physics = Squared(noise_model=dinv.physics.GaussianNoise(0.1))
    return InverseProblem(waves, physics=physics, params=lambda n: {"gain": 1 + torch.rand(n)})


def photons() -> InverseProblem:
    physics = dinv.physics.Denoising(noise_model=dinv.physics.PoissonNoise(gain=0.2))
    return InverseProblem(torch.rand(400, 1, 12, 12).cumsum(-1) / 6, physics=physics)


def holes() -> InverseProblem:
    physics = dinv.physics.Inpainting(
        img_size=(1, 16, 16), mask=0.5, noise_model=dinv.physics.GaussianNoise(0.1)
    )
    rows, columns = np.arange(16.0), np.arange(16.0) * 2
    field = xr.DataArray(
        np.random.default_rng(0).normal(size=(300, 16, 16)).cumsum(1).astype("float32"),
        dims=("sample", "lat", "lon"),
        coords={"lat": rows, "lon": columns},
        attrs={"units": "K", "long_name": "temperature"},
    )
    return InverseProblem(
        field,
        physics=physics,
        params=lambda n: {"mask": (torch.rand(n, 1, 16, 16) < 0.5).float()},
    )


def heavy() -> InverseProblem:
    def likelihood(x: Tensor, sigma: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(4.0, x[..., :2] ** 3, sigma[..., None]).to_event(1)

    return InverseProblem(
        torch.randn(500, 5), likelihood=likelihood, params=lambda n: {"sigma": 0.1 + torch.rand(n)}
    )


def blind() -> InverseProblem:
    return InverseProblem(
        lambda n: torch.randn(n, 3).exp(),
        simulator=lambda x: x[:, :2] * torch.randn(len(x), 2).exp(),
    )


PROBLEMS: dict[str, Callable[[], InverseProblem]] = {
    "1-d field, non-linear operator": squares,
    "2-d field, Poisson noise": photons,
    "labelled 2-d field, random masks": holes,
    "likelihood only": heavy,
    "simulator only": blind,
}


@pytest.mark.parametrize("mode", ["adapter", "context", "both"])
@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_from_problem_to_labelled_draws(name: str, mode: str) -> None:
    torch.manual_seed(0)
    problem = PROBLEMS[name]()
    vfm = vi.VariationalFlowMap.for_problem(
        problem, observation=mode, width=16, num_simulations=600
    )
    vi.fit(
        vfm,
        problem,
        steps=4,
        batch_size=8,
        log_every=2,
        num_validation=16,
        progress=False,
        device="cpu",
    )
    x, y, params = problem.simulate(3, split="test", seed=1)
    draws = vfm(y, **params).sample((11,))
    assert draws.shape == (11, *x.shape)
    assert torch.isfinite(draws).all()
    report = calibration.calibrate(vfm, problem, 8, 9)
    assert report.attrs["verdict"] in ("pass", "fail")
    labelled = vi.to_xarray(draws, problem, y)
    assert labelled.sizes["draw"] == 11
    if name.startswith("labelled"):
        variable = next(v for v in labelled.data_vars.values() if "draw" in v.dims)
        assert variable.attrs["units"] == "K"
        np.testing.assert_array_equal(labelled["lon"], np.arange(16.0) * 2)


def test_field_features_show_the_mask_the_noise_level_and_the_start() -> None:
    problem = holes()
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=600)
    _, y, params = problem.simulate(5, seed=0)
    features = vfm.condition(y, params).features
    # Start's mean and standard deviation, the observation itself, the mask.
    assert features.shape == (5, 4, 16, 16)
    mask = features[:, 3]
    assert torch.equal(mask > 0, params["mask"][:, 0] > 0)
    level = FieldFeatures((1, 4, 4), (1, 4, 4), {"sigma": torch.Size([])}, None, with_start=False)
    level.fit(torch.randn(50, 1, 4, 4), {"sigma": torch.rand(50)}, None)
    shown = level(torch.zeros(2, 1, 4, 4), {"sigma": torch.tensor([0.2, 0.9])}, None)[:, 1]
    assert (shown == shown[:, :1, :1]).all()
    assert shown[1, 0, 0] > shown[0, 0, 0]


def test_features_without_anything_to_show_are_refused() -> None:
    with pytest.raises(ValueError, match="'physics' must have an adjoint"):
        FieldFeatures((1, 4, 4), (7,), {}, None, with_start=False)
