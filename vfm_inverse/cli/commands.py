"""The subcommands of the command line, each from its arguments to an exit code.

torch and deepinv take seconds to import, so every subcommand imports them for itself and
``--help`` does not wait.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfm_inverse.cli.console import emit, say
from vfm_inverse.posterior.card import Card
from vfm_inverse.runtime.config import Recipe, RunConfig, read_config, recipe_of

if TYPE_CHECKING:
    from xarray import Dataset

    from vfm_inverse.posterior.variational import VariationalFlowMap
    from vfm_inverse.problem.inverse_problem import InverseProblem

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

    from vfm_inverse.posterior.variational import VariationalFlowMap
    from vfm_inverse.runs import folder as runs
    from vfm_inverse.runs.config_checks import check_config
    from vfm_inverse.runs.corrected import prior_map_of_run
    from vfm_inverse.runs.recipes import make_problem
    from vfm_inverse.runtime.files import CONFIG, locked
    from vfm_inverse.training.loop import fit
    from vfm_inverse.training.run_settings import write_settings

    check_config(config)
    with locked(args.out):
        goes_on = (args.out / runs.STATE).exists()
        if args.resume:
            runs.check_resume(args.out, config)
            if not goes_on:
                say(f"no checkpoint in '{args.out}' yet: training starts at step 0", sys.stderr)
        elif goes_on or any((args.out / name).exists() for name in (runs.MODEL, CONFIG)):
            raise ValueError(
                f"'{args.out}' already holds a run: continue it with --resume, or choose another "
                "--out"
            )
        home = Path(args.target).parent if args.target.endswith(".toml") else Path.cwd()
        problem = make_problem(Recipe(config.problem, home.absolute()))
        bar, seed = not args.json, args.seed or 0
        vfm = VariationalFlowMap.for_problem(problem, **config.model, progress=bar)
        if not goes_on:
            write_settings(args.out, config, problem)
        fit(vfm, problem, **config.fit, checkpoint_dir=args.out, resume=args.resume, progress=bar)
        if goes_on:
            write_settings(args.out, config, problem)
        sizes = runs.size_of_check(vfm) | config.calibration
        checked = runs.calibrate_run(args.out, vfm, problem, seed=seed, progress=bar, **sizes)
        runs.report_run(args.out, vfm, problem, checked, seed=seed)
        if args.prior_map:
            prior_map_of_run(args.out, vfm, problem, progress=bar)
    return conclude(args, checked, args.out)


def sample(args: argparse.Namespace) -> int:
    """``vfm-inverse sample``."""
    from vfm_inverse.labelled.blocks import sample_to_netcdf
    from vfm_inverse.labelled.read import read_observation
    from vfm_inverse.runs.folder import check_output

    quantiles = quantiles_of(args)
    check_output(args.out, args.folder, args.observation)
    vfm, problem = opened_run(args)
    y, params, labels = read_observation(args.observation, problem)
    given: dict[str, Any] = {"params": params, "seed": args.seed, "observation": labels}
    given |= {"quantiles": quantiles, "keep_draws": args.draws, "raw": args.raw}
    sample_to_netcdf(vfm, problem, y, args.num_draws, args.out, **given)
    done = {"draws": args.num_draws, "observations": len(y), "file": str(args.out)}
    exact = vfm.resamples and not args.raw
    if args.json:
        return emit(done | shown_standing(vfm) | ({"exact": True} if exact else {}))
    what = f"{'exact ' * exact}draws" if quantiles is None else "draws, summarised,"
    say(f"{done['draws']} {what} for {done['observations']} observation(s) in {done['file']}")
    say(f"calibration of the map: {vfm.standing()[0]}")
    return 0


def correct(args: argparse.Namespace) -> int:
    """``vfm-inverse correct``."""
    from vfm_inverse.correction import auto
    from vfm_inverse.labelled.read import read_observation
    from vfm_inverse.labelled.write import save_netcdf, summary, to_xarray
    from vfm_inverse.runs.corrected import prior_map_of_run
    from vfm_inverse.runs.folder import check_output

    quantiles = quantiles_of(args)
    check_output(args.out, args.folder, args.observation)
    vfm, problem = opened_run(args)
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
    if quantiles is not None:
        draws = summary(draws, quantiles, keep_draws=args.draws)
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
    say(f"calibration of the map, before correction: {vfm.standing()[0]}")
    say(f"calibration after correction: {after['verdict']}: {after['reason']}")
    return code


def calibrate(args: argparse.Namespace) -> int:
    """``vfm-inverse calibrate``."""
    from vfm_inverse.runs.corrected import calibrate_corrected_run
    from vfm_inverse.runs.folder import EXACT_DRAWS, calibrate_run

    # That it was not checked yet is why it is checked now.
    vfm, problem = opened_run(args, warn=False)
    check: Callable[..., Dataset] = calibrate_run
    simulations, draws = 1000, EXACT_DRAWS if vfm.resamples else 1000
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
    from vfm_inverse.runs.folder import open_calibration, report_run

    vfm, problem = opened_run(args)
    checked = open_calibration(args.folder)
    page = report_run(args.folder, vfm, problem, checked, seed=args.seed)
    if args.json:
        return emit({"report": str(page)} | shown_standing(vfm))
    say(page)
    return 0


def verify(args: argparse.Namespace) -> int:
    """``vfm-inverse verify``."""
    from vfm_inverse.cli.verify import verify_targets

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
    from vfm_inverse.cli.demo import run_demo

    sizes = {} if args.steps is None else {"steps": args.steps}
    figures = run_demo(args.out, seed=args.seed, device=args.device, quiet=args.json, **sizes)
    return emit(figures) if args.json else 0


def inspect(args: argparse.Namespace) -> int:
    """``vfm-inverse inspect``."""
    from vfm_inverse.runs.inspection import in_lines, inspect_path

    found = inspect_path(args.path)
    if args.json:
        return emit(found)
    for line in in_lines(args.path, found):
        say(line)
    return 0


def new(args: argparse.Namespace) -> int:
    """``vfm-inverse new``."""
    from vfm_inverse.declared.starters import write_starter

    given = {"source": args.source, "stations": args.stations, "physics": args.physics}
    path, target = write_starter(args.out, **given, module=args.code)
    command = f"vfm-inverse train {target} --out runs/{path.stem}"
    if args.json:
        return emit({"file": str(path), "command": command})
    say(f"{path} is written; read it, then: {command}")
    return 0


SUBCOMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "new": new,
    "problems": list_problems,
    "inspect": inspect,
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
    tables: dict[str, Any] = {"problem": {"object" if ":" in args.target else "name": args.target}}
    if args.target.endswith(".toml"):
        tables = asdict(read_config(args.target))
    for setting in args.set:
        section, dot, key = setting.partition("=")[0].strip().partition(".")
        if not dot or "=" not in setting:
            raise ValueError(f"'--set' must be SECTION.KEY=VALUE; got {setting!r}")
        tables.setdefault(section, {})[key] = parsed(setting.partition("=")[2])
    options = ["steps", "minutes", "batch_size", "seed", "device"]
    chosen = {key: getattr(args, key) for key in options if getattr(args, key) is not None}
    if "minutes" in chosen:  # a number of steps in the file would contradict it
        chosen = {"steps": "auto", **chosen}
    tables["fit"] = {"steps": "auto", **tables.get("fit", {}), **chosen}
    if args.seed is not None:
        tables["model"] = {**tables.get("model", {}), "seed": args.seed}
    return RunConfig.from_tables(tables)


def opened_run(
    args: argparse.Namespace, *, warn: bool = True
) -> tuple[VariationalFlowMap, InverseProblem]:
    """The map of the run that is named, and its problem or the one that is named instead."""
    from vfm_inverse.runs.folder import open_run
    from vfm_inverse.runs.recipes import make_problem
    from vfm_inverse.training.loop import resolve_device

    device = resolve_device(args.device)
    problem = None if args.problem is None else make_problem(recipe_of(args.problem))
    return open_run(args.folder, device, problem=problem, warn=warn)


def parsed(text: str) -> Any:
    """A value as TOML reads it; what is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def conclude(args: argparse.Namespace, checked: Dataset, folder: Path) -> int:
    """Say how the calibration went, for people or for machines."""
    from vfm_inverse.calibration.grading import grades
    from vfm_inverse.calibration.verdict import state_skill

    given, level = grades(checked), checked.coverage_map.sel(level=0.9)
    result = {
        "verdict": checked.attrs["verdict"],
        "reason": checked.attrs["reason"],
        "coverage_90": float(level.mean()),
        "crps": float(checked.crps.mean()),
        "energy_score": float(checked.energy_score.mean()),
        "training": Card.from_json(checked.attrs["calibration_card"]).training,
        "grades": [one._asdict() for one in given],
        "folder": str(folder),
    }
    if args.json:
        return emit(result)
    if result["training"]:
        say(f"{'training':<20}{result['training']}")
    for one in given:
        say(f"{one.aspect:<20}{one.grade:<12}{one.size}")
    if made := checked.attrs.get("draws"):
        say(f"{'draws':<20}{made}")
    say(f"{'strict verdict':<20}{result['verdict']:<12}{result['reason']}")
    fields, num = checked.attrs.get("num_held_out_fields"), checked.attrs["num_simulations"]
    if fields is not None and fields < num:
        again = f"{fields} for {num} simulations: they repeat, and the p-values take them for new"
        say(f"{'held-out fields':<20}{again}")
    crps = [f"{result['crps']:.4g}", state_skill(checked)]
    say(f"{'CRPS':<20}{', '.join(filter(None, crps))}")
    say(f"{'energy score':<20}{result['energy_score']:.4g}")
    say(f"{'written to':<20}{folder}")
    return 0


def quantiles_of(args: argparse.Namespace) -> tuple[float, ...] | None:
    """Levels of the summary that was asked for, None where the draws were."""
    from vfm_inverse.statistics.summaries import QUANTILES, levels

    if args.summary:
        return levels(QUANTILES if args.quantiles is None else args.quantiles)
    if args.draws or args.quantiles is not None:
        raise ValueError("'--draws' and '--quantiles' go with '--summary'; it is missing")
    return None


def shown_standing(vfm: VariationalFlowMap) -> dict[str, str]:
    """Verdict on the map as it is, for machines."""
    verdict, reason = vfm.standing()
    return {"calibration": verdict, "calibration_reason": reason}
