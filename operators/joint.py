r"""Several instruments that see the same field, and averages over time windows.

deepinv composes operators with ``*``: ``PointObservations((T, H, W), points) * HeatEquation(...)``
reads the fields of every time at stations. Its ``stack`` returns a list of observations;
``join`` puts them into one vector instead, which a likelihood, a problem and a file can hold:

.. math:: y = \bigl(A_1(x), A_2(x), \dots\bigr), \qquad A^\top y = \sum_i A_i^\top y_i.

Parameters of a call go to every part by name. A mask silences the prediction of the parts that
know it; noise of a joint or composed operator stays on all data, here and in its density.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel, Physics
from deepinv.physics.forward import ComposedPhysics, compose
from torch import Tensor, nn

__all__ = ["JointLinearPhysics", "JointPhysics", "TimeWindows", "join"]


def join(*physics: Physics, noise_model: NoiseModel | None = None) -> JointPhysics:
    """One operator whose observation is all of theirs, ``(batch, m)`` flattened in this order.

    Args:
        physics: operators of the same field. Parameters of a call go to all of them.
        noise_model: of the joint observation; that of the parts, where all have Gaussian noise
            of one standard deviation, if not given.

    Raises:
        ValueError: no operator, or ``noise_model`` is missing and the parts do not share one.
    """
    if not physics:
        raise ValueError("'physics' must hold at least one operator")
    kind = JointPhysics
    if all(isinstance(part, LinearPhysics) for part in physics):
        kind = JointLinearPhysics
    return kind(physics, noise_model or _shared_noise(physics))


class JointPhysics(Physics):
    """Made by :func:`join`: fields ``(batch, *event)`` to ``(batch, m)``."""

    parts: Any  # a ModuleList, whose items a type checker takes for plain modules

    def __init__(self, physics: Sequence[Physics], noise_model: NoiseModel) -> None:
        super().__init__(noise_model=noise_model)
        self.parts = nn.ModuleList(physics)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """All observations, flattened."""
        return torch.cat([part.A(x, **kwargs).flatten(1) for part in self.parts], 1)

    def update_parameters(self, **kwargs: Any) -> None:
        """Hand the parameters to every part, as deepinv's own compositions do."""
        for part in self.parts:
            part.update_parameters(**kwargs)


class JointLinearPhysics(JointPhysics, LinearPhysics):
    """Made by :func:`join` of linear operators."""

    def __init__(self, physics: Sequence[LinearPhysics], noise_model: NoiseModel) -> None:
        super().__init__(physics, noise_model)
        self.img_size = _field_shape(physics)
        with torch.no_grad():
            device = next((buffer.device for buffer in self.parts.buffers()), None)
            field = torch.zeros(1, *self.img_size, device=device)
            self.shapes = [part.A(field).shape[1:] for part in physics]

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Transpose: ``(batch, m)`` to fields."""
        pieces = y.split([shape.numel() for shape in self.shapes], 1)
        terms = [
            part.A_adjoint(piece.reshape(len(y), *shape), **kwargs)
            for part, piece, shape in zip(self.parts, pieces, self.shapes, strict=True)
        ]
        return torch.stack(terms).sum(0)


class TimeWindows(LinearPhysics):
    r"""Averages over windows in time of a field with one channel a time.

    .. math:: y_w = \frac{1}{|\{t: a_w \le t \le b_w\}|} \sum_{a_w \le t \le b_w} x_t

    Args:
        img_size: ``(T, *grid)``, as operators with several ``times`` give it.
        times: of the channels in s, ``(T,)``.
        windows: first and last time of each window, both within it; a window may hold one time
            only, and windows may overlap.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    An observation is ``(batch, W, *grid)``.

    Raises:
        ValueError: the shapes do not fit, or a window holds no time.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        times: Sequence[float],
        windows: Sequence[tuple[float, float]],
        noise_model: NoiseModel | None = None,
    ) -> None:
        img_size = tuple(img_size)
        if len(img_size) < 2 or len(times) != img_size[0]:
            raise ValueError(
                f"'img_size' must be (T, *grid) with T = {len(times)} times; got {img_size}"
            )
        time = torch.tensor([float(value) for value in times], dtype=torch.float64)
        inside = torch.stack([(time >= low) & (time <= high) for low, high in windows])
        if not bool(inside.any(1).all()):
            empty = windows[int((~inside.any(1)).nonzero()[0])]
            raise ValueError(f"'windows' must each hold a time; {empty} holds none")
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        weight = inside.double()
        self.register_buffer("weight", weight / weight.sum(1, keepdim=True))

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``(batch, T, *grid)`` to ``(batch, W, *grid)``."""
        return torch.einsum("wt,bt...->bw...", self.weight.to(x), x)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Transpose: ``(batch, W, *grid)`` to ``(batch, T, *grid)``."""
        return torch.einsum("wt,bw...->bt...", self.weight.to(y), y)


def _field_shape(physics: Sequence[LinearPhysics]) -> tuple[int, ...]:
    for part in physics:
        first = part.physics_list[0] if isinstance(part, ComposedPhysics) else part
        if first.img_size is not None:
            return tuple(first.img_size)
    raise ValueError("'physics' must hold an operator with an img_size; none of them has one")


def _shared_noise(physics: Sequence[Physics]) -> NoiseModel:
    models = [part.noise_model for part in physics]
    levels = [model.sigma for model in models if type(model) is GaussianNoise]
    alike = len(levels) == len(models) and all(
        level.numel() == 1 and bool(level == levels[0]) for level in levels
    )
    if not alike:
        raise ValueError(
            "'noise_model' must be given: the operators do not share Gaussian noise of one "
            f"standard deviation; they have {[type(model).__name__ for model in models]}"
        )
    return models[0]


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of time windows, of joint and of composed operators."""
    from vfm_inverse.operators.darcy import Darcy
    from vfm_inverse.operators.heat import HeatEquation
    from vfm_inverse.operators.observation import PointObservations
    from vfm_inverse.operators.rays import StraightRays

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 6, 9, generator=generator)
    points = torch.rand(4, 2, generator=generator)
    times = (0.5, 1.0, 2.0)
    heat = HeatEquation((1, 6, 9), times)
    windows = TimeWindows((3, 6, 9), times, [(0.0, 1.0), (1.0, 2.0)])
    yield "time-windows", windows, x.repeat(1, 3, 1, 1) + heat.A(x)
    stations = PointObservations((2, 6, 9), points) * windows * heat
    yield "heat-windows-at-stations", stations, x
    rays = StraightRays((1, 6, 9), 9 * points[:2], 9 * points[2:])
    cores = PointObservations((1, 6, 9), points, GaussianNoise(0.01))
    yield "stations-and-rays", join(PointObservations((1, 6, 9), points), rays), x
    yield "cores-and-pressures", join(cores, Darcy((1, 6, 9), points)), x
    # deepinv warns when `*` composes what is not linear.
    smoothed = compose(HeatEquation((1, 6, 9), (0.5,)), Darcy((1, 6, 9), points))
    yield "darcy-of-smoothed", smoothed, x
