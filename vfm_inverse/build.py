"""From a problem to a variational flow map: which networks, coordinates and Gaussian start.

Kept apart from :class:`~vfm_inverse.posterior.VariationalFlowMap` so that the class takes its
parts ready made and this module alone decides what suits a problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from tqdm import tqdm

from vfm_inverse.adapter import FAMILIES, Contraction, Family, NoiseAdapter, Spline
from vfm_inverse.calls import checked
from vfm_inverse.encoders import FieldEncoder, FieldFeatures, VectorEncoder, VectorFeatures
from vfm_inverse.flow_map import FlowMap
from vfm_inverse.gaussian_start import build_start, fit_start, start_kind
from vfm_inverse.networks import MLP, UNet
from vfm_inverse.posterior import OBSERVATION_MODES, VariationalFlowMap
from vfm_inverse.problem import InverseProblem
from vfm_inverse.randomness import seeded
from vfm_inverse.scaling import center_and_spread, over
from vfm_inverse.stations import EncodedContext, StationEncoder, StationFeatures, is_table
from vfm_inverse.whitening import DENSE_LIMIT, WHITENINGS, Whitening, fit_whitening

__all__ = ["build", "rebuild"]

SMALL_FIELD = 64
"""Largest field that is better served by an MLP than by convolutions."""

SHORTEST_SIGNAL = 32
"""Shortest vector that may be better served by convolutions than by an MLP."""

FULL_LIMIT = 64
"""Largest dimension for which a full covariance is the default without a Gaussian start."""


NUMBERS, LEAST = 2**26, 256
"""Most numbers in the simulations that whitening, start and features are fitted on, and fewest
simulations all the same: bounds memory."""

FEATURE_NUMBERS = 2**21
"""Numbers in the fields whose features are standardised."""


TYPES = {"float32": torch.float32, "float64": torch.float64}
"""Types of a problem and its maps, by their names in a checkpoint."""


@checked(
    "model",
    problem="InverseProblem",
    adapter="str",
    observation="str",
    whitening=("str", "Whitening"),
    precision="str",
    network="str",
)
def build(
    problem: InverseProblem,
    *,
    adapter: str | None = None,
    observation: str = "both",
    gaussian_start: bool = True,
    whitening: str | Whitening = "auto",
    steps: int = 1,
    precision: str = "single",
    network: str = "auto",
    width: int | None = None,
    depth: int | None = None,
    max_rank: int = 128,
    num_simulations: int = 20_000,
    seed: int = 0,
    progress: bool = True,
) -> VariationalFlowMap:
    """Build an untrained map for a problem; with a Gaussian start it already is the classical
    posterior.

    Args:
        problem: what to invert.
        adapter: family of ``q(z | y)``: ``"contraction"`` (the default with a Gaussian start),
            ``"full"`` (the default without one, up to 64 dimensions), ``"diagonal"`` (above),
            ``"low-rank"``, ``"mixture"`` or ``"spline"``.
        observation: where the observation enters: ``"adapter"``, ``"context"`` or ``"both"``.
        gaussian_start: start from the Gaussian answer: whitened coordinates, preconditioned map,
            informed adapter.
        whitening: ``"auto"``, ``"dense"``, ``"spectral"``, ``"low-rank"``, ``"identity"`` or a
            fitted :class:`~vfm_inverse.whitening.Whitening`.
        steps: steps of the flow map for one draw.
        precision: ``"single"``, or ``"half"`` for networks that compute in bfloat16.
        network: ``"mlp"`` or ``"u-net"``; ``"auto"`` takes a U-Net for fields of more than 64
            numbers, and for vectors of 32 or more that are a signal: neighbours correlate in the
            prior as others do not, and the observation can be brought to their places.
        width: hidden width (MLP, default 128) or channels (U-Net, default 32).
        depth: residual blocks (MLP, default 3) or halvings (U-Net, by the field's size).
        max_rank: most informed directions kept with many data of a varying operator, and in a
            regression.
        num_simulations: simulations that whitening, start and features are fitted on; fewer of
            large fields, to stay within a quarter of a gigabyte. A prior given by fewer samples is
            whitened by all of these.
        seed: fixes simulations and initial weights.
        progress: show a progress bar where it takes longer than some seconds.

    Raises:
        ValueError: an unknown name, a number out of range, or a combination that cannot work.
    """
    if observation not in OBSERVATION_MODES:
        raise ValueError(f"'observation' must be one of {OBSERVATION_MODES}; got {observation!r}")
    if adapter is None and observation != "context":
        small = problem.field_shape.numel() <= FULL_LIMIT
        adapter = "contraction" if gaussian_start else "full" if small else "diagonal"
    if observation == "context" and adapter is not None:
        raise ValueError(f"'adapter' must be left out with observation='context'; got {adapter!r}")
    if adapter is not None and adapter not in (*FAMILIES, "contraction"):
        raise ValueError(
            f"'adapter' must be 'contraction' or one of {sorted(FAMILIES)}; got {adapter!r}"
        )
    if adapter == "contraction" and not gaussian_start:
        raise ValueError(
            "'adapter' must not be 'contraction' without a Gaussian start to contract from"
        )
    if network not in ("auto", "mlp", "u-net"):
        raise ValueError(f"'network' must be 'auto', 'mlp' or 'u-net'; got {network!r}")
    if network == "u-net" and inner_shape(problem) != tuple(problem.field_shape):
        raise ValueError(
            "'network' must be 'mlp' for a prior whose values without bounds have another shape, "
            f"{inner_shape(problem)}, than its fields, {tuple(problem.field_shape)}; got 'u-net'"
        )
    if not gaussian_start:
        whitening = "identity" if whitening == "auto" else whitening

    bar = tqdm(total=4, unit="stage", delay=2, disable=not progress)

    def done(following: str) -> None:
        bar.set_description(f"for_problem: {following}", refresh=False)
        bar.update()

    with bar, seeded(seed), torch.no_grad():
        num = affordable(problem, num_simulations)
        x, y, params = problem.simulate(num)
        done("whitening")
        # Where samples are few for their size, one that was drawn ten times still is one.
        held = problem.held_fields(min(num, 4 * problem.field_shape.numel()))
        free = x if held is None else held.to(x)
        free = free if problem.transform is None else problem.transform.inv(free)
        if network == "auto":
            network = "u-net" if suits_convolutions(problem, free) else "mlp"
        if isinstance(whitening, str):
            small = whitening == "dense" or math.prod(inner_shape(problem)) <= DENSE_LIMIT
            whitening = fit_whitening(free, whitening, problem.prior_moments() if small else None)
        del free, held
        whitening = whitening.to(x)
        whitening.transform, whitening.support = problem.transform, problem.support
        done("Gaussian start")
        start = None
        if gaussian_start:
            start = fit_start(problem, whitening, (x, y, params), max_rank).to(whitening.mean)
        del x
        done("features")
        kinds = {kind: name for name, kind in WHITENINGS.items()}
        config = {
            "adapter": adapter,
            "observation": observation,
            "gaussian_start": gaussian_start,
            "whitening": kinds.get(type(whitening)),
            "steps": steps,
            "precision": precision,
            "network": network,
            "width": width,
            "depth": depth,
            "rank": 0 if start is None else start.rank,
            "start": start_kind(start),
        }
        vfm = assemble(problem, whitening, start, params, config)
        few = slice(0, max(8, min(512, FEATURE_NUMBERS // problem.field_shape.numel())))
        head = {name: value[few] for name, value in params.items()}
        vfm.range.fit(y, params)
        if isinstance(vfm.features, FieldFeatures):
            first = None if start is None else start(y[few], head)
            vfm.features.fit(y[few], head, first)
        else:
            vfm.features.fit(y, params)
        done("built")
    return vfm


def rebuild(
    problem: InverseProblem, config: Mapping[str, Any], whitening: Whitening | None = None
) -> VariationalFlowMap:
    """The same modules as :func:`build` made, unfitted: a checkpoint fills in the numbers.

    The problem computes in the type of the map from then on.
    """
    problem.to(dtype=TYPES.get(config.get("dtype", "float32")))
    if whitening is None:
        if config["whitening"] not in WHITENINGS:
            raise ValueError(
                "this map has a whitening of your own; pass one of its kind as 'whitening'"
            )
        whitening = WHITENINGS[config["whitening"]](inner_shape(problem))
    whitening.transform, whitening.support = problem.transform, problem.support
    with seeded(0):
        _, _, params = problem.simulate(2)
        kind = config.get("start")
        start = build_start(problem, whitening, params, kind) if config["gaussian_start"] else None
        return assemble(problem, whitening, start, params, config)


def assemble(
    problem: InverseProblem,
    whitening: Whitening,
    start: Any,
    params: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> VariationalFlowMap:
    """Put networks around a whitening and a start."""
    observation, dim, grid = config["observation"], whitening.dim, grid_shape(problem)
    conditional = observation != "adapter"
    features, encoder = describe(problem, config["network"], start is not None)
    size = encoder.width if isinstance(features, StationFeatures) else features.size
    size = size if conditional else 0
    width = {} if config["width"] is None else {"width": config["width"]}
    layers: torch.nn.Module
    if config["network"] == "mlp":
        depth = {} if config["depth"] is None else {"depth": config["depth"]}
        layers = MLP(dim, size, **width, **depth)
    else:
        layers = UNet(grid, size, levels=config["depth"], **width)
    if isinstance(features, StationFeatures) and conditional:
        spatial = grid[1:] if config["network"] == "u-net" else ()
        layers = EncodedContext(StationEncoder(features.rows), layers, spatial)
    adapter = None
    if observation != "context":
        family: Family | Contraction
        if config["adapter"] == "contraction":
            family = Contraction(config["rank"])
        elif config["adapter"] == "spline":
            family = Spline(dim, config["rank"])
        else:
            family = FAMILIES[config["adapter"]](dim)
        adapter = NoiseAdapter(encoder, family)
    return VariationalFlowMap(
        FlowMap(layers, preconditioned=config["gaussian_start"]),
        adapter,
        problem.likelihood,
        log_prior=problem.log_prior,
        whitening=whitening,
        features=features,
        observation_shape=problem.observation_shape,
        param_shapes=problem.param_shapes,
        param_types=problem.param_types,
        start=start,
        observation=observation,
        steps=config["steps"],
        precision=config.get("precision", "single"),
        config={
            **config,
            "dtype": str(problem.dtype).removeprefix("torch."),
            "problem": {"name": problem.name, "kwargs": problem.kwargs}
            | ({} if problem.recipe is None else {"recipe": problem.recipe.table}),
        },
    ).to(problem.device, problem.dtype)


def affordable(problem: InverseProblem, num_simulations: int) -> int:
    """Simulations to fit on: those asked for, in :data:`NUMBERS` numbers, :data:`LEAST` at
    least."""
    beside = [problem.observation_shape, *problem.param_shapes.values()]
    field, others = math.prod(problem.field_shape), sum(math.prod(shape) for shape in beside)
    # Where fields are most of it, what is made of them counts.
    return min(num_simulations, max(LEAST, NUMBERS // (field + max(field, others))))


def inner_shape(problem: InverseProblem) -> tuple[int, ...]:
    """Shape of a field's values without bounds, where the map works."""
    shape = problem.field_shape
    return tuple(shape if problem.transform is None else problem.transform.inverse_shape(shape))


def grid_shape(problem: InverseProblem) -> tuple[int, ...]:
    """Shape of a field as convolutions see it: a vector is one channel."""
    shape = tuple(problem.field_shape)
    return shape if len(shape) > 1 else (1, *shape)


def suits_convolutions(problem: InverseProblem, free: Tensor) -> bool:
    """Whether places mean something in a field, given samples ``(n, *event)`` of the values
    without bounds: a field of some size, or a vector that is an ordered signal."""
    shape = tuple(problem.field_shape)
    if inner_shape(problem) != shape:
        return False
    if len(shape) > 1:
        return math.prod(shape) > SMALL_FIELD
    observed = tuple(problem.observation_shape)
    lifted = observed == shape or isinstance(problem.physics, LinearPhysics)
    if shape[0] < SHORTEST_SIGNAL or not lifted or is_table(observed, problem.param_shapes):
        return False
    return is_ordered(free)


def is_ordered(x: Tensor) -> bool:
    """Whether neighbours in vectors ``(n, d)`` correlate as other pairs do not: of what mean
    ``|correlation|`` leaves to 1, half at most."""
    columns = x[:1000, :2048]
    center, spread = center_and_spread(columns)
    standard = over(columns - center, spread)
    correlation = (standard.mT @ standard / len(standard)).abs().clamp_max(1)
    off = correlation.sum() - correlation.diagonal().sum()
    others = off / (correlation.numel() - len(correlation))
    return bool(1 - correlation.diagonal(1).mean() < 0.5 * (1 - others))


def describe(
    problem: InverseProblem, network: str, with_start: bool
) -> tuple[
    VectorFeatures | FieldFeatures | StationFeatures,
    VectorEncoder | FieldEncoder | StationEncoder,
]:
    """Features of an observation that suit the network, and the encoder of an adapter."""
    shape, observed = tuple(problem.field_shape), tuple(problem.observation_shape)
    grid = grid_shape(problem)
    table, flat = is_table(observed, problem.param_shapes), network == "mlp"
    # A table is lifted where there is a grid and a way to it, and encoded as a set elsewhere.
    if table and not (len(shape) > 1 and isinstance(problem.physics, LinearPhysics)):
        stations = StationFeatures(observed, problem.param_shapes)
        return stations, StationEncoder(stations.rows)
    if flat and not table:
        numbers = sum(math.prod(s) for s in [observed, *problem.param_shapes.values()])
        return VectorFeatures(numbers), VectorEncoder(numbers)
    lifted = FieldFeatures(
        shape, observed, problem.param_shapes, problem.physics, with_start, flat
    )
    return lifted, VectorEncoder(lifted.size) if flat else FieldEncoder(lifted.size, grid[1:])
