"""Chains of deepinv's samplers in the calibration of draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepinv.optim import L2
from deepinv.optim import Prior as DeepinvPrior
from deepinv.physics import Denoising, GaussianNoise
from deepinv.sampling import BaseSampling, ULAIterator
from torch import Tensor

from vfm_inverse import calibration

SIGMA, SHAPE = 0.7, (1, 2, 2)


class Standard(DeepinvPrior):
    """The standard normal density, as deepinv states a prior: its score is -x."""

    def __init__(self) -> None:
        super().__init__()
        self.explicit_prior = False

    def grad(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def sampler(max_iter: int = 20 * 60 + 200) -> BaseSampling:
    """Langevin chains on a posterior that is known, thinned to near independence."""
    step = {"step_size": 0.02, "alpha": 1.0, "sigma": 0.0}
    return BaseSampling(
        ULAIterator(step, clip=None),
        L2(sigma=SIGMA),
        Standard(),
        max_iter=max_iter,
        burnin_ratio=200 / max_iter,
        thinning=60,
        history_size=True,
    )


def simulations(num: int) -> tuple[Tensor, Tensor, Denoising]:
    torch.manual_seed(0)
    physics = Denoising(GaussianNoise(SIGMA))
    truth = torch.randn(num, *SHAPE)
    return truth, physics(truth), physics


def test_chains_of_langevin_pass_on_the_posterior_they_sample() -> None:
    truth, y, physics = simulations(100)
    ula = sampler()
    ula.sample(y, physics, seed=1)
    chain = ula.get_chain()
    assert torch.equal(chain[0]["x"], y)  # deepinv keeps the start, which is no draw
    assert len(chain) == 21
    report = calibration.from_draws(ula, truth)
    assert report.attrs["verdict"] == "pass", report.attrs["reason"]
    assert report.attrs["num_draws"] == 20
    assert report.equals(calibration.from_draws(chain, truth))
    draws = torch.stack([state["x"] for state in chain[1:]])
    assert report.equals(calibration.from_draws(draws, truth))
    assert calibration.from_draws(chain, truth + 0.8).attrs["verdict"] == "fail"


def test_a_list_of_chains_has_a_simulation_each() -> None:
    truth, y, physics = simulations(6)
    runs = [sampler(500) for _ in y]
    for i, run in enumerate(runs):
        run.sample(y[i : i + 1], physics, seed=i)
    chains = [run.get_chain() for run in runs]
    draws = torch.cat([torch.stack([s["x"] for s in c[1:]]) for c in chains], 1)
    expected = calibration.from_draws(draws, truth)
    assert expected.equals(calibration.from_draws(runs, truth))
    assert expected.equals(calibration.from_draws(chains, truth))
    tensors = [[state["x"] for state in chain[1:]] for chain in chains]
    assert expected.equals(calibration.from_draws(tensors, truth))
    single = [[state[0] for state in chain] for chain in tensors]  # without a batch axis
    assert expected.equals(calibration.from_draws(single, truth))


def test_chains_that_do_not_belong_together_are_refused() -> None:
    truth = torch.randn(4, *SHAPE)
    state = {"x": torch.randn(1, *SHAPE)}
    with pytest.raises(ValueError, match="must have the same length and fields of the same"):
        calibration.from_draws([[state] * n for n in (5, 5, 6, 5)], truth)
    with pytest.raises(ValueError, match="got the state it started from alone"):
        calibration.from_draws([[state]] * 4, truth)
    with pytest.raises(TypeError, match="must hold a tensor under 'x'"):
        calibration.from_draws([[{"z": 1.0}] * 4] * 4, truth)
    with pytest.raises(ValueError, match=r"got \(4, 1, 2, 2\) and \(4, 3, 1, 2, 2\)"):
        calibration.from_draws([[state] * 5] * 3, truth)
