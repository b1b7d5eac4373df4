"""The command line: ``vfm-inverse SUBCOMMAND``.

A run lives in a folder (:mod:`vfm_inverse.runs`): ``train`` makes one, the others read it.

Exit codes: 0 success; 1 training diverged, an operator failed its verification, or the calibration
verdict is "fail" and ``--strict`` was given; 2 bad input, with one line on
standard error; 130 interrupted.

torch and deepinv take seconds to import, so every subcommand imports them for itself and
``--help`` does not wait.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfm_inverse import __version__
from vfm_inverse.config import RunConfig, check_keys, read_config

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the arguments; those of the process when missing.
    """
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("vfm-inverse: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if args.debug:
            raise
        print(f"vfm-inverse: error: {one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2


def one_line(error: BaseException) -> str:
    """The message of an error on one line; an operating system's error names its file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: '{error.filename}'"
    return " ".join(str(error).split()) or type(error).__name__


# -------------------------------------------------------------------------------------------------
# Arguments
# -------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="vfm-inverse",
        description="Calibrated posterior draws for inverse problems, with variational flow maps.",
    )
    parser.add_argument("--version", action="version", version=f"vfm-inverse {__version__}")
    commands = parser.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)

    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print one JSON object, no bar")
    output.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def compute(seed: int | None = 0, device: str | None = "auto") -> argparse.ArgumentParser:
        # A parser each: argparse shares the options of a parent, defaults included.
        options = argparse.ArgumentParser(add_help=False)
        options.add_argument("--seed", type=int, default=seed, help="of all draws (default: 0)")
        options.add_argument(
            "--device",
            default=device,
            help="'cpu', 'cuda', ..., or 'auto' (default): a GPU if any",
        )
        return options

    def add(name: str, run: Any, summary: str, *options: Any) -> argparse.ArgumentParser:
        parents = [*options, output]
        sub = commands.add_parser(name, help=summary, description=summary, parents=parents)
        sub.set_defaults(run=run)
        return sub

    add("problems", list_problems, "List the problems that come with the package.")

    # Without defaults: what the command line leaves out, the settings file may say.
    unset = compute(seed=None, device=None)
    sub = add("train", train, "Train a map and check its calibration.", unset)
    sub.add_argument("target", metavar="PROBLEM|CONFIG.toml", help="problem or settings")
    sub.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    sub.add_argument("--steps", type=positive, help="optimiser steps")
    sub.add_argument("--batch-size", type=positive, help="simulations per step")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="one more setting, as in the file: --set problem.size=64; may be repeated",
    )
    sub.add_argument("--resume", action="store_true", help="continue the run in the folder")

    draw = "Draw from the posterior of an observation."
    correction = "Draw, and correct the draws until their diagnostics are satisfied."
    for name, run, summary, num in (
        ("sample", sample, draw, 1000),
        ("correct", correct, correction, 1024),
    ):
        sub = add(name, run, summary, compute())
        sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a trained run")
        sub.add_argument("observation", type=Path, metavar="OBS.nc", help="what was observed")
        sub.add_argument(
            "-n", "--num-draws", type=positive, default=num, help=f"draws (default: {num})"
        )
        sub.add_argument(
            "--out", type=Path, required=True, metavar="POST.nc", help="file to write"
        )

    sub = add("calibrate", calibrate, "Check the calibration of a trained map.", compute())
    sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a trained run")
    sub.add_argument(
        "--num-simulations", type=positive, default=1000, help="simulated truths (default: 1000)"
    )
    sub.add_argument(
        "--num-draws", type=positive, default=1000, help="draws for each of them (default: 1000)"
    )
    sub.add_argument(
        "--strict", action="store_true", help="exit with 1 when the verdict is 'fail'"
    )

    sub = add("report", report, "Write the report page of a run from its files.", compute())
    sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a calibrated run")

    sub = add("verify", verify, "Certify adjoint, derivatives and noise of an operator.")
    sub.add_argument(
        "target", nargs="?", metavar="OPERATOR|PROBLEM|module:object", help="what to verify"
    )
    sub.add_argument("--all", action="store_true", help="every operator of the package")
    sub.add_argument("--seed", type=int, default=0, help="of the random directions (default: 0)")

    sub = add("demo", demo, "Deblur photographs: train, sample, calibrate, draw.", compute())
    sub.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder to write (default: runs/demo)"
    )
    sub.add_argument(
        "--steps", type=positive, help="optimiser steps, for a shorter or longer demo"
    )
    return parser


def positive(text: str) -> int:
    """Argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


# -------------------------------------------------------------------------------------------------
# Subcommands: args -> exit code
# -------------------------------------------------------------------------------------------------


def list_problems(args: argparse.Namespace) -> int:
    """``vfm-inverse problems``."""
    from vfm_inverse import problems

    table = problems.available()
    if args.json:
        return emit({"problems": table})
    width = max(map(len, table))
    for name, summary in table.items():
        print(f"{name:{width}}  {summary}")
    return 0


def train(args: argparse.Namespace) -> int:
    """``vfm-inverse train``."""
    config = settings_of(args)

    from vfm_inverse import problems, runs
    from vfm_inverse.build import build
    from vfm_inverse.calibration import calibrate as check_calibration
    from vfm_inverse.training import fit

    if not args.resume and any((args.out / name).exists() for name in (runs.MODEL, runs.STATE)):
        raise ValueError(
            f"'{args.out}' already holds a run: continue it with --resume, or choose another --out"
        )
    check_keys("model", config.model, build, reserved=["problem"])
    ours = ["vfm", "problem", "checkpoint_dir", "resume", "progress"]
    check_keys("fit", config.fit, fit, reserved=ours)
    ours = ["posterior_fn", "problem", "quantities", "seed", "provenance", "progress"]
    check_keys("calibration", config.calibration, check_calibration, reserved=ours)

    problem = problems.load(config.problem, **config.problem_kwargs)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / runs.CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
    vfm = build(problem, **config.model)
    bar, seed = not args.json, args.seed or 0
    fit(vfm, problem, **config.fit, checkpoint_dir=args.out, resume=args.resume, progress=bar)
    checked = runs.calibrate_run(
        args.out, vfm, problem, seed=seed, progress=bar, **config.calibration
    )
    runs.report_run(args.out, vfm, problem, checked, seed=seed)
    return conclude(args, checked, args.out)


def sample(args: argparse.Namespace) -> int:
    """``vfm-inverse sample``."""
    from vfm_inverse.labelled import load_observation, save_netcdf, to_xarray
    from vfm_inverse.randomness import seeded
    from vfm_inverse.runs import open_run
    from vfm_inverse.training import resolve_device

    vfm, problem = open_run(args.folder, resolve_device(args.device))
    y, params = load_observation(args.observation, problem)
    with seeded(args.seed):
        draws = vfm(y, **params).sample((args.num_draws,))
    provenance = {**vfm.provenance(), "seed": args.seed}
    save_netcdf(to_xarray(draws, problem, y, params=params, provenance=provenance), args.out)
    done = {"draws": args.num_draws, "observations": len(y), "file": str(args.out)}
    if args.json:
        return emit(done)
    print(f"{done['draws']} draws for {done['observations']} observation(s) in {done['file']}")
    return 0


def correct(args: argparse.Namespace) -> int:
    """``vfm-inverse correct``."""
    from vfm_inverse.correction import auto
    from vfm_inverse.labelled import load_observation, save_netcdf, to_xarray
    from vfm_inverse.runs import open_run
    from vfm_inverse.training import resolve_device

    vfm, problem = open_run(args.folder, resolve_device(args.device))
    y, params = load_observation(args.observation, problem)
    ensemble = auto(vfm, y, args.num_draws, seed=args.seed, **params)
    provenance = {**vfm.provenance(), "seed": args.seed}
    save_netcdf(to_xarray(ensemble, problem, y, params=params, provenance=provenance), args.out)
    satisfied = int(ensemble.diagnostics["satisfied"].sum())
    done = {
        "draws": args.num_draws,
        "observations": len(y),
        "satisfied": satisfied,
        "notes": list(ensemble.notes),
        "file": str(args.out),
    }
    if args.json:
        return emit(done)
    for i, note in enumerate(ensemble.notes):
        print(f"observation {i}: {note}")
    print(f"{args.num_draws} draws for {len(y)} observation(s) in {args.out}")
    return 0


def calibrate(args: argparse.Namespace) -> int:
    """``vfm-inverse calibrate``."""
    from vfm_inverse.runs import calibrate_run, open_run
    from vfm_inverse.training import resolve_device

    vfm, problem = open_run(args.folder, resolve_device(args.device))
    checked = calibrate_run(
        args.folder,
        vfm,
        problem,
        num_simulations=args.num_simulations,
        num_draws=args.num_draws,
        seed=args.seed,
        progress=not args.json,
    )
    code = conclude(args, checked, args.folder)
    return 1 if args.strict and checked.attrs["verdict"] != "pass" else code


def report(args: argparse.Namespace) -> int:
    """``vfm-inverse report``."""
    from vfm_inverse.runs import open_calibration, open_run, report_run
    from vfm_inverse.training import resolve_device

    vfm, problem = open_run(args.folder, resolve_device(args.device))
    checked = open_calibration(args.folder)
    page = report_run(args.folder, vfm, problem, checked, seed=args.seed)
    if args.json:
        return emit({"report": str(page)})
    print(page)
    return 0


def verify(args: argparse.Namespace) -> int:
    """``vfm-inverse verify``."""
    from vfm_inverse.verification import verify_targets

    results = []
    for result in verify_targets(args.target, every=args.all, seed=args.seed):
        results.append(result)
        if not args.json:
            print(result, flush=True)
    failed = [result.name for result in results if not result.passed]
    if args.json:
        emit({"passed": not failed, "operators": [result.to_dict() for result in results]})
    else:
        print(
            f"{len(results)} verified, {len(failed)} failed{': ' if failed else ''}"
            + ", ".join(failed)
        )
    return 1 if failed else 0


def demo(args: argparse.Namespace) -> int:
    """``vfm-inverse demo``."""
    from vfm_inverse.demo import run_demo

    sizes = {} if args.steps is None else {"steps": args.steps}
    figures = run_demo(args.out, seed=args.seed, device=args.device, quiet=args.json, **sizes)
    return emit(figures) if args.json else 0


# -------------------------------------------------------------------------------------------------
# What the subcommands share
# -------------------------------------------------------------------------------------------------


def settings_of(args: argparse.Namespace) -> RunConfig:
    """The settings file or the problem's name, with what the command line adds."""
    tables: dict[str, Any] = {"problem": {"name": args.target}}
    if args.target.endswith(".toml"):
        tables = asdict(read_config(args.target))
        tables["problem"] = {"name": tables["problem"], **tables.pop("problem_kwargs")}
    for setting in args.set:
        section, dot, key = setting.partition("=")[0].strip().partition(".")
        if not dot or "=" not in setting:
            raise ValueError(f"'--set' must be SECTION.KEY=VALUE; got {setting!r}")
        tables.setdefault(section, {})[key] = parsed(setting.partition("=")[2])
    options = ["steps", "batch_size", "seed", "device"]
    chosen = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    tables["fit"] = {**tables.get("fit", {}), **chosen}
    if args.seed is not None:
        tables["model"] = {**tables.get("model", {}), "seed": args.seed}
    return RunConfig.from_tables(tables)


def parsed(text: str) -> Any:
    """A value as TOML reads it; what is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def conclude(args: argparse.Namespace, checked: Dataset, folder: Path) -> int:
    """Say how the calibration went, for people or for machines."""
    level = checked.coverage_map.sel(level=0.9)
    result = {
        "verdict": checked.attrs["verdict"],
        "reason": checked.attrs["reason"],
        "coverage_90": float(level.mean()),
        "crps": float(checked.crps.mean()),
        "energy_score": float(checked.energy_score.mean()),
        "folder": str(folder),
    }
    if args.json:
        return emit(result)
    print(f"calibration     {result['verdict']}: {result['reason']}")
    print(f"90 % intervals  hold the truth in {100 * result['coverage_90']:.1f} % of cases")
    print(f"CRPS            {result['crps']:.4g}")
    print(f"energy score    {result['energy_score']:.4g}")
    print(f"written to      {folder}")
    return 0


def emit(result: dict[str, Any]) -> int:
    """Print the result for machines."""
    print(json.dumps(result))
    return 0
