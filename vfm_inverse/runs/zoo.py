"""Certified maps that come with the package: ``vi.load("zoo:darcy")``.

A map of a problem of this package that passed its check, with its card, in a file of at most
:data:`MOST_BYTES`. Networks are in half precision: :func:`ship` rounds them first, and checks what
it then packs. A dense whitening that the moments of the prior make is left out and made again.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from vfm_inverse.calibration import calibrate
from vfm_inverse.calibration.certification import certify
from vfm_inverse.gaussian.whitening import DenseWhitening
from vfm_inverse.posterior.geometry import inner_shape
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.fingerprints import physics_fingerprint
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs.checkpoint import check_card, check_config, naming, problem_of
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.values import resolve_device

__all__ = ["PREFIX", "available", "open_shipped", "pack", "ship"]

PREFIX = "zoo:"
"""What the name of a shipped map begins with where a path is asked for."""

FOLDER = Path(__file__).parent / "certified"

MOST_BYTES = 2_000_000
"""Largest file of a shipped map."""

ROOTS = ("whitening.root", "whitening.inverse_root")
"""What a whitening by moments is made of, and is not in a file."""

PROBED = 16
"""Numbers of a whitening that is left out by which it is known again."""


def available() -> list[str]:
    """Names of the problems whose certified maps come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def open_shipped(
    name: str,
    problem: InverseProblem | None = None,
    device: str | torch.device = "cpu",
    *,
    warn: bool = True,
    stacklevel: int = 2,
) -> tuple[VariationalFlowMap, InverseProblem]:
    """A shipped map with its card, and its problem.

    Args:
        name: of the problem, with or without ``"zoo:"``.
        problem: instead of the one that the file names.
        device: where to put both.
        warn: whether to warn of a map that is uncertified or failed its calibration.
        stacklevel: whose line a warning names, as in :func:`warnings.warn`.

    Raises:
        ValueError: there is no such map; the message lists those that there are. Or its file is
            damaged, or does not fit the problem.
    """
    name = name.removeprefix(PREFIX)
    if name not in (known := available()):
        listed = ", ".join(known) or "none yet"
        raise ValueError(f"unknown certified map '{PREFIX}{name}'. Known are: {listed}")
    path, device = FOLDER / f"{name}.safetensors", resolve_device(device)
    tensors, header = storage.read(path, "certified", device)
    with naming(path):
        config, card = check_config(header), check_card(header)
        problem = problem_of(config) if problem is None else problem
        vfm = VariationalFlowMap.from_config(problem.to(device), config)
        if "whitening_probe" in header:
            tensors |= made_again(problem, vfm, tensors, header["whitening_probe"])
        own = vfm.state_dict()
        vfm.load_state_dict({k: v.to(own[k].dtype) if k in own else v for k, v in tensors.items()})
    vfm.training_note = header.get("training")
    # Numbers that are made again differ by roundings: the file itself is what was certified.
    if card is not None and card.physics == problem.describe_physics():
        vfm.card = replace(
            card,
            physics_sha256=physics_fingerprint(problem),
            weights_sha256=vfm.weights_fingerprint(),
        )
    if warn:
        vfm.warn_unless_certified(f"'{PREFIX}{name}'", stacklevel=stacklevel)
    return vfm, problem


def made_again(
    problem: InverseProblem,
    vfm: VariationalFlowMap,
    tensors: dict[str, Tensor],
    probe: list[float],
) -> dict[str, Tensor]:
    """The tensors of a whitening that the moments of a prior make.

    Raises:
        ValueError: the problem states none, or others than those of the file.
    """
    moments, like = problem.prior_moments(), tensors["whitening.mean"]
    if moments is None:
        raise ValueError("its prior states no mean and covariance")
    whitening = DenseWhitening.from_moments(inner_shape(problem), *moments, dtype=like.dtype)
    stored = torch.tensor(probe, dtype=like.dtype)
    if not torch.allclose(whitening.root.flatten()[: len(probe)].cpu(), stored, 1e-3, 1e-5):
        raise ValueError("the covariance of its prior is not the one that it was certified with")
    return {name: getattr(whitening, name.rpartition(".")[2]).to(like) for name in ROOTS}


def pack(vfm: VariationalFlowMap, problem: InverseProblem, path: Path) -> None:
    """Write a map with its card as a shipped one.

    Args:
        vfm: a map whose networks are exact in half precision.
        problem: its problem, one of the package.
        path: file to write.

    Raises:
        ValueError: it did not pass its check, is of a problem of your own, or is too large.
    """
    if vfm.card is None or vfm.standing()[0] != "pass":
        raise ValueError(f"'vfm' must have passed its check to be shipped; got {vfm.standing()}")
    problem_of(vfm.config)
    tensors = {
        name: value.half() if halved(name, value) else value
        for name, value in vfm.state_dict().items()
    }
    header: dict[str, Any] = {
        "config": vfm.config,
        "card": asdict(vfm.card),
        "training": vfm.training_note,
    }
    if isinstance(vfm.whitening, DenseWhitening) and problem.prior_moments() is not None:
        header["whitening_probe"] = tensors[ROOTS[0]].flatten()[:PROBED].tolist()
        tensors = {name: value for name, value in tensors.items() if name not in ROOTS}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"a shipped map must take {MOST_BYTES / 1e6:g} MB at most; that of '{problem.name}' "
            f"takes {size / 1e6:.3g} MB"
        )
    storage.write(path, tensors, "certified", header)


def halved(name: str, value: Tensor) -> bool:
    """Whether a tensor is one of the networks', in single precision."""
    return name.startswith("networks.") and value.dtype == torch.float32


def ship(
    name: str, vfm: VariationalFlowMap, problem: InverseProblem, report: xr.Dataset, folder: Path
) -> str:
    """Round a map, check it as it was checked before, and pack it if it passes.

    Args:
        name: of the file, without its ending.
        vfm: the map, whose networks are rounded.
        problem: its problem.
        report: of its calibration, for the numbers of simulations and draws, and the seed.
        folder: where to.

    Returns:
        What became of it, in a sentence.
    """
    with torch.no_grad():
        for key, value in vfm.state_dict(keep_vars=True).items():
            if halved(key, value):
                value.copy_(value.half())
    num, draws, seed = (int(report.attrs[k]) for k in ("num_simulations", "num_draws", "seed"))
    vfm.card = None
    checked = calibrate(vfm, problem, num, draws, seed=seed)
    card = certify(vfm, problem, checked)
    if card.verdict != "pass":
        return f"not shipped: in half precision it fails ({card.reason})"
    path = folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pack(vfm, problem, path)
    except ValueError as error:
        return f"not shipped: {error}"
    return f"shipped as '{path}', {path.stat().st_size / 1e6:.2f} MB"
