"""The demo: deblur photographs, with a map that comes trained and is trained on.

A small setting of the problem ``photo-deblur``. The map is trained on patches of some photographs
and asked about patches of others, and its draws are compared with those of the classical answer,
the posterior under a Gaussian prior with the mean and covariance of the same training patches.
Weights ship with the package, so that the training on the spot is a short continuation.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from xarray import Dataset

from vfm_inverse import problems
from vfm_inverse.calibration import calibrate, grades
from vfm_inverse.labelled.write import observation_to_xarray, save_netcdf, to_xarray
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problems.photo_deblur import gaussian_prior_posterior
from vfm_inverse.report.gallery import posterior_gallery
from vfm_inverse.report.rank_plots import coverage_curve, rank_ecdf
from vfm_inverse.runs.folder import calibrate_run, report_run
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.training.loop import fit, resolve_device

__all__ = ["run_demo"]

PROBLEM: dict[str, Any] = {"name": "photo-deblur", "size": 32}
SEED = 0
WEIGHTS = Path(__file__).parent / "demo.safetensors"
"""Weights of a map of this problem, of coordinates and a start made with this seed; written by
``python -m tests.benchmarks.demo_checkpoint``."""


def run_demo(
    out: str | Path,
    *,
    size: int = 32,
    steps: int = 100,
    batch_size: int = 64,
    num_shown: int = 4,
    num_draws: int = 200,
    num_simulations: int = 300,
    num_validation: int = 128,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, sample, calibrate and draw; say in a few lines what was done and found.

    Args:
        out: folder of the run, made if need be; what an earlier demo left there is replaced.
        size: pixels along the edge of a patch; weights to begin with exist for 32.
        steps, batch_size: length of the training and simulations a step.
        num_shown: held-out observations that are drawn for and pictured.
        num_draws: posterior draws for each observation, pictured or simulated.
        num_simulations: held-out simulations that calibration and scores are made of.
        num_validation: held-out simulations that choose the weights to keep.
        seed: fixes the whole demo.
        device: where to compute, ``"auto"`` for a GPU where there is one.
        quiet: print nothing.

    Returns:
        The figures of the last lines by name: verdict, scores, coverage, seconds.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    say: Callable[[str], None] = (lambda line: None) if quiet else _print
    seconds: dict[str, float] = {}
    problem = problems.load("photo-deblur", size=size).to(resolve_device(device))
    say(f"Problem      {size} x {size} patches of photographs, blurred and noisy")
    how = {"steps": steps, "batch_size": batch_size, "num_validation": num_validation}
    how |= {"seed": seed, "progress": not quiet}
    vfm = _train(out, problem, size == PROBLEM["size"], seconds, say, **how)
    x, y, params = problem.simulate(num_shown, split="test", seed=seed + 1)
    with seeded(seed), _timed(seconds, "draws"):
        draws = vfm(y, **params).sample((num_draws,))
    say(
        f"Draws        {num_draws} for each of {num_shown} held-out observations in "
        f"{seconds['draws']:.2f} s: one network evaluation each"
    )
    sizes: dict[str, Any] = {"num_simulations": num_simulations, "num_draws": num_draws}
    sizes |= {"seed": seed + 2, "progress": not quiet}
    with _timed(seconds, "calibration"):
        checked = calibrate_run(out, vfm, problem, **sizes)
        classical = calibrate(partial(gaussian_prior_posterior, problem), problem, **sizes)
    save_netcdf(observation_to_xarray(y, problem, params), out / "observation.nc")
    provenance = {**vfm.provenance(), "seed": seed}
    posterior = to_xarray(draws, problem, y, params=params, provenance=provenance)
    gallery = posterior_gallery(draws, x, y, cmap="gray", units=problem.units)
    _write(out, vfm, problem, checked, posterior, gallery)
    figures = {**_figures(checked, classical), **{f"{k}_seconds": v for k, v in seconds.items()}}
    _conclude(checked, figures, num_simulations, say)
    say(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return figures


def _train(
    out: Path,
    problem: InverseProblem,
    known: bool,
    seconds: dict[str, float],
    say: Callable[[str], None],
    **how: Any,
) -> VariationalFlowMap:
    """A map that begins with the weights that ship where they are ``known``, trained on."""
    with _timed(seconds, "start"):
        vfm = VariationalFlowMap.for_problem(
            problem,
            start="gaussian",  # as the weights that ship
            seed=SEED if known else how["seed"],
            progress=how["progress"],
        ).to(problem.device)
    before = load_weights(vfm) if known else 0
    weights = sum(weight.numel() for weight in vfm.flow_map.parameters())
    say(
        f"Map          {weights:,} weights after {before} steps, Gaussian start in "
        f"{seconds['start']:.0f} s"
    )
    with _timed(seconds, "training"):
        fit(
            vfm,
            problem,
            learning_rate=2e-4 if known else 1e-3,
            device=problem.device,
            checkpoint_dir=out,
            **how,
        )
    done = (
        f"{how['steps']}{' more' if known else ''} steps of {how['batch_size']} fresh simulations"
    )
    say(f"Training     {done} in {seconds['training']:.0f} s")
    return vfm


def _write(
    out: Path,
    vfm: VariationalFlowMap,
    problem: InverseProblem,
    checked: Dataset,
    posterior: Dataset,
    gallery: Figure,
) -> None:
    """The draws, the pictures and the report."""
    save_netcdf(posterior, out / "posterior.nc")
    pictures = {
        "posterior": gallery,
        "coverage": coverage_curve(checked),
        "ranks": rank_ecdf(checked),
    }
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    report_run(
        out,
        vfm,
        problem,
        checked,
        figures={"Held-out photographs": gallery},
        title="Deblurring photographs",
    )


def _conclude(
    checked: Dataset, figures: dict[str, Any], num: int, say: Callable[[str], None]
) -> None:
    """Say what may be trusted, and how the map compares with the classical answer."""
    say("What may be trusted")
    for one in grades(checked):
        sentence = f"  {one.aspect:<17}{one.grade:<12}{one.size}"
        say(textwrap.fill(sentence, width=110, subsequent_indent=" " * 31))
    sentence = f"Calibration  {figures['verdict']}: {figures['reason']}"
    say(textwrap.fill(sentence, width=110, subsequent_indent=" " * 13))
    say("")
    say(f"On {num} held-out observations      this map   Gaussian prior")
    for name, label in {"energy_score": "energy score", "crps": "CRPS"}.items():
        ours, theirs = figures[name], figures[f"{name}_gaussian"]
        change = 100 * (ours / theirs - 1)
        say(f"  {label:<28} {ours:10.4f} {theirs:16.4f}   {change:+.1f} %")
    ours, theirs = 100 * figures["coverage_90"], 100 * figures["coverage_90_gaussian"]
    say(f"  {'90 % intervals hold':<28} {ours:8.1f} % {theirs:14.1f} %")
    say("")


def load_weights(vfm: VariationalFlowMap) -> int:
    """Give a map of :data:`PROBLEM`, built with :data:`SEED`, the weights that ship; returns the
    steps they were trained for."""
    weights, header = storage.read(WEIGHTS, "demo")
    vfm.flow_map.load_state_dict(weights)  # casts
    return int(header["steps"])


def _figures(checked: Dataset, classical: Dataset) -> dict[str, Any]:
    """Scores and coverage of the map and of the classical answer."""
    figures: dict[str, Any] = {key: checked.attrs[key] for key in ("verdict", "reason")}
    for suffix, report in {"": checked, "_gaussian": classical}.items():
        figures[f"energy_score{suffix}"] = float(report.energy_score.mean())
        figures[f"crps{suffix}"] = float(report.crps.mean())
        figures[f"coverage_90{suffix}"] = float(report.coverage_map.sel(level=0.9).mean())
    return figures


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _print(line: str) -> None:
    print(line, flush=True)
