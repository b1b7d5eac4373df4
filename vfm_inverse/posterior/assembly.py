"""From a problem to the parts of a variational flow map: which networks, coordinates and Gaussian
start.

Kept apart from :class:`~vfm_inverse.posterior.variational.VariationalFlowMap` so that the class
takes its parts ready made and this module alone decides what suits a problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from torch.distributions import Distribution
from tqdm import tqdm

from vfm_inverse.flow.adapter import FAMILIES, NoiseAdapter
from vfm_inverse.flow.flow_map import FlowMap
from vfm_inverse.gaussian.amplitudes import num_bands
from vfm_inverse.gaussian.amplitudes_start import AmplitudesStart
from vfm_inverse.gaussian.choose_start import OPEN, build_start, check_start, fit_start, start_kind
from vfm_inverse.gaussian.laplace_start import FrameStart
from vfm_inverse.gaussian.operator_start import GaussianStart, is_conjugate
from vfm_inverse.gaussian.whitening import WHITENINGS, Whitening
from vfm_inverse.networks.encoders import (
    FieldEncoder,
    FieldFeatures,
    VectorEncoder,
    VectorFeatures,
)
from vfm_inverse.networks.layers import MLP, UNet
from vfm_inverse.networks.stations import (
    EncodedContext,
    StationEncoder,
    StationFeatures,
    is_table,
)
from vfm_inverse.posterior.answer import OBSERVATION_MODES
from vfm_inverse.posterior.coordinates import fit_coordinates
from vfm_inverse.posterior.geometry import grid_shape, inner_shape, suits_convolutions
from vfm_inverse.posterior.sweeps import sweeps_for
from vfm_inverse.posterior.validity import ValidRange
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.exact import MOST_DIMENSIONS

__all__ = ["Choice", "Parts", "build", "rebuild"]

FULL_LIMIT = 64
"""Largest dimension for which a full covariance is the default without a Gaussian start."""


NUMBERS, LEAST = 2**26, 256
"""Most numbers in the simulations that whitening, start and features are fitted on, and fewest
simulations all the same: bounds memory."""

FEATURE_NUMBERS, FEW = 2**21, 64
"""Numbers in the fields whose features are standardised, and fields where a start takes long."""


TYPES = {"float32": torch.float32, "float64": torch.float64}
"""Types of a problem and its maps, by their names in a checkpoint."""


class Parts(NamedTuple):
    """What a :class:`~vfm_inverse.posterior.variational.VariationalFlowMap` is made of; its
    arguments by name."""

    flow_map: FlowMap
    adapter: NoiseAdapter | None
    likelihood: Callable[..., Distribution] | None
    log_prior: Callable[[Tensor], Tensor] | None
    whitening: Whitening
    features: VectorFeatures | FieldFeatures | StationFeatures
    observation_shape: torch.Size
    param_shapes: Mapping[str, torch.Size]
    param_types: Mapping[str, torch.dtype]
    start: GaussianStart | None
    observation: str
    steps: int
    precision: str
    exact: bool
    config: Mapping[str, Any]
    valid_range: ValidRange


@dataclass(frozen=True)
class Choice:
    """What :meth:`VariationalFlowMap.for_problem` was asked for; names and ranges as there."""

    adapter: str | None
    observation: str
    gaussian_start: bool
    whitening: str | Whitening
    steps: int
    precision: str
    network: str
    width: int | None
    depth: int | None
    max_rank: int
    start: str
    exact: str | bool

    def settled(self, problem: InverseProblem) -> Choice:
        """With the adapter and the whitening that suit a problem where they were left open.

        Raises:
            ValueError: an unknown name, or a combination that cannot work.
        """
        adapter, whitening = self.adapter, self.whitening
        self._check_start(problem)
        if self.observation not in OBSERVATION_MODES:
            raise ValueError(
                f"'observation' must be one of {OBSERVATION_MODES}; got {self.observation!r}"
            )
        if adapter is None and self.observation != "context":
            small = problem.field_shape.numel() <= FULL_LIMIT
            adapter = "contraction" if self.gaussian_start else "full" if small else "diagonal"
        if self.observation == "context" and adapter is not None:
            raise ValueError(
                f"'adapter' must be left out with observation='context'; got {adapter!r}"
            )
        if adapter is not None and adapter not in FAMILIES:
            raise ValueError(f"'adapter' must be one of {sorted(FAMILIES)}; got {adapter!r}")
        if adapter == "contraction" and not self.gaussian_start:
            raise ValueError(
                "'adapter' must not be 'contraction' without a Gaussian start to contract from"
            )
        if self.network not in ("auto", "mlp", "u-net"):
            raise ValueError(f"'network' must be 'auto', 'mlp' or 'u-net'; got {self.network!r}")
        if self.network == "u-net" and inner_shape(problem) != tuple(problem.field_shape):
            raise ValueError(
                "'network' must be 'mlp' for a prior whose values without bounds have another "
                f"shape, {inner_shape(problem)}, than its fields, {tuple(problem.field_shape)}; "
                "got 'u-net'"
            )
        if not self.gaussian_start and whitening == "auto":
            whitening = "identity"
        exact = self._exact(problem)
        return replace(self, adapter=adapter, whitening=whitening, exact=exact)

    def _exact(self, problem: InverseProblem) -> str | bool:
        if self.exact is not False and self.exact != "auto":
            raise ValueError(f"'exact' must be 'auto' or False; got {self.exact!r}")
        few = math.prod(inner_shape(problem)) <= MOST_DIMENSIONS
        known = problem.likelihood is not None and problem.log_prior is not None
        return "auto" if self.exact and few and known and not is_conjugate(problem) else False

    def _check_start(self, problem: InverseProblem) -> None:
        check_start(problem, self.start)
        if self.start != "auto" and not self.gaussian_start:
            raise ValueError(
                f"'start' must be 'auto' without a Gaussian start; got {self.start!r}"
            )
        if self.start in ("frame", "amplitudes") and not self.framed:
            raise ValueError(
                f"'start' must not be {self.start!r} unless observation='both' and the adapter is "
                f"'contraction'; got observation={self.observation!r}, adapter={self.adapter!r}"
            )

    @property
    def framed(self) -> bool:
        """Whether the map can work in a frame with the physics in it, or in those of a mixture."""
        return self.observation == "both" and self.adapter in (None, "contraction")

    def config(
        self, network: str, whitening: Whitening, start: GaussianStart | None
    ) -> dict[str, Any]:
        """What a checkpoint keeps of it, with the parts that were chosen."""
        kinds = {kind: name for name, kind in WHITENINGS.items()}
        return {
            "adapter": self.adapter,
            "observation": self.observation,
            "gaussian_start": self.gaussian_start,
            "whitening": kinds.get(type(whitening)),
            "steps": self.steps,
            "precision": self.precision,
            "network": network,
            "width": self.width,
            "depth": self.depth,
            "rank": 0 if start is None else start.rank,
            "start": start_kind(start) if self.start in OPEN else self.start,
            **({"exact": self.exact} if self.exact else {}),
        }


def build(
    problem: InverseProblem, choice: Choice, num_simulations: int, seed: int, progress: bool
) -> Parts:
    """The parts of an untrained map, fitted on simulations."""
    choice = choice.settled(problem)
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
        network, whitening = choice.network, choice.whitening
        moments: dict[str, Any] = {}
        if network == "auto":
            network = "u-net" if suits_convolutions(problem, free) else "mlp"
        if isinstance(whitening, str):
            whitening, moments = fit_coordinates(problem, free, whitening, seed)
        del free, held
        whitening = whitening.to(x)
        whitening.transform, whitening.support = problem.transform, problem.support
        done("Gaussian start")
        start = None
        if choice.gaussian_start:
            kind, framed = choice.start, choice.framed
            start = fit_start(problem, whitening, (x, y, params), choice.max_rank, kind, framed)
            start = start.to(whitening.mean)
        del x
        done("features")
        config = choice.config(network, whitening, start) | sweeps_for(problem)
        config |= {"prior_moments": moments} if moments else {}
        parts = assemble(problem, whitening, start, params, config)
        parts.valid_range.fit(y, params)
        searched = isinstance(start, FrameStart | AmplitudesStart)
        if searched or isinstance(parts.features, FieldFeatures):
            num = FEW if searched else 512
            few = slice(0, max(8, min(num, FEATURE_NUMBERS // problem.field_shape.numel())))
            head = rows_of(params, few)
            parts.features.fit(y[few], head, None if start is None else start(y[few], head))
        else:
            parts.features.fit(y, params)
        done("built")
    return parts


def rebuild(
    problem: InverseProblem, config: Mapping[str, Any], whitening: Whitening | None = None
) -> Parts:
    """The same parts as :func:`build` made, unfitted: a checkpoint fills in the numbers.

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
    start: GaussianStart | None,
    params: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> Parts:
    """Put networks around a whitening and a start."""
    features, encoder = describe(problem, config["network"], start)
    layers = layers_for(problem, whitening.dim, features, encoder, config)
    adapter = None
    if config["observation"] != "context":
        family = FAMILIES[config["adapter"]](whitening.dim, config["rank"])
        adapter = NoiseAdapter(encoder, family)
    flow_map = FlowMap(layers, preconditioned=config["gaussian_start"])
    for part in (flow_map, adapter, whitening, features, start):
        if part is not None:
            part.to(problem.device, problem.dtype)
    return Parts(
        flow_map,
        adapter,
        problem.likelihood,
        problem.log_prior,
        whitening,
        features,
        problem.observation_shape,
        problem.param_shapes,
        problem.param_types,
        start,
        config["observation"],
        config["steps"],
        config.get("precision", "single"),
        config.get("exact", False) == "auto",
        config={
            **config,
            "dtype": str(problem.dtype).removeprefix("torch."),
            "problem": {"name": problem.name, "kwargs": problem.kwargs}
            | ({} if problem.recipe is None else {"recipe": problem.recipe.table}),
        },
        valid_range=ValidRange().to(problem.device, problem.dtype),
    )


