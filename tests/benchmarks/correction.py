"""What correction makes of one-step draws: against exact posteriors, and what it costs.

Run with ``python -m tests.benchmarks.correction [PART ...]``.

``mixture``: a Gaussian-mixture prior in 16 dimensions, 8 linear data; sliced Wasserstein distance
to exact draws, relative to the paper's preset (diagonal adapter, reverse term), and the distance
between two sets of exact draws as the floor. ``linear``: importance weights on a map of 32
dimensions that was trained without a Gaussian start. ``stein``: the p-value of the kernel Stein
test for exact draws and for draws of the wrong width. ``cost``: 100 observations x 1000 draws in
64 dimensions, in one call.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch
from scipy import stats
from torch import Tensor

import vfm_inverse as vi
from tests.benchmarks.common import run
from vfm_inverse import correction, problems
from vfm_inverse.correction.stein import stein_test
from vfm_inverse.statistics import scores

DRAWS = 4096


def mixture(steps: int) -> dict[str, Any]:
    problem = problems.load("mixture-linear", dim=16, obs_dim=8)
    _, y, _ = problem.simulate(8, split="test", seed=1)
    exact = problem.reference_posterior(y)
    torch.manual_seed(0)
    reference = exact.sample((DRAWS,))

    def distance(draws: Tensor) -> float:
        return float(scores.sliced_wasserstein(draws, reference).mean())

    figures: dict[str, Any] = {"exact_draws": distance(exact.sample((DRAWS,)))}
    preset = vi.VariationalFlowMap.for_problem(
        problem, observation="adapter", adapter="diagonal", gaussian_start=False
    )
    vi.fit(preset, problem, steps=steps, objective="vfm", batch_size=256, progress=False)
    base = figures["paper_preset"] = distance(preset(y).sample((DRAWS,)))
    for name, adapter in (("both, contraction", "contraction"), ("both, spline", "spline")):
        begin = time.perf_counter()
        vfm = vi.VariationalFlowMap.for_problem(problem, adapter=adapter)
        vi.fit(vfm, problem, steps=steps, batch_size=256, progress=False)
        trained = time.perf_counter() - begin
        raw = distance(vfm(y).raw.sample((DRAWS,)))
        begin = time.perf_counter()
        ensemble = correction.auto(vfm, y, DRAWS, seed=0)
        corrected = distance(ensemble.sample((DRAWS,)))
        figures[name] = {
            "training_seconds": trained,
            "raw": raw,
            "raw_ratio": raw / base,
            "corrected": corrected,
            "corrected_ratio": corrected / base,
            "correction_seconds": time.perf_counter() - begin,
            "notes": ensemble.notes,
        }
    return figures


def linear(steps: int) -> dict[str, Any]:
    """Covariance error by the product of the errors of two independent ensembles, which is free of
    their sampling noise."""
    problem = problems.load("linear-gaussian", dim=32, obs_dim=16)
    vfm = vi.VariationalFlowMap.for_problem(problem, gaussian_start=False)
    vi.fit(vfm, problem, steps=steps, batch_size=512, progress=False)
    _, y, _ = problem.simulate(20, split="test", seed=1)
    exact = problem.reference_posterior(y)

    def deviations(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        ensemble = correction.psis(vfm, y, DRAWS, seed=seed)
        torch.manual_seed(seed)
        raw = vfm(y).raw.sample((DRAWS,)).transpose(0, 1)
        centred = (ensemble.samples - ensemble.mean).transpose(0, 1)
        weighted = centred.mT @ (ensemble.weights.T.unsqueeze(-1) * centred)
        plain = raw - raw.mean(1, keepdim=True)
        both = weighted, plain.mT @ plain / (DRAWS - 1)
        error, start = (value - exact.covariance_matrix for value in both)
        return error, start, ensemble.diagnostics["k_hat"]

    (one, raw_one, k_one), (two, raw_two, k_two) = deviations(0), deviations(1)
    trusted = (k_one < 0.7) & (k_two < 0.7)
    norm = float(exact.covariance_matrix[0].norm())

    def error(first: Tensor, second: Tensor) -> float:
        return max(float((first * second).sum((1, 2)).mean()), 0.0) ** 0.5 / norm

    return {
        "share_trusted": float(trusted.double().mean()),
        "k_hat": [float(k_one.min()), float(k_one.max())],
        "raw_covariance_error": error(raw_one[trusted], raw_two[trusted]),
        "covariance_error": error(one[trusted], two[trusted]),
        "covariance_error_plain": float(one[trusted].norm(dim=(1, 2)).mean()) / norm,
    }


def stein(repetitions: int = 200) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for scale in (1.0, 0.8, 1.25):
        torch.manual_seed(0)
        count = repetitions if scale == 1.0 else 20
        p_values = []
        for _ in range(count):
            u = scale * torch.randn(1000, 16)
            p_values.append(float(stein_test(u, -u)[1]))
        figures[f"std x {scale}"] = {
            "largest": max(p_values),
            "rejected_at_0.05": sum(p < 0.05 for p in p_values) / count,
            "uniformity_p_value": float(stats.kstest(p_values, "uniform").pvalue),
        }
    return figures


def cost() -> dict[str, Any]:
    problem = problems.load("linear-gaussian", dim=64, obs_dim=32)
    _, y, _ = problem.simulate(100, split="test", seed=1)
    figures: dict[str, Any] = {}
    for observation in ("adapter", "both"):
        vfm = vi.VariationalFlowMap.for_problem(problem, observation=observation)
        with torch.no_grad():  # untrained it would be exact, and correction trivial
            for parameter in vfm.flow_map.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        for name, method in (
            ("psis", lambda vfm=vfm: correction.psis(vfm, y, 1000, seed=0)),
            ("auto", lambda vfm=vfm: correction.auto(vfm, y, 1024, seed=0)),
        ):
            if (observation, name) == ("both", "auto"):
                continue  # hundreds of Jacobians a draw: minutes
            begin = time.perf_counter()
            ensemble = method()
            figures[f"{observation}, {name}"] = {
                "seconds": time.perf_counter() - begin,
                "median_k_hat": float(ensemble.diagnostics["k_hat"].nanmedian()),
                "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["mixture", "linear", "stein", "cost"])
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    PARTS = {
        "mixture": lambda: mixture(arguments.steps),
        "linear": lambda: linear(arguments.steps),
        "stein": stein,
        "cost": cost,
    }
    run("correction", lambda: {part: PARTS[part]() for part in arguments.parts})
