"""What a posterior function answers: its draws and densities, checked, and its fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfm_inverse.calibration.shards import data_hash
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.arrays import real_tensor, rows_of
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.exact import AS_SAMPLED

__all__ = ["VARIES", "ask", "draws_of", "fingerprint", "log_score", "sampled"]

VARIES = "varies at equal seeds"
"""Fingerprint of a posterior whose draws do not follow the seed."""

ASKED = 4
"""Observations whose draws tell one posterior from another."""


def sampled(function: Callable[..., Any]) -> dict[str, str]:
    """What a report says of draws of a map that are exact as they are sampled."""
    if isinstance(function, VariationalFlowMap) and function.resamples:
        return {"draws": AS_SAMPLED}
    return {}


def ask(function: Callable[..., Any], name: str, y: Tensor, params: Mapping[str, Tensor]) -> Any:
    """The posterior of observations ``(batch, *observation)``.

    Raises:
        ValueError: there is none.
        TypeError: what comes back has no ``sample``.
    """
    posterior = function(y, **params)
    if posterior is None:
        raise ValueError(f"'{name}' must return a posterior; got None")
    if not callable(getattr(posterior, "sample", None)):
        raise TypeError(
            f"'{name}' must return an object with sample((num_draws,)); got "
            f"{type(posterior).__name__}"
        )
    return posterior


def draws_of(posterior: Any, name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """Draws of that shape, of the type and on the device of ``like``.

    Raises:
        TypeError: they are no real numbers.
        ValueError: they have another shape, or are not finite.
    """
    drawn = real_tensor(
        posterior.sample((shape[0],)), f"draws of {name}", dtype=like.dtype, device=like.device
    ).detach()
    if drawn.shape != shape:
        raise ValueError(
            f"'{name}' must give draws of shape {tuple(shape)}; got {tuple(drawn.shape)}"
        )
    # The norm passes through memory once; what it makes of an overflow is looked at closely.
    if not bool(torch.linalg.vector_norm(drawn).isfinite()):
        bad = int((~drawn.isfinite().flatten(2).all(-1)).sum())
        if bad:
            raise ValueError(
                f"'{name}' must give finite draws; {bad} of {shape[0] * shape[1]} hold NaN or "
                "infinite values"
            )
    return drawn


def log_score(posterior: Any, x: Tensor) -> Tensor | None:
    """Minus the log density of truths ``(batch, *event)``: ``(batch,)``, or None where the
    posterior has none."""
    log_prob = getattr(posterior, "log_prob", None)
    if log_prob is None:
        return None
    try:
        value = -log_prob(x)
    except NotImplementedError:
        return None
    fits = isinstance(value, Tensor) and value.shape == x.shape[:1] and not value.is_complex()
    return value.detach() if fits else None


def fingerprint(
    function: Callable[..., Any],
    name: str,
    x: Tensor,
    y: Tensor,
    params: Mapping[str, Tensor],
    *,
    seed: int,
    chunk: int,
) -> str:
    """What tells a posterior from any other: of a trained map the SHA-256 of its weights, of any
    function that of some of its draws at one seed, or :data:`VARIES`.

    Args:
        function: the posterior function.
        name: of the argument, for messages.
        x, y, params: truths, which give the draws their shape, and observations of a calibration.
        seed: of these draws.
        chunk: numbers that one call of ``sample`` may ask for.
    """
    if isinstance(function, VariationalFlowMap):
        return f"weights {function.weights_fingerprint()[:16]}"
    fit = max(1, min(ASKED, len(x), chunk // x[0].numel()))
    rows = torch.from_numpy(np.unique(np.linspace(0, len(x) - 1, fit).round().astype(int)))
    rows = rows.to(x.device)
    num = max(1, min(16, chunk // (len(rows) * x[0].numel())))
    shape = torch.Size([num, *x[rows].shape])
    seen = rows_of(params, rows)

    def look() -> str:
        with torch.no_grad(), seeded(seed):
            drawn = draws_of(ask(function, name, y[rows], seen), name, shape, x)
        return f"draws {data_hash({'draws': drawn})}"

    first = look()
    return first if look() == first else VARIES
