"""Climate fields at 29 stations against simple kriging: CRPS and intervals of 20 held-out years.

Annual mean air temperature of a climate model over North America, 240 years (1860-2099, scenario
E1) of 37 x 49 cells, from the package ``iris-sample-data`` (Met Office; extra ``bench``). The
stations are cells drawn with a fixed seed, their error is 0.3 K. Everything is fitted on the other
220 years, which serve as the prior: the mean field, the spread of each cell, the range of the
kriging and the map. Two blocks of years are held out in turn: 1980-1999 inside the series and
2080-2099 at its end, beyond the years that the prior has.

Simple kriging has the mean of every cell, a stationary correlation (exponential or Matérn 3/2 or
5/2 in the straight distance through the globe) and its range by maximum likelihood; its variance
is one number or that of every cell.

Run with ``python -m tests.benchmarks.climate --steps 300 --picture docs/_static/climate.png``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import iris_sample_data
import numpy as np
import torch
import xarray as xr
from deepinv.physics import GaussianNoise
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import calibration
from vfm_inverse.operators import PointObservations

STATIONS, SIGMA = 29, 0.3
BLOCKS = ((1980, 1999), (2080, 2099))
RADIUS = 6371.0  # km
MATERN = {
    "exponential": lambda r: np.exp(-r),
    "Matern 3/2": lambda r: (1 + 3**0.5 * r) * np.exp(-(3**0.5) * r),
    "Matern 5/2": lambda r: (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r),
}


def temperature(scenario: str = "E1") -> xr.DataArray:
    """Annual means ``(time, latitude, longitude)`` in K."""
    path = Path(iris_sample_data.path) / f"{scenario}_north_america.nc"
    with xr.open_dataset(path) as data:
        return data["air_temperature"].load()


def distances(field: xr.DataArray) -> np.ndarray:
    """Straight distances ``(d, d)`` between cells in km, in which Matérn laws are valid."""
    latitude, longitude = np.deg2rad(np.meshgrid(field.latitude, field.longitude, indexing="ij"))
    place = np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        -1,
    ).reshape(-1, 3)
    return RADIUS * np.sqrt(np.maximum(2 - 2 * place @ place.T, 0))


def kriging(
    years: np.ndarray, distance: np.ndarray, own_variance: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Covariance ``(d, d)`` by maximum likelihood of years ``(n, d)``, and what it is.

    The likelihood is that of 200 cells drawn with a fixed seed.
    """
    spread = years.std(0, ddof=1) if own_variance else np.ones(years.shape[1])
    few = np.random.default_rng(0).choice(years.shape[1], 200, replace=False)
    z = ((years - years.mean(0)) / spread)[:, few]
    moments, near = z.T @ z / len(z), distance[np.ix_(few, few)]
    best: tuple[float, Any] = (np.inf, None)
    for name, law in MATERN.items():
        for length in np.geomspace(200, 20_000, 41):
            correlation = law(near / length) + 1e-6 * np.eye(len(few))
            sign, log_det = np.linalg.slogdet(correlation)
            variance = np.trace(np.linalg.solve(correlation, moments)) / len(few)
            loss = len(few) * np.log(variance) + log_det
            if sign > 0 and loss < best[0]:
                best = loss, (name, float(length), float(variance))
    name, length, variance = best[1]
    covariance = variance * np.outer(spread, spread) * MATERN[name](distance / length)
    return covariance, {"law": name, "range_km": length, "variance": variance}


