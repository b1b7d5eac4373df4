"""Draws with weights and diagnostics: what every correction returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ensemble", "effective_size", "figures", "systematic"]


@dataclass(frozen=True)
class Ensemble:
    """Posterior draws of n observations.

    Attributes:
        samples: ``(num, n, *event)``, or ``(num, *event)`` for one observation without a batch.
        weights: ``(num, n)`` or ``(num,)``, summing to one over draws.
        diagnostics: figures by name, one for each observation, ``(n,)`` or scalars.
        notes: what was done and why, one sentence for each observation.
        chains: number of Markov chains that the draws come from, which take turns along the first
            axis; 1 where they come from none.
        interrupted: whether the work was interrupted, so that some draws are not corrected.
    """

    samples: Tensor
    weights: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chains: int = 1
    interrupted: bool = False

    @classmethod
    def of(
        cls,
        samples: Tensor,
        batched: bool,
        log_weights: Tensor | None = None,
        diagnostics: Mapping[str, Tensor] | None = None,
        notes: tuple[str, ...] = (),
        chains: int = 1,
    ) -> Ensemble:
        """From draws ``(num, n, *event)`` and log-weights ``(num, n)`` up to constants."""
        if log_weights is None:
            log_weights = samples.new_zeros(samples.shape[:2])
        weights = log_weights.softmax(0)
        figures = {"ess": effective_size(weights), **(diagnostics or {})}
        if not batched:
            samples, weights = samples.squeeze(1), weights.squeeze(1)
            figures = {name: value.squeeze(0) for name, value in figures.items()}
        return cls(samples, weights, figures, notes, chains)

    @property
    def mean(self) -> Tensor:
        """Posterior mean, ``(n, *event)`` or ``(*event,)``."""
        return (self._spread(self.weights) * self.samples).sum(0)

    @property
    def variance(self) -> Tensor:
        """Posterior variance, element by element, ``(n, *event)`` or ``(*event,)``."""
        return (self._spread(self.weights) * (self.samples - self.mean).square()).sum(0)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Equally weighted draws ``(*sample_shape, n, *event)``, taken with probability
        ``weights`` by systematic resampling; up to ``num`` of equal weight, none comes twice."""
        shape = torch.Size(sample_shape)
        weights = self.weights if self.weights.dim() > 1 else self.weights.unsqueeze(1)
        samples = self.samples if self.weights.dim() > 1 else self.samples.unsqueeze(1)
        index = systematic(weights, shape.numel())
        # Systematic picks come in the order of the draws; neighbours of a chain are alike.
        index = index[torch.randperm(len(index), device=index.device)]
        where = torch.arange(weights.shape[1], device=index.device)
        picked = samples[index, where]
        if self.weights.dim() == 1:
            picked = picked.squeeze(1)
        return picked.unflatten(0, shape) if shape else picked[0]

    def variables(self, draw: str, batch: str) -> dict[str, Any]:
        """Weights, diagnostics and notes as arguments of ``xarray.Dataset.assign``."""
        where = (draw, batch)[: self.weights.dim()]
        told = {
            "weight": (where, self.weights.cpu().numpy(), {"long_name": "weight of the draw"}),
            **figures(self.diagnostics, batch),
        }
        if self.notes:
            notes = np.array(self.notes if where[1:] else self.notes[0])
            told["note"] = (where[1:], notes, {"long_name": "what the correction did"})
        return told

    def _spread(self, weights: Tensor) -> Tensor:
        return weights.reshape(*weights.shape, *[1] * (self.samples.dim() - weights.dim()))


def figures(diagnostics: Mapping[str, Tensor], batch: str) -> dict[str, Any]:
    """Diagnostics as arguments of ``xarray.Dataset.assign``, along ``batch`` or scalars."""
    return {
        name: ((batch,)[: value.dim()], value.cpu().numpy(), {"long_name": f"correction: {name}"})
        for name, value in diagnostics.items()
    }


def effective_size(weights: Tensor) -> Tensor:
    """Effective sample size ``1 / sum w^2`` of normalised weights ``(num, n)``, ``(n,)``."""
    return weights.square().sum(0).reciprocal()


def systematic(weights: Tensor, num: int) -> Tensor:
    """Indices ``(num, n)`` drawn with probability ``weights (k, n)``, each within one of its
    expected number of times (Douc and Cappé 2005, section 2.4)."""
    edges = weights.double().cumsum(0)
    edges = (edges / edges[-1]).T.contiguous()
    shift = torch.rand(weights.shape[1], 1, dtype=edges.dtype, device=edges.device)
    grid = torch.arange(num, dtype=edges.dtype, device=edges.device)
    index = torch.searchsorted(edges, (grid + shift) / num)
    return index.clamp_max(weights.shape[0] - 1).T
