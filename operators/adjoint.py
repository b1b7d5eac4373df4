r"""The adjoint that automatic differentiation derives from the forward operator.

.. math:: A^\top y = \nabla_x \langle A x, y\rangle,

at any ``x``, since ``A`` is linear. It costs one evaluation of ``A`` and one backward pass. It
serves an operator that has no adjoint of its own, an inexact one, or one in single precision
only; some of deepinv are of these kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from torch import Tensor

__all__ = ["AutogradAdjoint"]


class AutogradAdjoint(LinearPhysics):
    """A linear operator with its exact adjoint, in the type of the observation and on its device.

    Args:
        physics: a deepinv physics with linear ``A`` from real fields to one tensor; of it ``A``,
            the noise model and the sensor are used. A physics that masks its noise masks only
            ``A`` here.
        img_size: shape of one field; that of ``physics`` by default.

    Parameters of a call go to ``physics``. Whether ``A`` is linear is for
    :func:`~vfm_inverse.operators.verification.verify.verify` to say.

    Raises:
        ValueError: ``img_size`` is missing and ``physics`` has none.
    """

    def __init__(self, physics: Physics, img_size: Sequence[int] | None = None) -> None:
        size = getattr(physics, "img_size", None) if img_size is None else img_size
        if size is None:
            raise ValueError(
                f"'img_size' must be given: {type(physics).__name__} does not say the shape of "
                "its fields"
            )
        super().__init__(
            img_size=tuple(size),
            noise_model=physics.noise_model,
            sensor_model=physics.sensor_model,
        )
        self.physics = physics

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``A`` of the operator, ``(batch, *img_size)`` to ``(batch, *data)``."""
        return self.physics.A(x, **kwargs)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Transpose of ``A``: ``(batch, *data)`` to ``(batch, *img_size)``."""
        x = torch.zeros(len(y), *self.img_size, dtype=y.real.dtype, device=y.device)
        pull = torch.func.vjp(lambda field: self.physics.A(field, **kwargs), x)[1]
        return pull(y)[0]

    def update_parameters(self, **kwargs: Any) -> None:
        """Hand the parameters to the operator."""
        self.physics.update_parameters(**kwargs)


def examples() -> Iterator[tuple[str, LinearPhysics, Tensor]]:
    """``(name, physics, x)`` of an operator without an adjoint."""
    smooth = Physics(
        A=lambda x, **kwargs: x.cumsum(-1) - x.roll(2, -2), noise_model=GaussianNoise(0.1)
    )
    x = torch.randn(2, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    yield "autograd-adjoint", AutogradAdjoint(smooth, (1, 6, 9)), x
