r"""Operators written elsewhere: SciPy (hence PyLops), NumPy functions, SimPEG simulations.

Each becomes a deepinv physics that computes in double precision on the CPU, whatever the type and
the device of the tensors, with exact derivatives in reverse and forward mode and under
``torch.func.vmap`` (:mod:`~vfm_inverse.operators.external`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel, Physics
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from vfm_inverse.operators.external import Array, External

__all__ = ["NumpyPhysics", "ScipyPhysics", "Simulation", "simpeg_physics"]


class NumpyPhysics(Physics):
    """A function of NumPy arrays with its vector-Jacobian product, as physics.

    Args:
        function: ``x -> y``, arrays of shapes ``img_size`` and ``obs_size``.
        vjp: ``(x, w) -> J(x)^T w``, ``w`` of the shape of ``y``.
        img_size, obs_size: shapes of one field and of one observation.
        jvp: ``(x, v) -> J(x) v``. Without it the forward mode calls ``vjp`` once for each datum,
            which is exact and costs that much.
        batched: the functions take and return a leading batch dimension; otherwise they are called
            once a field.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    Raises:
        ValueError: in a call, an array comes back in another shape.
    """

    def __init__(
        self,
        function: Callable[[Array], Array],
        vjp: Callable[[Array, Array], Array],
        *,
        img_size: Sequence[int],
        obs_size: Sequence[int],
        jvp: Callable[[Array, Array], Array] | None = None,
        batched: bool = False,
        noise_model: NoiseModel | None = None,
    ) -> None:
        super().__init__(noise_model=noise_model or GaussianNoise(0.1))
        self.img_size, self.obs_size = tuple(img_size), tuple(obs_size)
        value = _checked("function", function, self.obs_size, batched)
        pull = _checked("vjp", vjp, self.img_size, batched)
        push = (
            _rows_of(pull, self.obs_size)
            if jvp is None
            else _checked("jvp", jvp, self.obs_size, batched)
        )
        self._external = External(value, push, pull, self.img_size, self.obs_size, linear=False)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``(batch, *img_size)`` to ``(batch, *obs_size)``."""
        return self._external.evaluate(_fitting(x, self.img_size, "x"))

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """``J(x)^T v``, without the value."""
        return self._external.pull_back(x, v)


class ScipyPhysics(LinearPhysics):
    """A ``scipy.sparse.linalg.LinearOperator`` as physics; any PyLops operator is one.

    Args:
        operator: the operator, a sparse matrix or an array, real, ``(m, d)``.
        img_size: shape of one field, of ``d`` numbers; ``(d,)`` by default.
        obs_size: shape of one observation, of ``m`` numbers; ``(m,)`` by default.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.

    Raises:
        ValueError: a shape does not fit, or the operator is complex.
    """

    def __init__(
        self,
        operator: LinearOperator | Any,
        img_size: Sequence[int] | None = None,
        obs_size: Sequence[int] | None = None,
        noise_model: NoiseModel | None = None,
    ) -> None:
        linear = aslinearoperator(operator)
        rows, columns = linear.shape
        if linear.dtype is not None and np.issubdtype(linear.dtype, np.complexfloating):
            raise ValueError(f"'operator' must be real; got {linear.dtype}")
        img_size = (columns,) if img_size is None else tuple(img_size)
        obs_size = (rows,) if obs_size is None else tuple(obs_size)
        for name, shape, size in (("img_size", img_size, columns), ("obs_size", obs_size, rows)):
            if int(np.prod(shape)) != size:
                raise ValueError(
                    f"'{name}' must hold {size} numbers for an operator of shape "
                    f"{tuple(linear.shape)}; got {shape}"
                )
        super().__init__(img_size=img_size, noise_model=noise_model or GaussianNoise(0.1))
        self.obs_size = obs_size

        def forward(x: Array) -> Array:
            return linear.matmat(x.reshape(len(x), columns).T).T.reshape(len(x), *obs_size)

        def backward(w: Array) -> Array:
            return linear.rmatmat(w.reshape(len(w), rows).T).T.reshape(len(w), *img_size)

        self._external = External(
            forward,
            lambda x, v: forward(v),
            lambda x, w: backward(w),
            img_size,
            obs_size,
            linear=True,
        )

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """``(batch, *img_size)`` to ``(batch, *obs_size)``."""
        return self._external.evaluate(_fitting(x, self.img_size, "x"))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Transpose, by the operator's own ``rmatmat``."""
        y = _fitting(y, self.obs_size, "y")
        point = torch.zeros_like(y).reshape(len(y), -1)[:, :1]
        point = point.repeat(1, int(np.prod(self.img_size))).reshape(len(y), *self.img_size)
        return self._external.pull_back(point, y)


