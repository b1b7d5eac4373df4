"""The certified gallery: train every problem with its setting, check its draws, write the tables.

``python -m tests.benchmarks.certify [NAME ...]`` takes every problem of the package, or those
named, through ``vfm-inverse train`` with its setting of
:mod:`tests.benchmarks.certify_settings`, checks the draws as they are sampled and, where there is
a likelihood, as ``correction.auto`` corrects them, and writes

- ``docs/certified/NAME.json``, the certificate, from which the pages can be written again,
- the table of ``docs/problems.md``, picture and figures of ``docs/problems/NAME.md``.

A problem with a certificate of the same setting is left as it is (``--again`` makes it anew), and
one that was interrupted goes on where it was. A problem that fails to run is named, and the others
go on; the exit code is then 1. ``--pages`` writes the pages only. ``--quick`` is a smoke test, and
``--ship`` packs maps that pass for :mod:`vfm_inverse.runs.zoo`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from tests.benchmarks.certify_figures import checked, exact_score, misfits, times
from tests.benchmarks.certify_pages import BEGIN, END, figures, put, table
from tests.benchmarks.certify_settings import Setting, setting_of
from tests.benchmarks.common import rounded
from tests.benchmarks.problem_pictures import picture
from vfm_inverse import problems
from vfm_inverse.cli import program as cli
from vfm_inverse.formats.netcdf_files import read_netcdf
from vfm_inverse.posterior.card import told_of_prior
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs import folder as runs
from vfm_inverse.runs.corrected import calibrate_corrected_run
from vfm_inverse.runs.zoo import ship
from vfm_inverse.runtime.files import replacing
from vfm_inverse.runtime.version import __version__

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped."""

