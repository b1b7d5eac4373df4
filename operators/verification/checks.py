"""The checks of :mod:`~vfm_inverse.operators.verification.verify`, one function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics, StackedPhysics
from deepinv.utils import TensorList
from torch import Tensor

from vfm_inverse.operators.verification.noise_check import LEVEL, noise_p_value

__all__ = ["CHECKS", "Case", "Check", "check_device", "check_dtype", "check_noise", "parts"]

ADJOINT, BATCH, SINGLE = 1e-10, 1e-10, 1e-4
ORDER = 1.95
STEPS = (1e-2, 1e-3, 1e-4)
"""Of the Taylor test: the last is large enough for solvers that are exact to ten digits, and finds
a gradient that is wrong by 2e-5 of itself."""


@dataclass(frozen=True)
class Check:
    """One certified property.

    Attributes:
        name: of the check.
        passed: ``None`` where it does not apply.
        figure: what was measured.
        bound: what the figure must satisfy.
        remark: what was compared, or why it failed or does not apply.
    """

    name: str
    passed: bool | None
    figure: float | None = None
    bound: str = ""
    remark: str = ""


# -------------------------------------------------------------------------------------------------
# The operator under test
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An operator with its input; observations are flattened to ``(batch, m)``."""

    physics: Physics
    x: Tensor
    params: dict[str, Any]

    def at_least_two(self) -> Case:
        """A second field from a single one, so that a batch can be told from its items."""
        if len(self.x) > 1:
            return self
        params = {
            key: value.repeat(2, *[1] * (value.dim() - 1)) if _batched(value, 1) else value
            for key, value in self.params.items()
        }
        return replace(self, x=torch.cat([self.x, 0.5 * self.x]), params=params)

    def cast(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Case:
        """Input and parameters in another precision, or on another device."""

        def to(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            kind = dtype.to_complex() if value.is_complex() else dtype
            floating = value.is_complex() or value.is_floating_point()
            return value.to(device or value.device, kind if floating else None)

        params = {key: to(value) for key, value in self.params.items()}
        return replace(self, x=to(self.x), params=params)

    def item(self, index: int) -> Case:
        """One field of the batch, as a batch of one."""
        params = {
            key: value[index : index + 1] if _batched(value, len(self.x)) else value
            for key, value in self.params.items()
        }
        return replace(self, x=self.x[index : index + 1], params=params)

    def direction(self) -> Tensor:
        """A random direction of the size of ``x``."""
        size = self.x.abs().square().mean().sqrt()
        return torch.randn_like(self.x) * (size if size > 0 else 1.0)

    def raw(self, x: Tensor) -> Tensor | TensorList:
        """``A(x)`` as the operator gives it."""
        return self.physics.A(x, **self.params)

    def forward(self, x: Tensor) -> Tensor:
        """``A(x)`` as ``(batch, m)``."""
        return _flat(self.raw(x))

    def adjoint(self, v: Tensor) -> Tensor:
        """``A_adjoint`` of ``(batch, m)``."""
        assert isinstance(self.physics, LinearPhysics)
        return self.physics.A_adjoint(_like(v, self.raw(self.x)), **self.params)


def parts(physics: Physics) -> list[Physics]:
    """The operator and, of a stack, its parts, which deepinv does not register as modules."""
    return [physics, *physics.physics_list] if isinstance(physics, StackedPhysics) else [physics]


def _batched(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == size


def _flat(y: Tensor | TensorList) -> Tensor:
    parts = y.x if isinstance(y, TensorList) else [y]
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def _like(v: Tensor, y: Tensor | TensorList) -> Tensor | TensorList:
    """``(batch, m)`` in the shape of an observation."""
    if not isinstance(y, TensorList):
        return v.reshape(len(v), *y.shape[1:])
    sizes = [part[0].numel() for part in y.x]
    parts = zip(v.split(sizes, 1), y.x, strict=True)
    return TensorList([piece.reshape(len(v), *part.shape[1:]) for piece, part in parts])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner products of a batch, ``(batch,)``."""
    return (a.conj() * b).real.flatten(1).sum(1) if a.is_complex() else (a * b).flatten(1).sum(1)


def _distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the larger norm."""
    a, b = a.detach(), b.detach()  # an operator with weights of its own
    scale = float(torch.maximum(a.abs().square().sum(), b.abs().square().sum()).sqrt())
    return float((a - b).abs().square().sum().sqrt()) / (scale if scale > 0 else 1.0)


def _mismatch(left: Tensor, right: Tensor) -> float:
    """Root mean square of the difference over that of the values."""
    left, right = left.detach(), right.detach()
    scale = float(left.square().mean().sqrt())
    return float((left - right).square().mean().sqrt()) / (scale if scale > 0 else 1.0)


def _at_most(figure: float, bound: float, remark: str) -> Check:
    return Check("", figure <= bound, figure, f"<= {bound:.0e}", remark)


def _skipped(reason: str) -> Check:
    return Check("", None, remark=reason)


# -------------------------------------------------------------------------------------------------
# The checks
# -------------------------------------------------------------------------------------------------


def _shapes(case: Case) -> Check:
    x, y = case.x, case.raw(case.x)
    size = getattr(case.physics, "img_size", None)
    if size is not None and tuple(size) != tuple(x.shape[1:]):
        return Check("", False, remark=f"img_size {tuple(size)} but x {tuple(x.shape[1:])}")
    shapes = [tuple(part.shape) for part in (y.x if isinstance(y, TensorList) else [y])]
    one = case.item(0).raw(x[:1])
    singles = [tuple(part.shape) for part in (one.x if isinstance(one, TensorList) else [one])]
    if [(1, *shape[1:]) for shape in shapes] != singles or any(s[0] != len(x) for s in shapes):
        return Check("", False, remark=f"A: {len(x)} fields to {shapes}, one field to {singles}")
    if not bool(torch.isfinite(_flat(y).abs()).all()):
        return Check("", False, remark="A(x) is not finite")
    if isinstance(case.physics, LinearPhysics):
        back = case.adjoint(_flat(y))
        if back.shape != x.shape:
            return Check("", False, remark=f"A_adjoint: {tuple(back.shape)}, x {tuple(x.shape)}")
    return Check("", True, remark=f"{tuple(x.shape)} -> {', '.join(map(str, shapes))}")


def _adjoint(case: Case) -> Check:
    if isinstance(case.physics, LinearPhysics):
        left, right = [], []
        for _ in range(4):
            u = torch.randn_like(case.x)
            y = case.forward(u)
            v = torch.randn_like(y)
            left.append(_inner(v, y))
            right.append(_inner(case.adjoint(v), u))
        figure = _mismatch(torch.cat(left), torch.cat(right))
        return _at_most(figure, ADJOINT, "<A u, v> against <u, A_adjoint v>")
    if case.params:
        return _skipped("A_vjp takes no parameters")
    delta = case.direction()
    try:
        y, pushed = _push(case, delta)
    except (RuntimeError, NotImplementedError):
        return _skipped("no forward mode; the Taylor test and A_vjp have the gradient")
    v = torch.randn_like(y)
    pulled = case.physics.A_vjp(case.x, _like(v, case.raw(case.x)))
    figure = _mismatch(_inner(v, pushed), _inner(pulled, delta))
    return _at_most(figure, ADJOINT, "<J d, v> against <d, A_vjp v>")


def _linearity(case: Case) -> Check:
    if not isinstance(case.physics, LinearPhysics):
        return _skipped("not a LinearPhysics")
    worst = 0.0
    # A large multiple too: a clamp or a saturation shows itself there.
    for alpha, beta in ((1.7, -0.6), (-30.0, 11.0), (-0.02, 0.03)):
        u = case.direction()
        joint = case.forward(alpha * case.x + beta * u)
        apart = alpha * case.forward(case.x) + beta * case.forward(u)
        worst = max(worst, _distance(joint, apart))
    return _at_most(worst, ADJOINT, "A(a x + b u) against a A x + b A u")


def _gradient(case: Case) -> Check:
    with torch.no_grad():
        y = case.forward(case.x)
        size = y.abs().square().mean().sqrt()
        target = y + (size if size > 0 else 1.0) * torch.randn_like(y)

    def misfit(x: Tensor) -> Tensor:
        return 0.5 * (case.forward(x) - target).abs().square().sum()

    x = case.x.clone().requires_grad_()
    value = misfit(x)
    (gradient,) = torch.autograd.grad(value, x)
    if not bool(torch.isfinite(gradient.abs()).all()):
        return Check("", False, remark="the gradient is not finite")
    delta = case.direction()
    with torch.no_grad():
        slope = float(_inner(gradient, delta).sum())
        base = float(value.detach())
        # Both ways: the error of a wrong gradient adds to the curvature one way only.
        rests = [
            [abs(float(misfit(case.x + h * delta)) - base - h * slope) for h in steps]
            for steps in (STEPS, [-h for h in STEPS])
        ]
    if max(map(max, rests)) <= 1e-13 * abs(base):
        return Check("", True, math.inf, f">= {ORDER}", "Taylor test: exact to rounding")
    order = min(min(_orders(rest)) for rest in rests)
    shown = ", ".join(f"{remainder:.1e}" for remainder in rests[0])
    return Check("", order >= ORDER, order, f">= {ORDER}", f"Taylor order; {shown}")


def _orders(rest: list[float]) -> list[float]:
    """Orders at which remainders at ``STEPS`` fall from each to the next."""
    pairs = zip(rest[:-1], rest[1:], STEPS[:-1], STEPS[1:], strict=True)
    # A remainder of exactly zero has fallen as far as it can.
    return [
        math.log(a / max(b, 1e-300)) / math.log(h / k) if a > 0 else ORDER for a, b, h, k in pairs
    ]


def _vjp(case: Case) -> Check:
    if case.params:
        return _skipped("A_vjp takes no parameters")
    v = torch.randn_like(case.forward(case.x))
    pulled = case.physics.A_vjp(case.x, _like(v, case.raw(case.x)))
    figure = _distance(pulled, _pullback(case, v))
    return _at_most(figure, ADJOINT, "A_vjp against autograd")


def _pullback(case: Case, v: Tensor) -> Tensor:
    x = case.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_inner(v, case.forward(x)).sum(), x)
    return gradient


def _push(case: Case, delta: Tensor) -> tuple[Tensor, Tensor]:
    y, pushed = torch.func.jvp(case.forward, (case.x,), (delta,))[:2]
    return y, pushed


def _forward_mode(case: Case) -> Check:
    delta = case.direction()
    try:
        y, pushed = _push(case, delta)
    except (RuntimeError, NotImplementedError) as error:
        return _skipped(f"not supported: {' '.join(str(error).split())[:80]}")
    v = torch.randn_like(y)
    figure = _mismatch(_inner(v, pushed), _inner(_pullback(case, v), delta))
    return _at_most(figure, ADJOINT, "jvp against autograd")


def _batching(case: Case) -> Check:
    y = case.forward(case.x)
    alone = torch.cat([case.item(i).forward(case.x[i : i + 1]) for i in range(len(y))])
    figure = _distance(y, alone)
    if isinstance(case.physics, LinearPhysics):
        v = torch.randn_like(y)
        rows = [case.item(i).adjoint(v[i : i + 1]) for i in range(len(y))]
        figure = max(figure, _distance(case.adjoint(v), torch.cat(rows)))
    return _at_most(figure, BATCH, "the batch against its items")


def _determinism(case: Case) -> Check:
    kept = case.x.clone()
    first = case.forward(case.x).clone()
    case.forward(case.direction())
    figure = _distance(case.forward(case.x), first)
    if not torch.equal(kept, case.x):
        return Check("", False, remark="A changes its input")
    # On a GPU scattered sums are added in any order.
    return _at_most(figure, 1e-12, "A(x) again, after another field")


def check_dtype(case: Case, exact: Tensor | None) -> Check:
    """Single precision against ``exact``, the result in double precision."""
    if exact is None:
        return _skipped("no result in double precision to compare with")
    if exact.dtype not in (torch.float64, torch.complex128):
        return Check("", False, remark=f"A of double precision gives {exact.dtype}")
    single = case.cast(torch.float32)
    y = single.forward(single.x)
    kind = torch.complex64 if exact.is_complex() else torch.float32
    if y.dtype != kind:
        return Check("", False, remark=f"A of {single.x.dtype} gives {y.dtype}")
    return _at_most(_distance(y.to(exact), exact), SINGLE, "float32 against float64")


def check_device(case: Case) -> Check:
    """The operator and its input on a GPU, where there is one."""
    if not torch.cuda.is_available():
        return _skipped("no CUDA device")
    y = case.cast(torch.float64, "cpu")
    for part in parts(case.physics):
        part.to("cpu")
    expected = y.forward(y.x)
    for part in parts(case.physics):
        part.to("cuda")
    there = case.cast(torch.float64, "cuda")
    result = there.forward(there.x)
    if result.device.type != "cuda":
        return Check("", False, remark=f"A of a CUDA tensor is on {result.device}")
    return _at_most(_distance(result.cpu(), expected), BATCH, "CUDA against CPU")


def check_noise(case: Case) -> Check:
    """The noise against its density."""
    p_value, remark = noise_p_value(case.physics, case.x, case.params)
    if p_value is None:
        return _skipped(remark)
    return Check(
        "", bool(p_value >= LEVEL), float(p_value), f">= {LEVEL:.0e}", f"p-value; {remark}"
    )


CHECKS: dict[str, Callable[[Case], Check]] = {
    "shapes": _shapes,
    "adjoint": _adjoint,
    "linearity": _linearity,
    "gradient": _gradient,
    "vjp": _vjp,
    "forward mode": _forward_mode,
    "batching": _batching,
    "determinism": _determinism,
}
