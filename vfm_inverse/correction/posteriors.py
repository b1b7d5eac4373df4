"""Corrected draws where a posterior function is asked for: of a calibration, say."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from vfm_inverse.correction.ladder import RUNGS, auto
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.sampling.ensemble import Ensemble

__all__ = ["Corrected", "corrected"]


class Corrected:
    """``(y, **params) -> Ensemble``, made by :func:`corrected`.

    Attributes:
        counts: observations that were answered, by the last rung of each, and under
            ``"satisfied"`` those whose last rung's diagnostic is good.
    """

    def __init__(
        self, vfm: VariationalFlowMap, num_samples: int, prior_map: VariationalFlowMap | None
    ) -> None:
        self.vfm, self.num_samples, self.prior_map = vfm, num_samples, prior_map
        self.counts: Counter[str] = Counter()

    def __call__(self, y: Tensor, **params: Any) -> Ensemble:
        """Corrected draws of the posterior of ``y``; random numbers come from the global
        generator, and an interruption is one."""
        ensemble = auto(self.vfm, y, self.num_samples, prior_map=self.prior_map, **params)
        if ensemble.interrupted:
            raise KeyboardInterrupt
        figures = ensemble.diagnostics
        self.counts.update(RUNGS[int(rung)] for rung in figures["rung"].reshape(-1))
        self.counts["satisfied"] += int(figures["satisfied"].sum())
        return ensemble

    def method(self) -> str:
        """How the observations so far were answered, in words."""
        total = sum(self.counts[name] for name in RUNGS)
        rungs = ", ".join(f"{name} {self.counts[name]}" for name in RUNGS if self.counts[name])
        return f"{rungs} of {total}; diagnostics satisfied in {self.counts['satisfied']}"


@checked("correction", vfm="VariationalFlowMap", prior_map="VariationalFlowMap")
def corrected(
    vfm: VariationalFlowMap,
    num_samples: int = 1024,
    *,
    prior_map: VariationalFlowMap | None = None,
) -> Corrected:
    """The posterior function of corrected draws.

    ``calibration.calibrate(correction.corrected(vfm), problem, 200, 128)`` checks them.

    Args:
        vfm, num_samples, prior_map: as in :func:`vfm_inverse.correction.auto`; with up to
            ``num_samples`` draws from each posterior no chain's draw comes twice.

    Returns:
        ``(y, **params) -> Ensemble``, whose ``counts`` say how observations were answered.
    """
    return Corrected(vfm, num_samples, prior_map)
