r"""Functions of NumPy arrays as torch functions with exact derivatives.

A function is known by its value :math:`f(x)`, its push-forward :math:`J(x)\,v` and its pull-back
:math:`J(x)^\top w`, of batches of arrays. They are torch operators (``torch.library.custom_op``),
tied together by ``torch.autograd.Function``:

* the reverse mode of the value is the pull-back, its forward mode the push-forward;
* pull-back and push-forward are linear in ``w`` and ``v``, so each is the derivative of the other;
* ``torch.func.vmap`` folds its dimension into the batch.

Second derivatives of a non-linear function are refused; those of a linear one are exact. The
arrays are in double precision on the CPU, whatever the type and the device of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Array", "External"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class External:
    """Value, push-forward and pull-back of batches ``(batch, *shape)`` of arrays.

    ``linear`` says that push-forward and pull-back do not depend on ``x``.
    """

    value: Callable[[Array], Array]
    push: Callable[[Array, Array], Array]
    pull: Callable[[Array, Array], Array]
    img_size: tuple[int, ...]
    obs_size: tuple[int, ...]
    linear: bool

    def evaluate(self, x: Tensor) -> Tensor:
        """Value ``(batch, *obs_size)`` at ``x`` ``(batch, *img_size)``."""
        return _Value.apply(x, self)

    def pull_back(self, x: Tensor, w: Tensor) -> Tensor:
        """``J(x)^T w``, ``(batch, *img_size)``."""
        return _Pull.apply(x, w, self)


# Torch operators take tensors and numbers: the functions are found by number while they live.
_EXTERNAL: WeakValueDictionary[int, External] = WeakValueDictionary()


def _array(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).numpy()


def _tensor(array: Array, like: Tensor, shape: Sequence[int]) -> Tensor:
    # A copy: the result of a torch operator must not share memory with its input.
    values = np.array(array, dtype=np.float64).reshape(len(like), *shape)
    return torch.from_numpy(values).to(like)


@torch.library.custom_op("vfm_inverse::external_value", mutates_args=())
def _value_op(x: Tensor, handle: int) -> Tensor:
    external = _EXTERNAL[handle]
    return _tensor(external.value(_array(x)), x, external.obs_size)


@torch.library.custom_op("vfm_inverse::external_push", mutates_args=())
def _push_op(x: Tensor, v: Tensor, handle: int) -> Tensor:
    external = _EXTERNAL[handle]
    return _tensor(external.push(_array(x), _array(v)), v, external.obs_size)


@torch.library.custom_op("vfm_inverse::external_pull", mutates_args=())
def _pull_op(x: Tensor, w: Tensor, handle: int) -> Tensor:
    external = _EXTERNAL[handle]
    return _tensor(external.pull(_array(x), _array(w)), w, external.img_size)


@_value_op.register_fake
def _(x: Tensor, handle: int) -> Tensor:
    return x.new_empty(len(x), *_EXTERNAL[handle].obs_size)


@_push_op.register_fake
def _(x: Tensor, v: Tensor, handle: int) -> Tensor:
    return v.new_empty(len(v), *_EXTERNAL[handle].obs_size)


@_pull_op.register_fake
def _(x: Tensor, w: Tensor, handle: int) -> Tensor:
    return w.new_empty(len(w), *_EXTERNAL[handle].img_size)


def _handle(external: External) -> int:
    _EXTERNAL[id(external)] = external
    return id(external)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, external: External) -> Tensor:
        return _value_op(x, _handle(external))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, ctx.external = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, None]:
        return _Pull.apply(*ctx.saved_tensors, w, ctx.external), None

    @staticmethod
    def jvp(ctx: Any, v: Tensor, _: None) -> Tensor:
        return _Push.apply(*ctx.saved_tensors, v, ctx.external)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, external: External) -> tuple[Tensor, int]:
        return _folded(_Value, info, dims, [x], external)


class _Linear(torch.autograd.Function):
    """Push-forward or pull-back: linear in its second argument."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, _, ctx.external = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def refuse(external: External) -> None:
        if not external.linear:
            raise NotImplementedError(
                "second derivatives of an external non-linear function are not known"
            )


class _Push(_Linear):
    @staticmethod
    def forward(x: Tensor, v: Tensor, external: External) -> Tensor:
        return _push_op(x, v, _handle(external))

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[None, Tensor, None]:
        if ctx.needs_input_grad[0]:
            _Linear.refuse(ctx.external)
        return None, _Pull.apply(*ctx.saved_tensors, w, ctx.external), None

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, v_dot: Tensor | None, _: None) -> Tensor:
        if x_dot is not None:
            _Linear.refuse(ctx.external)
        (x,) = ctx.saved_tensors
        return _Push.apply(x, torch.zeros_like(x) if v_dot is None else v_dot, ctx.external)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, v: Tensor, external: Any) -> tuple[Tensor, int]:
        return _folded(_Push, info, dims, [x, v], external)


class _Pull(_Linear):
    @staticmethod
    def forward(x: Tensor, w: Tensor, external: External) -> Tensor:
        return _pull_op(x, w, _handle(external))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[None, Tensor, None]:
        if ctx.needs_input_grad[0]:
            _Linear.refuse(ctx.external)
        return None, _Push.apply(*ctx.saved_tensors, v, ctx.external), None

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, w_dot: Tensor | None, _: None) -> Tensor:
        if x_dot is not None:
            _Linear.refuse(ctx.external)
        (x,) = ctx.saved_tensors
        if w_dot is None:
            return torch.zeros_like(x)
        return _Pull.apply(x, w_dot, ctx.external)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, w: Tensor, external: Any) -> tuple[Tensor, int]:
        return _folded(_Pull, info, dims, [x, w], external)


def _folded(
    function: Any, info: Any, dims: Any, tensors: list[Tensor], external: External
) -> tuple[Tensor, int]:
    """Call with the mapped dimension folded into the batch, and unfold the result."""
    size = info.batch_size
    full = [
        tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=False)
    ]
    result = function.apply(*(one.flatten(0, 1) for one in full), external)
    return result.unflatten(0, (size, -1)), 0
