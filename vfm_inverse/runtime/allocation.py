"""A bound on what torch is asked for, while a file that may be damaged or hostile is unpacked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["bounded_allocation"]

LEAST = 2**27
"""Numbers that any problem may ask for at once: 1 GiB in double precision."""


class _Bounded(TorchDispatchMode):
    """Refuses operations whose result would have more numbers than the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if (numbers := _result_numbers(func, args)) > self.limit:
            raise ValueError(
                f"its header describes a problem or networks with {numbers:.3g} numbers in one "
                "tensor, which its own tensors do not bear out"
            )
        return func(*args, **(kwargs or {}))


def _result_numbers(func: Any, args: tuple[Any, ...]) -> int:
    """Numbers of a result as far as sizes among the arguments and broadcasting tell."""
    sizes = [a for a in args[:2] if isinstance(a, list | tuple) and a and _whole(a)]
    numbers = max((math.prod(s) for s in sizes if min(s) >= 0), default=0)
    name = func.overloadpacket.__name__
    if name.startswith("eye"):
        first = [a for a in args[:2] if isinstance(a, int)]
        return max(numbers, first[0] * first[-1]) if first else numbers
    if name.startswith(("arange", "linspace", "randperm", "full")):
        return max([numbers, *(int(abs(a)) for a in args[:3] if isinstance(a, int))])
    shapes = [a.shape for a in args[:2] if isinstance(a, Tensor)]
    if len(shapes) == 2:
        if name in ("mm", "bmm") and shapes[0] and shapes[1]:
            return max(numbers, math.prod(shapes[0][:-1]) * shapes[1][-1])
        try:
            numbers = max(numbers, math.prod(torch.broadcast_shapes(*shapes)))
        except RuntimeError:
            pass  # no operation element by element
    return numbers


def _whole(sizes: Any) -> bool:
    return all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)


@contextmanager
def bounded_allocation(dim: int) -> Iterator[None]:
    """Refuse tensors that a problem with ``dim`` unknowns has no use for.

    Args:
        dim: numbers of a field; covariances of them are in order.

    Raises:
        ValueError: an operation of torch inside the block would make a larger tensor.
    """
    with _Bounded(max(LEAST, 8 * dim * dim)):
        yield