class Simulation(Protocol):
    """What is called of a SimPEG simulation; anything with these methods will do."""

    def dpred(self, m: Array) -> Array:
        """Predicted data of the model ``m``."""

    def Jvec(self, m: Array, v: Array) -> Array:
        """Sensitivity of the data in the direction ``v``."""

    def Jtvec(self, m: Array, v: Array) -> Array:
        """Transposed sensitivity."""


def simpeg_physics(
    simulation: Simulation,
    img_size: Sequence[int],
    obs_size: Sequence[int],
    noise_model: NoiseModel | None = None,
) -> NumpyPhysics:
    """A SimPEG simulation as physics: ``dpred`` with its ``Jvec`` and ``Jtvec``.

    Args:
        simulation: a SimPEG simulation with a survey, or anything with the three methods.
        img_size: shape of one model; the simulation sees it flattened in C order. SimPEG numbers
            the cells of a mesh with the first axis fastest, so give the axes reversed.
        obs_size: shape of one observation.
        noise_model: deepinv noise model; Gaussian with sigma 0.1 by default.
    """
    img_size, obs_size = tuple(img_size), tuple(obs_size)
    return NumpyPhysics(
        lambda x: np.reshape(simulation.dpred(x.ravel()), obs_size),
        lambda x, w: np.reshape(simulation.Jtvec(x.ravel(), w.ravel()), img_size),
        jvp=lambda x, v: np.reshape(simulation.Jvec(x.ravel(), v.ravel()), obs_size),
        img_size=img_size,
        obs_size=obs_size,
        noise_model=noise_model,
    )


# -------------------------------------------------------------------------------------------------
# From NumPy functions to functions of batches
# -------------------------------------------------------------------------------------------------


def _checked(
    name: str, function: Callable[..., Array], shape: tuple[int, ...], batched: bool
) -> Callable[..., Array]:
    """The function of a batch, its results held against the shape that they must have."""

    def call(*arrays: Array) -> Array:
        num = len(arrays[0])
        rows = (
            function(*arrays) if batched else [function(*one) for one in zip(*arrays, strict=True)]
        )
        result = np.asarray(rows, dtype=np.float64)
        if result.shape != (num, *shape):
            got = result.shape if batched else result.shape[1:]
            raise ValueError(
                f"'{name}' must return shape {(num, *shape) if batched else shape}; got {got}"
            )
        return result

    return call


def _rows_of(
    pull: Callable[[Array, Array], Array], obs_size: tuple[int, ...]
) -> Callable[[Array, Array], Array]:
    """``J v`` from the rows of ``J``, each a pull-back of a unit vector."""
    size = int(np.prod(obs_size))

    def push(x: Array, v: Array) -> Array:
        units = np.eye(size).reshape(size, 1, *obs_size)
        rows = [pull(x, np.broadcast_to(unit, (len(x), *obs_size)).copy()) for unit in units]
        products = [(row * v).reshape(len(x), -1).sum(1) for row in rows]
        return np.stack(products, 1).reshape(len(x), *obs_size)

    return push


def _fitting(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"'{name}' must have shape (batch, {', '.join(map(str, shape))}); got {tuple(x.shape)}"
        )
    return x


def examples() -> Iterator[tuple[str, Physics, Tensor]]:
    """``(name, physics, x)`` of a sparse matrix and of a non-linear function."""
    from scipy.sparse import diags

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 6, generator=generator)
    differences = diags([-1.0, 1.0], [0, 1], shape=(5, 6)).tocsr()
    yield "scipy-operator", ScipyPhysics(differences, (1, 6)), x
    yield (
        "numpy-function",
        NumpyPhysics(
            lambda x: np.exp(x[0, 1:] - x[0, :-1]),
            lambda x, w: _pull_differences(np.exp(x[0, 1:] - x[0, :-1]) * w),
            img_size=(1, 6),
            obs_size=(5,),
        ),
        x,
    )


def _pull_differences(w: Array) -> Array:
    return -np.diff(w, prepend=0.0, append=0.0)[None]
