"""Whether a change of the code changed what it does: SHA-256 sums of many results at fixed seeds.

.. code-block:: console

    $ python -m tests.benchmarks.behaviour --save before.json       # of the code as it was
    $ python -m tests.benchmarks.behaviour --against before.json    # of the code as it is

The second exits with 1 and names the results that differ, are missing or are new. A sum is of the
exact bytes, so both must be made on one machine, with the same libraries. Of text it leaves out
what no run has twice: folders, times, versions, sums and embedded pictures.

``--checkpoint FILE.safetensors`` adds a map, and ``FILE.run`` beside it, the folder of an
interrupted training: the first call writes them, later ones read them, to show that files of the
earlier code are still read. ``--only PREFIX`` takes some of the results.

Everything is called by the names that users import; what is private may move.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from typing import Any

# As wide as here whatever the terminal, and without colours.
os.environ.update({"COLUMNS": "80", "NO_COLOR": "1", "MPLBACKEND": "Agg"})

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks import (
    behaviour_checks,
    behaviour_commands,
    behaviour_earlier,
    behaviour_labels,
    behaviour_maps,
    behaviour_training,
)
from tests.benchmarks.behaviour_common import Case

GATHERED: dict[str, Case] = {
    **behaviour_labels.CASES,
    **behaviour_maps.CASES,
    **behaviour_training.CASES,
    **behaviour_checks.CASES,
    **behaviour_commands.CASES,
}

# What no run has twice, by what stands in its place.
VOLATILE = {
    "<picture>": r"data:image/png;base64,[A-Za-z0-9+/=]*",
    "<time>": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?",
    "<sum>": r"\b[0-9a-f]{16,64}\b",
    "<version>": rf"(?<![\d.]){re.escape(vi.__version__)}(?![\d.])",
}


# Sums --------------------------------------------------------------------------------------------


def digest(value: object) -> str:
    """The first 16 digits of the SHA-256 of a result."""
    total = sha256()
    for part in pieces(value):
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()[:16]


def pieces(value: object) -> Iterator[bytes]:
    """A result as bytes: of tensors and arrays type, shape and numbers, of labelled data every
    variable by name, of text what :func:`stable` leaves, of ``bytes`` all of them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        yield f"array {array.dtype.kind} {array.shape}".encode()
        if array.dtype.kind in "OUS":
            yield from pieces([str(one) for one in array.flat])
        else:
            yield str(array.dtype).encode()
            yield np.ascontiguousarray(array).tobytes()
    elif isinstance(value, xr.DataArray):
        yield from pieces((str(value.name), value.to_dataset(name="data")))
    elif isinstance(value, xr.Dataset):
        yield b"dataset"
        for name in sorted(map(str, value.variables)):
            variable = value.variables[name]
            kind = "coordinate" if name in value.coords else "variable"
            yield from pieces((kind, name, list(map(str, variable.dims)), variable.values))
            yield from pieces(variable.attrs)
        yield from pieces(value.attrs)
    elif isinstance(value, Mapping):
        yield f"table {len(value)}".encode()
        for name in sorted(map(str, value)):
            yield name.encode()
            yield from pieces(value[name])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for one in value:
            yield from pieces(one)
    elif isinstance(value, str):
        yield b"text"
        yield stable(value).encode()
    elif isinstance(value, bytes):
        yield b"bytes"
        yield value
    elif isinstance(value, bool | int | float | None):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        raise TypeError(f"no sum is known for a {type(value).__name__}")


def stable(text: str) -> str:
    """Text without what no run has twice."""
    text = text.replace(str(Path.cwd()), "<folder>")
    for name, pattern in VOLATILE.items():
        text = re.sub(pattern, name, text)
    return text


# Cases -------------------------------------------------------------------------------------------


class Messages(logging.Handler):
    """What the package logs, as pairs of level and text."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def run(case: Case) -> dict[str, Any]:
    """The results of a case at fixed seeds, and what the package logged and warned of."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  a simulator of a user may draw from it
    random.seed(0)
    messages, logger = Messages(), logging.getLogger("vfm_inverse")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(messages)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = dict(case())
    finally:
        logger.removeHandler(messages)
    ours = [w for w in caught if w.category.__module__.startswith("vfm_inverse")]
    told = [(w.category.__name__, str(w.message)) for w in ours] + messages.lines
    return {**results, "told": told} if told else results


def gather(cases: Mapping[str, Case], only: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Sums by name, printed as they come, and the names of the cases that failed."""
    sums: dict[str, str] = {}
    failed = []
    for name, case in cases.items():
        if only and not name.startswith(only):
            continue
        start = time.process_time()
        try:
            results = run(case)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        for part, value in results.items():
            sums[f"{name}: {part}"] = found = digest(value)
            print(f"{found}  {name}: {part}", flush=True)
        print(f"{time.process_time() - start:6.1f} s  {name}", file=sys.stderr, flush=True)
    return sums, failed


def compare(sums: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """What differs, is missing and is new, a line each."""
    lines = [f"differs  {name}" for name in sums if before.get(name, sums[name]) != sums[name]]
    lines += [f"missing  {name}" for name in before if name not in sums]
    return lines + [f"new      {name}" for name in sums if name not in before]


def main() -> int:
    """Print the sums, keep them or hold them against others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the sums by name")
    parser.add_argument("--against", type=Path, metavar="FILE.json", help="sums to compare with")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX")
    args = parser.parse_args()
    torch.set_num_threads(1)
    only, cases, start = tuple(args.only), dict(GATHERED), time.process_time()
    if args.checkpoint is not None:
        cases |= behaviour_earlier.of_files(args.checkpoint.absolute())
    before = None if args.against is None else json.loads(args.against.read_text())
    save = None if args.save is None else args.save.absolute()
    with tempfile.TemporaryDirectory() as folder, chdir(Path(folder).resolve()):
        sums, failed = gather(cases, only)
    spent = time.process_time() - start
    print(f"{len(sums)} results in {spent:.0f} s of one core", file=sys.stderr)
    if save is not None:
        save.write_text(json.dumps(sums, indent=1) + "\n")
    lines = [f"failed   {name}" for name in failed]
    if before is not None:
        before = {name: one for name, one in before.items() if not only or name.startswith(only)}
        lines += compare(sums, before)
        print(f"{len(before)} results before, {len(lines)} differences")
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
