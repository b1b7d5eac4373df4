r"""A second, small map of the prior, in whose noise the draws of any map can be corrected.

Where the prior is known by samples alone, no density says how likely a field is. A map
:math:`f` of the prior, :math:`x = f(z)`, :math:`z \sim \mathcal N(0, I)`, takes its place: the
posterior in its noise, :math:`\mathcal N(z; 0, I)\, p(y \mid f(z))`, needs neither a density nor a
Jacobian (Variational Flow Maps, https://arxiv.org/abs/2603.07276). It is exact for the prior that
the map has learned, so the map is checked: its draws against held-out fields.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vfm_inverse.calibration import calibrate
from vfm_inverse.gaussian.normals import standard_normal
from vfm_inverse.posterior.push_forward import PushForward
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.calls import checked
from vfm_inverse.statistics.quantities import channel_units, default_quantities
from vfm_inverse.training.loop import fit

__all__ = ["check_prior", "fit_prior", "needs_prior_map"]

CHANNELS = 16
"""Width of the network for fields: chains take its gradient thousands of times."""


@checked("prior_map", problem="InverseProblem", checkpoint_dir="path")
def fit_prior(
    problem: InverseProblem,
    *,
    steps: int = 2000,
    batch_size: int = 128,
    num_simulations: int = 500,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> VariationalFlowMap:
    """Train a map of a problem's prior, for ``correction.auto(..., prior_map=...)``.

    It is trained on draws of the prior alone, so that no physics is computed, and keeps the
    weights whose draws have the best energy score against held-out fields. The observation enters
    through its adapter, which stays the Gaussian start: a proposal, which no correction trusts.

    Args:
        problem: whose prior it is; it needs a likelihood.
        steps, batch_size: length of the training and fields a step.
        num_simulations: held-out fields of the check, two at least.
        seed: of everything.
        device: ``"auto"`` takes a GPU where there is one.
        checkpoint_dir: folder for the state of the training, which goes on from there.
        progress: show a progress bar.

    Returns:
        The map, with ``config["prior"]``: ``verdict``, ``reason`` and ``num_simulations`` of
        :func:`check_prior`.

    Raises:
        ValueError: the problem has no likelihood, or an argument makes no sense.
    """
    if problem.likelihood is None:
        raise ValueError(
            "'problem' must have a likelihood for its draws to be corrected; this one has a "
            "simulator only"
        )
    prior = prior_alone(problem)
    options: dict[str, Any] = {"observation": "adapter", "seed": seed}
    if len(problem.field_shape) > 1:
        options["width"] = CHANNELS
    learned = VariationalFlowMap.for_problem(prior, **options)
    fit(
        learned,
        prior,
        steps=steps,
        batch_size=batch_size,
        objective={"forward": 0.0},
        seed=seed,
        device=device,
        checkpoint_dir=checkpoint_dir,
        resume=checkpoint_dir is not None,
        progress=progress,
    )
    problem.to(learned.whitening.mean.device)
    options |= {"network": learned.config["network"], "whitening": learned.whitening}
    options["exact"] = False
    vfm = VariationalFlowMap.for_problem(problem, **options)
    vfm.flow_map.load_state_dict(learned.flow_map.state_dict())
    report = check_prior(vfm, problem, num_simulations, seed=seed)
    vfm.config["prior"] = {
        "verdict": report.attrs["verdict"],
        "reason": report.attrs["reason"].replace("posterior standard", "prior standard"),
        "num_simulations": num_simulations,
    }
    return vfm


@checked("prior_map", prior_map="VariationalFlowMap", problem="InverseProblem")
def check_prior(
    prior_map: VariationalFlowMap,
    problem: InverseProblem,
    num_simulations: int = 500,
    num_draws: int = 200,
    *,
    seed: int = 0,
) -> xr.Dataset:
    """Hold the draws of a map of the prior against held-out fields.

    Ranks of the fields' quantities among draws that know of no observation are uniform where the
    map has learned the prior: the check is the calibration of a posterior from no data.

    Args:
        prior_map: of :func:`fit_prior`, or any map with ``observation="adapter"``.
        problem: whose prior it is.
        num_simulations: held-out fields.
        num_draws: draws that each is ranked among.
        seed: of fields and draws.

    Returns:
        The report of :func:`vfm_inverse.calibration.calibrate`, with ``attrs["verdict"]``.
    """
    few = problem.sample_prior(num_simulations, split="test", seed=seed)
    # No quantity of the observation: it belongs to one field and not to the draws.
    quantities = default_quantities(few.shape[1:], units=channel_units(few))
    return calibrate(
        unconditional(prior_map),
        prior_alone(problem),
        num_simulations,
        num_draws,
        seed=seed,
        quantities=quantities,
        joint=False,
    )


def needs_prior_map(vfm: VariationalFlowMap) -> bool:
    """Whether draws of a map can be corrected with a map of the prior only."""
    conditional = vfm.observation != "adapter"
    return conditional and vfm.likelihood is not None and vfm.log_prior is None


def unconditional(prior_map: VariationalFlowMap) -> Callable[..., PushForward]:
    """The posterior function of nothing seen: draws of the prior that the map has learned."""

    def decode(z: Tensor) -> Tensor:
        return prior_map.whitening.unwhiten(prior_map.flow_map.at().generate(z, prior_map.steps))

    def law(y: Tensor, **params: Tensor) -> PushForward:
        noise = standard_normal(len(y), prior_map.whitening.mean)
        return PushForward(noise, decode, prior_map.event_shape)

    return law


def prior_alone(problem: InverseProblem) -> InverseProblem:
    """A problem with this prior, observed by a number that says nothing of the field."""
    dims = len(problem.field_shape)

    def nothing(x: Tensor) -> Distribution:
        zero = x.new_zeros(*x.shape[: x.dim() - dims], 1)
        return Independent(Normal(zero, torch.ones_like(zero)), 1)

    return InverseProblem(
        problem.sample_prior,
        test_prior=lambda num: problem.sample_prior(num, split="test"),
        likelihood=nothing,
        transform=problem.transform,
        dtype=problem.dtype,
    ).to(problem.device)