SETTING = "setting.json"
"""What the folder of a run was made with."""


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def certified(name: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Train and check one problem, or what is not done of it yet.

    Args:
        name: of the problem.
        setting: how.
        folder: of its run; emptied where it is a run of another setting.

    Returns:
        The certificate.

    Raises:
        RuntimeError: the training or its check ended with an error.
    """
    problem = problems.load(name, **setting.problem)
    setting = setting.settled(problem.field_shape.numel())
    begin_folder(folder, setting)
    if not (folder / runs.CALIBRATION).is_file():
        say(f"{name}: training, then {setting.simulations} simulations x {setting.draws} draws")
        command = [*setting.train(name, folder), "--resume", "--json"]
        told = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            code = cli.main(command)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            last = (told.getvalue().strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"training ended with code {code}: {last}")
    vfm, problem = runs.open_run(folder, warn=False)
    report = runs.open_calibration(folder)
    corrected = corrected_check(name, setting, folder, vfm, problem)
    observation, draw = times(vfm, problem)
    return {
        "problem": name,
        "setting": setting.table(),
        "raw": checked(report),
        "corrected": corrected,
        "misfit": misfits(vfm, problem),
        "energy_score_exact": exact_score(problem, report),
        "ms_observation": observation,
        "ms_draw": draw,
        "training_minutes": training_minutes(folder),
        "training": vfm.training_note,
        "prior": told_of_prior(vfm.config),
        "start": vfm.config.get("start"),
        "weights_sha256": vfm.weights_fingerprint(),
        "machine": f"{processor()}, torch {torch.__version__}",
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def begin_folder(folder: Path, setting: Setting) -> None:
    """An empty folder for a run, or that of a run of the same setting; the check of corrected
    draws may be another one."""
    told = folder / SETTING
    wanted = json.dumps({k: v for k, v in setting.table().items() if "corrected" not in k})
    if told.is_file() and told.read_text() != wanted:
        shutil.rmtree(folder)
    elif folder.is_dir() and any(folder.iterdir()) and not told.is_file():
        raise RuntimeError(f"'{folder}' is no folder of a certificate; choose another --runs")
    folder.mkdir(parents=True, exist_ok=True)
    told.write_text(wanted)


def corrected_check(
    name: str, setting: Setting, folder: Path, vfm: VariationalFlowMap, problem: InverseProblem
) -> dict[str, Any] | None:
    """The check of corrected draws; None where the problem has no likelihood or the setting asks
    for none."""
    if problem.likelihood is None or not setting.corrected_simulations:
        return None
    path = folder / runs.CORRECTED
    num, draws = setting.corrected_simulations, setting.corrected_draws
    if path.is_file():
        found = checked(read_netcdf(path))
        if (found["simulations"], found["draws"]) == (num, draws):
            return found
    say(f"{name}: corrected draws, {num} simulations x {draws} draws")
    try:
        report = calibrate_corrected_run(folder, vfm, problem, num, draws, seed=setting.seed)
    except ValueError as error:
        reason = " ".join(str(error).split())
        return {"verdict": "not possible", "reason": reason, "failing": [], "quantities": 0}
    return checked(report)


def finite(value: Any) -> Any:
    """As JSON has it: None for what is no number."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def training_minutes(folder: Path) -> float:
    """Minutes that the steps of a training took, interruptions left out."""
    with (folder / runs.LOG).open(newline="") as lines:
        seconds = [float(row["seconds"]) for row in csv.DictReader(lines) if row.get("seconds")]
    return max(seconds, default=0.0) / 60


def processor() -> str:
    """The processor, as the system calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or f"{platform.machine()}, {os.cpu_count()} cores"


def save(figure: Figure, path: Path) -> None:
    """Write a picture; one of more than 100 kB in 256 colours."""
    figure.savefig(path, dpi=105)
    if path.stat().st_size > 100_000:
        plain = Image.open(path).convert("RGB")
        plain.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def read_certificates(folder: Path) -> dict[str, dict[str, Any]]:
    """Certificates by the name of their problem."""
    found = (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
    return {one["problem"]: one for one in found}


def write_pages(args: argparse.Namespace) -> None:
    """The table of all problems and the figures of the pages that there are."""
    certificates = read_certificates(args.certificates)
    if args.quick and not (args.docs / "problems.md").exists():
        empty = "\n".join(mark.format("certified") for mark in (BEGIN, END))
        (args.docs / "problems.md").write_text(f"{empty}\n")
    put(args.docs / "problems.md", "certified", table(list(problems.available()), certificates))
    for name, one in certificates.items():
        if (page := args.docs / "problems" / f"{name}.md").is_file():
            put(page, "figures", figures(name, one))


def is_current(name: str, setting: Setting, certificates: Path) -> bool:
    """Whether there is a certificate of this setting."""
    path = certificates / f"{name}.json"
    if not path.is_file():
        return False
    cells = problems.load(name, **setting.problem).field_shape.numel()
    wanted = json.loads(json.dumps(setting.settled(cells).table()))
    return bool(json.loads(path.read_text())["setting"] == wanted)


def certify(name: str, setting: Setting, args: argparse.Namespace) -> None:
    """Certificate, picture and, if asked for, the shipped map of one problem."""
    folder, begin = args.runs / name, time.monotonic()
    if not args.again and is_current(name, setting, args.certificates):
        say(f"{name}: there is a certificate of this setting")
    else:
        if args.again and (folder / SETTING).is_file():
            shutil.rmtree(folder)
        one = finite(rounded(certified(name, setting, folder)))
        vfm, problem = runs.open_run(folder, warn=False)
        pictures = args.docs / "_static" / "problems"
        pictures.mkdir(parents=True, exist_ok=True)
        save(picture(vfm, problem, runs.open_calibration(folder)), pictures / f"{name}.png")
        with replacing(args.certificates / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(one, indent=1, allow_nan=False) + "\n")
        corrected = (one["corrected"] or {"verdict": "none"})["verdict"]
        minutes = (time.monotonic() - begin) / 60
        verdicts = f"raw {one['raw']['verdict']}, corrected {corrected}"
        say(f"{name}: {verdicts} ({minutes:.1f} minutes)")
    if args.ship:
        vfm, problem = runs.open_run(folder, warn=False)
        say(f"{name}: {ship(name, vfm, problem, runs.open_calibration(folder), args.ship)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where a problem could not be certified."""
    args = parser().parse_args(arguments)
    names = args.names or list(problems.available())
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    # A smoke test must not take the place of a certificate.
    args.docs = args.docs or (Path("runs/certified-quick/docs") if args.quick else ROOT / "docs")
    default = "runs/certified-quick" if args.quick else "runs/certified"
    args.runs = args.runs or Path(default)
    args.certificates = args.certificates or args.docs / "certified"
    args.certificates.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for count, name in enumerate([] if args.pages else names, 1):
        say(f"{name}: {count} of {len(names)}")
        try:
            options = {"quick": args.quick, "steps": args.steps, "minutes": args.minutes}
            options |= {"corrected": args.corrected, "seed": args.seed}
            certify(name, setting_of(name, **options), args)
            write_pages(args)
        except Exception as error:  # one problem must not stop the others
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            say(f"{name}: FAILED, {failed[name]}")
    write_pages(args)
    for name, reason in failed.items():
        print(f"not certified: {name}: {reason}", flush=True)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="problems (default: all)")
    parser.add_argument("--quick", action="store_true", help="a smoke test of some seconds each")
    parser.add_argument("--steps", type=lambda text: text if text == "auto" else int(text))
    parser.add_argument("--minutes", type=float, help="of training, with as many steps as fit in")
    text = "simulations that check corrected draws; 0 for none"
    parser.add_argument("--corrected", type=int, metavar="N", help=text)
    parser.add_argument("--seed", type=int, help="in place of that of the setting")
    parser.add_argument("--again", action="store_true", help="what has a certificate too")
    parser.add_argument("--pages", action="store_true", help="write the pages only")
    parser.add_argument("--ship", type=Path, metavar="DIR", help="pack maps that pass into DIR")
    parser.add_argument("--runs", type=Path, help="folder of runs (default: runs/certified)")
    parser.add_argument("--docs", type=Path, help="pages to write (default: those here)")
    parser.add_argument("--certificates", type=Path, help="folder (default: DOCS/certified)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
