"""What a training writes into its folder, and which run a folder belongs to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vfm_inverse.runtime import storage
from vfm_inverse.runtime.files import LOG, STATE, replacing

if TYPE_CHECKING:
    from vfm_inverse.posterior.variational import VariationalFlowMap

__all__ = [
    "FIGURES",
    "Row",
    "csv_log",
    "fixed_state",
    "log_text",
    "prefixed",
    "read_state",
    "same_start",
    "selected",
]

FIGURES = ("validation", "offset", "learning_rate", "seconds")
"""Columns of a log besides loss terms and health figures."""

Row = dict[str, float]


def read_state(
    folder: Path, identity: Mapping[str, Any], device: str | torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of the run in a folder.

    Args:
        folder: of the run.
        identity: what the run must agree with: ``settings``, ``model``, ``problem``.
        device: where to put the tensors.

    Raises:
        ValueError: it is another run, or cannot be read.
    """
    state, header = storage.read(folder / STATE, "training", device)
    here = json.loads(json.dumps(identity))
    differ: dict[str, Any] = {}
    for part, there in header.items():
        if part in here and isinstance(there, dict) and isinstance(here[part], dict):
            names = there.keys() if "problem" not in header else there.keys() | here[part].keys()
            differ |= {
                name: (there.get(name), here[part].get(name))
                for name in sorted(names)
                if there.get(name) != here[part].get(name)
            }
        elif part in here and there != here[part]:
            differ[part] = ("another one", "this one")
    if differ:
        raise ValueError(
            f"'resume' needs the settings of the run in {folder}; these differ (there, "
            f"here): {differ}"
        )
    return state, header


def same_start(path: Path, vfm: VariationalFlowMap, fixed: Mapping[str, Tensor]) -> None:
    """Refuse a map that was fitted on other simulations than the one that the run began with.

    What has no sign or order of its own is compared, and loosely: another machine rounds in
    another way. The mean of a prior without end is not, of which a faster one has more draws.

    Raises:
        ValueError: its coordinates or features are others.
    """
    own = vfm.state_dict()
    drawn = "draws" in vfm.config.get("prior_moments", {})
    for name, there in fixed.items():
        if not name.startswith("features.") and (drawn or name != "whitening.mean"):
            continue
        here = own.get(name)
        if here is None or here.shape != there.shape or not _close(here, there):
            raise ValueError(
                f"'resume' needs the map that the run in {path} began with; {name!r} differs: "
                "build it with the same 'seed' and 'num_simulations'"
            )


def _close(here: Tensor, there: Tensor) -> bool:
    if not there.is_floating_point() or there.numel() == 0:
        return torch.equal(here, there)
    atol = 1e-3 * float(there.abs().max())
    return torch.allclose(here.to(there), there, rtol=1e-3, atol=atol, equal_nan=True)


def fixed_state(vfm: VariationalFlowMap) -> dict[str, Tensor]:
    """All of a map that no training changes: coordinates, start, features, range."""
    return {k: v for k, v in vfm.state_dict().items() if not k.startswith("networks.")}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with a prefix and a dot."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def selected(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries with that prefix, without it: the inverse of :func:`prefixed`."""
    return {
        k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")
    }


@contextmanager
def csv_log(
    folder: Path | None, names: Sequence[str], history: Sequence[Row]
) -> Iterator[Callable[[Row], None]]:
    """A function that appends rows to ``log.csv``, which begins with the rows of the resumed run;
    a term that a phase of the training does not have stays empty."""
    if folder is None:
        yield lambda row: None
        return
    path = folder / LOG
    with replacing(path) as temporary:
        temporary.write_text(log_text(names, history), encoding="utf-8", newline="")

    def write(row: Row) -> None:
        try:
            # Opened anew for every row: what was written is on its way to the disk.
            with open(path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, names).writerow(row)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    yield write


def log_text(names: Sequence[str], rows: Sequence[Row]) -> str:
    """The text of ``log.csv``."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