def layers_for(
    problem: InverseProblem,
    dim: int,
    features: VectorFeatures | FieldFeatures | StationFeatures,
    encoder: VectorEncoder | FieldEncoder | StationEncoder,
    config: Mapping[str, Any],
) -> nn.Module:
    """The network of the flow map."""
    grid, conditional = grid_shape(problem), config["observation"] != "adapter"
    size = encoder.width if isinstance(features, StationFeatures) else features.size
    size = size if conditional else 0
    if config.get("start") == "amplitudes":
        if isinstance(features, StationFeatures):
            raise ValueError("'start' must not be 'amplitudes' for vectors seen by tables")
        size += num_bands(dim)
    width = {} if config["width"] is None else {"width": config["width"]}
    layers: nn.Module
    if config["network"] == "mlp":
        depth = {} if config["depth"] is None else {"depth": config["depth"]}
        layers = MLP(dim, size, **width, **depth)
    else:
        layers = UNet(grid, size, levels=config["depth"], **width)
    if isinstance(features, StationFeatures) and conditional:
        spatial = grid[1:] if config["network"] == "u-net" else ()
        layers = EncodedContext(StationEncoder(features.rows), layers, spatial)
    return layers


def affordable(problem: InverseProblem, num_simulations: int) -> int:
    """Simulations to fit on: those asked for, in :data:`NUMBERS` numbers, :data:`LEAST` at
    least."""
    beside = [problem.observation_shape, *problem.param_shapes.values()]
    field, others = math.prod(problem.field_shape), sum(math.prod(shape) for shape in beside)
    # Where fields are most of it, what is made of them counts.
    return min(num_simulations, max(LEAST, NUMBERS // (field + max(field, others))))


def describe(
    problem: InverseProblem, network: str, start: GaussianStart | None
) -> tuple[
    VectorFeatures | FieldFeatures | StationFeatures,
    VectorEncoder | FieldEncoder | StationEncoder,
]:
    """Features of an observation that suit the network, and the encoder of an adapter."""
    shape, observed = tuple(problem.field_shape), tuple(problem.observation_shape)
    grid = grid_shape(problem)
    framed, flat = isinstance(start, FrameStart), network == "mlp"
    # What a frame says of a table is all that there is to say.
    table = is_table(observed, problem.param_shapes) and not framed
    # A table is lifted where there is a grid and a way to it, and encoded as a set elsewhere.
    if table and not (len(shape) > 1 and isinstance(problem.physics, LinearPhysics)):
        stations = StationFeatures(observed, problem.param_shapes)
        return stations, StationEncoder(stations.rows)
    if flat and not table:
        numbers = sum(math.prod(s) for s in [observed, *problem.param_shapes.values()])
        features = VectorFeatures(numbers, math.prod(inner_shape(problem)) if framed else 0)
        return features, VectorEncoder(features.size)
    lifted = FieldFeatures(
        shape, observed, problem.param_shapes, problem.physics, start is not None, flat, framed
    )
    return lifted, VectorEncoder(lifted.size) if flat else FieldEncoder(lifted.size, grid[1:])
