"""The networks at one batch of observations."""

from __future__ import annotations

from typing import NamedTuple

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from vfm_inverse.flow.adapter import NoiseAdapter
from vfm_inverse.flow.flow_map import ConditionedMap, FlowMap
from vfm_inverse.flow.transport import Base
from vfm_inverse.gaussian.frames import standardize, unstandardize
from vfm_inverse.gaussian.physics_frame import StartLaw

__all__ = ["OBSERVATION_MODES", "PRECISIONS", "Answer", "Condition", "Networks", "check_modes"]


OBSERVATION_MODES = ("adapter", "context", "both")
PRECISIONS = ("single", "half")
"""Where the observation enters, and what the networks compute in."""


class Condition(NamedTuple):
    """What the networks are given of one batch of observations; neither part is trained."""

    features: Tensor
    start: StartLaw | None


class Answer(NamedTuple):
    """Networks at one batch of observations: where the noise comes from and what becomes of it.

    Attributes:
        map: the flow map.
        q: the adapter's law over whitened coordinates; N(0, I) without an adapter.
        base: where the map begins: law of the noise, batch shape ``(n,)``, and its time.
        frame: law in whose standard coordinates the map works; ``None`` for whitened ones.
    """

    map: ConditionedMap
    q: TorchDistribution
    base: Base
    frame: TorchDistribution | None = None

    @property
    def noise(self) -> TorchDistribution:
        """Law of what the map starts from."""
        return self.base.law

    def to_frame(self, xi: Tensor) -> Tensor:
        """Whitened coordinates ``(*sample, n, d)`` to those of the map."""
        return xi if self.frame is None else standardize(self.frame, xi)

    def with_map(self, flow_map: FlowMap) -> Answer:
        """The same with another flow map."""
        return self._replace(map=self.map._replace(flow_map=flow_map))

    def generate(self, z: Tensor, steps: int) -> Tensor:
        """Noise ``(*sample, n, d)`` to whitened data."""
        data = self.map.generate(z, steps, self.base.time)
        return data if self.frame is None else unstandardize(self.frame, data)


class Networks(nn.Module):
    """What is trained: the flow map and, unless ``observation="context"``, the adapter."""

    def __init__(self, flow_map: FlowMap, adapter: NoiseAdapter | None) -> None:
        super().__init__()
        self.flow_map = flow_map
        self.adapter = adapter


def check_modes(precision: str, observation: str, adapter: NoiseAdapter | None) -> None:
    """Refuse modes of a map that are none, or that do not go together.

    Raises:
        ValueError: an unknown name, or an adapter where the observation enters by context alone.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"'precision' must be one of {PRECISIONS}; got {precision!r}")
    if observation not in OBSERVATION_MODES:
        raise ValueError(f"'observation' must be one of {OBSERVATION_MODES}; got {observation!r}")
    if (adapter is None) != (observation == "context"):
        raise ValueError(
            "'adapter' must be None exactly when observation='context'; got "
            f"observation={observation!r} "
            f"and adapter {type(adapter).__name__}"
        )
