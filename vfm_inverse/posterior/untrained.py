"""The map before its training: the answer of a linear Gaussian analysis.

Networks end in layers of zeros, so a map with a Gaussian start answers with that start before its
first step: kriging at stations, the Wiener filter of an image, the exact posterior of a linear
Gaussian problem. What a training is worth is what it adds to this, and a calibration says how much
(``untrained_skill``).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor, nn

from vfm_inverse.flow.flow_map import FlowMap
from vfm_inverse.gaussian.physics_frame import StartLaw
from vfm_inverse.posterior.answer import Networks
from vfm_inverse.posterior.validity import ValidRange
from vfm_inverse.posterior.variational import VariationalFlowMap

__all__ = ["before_training", "untrained"]


class Still(nn.Module):
    """The network that is zero everywhere."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Zeros of the shape of ``x (k n, d)``."""
        return x.new_zeros(()).expand_as(x)


class AtStart(nn.Module):
    """The adapter that answers with the Gaussian start."""

    def forward(self, features: Tensor, start: StartLaw, half: bool = False) -> StartLaw:
        """The start itself."""
        return start


def untrained(vfm: VariationalFlowMap) -> VariationalFlowMap:
    """A map with the whitening and the Gaussian start of ``vfm``, and networks that add nothing.

    It shares both with ``vfm``, has no card, and warns of no observation.

    Raises:
        ValueError: ``vfm`` has no Gaussian start, so that untrained it knows nothing of the
            observation.
    """
    if vfm.start is None:
        raise ValueError("'vfm' must have a Gaussian start; it was made with gaussian_start=False")
    twin = copy(vfm)
    twin._modules = dict(vfm._modules)
    adapter: Any = None if vfm.adapter is None else AtStart()
    twin.networks = Networks(FlowMap(Still()), adapter)
    twin.whitening = copy(vfm.whitening)
    twin.whitening.support = None
    twin.range, twin.card, twin.exact = ValidRange(), None, False
    return twin


def before_training(function: Callable[..., Any]) -> VariationalFlowMap | None:
    """A posterior function as it was before its training, if it is a map with a Gaussian start."""
    if isinstance(function, VariationalFlowMap) and function.start is not None:
        return untrained(function)
    return None
