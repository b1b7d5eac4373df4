"""A prior as a problem holds it: samplers of both splits, and what is known of its law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.problem.priors import (
    LabelledPrior,
    LogPrior,
    Prior,
    is_gaussian,
    moments,
    samplers,
)
from vfm_inverse.runtime.randomness import seeded

__all__ = ["PriorSplits", "Split"]

Split = Literal["train", "test"]
LABELLED = (xr.Dataset, xr.DataArray)


class PriorSplits:
    """The splits ``train`` and ``test`` of a prior, of one shape and type.

    Args:
        prior, test_prior, dtype: as :class:`~vfm_inverse.problem.inverse_problem.InverseProblem`
            takes them.

    Attributes:
        example: two fields ``(2, *event)``, the same for the same prior.
        labelled: the labels of the prior, if it has them.

    Raises:
        TypeError: a prior is of no known kind.
        ValueError: it is empty or not finite, or the two have fields of different shapes.
    """

    def __init__(self, prior: Prior, test_prior: Prior | None, dtype: torch.dtype | None) -> None:
        self.prior = prior
        self.labelled = LabelledPrior.read(prior) if isinstance(prior, LABELLED) else None
        source = prior if self.labelled is None else self.labelled
        self._samplers = samplers(source, test_prior, dtype)
        with seeded(0):
            self.example, x_test = (self._samplers[split](2) for split in ("train", "test"))
        self.to(dtype=self.example.dtype)
        # A distribution stays on the device where its parameters are.
        self._home = self.example.device
        if x_test.shape != self.example.shape:
            raise ValueError(
                f"'test_prior' has fields of shape {tuple(x_test.shape[1:])}; "
                f"'prior' has {tuple(self.example.shape[1:])}"
            )

    def draw(self, num: int, split: str) -> Tensor:
        """Fields ``(num, *event)``."""
        return self._samplers[split](num)

    def size(self, split: str) -> int | None:
        """Samples that a split draws from; None where it never gives one twice."""
        return self._samplers[split].size

    def held(self, most: int) -> Tensor | None:
        """The samples ``(n, *event)`` that training draws from, if at most ``most``."""
        return self._samplers["train"].held(most)

    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and covariance of the flattened field, if the prior states them."""
        return moments(self.prior)

    @property
    def gaussian(self) -> bool:
        """Whether the prior is stated as a Gaussian."""
        return is_gaussian(self.prior)

    def log_prob(self) -> Callable[[Tensor], Tensor] | None:
        """``log p(x)`` of fields, if the prior is a distribution."""
        return LogPrior.of(self.prior, self._home)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Hold samples on a device and draw in a type."""
        for sampler in self._samplers.values():
            sampler.to(device, dtype)
