r"""Certify an operator: adjoint, derivatives, batches, types, determinism, noise.

Every check is one figure held against one bound, in double precision unless it says otherwise.
With :math:`u, v` standard normal and :math:`\delta` of the size of :math:`x`:

===============  ================================================================================
shapes           batch first, the same event shape for every batch, ``A_adjoint(y)`` as ``x``
adjoint          :math:`|\langle A u, v\rangle - \langle u, A^* v\rangle|`, root mean square over
                 that of :math:`\langle A u, v\rangle`; of a non-linear operator :math:`J\delta`
                 (forward mode) against ``A_vjp``
linearity        :math:`\|A(\alpha x + \beta u) - \alpha A x - \beta A u\|` over the norms, with
                 :math:`\alpha + \beta \ne 1`, so that a constant shows (linear operators)
gradient         order at which :math:`|\phi(x + h\delta) - \phi(x) - h \langle\nabla\phi(x),
                 \delta\rangle|` falls with :math:`h` (Taylor test), :math:`\phi = \frac12\|A(x)
                 - y\|^2`: 2 if the gradient is right, 1 if it is not
vjp              ``A_vjp(x, v)`` against the gradient of :math:`\langle A(x), v\rangle`
forward mode     ``torch.func.jvp`` against that gradient
batching         ``A`` (and the adjoint) of a batch against the loop over its items
determinism      ``A(x)`` again, with another field in between
dtype            ``A`` in single precision against double; the type of ``x`` is kept in both
device           ``A`` on a GPU against the CPU, where there is one
noise            ``physics(x)`` against ``Likelihood(physics)``: probability integral transform
===============  ================================================================================

The Taylor test with its order as a figure: Farrell, Ham, Funke and Rognes 2013, SIAM Journal on
Scientific Computing 35, C369, https://doi.org/10.1137/120873558.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor

from vfm_inverse.operators.verification.checks import (
    CHECKS,
    Case,
    Check,
    check_device,
    check_dtype,
    check_noise,
    parts,
)
from vfm_inverse.problem.likelihood import restored
from vfm_inverse.runtime.randomness import seeded

__all__ = ["Check", "Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """The checks of one operator; ``str()`` is a table."""

    name: str
    physics: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; one that does not apply does not fail."""
        return all(check.passed is not False for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``name``, ``physics``, ``passed`` and the list of ``checks``."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:  # infinity and NaN are no JSON
            if check["figure"] is not None and not math.isfinite(check["figure"]):
                check["figure"] = None
        return {
            "name": self.name,
            "physics": self.physics,
            "passed": self.passed,
            "checks": checks,
        }

    def __str__(self) -> str:
        words = {True: "pass", False: "FAIL", None: "-"}
        lines = [f"{self.name}: {self.physics}, {'pass' if self.passed else 'FAIL'}"]
        for check in self.checks:
            figure = "" if check.figure is None else f"{check.figure:.3g}"
            lines.append(
                f"  {check.name:13} {words[check.passed]:4}  {figure:>9} {check.bound:9}  "
                f"{check.remark}".rstrip()
            )
        return "\n".join(lines)


def verify(
    physics: Physics, x: Tensor, *, name: str | None = None, seed: int = 0, **params: Any
) -> Verification:
    """Run every check on an operator; the operator is left as it was.

    Args:
        physics: any deepinv ``Physics``.
        x: fields ``(batch, *event)`` in the operator's domain, where the derivative is wanted; a
            second field is made of a single one.
        name: for the table; the class by default.
        seed: of the random directions and of the noise.
        params: parameters of the operator and of its noise, as in a call; a tensor has the batch
            as its leading dimension.

    Raises:
        TypeError: ``physics`` is no deepinv ``Physics``, or ``x`` no floating-point tensor.
        ValueError: ``x`` has no batch dimension, is empty or not finite.
    """
    if not isinstance(physics, Physics):
        raise TypeError(f"'physics' must be a deepinv Physics; got {type(physics).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"'x' must be a torch.Tensor; got {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()) or x.is_meta:
        raise TypeError(f"'x' must hold floating-point numbers; got {x.dtype} on {x.device}")
    if x.dim() < 2 or x.numel() == 0 or not bool(torch.isfinite(x.abs()).all()):
        raise ValueError(
            f"'x' must hold finite fields (batch, *event); got shape {tuple(x.shape)}"
        )
    case = Case(physics, x.detach(), dict(params)).at_least_two()
    with seeded(seed):
        with _double(physics):
            double = case.cast(torch.float64)
            checks = [_guarded(name_, check, double) for name_, check in CHECKS.items()]
            exact = _attempt(double)
        checks.append(_guarded("dtype", lambda one: check_dtype(one, exact), case))
        with _double(physics):
            checks.append(_guarded("device", check_device, case.cast(torch.float64)))
            checks.append(_guarded("noise", check_noise, case.cast(torch.float64)))
    return Verification(name or type(physics).__name__, type(physics).__name__, tuple(checks))


@contextmanager
def _double(physics: Physics) -> Iterator[None]:
    """The operator in double precision, as it was afterwards.

    More than ``physics.double()`` does: complex buffers, the parts of a stack, and the ``dtype``
    to which some operators cast.
    """
    modules = [module for part in parts(physics) for module in part.modules()]
    attributes = [(module, dict(vars(module))) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    data = [(weight, weight.data) for module in modules for weight in module.parameters(False)]
    try:
        for weight, values in data:
            weight.data = _wide(values)
        for module, tensors in buffers:
            for name, tensor in tensors.items():
                module._buffers[name] = None if tensor is None else _wide(tensor)
            kind = vars(module).get("dtype")
            if isinstance(kind, torch.dtype) and (kind.is_floating_point or kind.is_complex):
                vars(module)["dtype"] = torch.complex128 if kind.is_complex else torch.float64
            # deepinv's Tomography keeps its adjoint, which is made for one type.
            if "_auto_grad_adjoint_fn" in vars(module):
                vars(module)["_auto_grad_adjoint_fn"] = None
        yield
    finally:
        for module, values_of in attributes:
            vars(module).clear()
            vars(module).update(values_of)
        for module, tensors in buffers:
            module._buffers.clear()
            module._buffers.update(tensors)
        for weight, values in data:
            weight.data = values


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _attempt(case: Case) -> Tensor | None:
    try:
        return case.forward(case.x)
    except Exception:  # the checks before have said so
        return None


def _guarded(name: str, check: Callable[[Case], Check], case: Case) -> Check:
    """An operator that raises has failed the check; the others still run."""
    try:
        with restored(case.physics):
            return replace(check(case), name=name)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(name, False, remark=text[:160])
