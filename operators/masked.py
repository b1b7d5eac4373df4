"""The base of operators whose data may be missing."""

from __future__ import annotations

from typing import Any

from deepinv.physics import NoiseModel, Physics
from torch import Tensor

__all__ = ["MaskedPhysics"]


class MaskedPhysics(Physics):
    """A physics of which some data may be switched off; a subclass writes ``predict``.

    ``mask``, of zeros and ones in the shape of an observation ``(batch, *data)``, switches data
    off: they read 0, without noise, as in ``PointObservations``. A mask passed in a call is not
    stored.
    """

    def __init__(self, noise_model: NoiseModel) -> None:
        super().__init__(noise_model=noise_model)
        self.register_buffer("mask", None)

    def predict(self, x: Tensor, **params: Any) -> Tensor:
        """All data, without noise: ``(batch, *field)`` to ``(batch, *data)``."""
        raise NotImplementedError

    def A(self, x: Tensor, mask: Tensor | None = None, **params: Any) -> Tensor:
        """``predict``, with zeros where the mask is zero."""
        return self._masked(self.predict(x, **params), mask)

    def noise(self, x: Tensor, mask: Tensor | None = None, **params: Any) -> Tensor:
        """Noise on the data that are switched on."""
        return self._masked(self.noise_model(x, **params), mask)

    def _masked(self, y: Tensor, mask: Tensor | None) -> Tensor:
        mask = self.mask if mask is None else mask
        return y if mask is None else y * mask.to(y)

    def _masked_rows(self, jacobian: Tensor, mask: Tensor | None) -> Tensor:
        """Derivatives of data ``(batch, *data, *field)``, zero for those that are switched off."""
        mask = self.mask if mask is None else mask
        if mask is None:
            return jacobian
        mask = mask.to(jacobian)
        mask = mask if len(mask) == len(jacobian) and mask.dim() > 1 else mask.unsqueeze(0)
        return jacobian * mask.reshape(*mask.shape, *[1] * (jacobian.dim() - mask.dim()))
