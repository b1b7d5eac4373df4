"""The subcommands of the command line, each from its arguments to an exit code.

torch and deepinv take seconds to import, so every subcommand imports them for itself and
``--help`` does not wait.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfm_inverse.card import standing
from vfm_inverse.config import RunConfig, check_keys, read_config
from vfm_inverse.console import emit, say
from vfm_inverse.settings import check_settings

if TYPE_CHECKING:
    from xarray import Dataset

    from vfm_inverse.posterior import VariationalFlowMap

__all__ = ["SUBCOMMANDS", "conclude", "settings_of"]

NOT_CHECKED = {
    "verdict": "not checked",
    "reason": "'vfm-inverse calibrate RUN --corrected' checks it",
}


def list_problems(args: argparse.Namespace) -> int:
    """``vfm-inverse problems``."""
    from vfm_inverse import problems

    table = problems.available()
    if args.json:
        return emit({"problems": table})
    width = max(map(len, table))
    for name, summary in table.items():
        say(f"{name:{width}}  {summary}")
    return 0


def train(args: argparse.Namespace) -> int:
    """``vfm-inverse train``."""
    config = settings_of(args)

    from vfm_inverse import problems, runs
    from vfm_inverse.build import build
    from vfm_inverse.calibration import calibrate as check_calibration
    from vfm_inverse.corrected_runs import prior_map_of_run
    from vfm_inverse.files import locked
    from vfm_inverse.objective import Objective
    from vfm_inverse.training import fit

    check_keys("model", config.model, build, reserved=["problem"])
    ours = ["vfm", "problem", "checkpoint_dir", "resume", "progress"]
    check_keys("fit", config.fit, fit, reserved=ours)
    ours = ["posterior_fn", "problem", "quantities", "seed", "provenance", "progress"]
    check_keys("calibration", config.calibration, check_calibration, reserved=ours)
    for section in ("model", "fit", "calibration"):
        check_settings(section, getattr(config, section), section)
    if isinstance(terms := config.fit.get("objective"), dict):
        check_keys("fit.objective", terms, Objective, reserved=["vfm"])
        check_settings("objective", terms, "fit.objective")

    with locked(args.out):
        goes_on = (args.out / runs.STATE).exists()
        if args.resume:
            runs.check_resume(args.out, config)
        elif goes_on or (args.out / runs.MODEL).exists():
            raise ValueError(
                f"'{args.out}' already holds a run: continue it with --resume, or choose another "
                "--out"
            )
        problem = problems.load(config.problem, **config.problem_kwargs)
        vfm = build(problem, **config.model)
        if not goes_on:
            runs.write_settings(args.out, config)
        bar, seed = not args.json, args.seed or 0
        fit(vfm, problem, **config.fit, checkpoint_dir=args.out, resume=args.resume, progress=bar)
        if goes_on:
            runs.write_settings(args.out, config)
        checked = runs.calibrate_run(
            args.out, vfm, problem, seed=seed, progress=bar, **config.calibration
        )
        runs.report_run(args.out, vfm, problem, checked, seed=seed)
        if args.prior_map:
            prior_map_of_run(args.out, vfm, problem, progress=bar)
    return conclude(args, checked, args.out)


def sample(args: argparse.Namespace) -> int:
    """``vfm-inverse sample``."""
    from vfm_inverse.observations import read_observation
    from vfm_inverse.runs import check_output, open_run
    from vfm_inverse.streaming import sample_to_netcdf
    from vfm_inverse.training import resolve_device

    check_output(args.out, args.folder, args.observation)
    vfm, problem = open_run(args.folder, resolve_device(args.device))
    y, params, labels = read_observation(args.observation, problem)
    given: dict[str, Any] = {"params": params, "seed": args.seed, "observation": labels}
    sample_to_netcdf(vfm, problem, y, args.num_draws, args.out, **given)
    done = {"draws": args.num_draws, "observations": len(y), "file": str(args.out)}
    if args.json:
        return emit(done | shown_standing(vfm))
    say(f"{done['draws']} draws for {done['observations']} observation(s) in {done['file']}")
    say(f"calibration of the map: {standing(vfm)[0]}")
    return 0


def correct(args: argparse.Namespace) -> int:
    """``vfm-inverse correct``."""
    from vfm_inverse.corrected_runs import prior_map_of_run
    from vfm_inverse.correction import auto
    from vfm_inverse.labelled import save_netcdf, to_xarray
    from vfm_inverse.observations import read_observation
    from vfm_inverse.runs import check_output, open_run
    from vfm_inverse.training import resolve_device

    check_output(args.out, args.folder, args.observation)
    vfm, problem = open_run(args.folder, resolve_device(args.device))
    y, params, labels = read_observation(args.observation, problem)
    prior_map = prior_map_of_run(args.folder, vfm, problem, progress=not args.json)
    ensemble = auto(
        vfm,
        y,
        args.num_draws,
        prior_map=prior_map,
        seed=args.seed,
        progress=not args.json,
        **params,
    )
    provenance = {**vfm.provenance(), "seed": args.seed}
    if prior_map is not None:
        known = prior_map.config["prior"]
        provenance |= {f"prior_map_{name}": known[name] for name in ("verdict", "reason")}
    draws = to_xarray(
        ensemble, problem, y, params=params, provenance=provenance, observation=labels
    )
    save_netcdf(draws, args.out)
    satisfied = int(ensemble.diagnostics["satisfied"].sum())
    done = {
        "draws": args.num_draws,
        "observations": len(y),
        "satisfied": satisfied,
        "notes": list(ensemble.notes),
        "file": str(args.out),
        "interrupted": ensemble.interrupted,
    }
    code = 130 if ensemble.interrupted else 0
    after = (vfm.card and vfm.card.corrected) or NOT_CHECKED
    if args.json:
        told = {f"{name}_corrected": after[name] for name in ("verdict", "reason")}
        return emit(done | shown_standing(vfm) | told) or code
    for i, note in enumerate(ensemble.notes):
        say(f"observation {i}: {note}")
    if prior_map is not None:
        say(f"map of the prior: {known['verdict']}: {known['reason']}")
    say(f"{args.num_draws} draws for {len(y)} observation(s) in {args.out}")
    say(f"calibration of the map, before correction: {standing(vfm)[0]}")
    say(f"calibration after correction: {after['verdict']}: {after['reason']}")
    return code


def calibrate(args: argparse.Namespace) -> int:
    """``vfm-inverse calibrate``."""
    from vfm_inverse.corrected_runs import calibrate_corrected_run
    from vfm_inverse.runs import calibrate_run, open_run
    from vfm_inverse.training import resolve_device

    # That it was not checked yet is why it is checked now.
    vfm, problem = open_run(args.folder, resolve_device(args.device), warn=False)
    check: Callable[..., Dataset] = calibrate_run
    simulations, draws = 1000, 1000
    if args.corrected:
        check, simulations, draws = calibrate_corrected_run, 200, 128
    checked = check(
        args.folder,
        vfm,
        problem,
        num_simulations=args.num_simulations or simulations,
        num_draws=args.num_draws or draws,
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
        return emit({"report": str(page)} | shown_standing(vfm))
    say(page)
    return 0


def verify(args: argparse.Namespace) -> int:
    """``vfm-inverse verify``."""
    from vfm_inverse.verification import verify_targets

    results = []
    for result in verify_targets(args.target, every=args.all, seed=args.seed):
        results.append(result)
        if not args.json:
            say(result)
    failed = [result.name for result in results if not result.passed]
    if args.json:
        emit({"passed": not failed, "operators": [result.to_dict() for result in results]})
    else:
        say(
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


SUBCOMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "problems": list_problems,
    "train": train,
    "sample": sample,
    "correct": correct,
    "calibrate": calibrate,
    "report": report,
    "verify": verify,
    "demo": demo,
}


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
    except (ValueError, RecursionError):
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
    say(f"calibration     {result['verdict']}: {result['reason']}")
    say(f"90 % intervals  hold the truth in {100 * result['coverage_90']:.1f} % of cases")
    say(f"CRPS            {result['crps']:.4g}")
    say(f"energy score    {result['energy_score']:.4g}")
    say(f"written to      {folder}")
    return 0


def shown_standing(vfm: VariationalFlowMap) -> dict[str, str]:
    """Verdict on the map as it is, for machines."""
    verdict, reason = standing(vfm)
    return {"calibration": verdict, "calibration_reason": reason}
