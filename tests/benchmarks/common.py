"""What the benchmarks share: error measures against an exact posterior, and a JSON report on
standard output."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vfm_inverse import calibration


def run(name: str, main: Callable[[], dict[str, Any]]) -> None:
    """Run a benchmark on one torch thread and print its figures with machine and time as JSON."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    start = time.perf_counter()
    figures = main()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps({"benchmark": name, "machine": machine, **rounded(figures)}, indent=2))


def rounded(value: Any) -> Any:
    """Floats to four significant digits, throughout."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def gaussian_errors(
    sample: Callable[[Tensor], Tensor],
    y: Tensor,
    mean: Tensor,
    covariance: Tensor,
    batch: int = 50,
) -> dict[str, float]:
    """Errors of posterior draws against an exact Gaussian posterior.

    Args:
        sample: ``y (b, m) -> draws (n, b, d)``, flat.
        y: observations ``(N, *obs)``.
        mean: exact means ``(N, d)``.
        covariance: exact covariance, ``(d, d)`` for all observations.
        batch: observations at a time.

    Returns:
        ``covariance_error``: root mean square over observations of the relative Frobenius error,
            free of the draws' own
        sampling noise (the product of the errors of two halves of the draws is an unbiased
        square);
        ``covariance_error_plain``: its mean with that noise; ``covariance_error_average``: of the
            covariance averaged
        over observations; ``mean_error``: RMS in posterior standard deviations;
        ``variance_ratio``: least and greatest over the field, variances averaged over
            observations.
    """
    norm, std = covariance.norm(), covariance.diagonal().sqrt()
    square, plain, total, mean_square = 0.0, 0.0, torch.zeros_like(covariance), 0.0
    for rows in torch.arange(len(y)).split(batch):
        draws = sample(y[rows])
        half = len(draws) // 2
        center = draws.mean(0)
        mean_square += float(((center - mean[rows]) / std).square().mean(1).sum())
        deviation = (draws - center).transpose(0, 1)
        first, second = (
            part.mT @ part / (half - 1) for part in (deviation[:, :half], deviation[:, half:])
        )
        square += float(((first - covariance) * (second - covariance)).sum())
        both = (first + second) / 2
        plain += float((both - covariance).flatten(1).norm(dim=1).sum())
        total += both.sum(0) / len(y)
    ratio = total.diagonal() / covariance.diagonal()
    return {
        "covariance_error": max(square / len(y), 0.0) ** 0.5 / float(norm),
        "covariance_error_plain": plain / len(y) / float(norm),
        "covariance_error_average": float((total - covariance).norm() / norm),
        "mean_error": (mean_square / len(y)) ** 0.5,
        "variance_ratio": [float(ratio.min()), float(ratio.max())],
    }


def sbc(
    posterior: Any, problem: Any, simulations: int = 2000, draws: int = 100, seed: int = 7
) -> dict[str, float]:
    """SBC chi2/dof over the elements of the field (bins as :func:`calibrate` makes them) and 90 %
    coverage."""
    report = calibration.calibrate(posterior, problem, simulations, draws, seed=seed)
    chi2 = report.chi2_per_dof_map.values
    return {
        "chi2_per_dof_mean": float(chi2.mean()),
        "chi2_per_dof_max": float(chi2.max()),
        "bins": int(report.attrs["num_bins"]),
        "coverage_90": float(report.coverage_map.sel(level=0.9).mean()),
        "verdict": report.attrs["verdict"],
        "energy_score": float(report.energy_score.mean()),
        "energy_score_standard_error": float(report.energy_score.std() / simulations**0.5),
        "crps": float(report.crps_map.mean()),
    }