def conditioned(
    mean: np.ndarray, covariance: np.ndarray, at: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means ``(n, d)`` and standard deviations ``(d,)`` given ``y (n, m)`` at cells ``at``."""
    cross = covariance[:, at]
    gain = np.linalg.solve(cross[at] + SIGMA**2 * np.eye(len(at)), cross.T).T
    variance = covariance.diagonal() - (gain * cross).sum(1)
    return mean + (y - mean[at]) @ gain.T, np.sqrt(variance)


def gaussian_scores(mean: np.ndarray, std: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """CRPS of Gaussian forecasts in closed form, and what their 90 % intervals hold."""
    z = (truth - mean) / std
    crps = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5)
    return {"crps": float(crps.mean()), "holds_90": float((np.abs(z) < norm.ppf(0.95)).mean())}


def draw_scores(draws: Tensor, truth: Tensor) -> dict[str, Any]:
    """The same of draws, with the verdict of the calibration check."""
    report = calibration.from_draws(draws, truth)
    return {
        "crps": float(report.crps_map.mean()),
        "holds_90": float(report.coverage_map.sel(level=0.9).mean()),
        "verdict": report.attrs["verdict"],
        "reason": report.attrs["reason"],
    }


def network(size: tuple[int, int], seed: int) -> tuple[np.ndarray, Tensor]:
    """Cells of the stations ``(29,)`` and their positions ``(29, 2)`` in grid units."""
    at = np.random.default_rng(seed).choice(size[0] * size[1], STATIONS, replace=False)
    row, column = np.unravel_index(at, size)
    return at, torch.from_numpy(np.stack([row / (size[0] - 1), column / (size[1] - 1)], 1))


def compare(
    field: xr.DataArray, block: tuple[int, int], args: argparse.Namespace
) -> tuple[dict[str, Any], Any]:
    """Figures of one block of held-out years, and what the picture shows."""
    year = field.time.dt.year.values
    held_out = (year >= block[0]) & (year <= block[1])
    grid = field.shape[1], field.shape[2]
    values = torch.from_numpy(field.values).unsqueeze(1)
    prior, truth = values[~held_out], values[held_out]
    flat, flat_truth = (part.flatten(1).double().numpy() for part in (prior, truth))
    mean, distance = flat.mean(0), distances(field)
    one, one_law = kriging(flat, distance, own_variance=False)
    own, own_law = kriging(flat, distance, own_variance=True)
    figures: dict[str, Any] = {"one variance": one_law, "own variance": own_law}
    laws = {"simple kriging": one, "kriging, variance of every cell": own}

    def posed(at: np.ndarray, points: Tensor) -> vi.InverseProblem:
        physics = PointObservations((1, *grid), points, GaussianNoise(SIGMA))
        return vi.InverseProblem(prior=prior, test_prior=truth, physics=physics)

    # The first network by draws, as a user would.
    at, points = network(grid, 0)
    problem = posed(at, points)
    y = problem.observe(truth, seed=0)
    start = time.perf_counter()
    vfm = vi.VariationalFlowMap.for_problem(problem, seed=0)
    figures["build_seconds"] = time.perf_counter() - start
    answers = {k: conditioned(mean, law, at, y.double().numpy()) for k, law in laws.items()}
    figures["network 0"] = {k: gaussian_scores(*v, flat_truth) for k, v in answers.items()}
    draws = drawn(vfm, y, args.draws)
    figures["network 0"]["untrained map"] = draw_scores(draws, truth)
    if args.steps:
        start = time.perf_counter()
        vi.fit(vfm, problem, steps=args.steps, batch_size=32, seed=0, progress=False)
        figures["training_seconds"] = time.perf_counter() - start
        figures["network 0"]["trained map"] = draw_scores(drawn(vfm, y, args.draws), truth)
    shown = (at, y, truth, answers["kriging, variance of every cell"][0], draws, prior.mean(0))

    # More networks in closed form: the untrained map is the Gaussian of its whitening.
    root = vfm.whitening.color(torch.eye(vfm.whitening.dim)).flatten(1).double().numpy()
    laws["untrained map"] = root.T @ root
    rows = []
    for seed in range(args.networks):
        at, points = network(grid, seed)
        y = posed(at, points).observe(truth, seed=seed).double().numpy()
        answers = {k: conditioned(mean, law, at, y) for k, law in laws.items()}
        rows.append({k: gaussian_scores(*v, flat_truth) for k, v in answers.items()})
    for other in list(laws)[:2]:
        gains = [row["untrained map"]["crps"] / row[other]["crps"] - 1 for row in rows]
        figures[f"crps against {other}, {len(rows)} networks"] = spread_of(gains)
    for name in laws:
        held = [row[name]["holds_90"] for row in rows]
        figures[f"90 % intervals hold, {name}, {len(rows)} networks"] = spread_of(held)
    return figures, shown


def drawn(vfm: vi.VariationalFlowMap, y: Tensor, num: int) -> Tensor:
    """Draws ``(num, n, 1, H, W)`` with a fixed seed."""
    torch.manual_seed(0)
    with torch.no_grad():
        return vfm(y).sample((num,))


def spread_of(values: list[float]) -> dict[str, float]:
    """Least, mean and most."""
    return {"least": min(values), "mean": sum(values) / len(values), "most": max(values)}


def picture(field: xr.DataArray, shown: Any) -> Figure:
    """The last held-out year, as differences from the mean of the prior."""
    at, y, truth, krige, draws, normal = shown
    grid, normal = field.shape[1:], normal[0].numpy()
    panels = {
        f"truth, and {STATIONS} stations": truth[-1, 0].numpy() - normal,
        "kriging": krige[-1].reshape(grid) - normal,
        "this map: mean": draws[:, -1, 0].mean(0).numpy() - normal,
        "a draw": draws[0, -1, 0].numpy() - normal,
        "another draw": draws[1, -1, 0].numpy() - normal,
        "standard deviation": draws[:, -1, 0].std(0).numpy(),
    }
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    reach = max(float(np.abs(values).max()) for values in list(panels.values())[:5])
    signed: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        style = {"cmap": "viridis", "vmin": 0} if panel is axes[-1] else signed
        drawn = panel.pcolormesh(field.longitude - 360, field.latitude, values, **style)
        panel.set_title(title, fontsize=10)
        if panel is axes[2] or panel is axes[5]:
            name = "K" if panel is axes[5] else "K above the mean of the prior"
            figure.colorbar(drawn, ax=panel, label=name)
    row, column = np.unravel_index(at, grid)
    places = field.longitude.values[column] - 360, field.latitude.values[row]
    seen = y[-1].numpy() - normal[row, column]
    axes[0].scatter(*places, c=seen, edgecolors="black", s=24, **signed)
    axes[-1].scatter(*places, c="white", edgecolors="black", s=8)
    figure.supxlabel("longitude [degrees east]", fontsize=9)
    figure.supylabel("latitude [degrees north]", fontsize=9)
    return figure


def main(args: argparse.Namespace) -> dict[str, Any]:
    field = temperature()
    figures: dict[str, Any] = {"stations": STATIONS, "sigma_K": SIGMA, "steps": args.steps}
    for block in BLOCKS:
        name = f"{block[0]}-{block[1]} held out"
        figures[name], shown = compare(field, block, args)
        if args.picture is not None and block == BLOCKS[0]:
            picture(field, shown).savefig(args.picture, dpi=110)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    run("climate", lambda: main(arguments))
