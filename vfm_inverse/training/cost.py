"""What a computation will cost, before it is begun: memory against what the machine has.

The memory of a training step is that of the numbers which its backward pass keeps. Two small
batches tell how they grow with the batch; both are counted, not guessed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vfm_inverse.runtime.arrays import rows_of
from vfm_inverse.runtime.randomness import seeded

if TYPE_CHECKING:
    from vfm_inverse.posterior.variational import VariationalFlowMap
    from vfm_inverse.problem.inverse_problem import InverseProblem
    from vfm_inverse.training.objective import Objective

__all__ = [
    "StepMemory",
    "cost_of_answers",
    "in_words",
    "memory_available",
    "memory_of_step",
    "require_batch",
    "require_memory",
]

MARGIN = 1.2
"""Memory that a step takes over what its backward pass keeps; measured 0.9 to 1.4."""

GROUPS = {
    "/sys/fs/cgroup/memory.max": "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "/sys/fs/cgroup/memory/memory.usage_in_bytes",
}
"""Limit and use of a container or a batch job, where Linux keeps them."""


class StepMemory(NamedTuple):
    """Bytes of a training step: ``fixed + per_simulation * batch_size``."""

    fixed: float
    per_simulation: float

    def of(self, batch_size: int) -> float:
        """Bytes of a step of so many simulations."""
        return self.fixed + self.per_simulation * batch_size


def memory_available(device: torch.device | str = "cpu") -> int | None:
    """Bytes that a new computation may take on a device; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(row.split()[1]) for row in rows if row.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in GROUPS.items():
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def require_batch(objective: Objective, problem: InverseProblem, batch_size: int) -> float | None:
    """Bytes that a training step takes; None where they cannot be counted.

    Raises:
        MemoryError: it takes more than there is; the message has the batch that fits.
    """
    step = memory_of_step(objective, problem)
    if step is None:
        return None
    room = (memory_available(problem.device) or 0) - step.fixed
    fits = int(room / step.per_simulation) if step.per_simulation else 0
    remedy = f"take {fits} or less" if fits >= 2 else "take a smaller network or field"
    what = f"a training step with 'batch_size' of {batch_size}"
    require_memory(step.of(batch_size), what, remedy, problem.device)
    return step.of(batch_size)


def require_memory(
    needed: float, what: str, remedy: str, device: torch.device | str = "cpu"
) -> None:
    """Refuse what is larger than the machine.

    Args:
        needed: bytes.
        what: needs them, for the message.
        remedy: what to do instead.
        device: where.

    Raises:
        MemoryError: more is needed than there is.
    """
    available = memory_available(device)
    if available is not None and needed > available:
        raise MemoryError(
            f"{what} needs about {in_words(needed)} of memory and {in_words(available)} are "
            f"free; {remedy}"
        )


def memory_of_step(objective: Objective, problem: InverseProblem) -> StepMemory | None:
    """Memory of a training step, from steps of four and of eight simulations; None where the
    physics takes derivatives of its own that cannot be counted.

    Args:
        objective: what is trained; it is left as it was.
        problem: where simulations come from.
    """
    with seeded(0):
        x, y, params = problem.simulate(8, split="test")
        try:
            small, large = (_kept(objective, x[:n], y[:n], params) for n in (4, 8))
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            return None
    weights = sum(w.numel() * w.element_size() for w in objective.vfm.networks.parameters())
    per_simulation = max(0.0, (large - small) / 4)
    # Gradients, the optimiser's two moments, their temporaries.
    fixed = max(0.0, small - 4 * per_simulation) + 4 * weights
    return StepMemory(MARGIN * fixed, MARGIN * per_simulation)


def _kept(objective: Objective, x: Tensor, y: Tensor, params: Mapping[str, Tensor]) -> int:
    """Bytes that the backward pass of a step on simulations ``x (n, *event)`` keeps."""
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        try:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        except RuntimeError:  # a tensor under one of torch.func's transforms
            kept[id(tensor)] = tensor, tensor.numel() * tensor.element_size()
        return tensor

    params = rows_of(params, slice(len(x)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = objective(x, y, **params)
    del terms
    return sum(size for _, size in kept.values())


def cost_of_answers(
    vfm: VariationalFlowMap, y: Tensor, params: Mapping[str, Tensor], seconds: float = 0.3
) -> tuple[float, float]:
    """Seconds that observations ``y (n, *obs)`` take before the first draw, and those of a draw
    of each, measured.

    Args:
        vfm: the map.
        y: observations.
        params: their parameters.
        seconds: least time to measure draws for.
    """
    with seeded(0), torch.no_grad():
        vfm(y, **params).sample(torch.Size([1]))  # the first call makes what later ones reuse
        begin = time.perf_counter()
        posterior = vfm(y, **params)
        first, num, taken = time.perf_counter() - begin, 1, 0.0
        while taken < seconds and num < 2**20:
            num *= 2
            begin = time.perf_counter()
            posterior.sample(torch.Size([num]))
            taken = time.perf_counter() - begin
    return first, taken / num


def in_words(memory: float) -> str:
    """Bytes as people read them: ``"1.4 GB"``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if memory >= size:
            return f"{memory / size:.3g} {unit}"
    return f"{memory:.0f} bytes"
