"""What the page of a problem shows: train it from the command line, check it, draw it.

Run with ``python -m tests.benchmarks.problem_gallery NAME ...``. Each problem goes through
``vfm-inverse train`` with its defaults and the few settings of :data:`SETTINGS`, which keep a run
within minutes of one core; a run that is already there is only drawn again. The figures are
printed and put into ``docs/problems/NAME.md``, between its two marks; the picture goes to
``docs/_static/problems``.

``energy_score_start`` is that of the untrained map, the classical answer; ``_prior`` of draws that
ignore the observation, ``_exact`` of the exact posterior where there is one. All four are means
over the same held-out simulations.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tests.benchmarks.common import rounded
from tests.benchmarks.problem_pictures import picture
from vfm_inverse import problems
from vfm_inverse.cli import program as cli
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs import folder as runs
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.statistics.scores import energy_score

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"

SETTINGS: dict[str, tuple[int, int]] = {
    "heat": (100, 64),
    "gravity": (100, 64),
    "travel-time": (100, 64),
    "advection-diffusion": (100, 64),
    "gaussian-field": (100, 64),
    "seismic-deconvolution": (500, 128),
    "linear-gaussian": (500, 128),
    "increments": (500, 128),
    "rotated-gaussian": (500, 128),
    "lognormal-field": (2000, 128),
    "darcy": (500, 64),
    "darcy-64": (2000, 64),
    "travel-time-eikonal": (500, 64),
    "lorenz96-window": (2000, 64),
    "fwi-small": (150, 32),
    "ct": (400, 32),
    "mri": (400, 32),
    "photo-deblur": (500, 64),
    "photo-inpaint": (500, 64),
}
"""Optimiser steps and simulations a step. The start is exact for the linear Gaussian problems, so
that training has nothing to find there; the others stop while they still improve."""

VECTOR = (2000, 128)

FURTHER = {"fwi-small": {"model.num_simulations": 8000}}
"""Where a simulation takes milliseconds, fewer of them for the Gaussian start."""

EFFORT = {0: (1000, 255, 512), 16 * 16: (300, 63, 64), 24 * 24: (200, 39, 64)}
"""Cells of a field: simulations and draws of the calibration, simulations of a validation."""


def command(name: str, folder: Path, cells: int) -> list[str]:
    """Arguments of ``vfm-inverse`` that train the problem."""
    steps, batch = SETTINGS.get(name, VECTOR)
    simulations, draws, validation = EFFORT[max(size for size in EFFORT if size <= cells)]
    sets = {
        "fit.num_validation": validation,
        "fit.validations": 2,
        "calibration.num_simulations": simulations,
        "calibration.num_draws": draws,
        **FURTHER.get(name, {}),
    }
    return [
        *("train", name, "--out", str(folder)),
        *("--steps", str(steps), "--batch-size", str(batch)),
        *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")),
    ]


def trained(name: str, folder: Path, problem: InverseProblem) -> dict[str, Any]:
    """Train and calibrate as the command line does, unless the run is there already."""
    done = folder / "gallery.json"
    if done.is_file():
        return json.loads(done.read_text())
    arguments = command(name, folder, problem.field_shape.numel())
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main([*arguments, "--json"])
    if code:
        raise RuntimeError(f"vfm-inverse {' '.join(arguments)} ended with code {code}")
    shown = [*arguments[:3], f"runs/{name}", *arguments[4:]]
    record = {
        "command": f"vfm-inverse {' '.join(shown)}",
        "cpu_seconds": time.process_time() - begin,
    }
    done.write_text(json.dumps(record))
    return record


def mean_score(
    sample: Callable[..., Tensor], problem: InverseProblem, report: xr.Dataset
) -> float:
    """Mean energy score of other draws, on the simulations of the report."""
    num, draws, seed = (int(report.attrs[k]) for k in ("num_simulations", "num_draws", "seed"))
    x, y, params = problem.simulate(num, split="test", seed=seed)
    values = []
    for rows in torch.arange(num).split(50):
        with seeded(int(rows[0])):
            seen = {name: value[rows] for name, value in params.items()}
            values.append(energy_score(sample(draws, y[rows], seen), x[rows]))
    return float(torch.cat(values).mean())


def figures_of(
    vfm: VariationalFlowMap, problem: InverseProblem, report: xr.Dataset
) -> dict[str, Any]:
    """Verdict, coverage and energy scores."""

    def start(num: int, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        law = vfm.condition(y, params).start
        return vfm.whitening.unwhiten(law.sample((num,)))

    def prior(num: int, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        x = problem.sample_prior(num * len(y))
        return x.unflatten(0, (num, len(y)))

    def exact(num: int, y: Tensor, params: dict[str, Tensor]) -> Tensor:
        return problem.reference_posterior(y, **params).sample((num,))

    worst = report.isel(quantity=int(report.p_adjusted.values.argmin()))
    failing = report.p_adjusted <= report.attrs["alpha"]
    score = float(report.energy_score.mean())
    figures = {
        "verdict": report.attrs["verdict"],
        "reason": report.attrs["reason"],
        "failing": f"{int(failing.sum())} of {report.sizes['quantity']}",
        "worst_quantity": str(worst.quantity.item()),
        "coverage_90": float(report.coverage_map.sel(level=0.9).mean()),
        "chi2_per_dof": float(report.chi2_per_dof_map.mean()),
        "energy_score": score,
        "energy_score_start": mean_score(start, problem, report),
        "energy_score_prior": mean_score(prior, problem, report),
        "simulations": int(report.attrs["num_simulations"]),
        "draws": int(report.attrs["num_draws"]),
    }
    _, y, params = problem.simulate(1, seed=0)
    if problem.reference_posterior(y, **params) is not None:
        figures["energy_score_exact"] = mean_score(exact, problem, report)
    figures["skill_start"] = 1 - score / figures["energy_score_start"]
    figures["skill_prior"] = 1 - score / figures["energy_score_prior"]
    return figures


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{100 * value:.1f} %"


def page(name: str, record: dict[str, Any], title: str) -> str:
    """What stands between the marks of a page: the picture, and the figures as a table."""
    score = record["energy_score"]
    scores = [f"{score:.4g} with this map", f"{record['energy_score_start']:.4g} untrained"]
    if "energy_score_exact" in record:
        scores.append(f"{record['energy_score_exact']:.4g} exact")
    scores.append(f"{record['energy_score_prior']:.4g} from the prior")
    verdict = f"**{record['verdict']}**: {record['reason']}"
    checked = f"{record['simulations']} simulations of {record['draws']} draws"
    rows = {
        "calibration": verdict,
        "90 % intervals hold": f"{percent(record['coverage_90'])} of the truths ({checked})",
        "energy score": ", ".join(scores),
        "skill (lower score)": f"{percent(record['skill_start'])} over the untrained map, "
        f"{percent(record['skill_prior'])} over the prior",
        "training and check": f"{record['cpu_seconds']:.0f} s of one core at 2.5 GHz",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return (
        f"![{title}](../_static/problems/{name}.png)\n\n| | |\n|---|---|\n{table}\n"
        f"`python -m tests.benchmarks.problem_gallery {name}` makes picture and figures, from\n\n"
        f"```console\n$ {record['command']}\n```\n"
    )


def save(figure: Figure, path: Path) -> None:
    """Write a picture; one of more than 100 kB in 256 colours."""
    figure.savefig(path, dpi=105)
    if path.stat().st_size > 100_000:
        plain = Image.open(path).convert("RGB")
        plain.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def put(path: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    old = path.read_text()
    head, _, rest = old.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"'{path}' has no lines '{BEGIN}' and '{END}'")
    path.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{tail}")


def main(args: argparse.Namespace) -> None:
    """Train, check and draw the problems, one after the other."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        folder = args.runs / name
        record = trained(name, folder, problems.load(name))
        vfm, problem = runs.open_run(folder)
        report = runs.open_calibration(folder)
        if "energy_score" not in record:
            record |= figures_of(vfm, problem, report)
            (folder / "gallery.json").write_text(json.dumps(record))
        save(picture(vfm, problem, report, seed=args.seed), args.out / f"{name}.png")
        title = f"Truth, observation, posterior and calibration of {name}"
        put(ROOT / "docs" / "problems" / f"{name}.md", page(name, record, title))
        print(json.dumps({"problem": name, **rounded(record)}, indent=2), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(problems.available()), metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="folder of runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "_static" / "problems")
    parser.add_argument("--seed", type=int, default=1, help="of the observation in the picture")
    main(parser.parse_args())
