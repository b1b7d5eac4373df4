r"""Reference means of ``darcy-64`` at the paper's observation: long Hamiltonian chains.

    python -m tests.benchmarks.darcy_64_chain --truth DIR --seed 0 --save FILE
    python -m tests.benchmarks.darcy_64_chain --compare FILE FILE

``DIR/aristoff_bangerth/z_hat.txt`` is the observation of Aristoff and Bangerth, SIAM Review 65
(2023) 1074. The unknown is :math:`x = \ln\theta`, of prior N(4, 2^2). The chains run side by
side in coordinates :math:`x = m + C^{1/2} v`, C the covariance at first of Laplace's
approximation, then, twice, of the chains' own draws; a transition is a trajectory of 4 to 12
leapfrog steps, whose size is set in the warm-up to accept 0.8 of them (Neal 2011, Handbook of
Markov Chain Monte Carlo, chapter 5). Warm-up draws are thrown away.

The truth, hence the posterior, does not change when the axes are exchanged: the two means of a
pair of blocks differ by chance alone, which is a check that knows nothing of R-hat.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from tests.benchmarks.common import run
from vfm_inverse import problems
from vfm_inverse.problem.inverse_problem import InverseProblem

SHAPE = (1, 8, 8)
SHORTEST, LONGEST = 4, 12
ACCEPTANCE = 0.8
WIDEST = 20.0  # ten prior deviations; a trajectory that goes further is rejected


class Posterior:
    """Log density of flat fields ``(num, 64)`` and its gradient, up to a constant."""

    def __init__(self, problem: InverseProblem, y: Tensor) -> None:
        self.problem, self.y = problem, y
        self.sigma = float(problem.physics.noise_model.sigma)

    def score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = (x - 4).abs().amax(1) < WIDEST
        leaf = x.detach().clamp(4 - WIDEST, 4 + WIDEST).requires_grad_()
        misfit = (self.problem.physics.A(leaf.unflatten(1, SHAPE)) - self.y) / self.sigma
        log_prior = self.problem.log_prior(leaf.unflatten(1, SHAPE))
        value = log_prior - 0.5 * misfit.square().sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return torch.where(inside, value.detach(), -torch.inf), gradient

    def laplace(self, steps: int = 30) -> tuple[Tensor, Tensor]:
        """Most likely field ``(64,)`` and inverse Gauss-Newton matrix ``(64, 64)`` there, by
        Levenberg-Marquardt steps."""
        x, damping = torch.zeros(64, dtype=torch.float64), 1.0
        unit = torch.eye(len(self.y), dtype=torch.float64)
        value, gradient = self.score(x[None])
        for _ in range(steps):
            _, pull = torch.func.vjp(lambda v: self.problem.physics.A(v.view(1, *SHAPE))[0], x)
            jacobian = torch.func.vmap(pull)(unit)[0] / self.sigma
            precision = jacobian.T @ jacobian + torch.eye(64) / 4
            damped = precision + damping * precision.diagonal().diag()
            new = x + torch.linalg.solve(damped, gradient[0])
            new_value, new_gradient = self.score(new[None])
            better = bool(new_value > value)
            damping *= 0.25 if better else 4.0
            if better:
                x, value, gradient = new, new_value, new_gradient
        return x, torch.linalg.inv(precision)


class Chains:
    """Hamiltonian chains ``(num, 64)`` of one step size."""

    def __init__(self, posterior: Posterior, x: Tensor, covariance: Tensor) -> None:
        self.posterior, self.x = posterior, x
        self.value, self.gradient = posterior.score(x)
        self.root = torch.linalg.cholesky(covariance)
        self.step = 0.3

    def move(self) -> float:
        """One transition; returns the mean probability of acceptance."""
        length = int(torch.randint(SHORTEST, LONGEST + 1, ()))
        start = momentum = torch.randn_like(self.x)
        x, value, gradient = self.x, self.value, self.gradient
        step = self.step * float(0.8 + 0.4 * torch.rand(()))
        for _ in range(length):
            momentum = momentum + 0.5 * step * (gradient @ self.root)
            x = x + step * (momentum @ self.root.T)
            value, gradient = self.posterior.score(x)
            momentum = momentum + 0.5 * step * (gradient @ self.root)
        gain = value - self.value + 0.5 * (start.square() - momentum.square()).sum(1)
        probability = gain.nan_to_num(-torch.inf).exp().clamp(max=1.0)
        taken = torch.rand_like(probability) < probability
        self.x = torch.where(taken[:, None], x, self.x)
        self.value = torch.where(taken, value, self.value)
        self.gradient = torch.where(taken[:, None], gradient, self.gradient)
        return float(probability.mean())

    def warm(self, moves: int) -> Tensor:
        """Moves that adapt the step; returns the later half of the draws, ``(*, 64)``."""
        draws = []
        for i in range(moves):
            self.step *= np.exp((i + 1) ** -0.5 * (self.move() - ACCEPTANCE))
            draws.append(self.x)
        return torch.stack(draws[moves // 2 :]).flatten(0, 1)


def sample(truth: Path, seed: int, chains: int, warmup: int, moves: int, save: Path) -> Any:
    """Run the chains and save their draws ``(moves, chains, 64)``."""
    torch.manual_seed(seed)
    y = torch.from_numpy(np.loadtxt(truth / "aristoff_bangerth" / "z_hat.txt"))
    posterior = Posterior(problems.load("darcy-64"), y)
    mode, covariance = posterior.laplace()
    # At half its width: a start in the far tail of the posterior can be too stiff to leave.
    root = torch.linalg.cholesky(covariance)
    start = mode + 0.5 * torch.randn(chains, 64, dtype=torch.float64) @ root.T
    begin = time.perf_counter()
    state = Chains(posterior, start, covariance)
    for _ in range(2):
        draws = state.warm(warmup)
        state.root = torch.linalg.cholesky(draws.T.cov())
    state.warm(warmup)
    kept = torch.empty(moves, chains, 64, dtype=torch.float64)
    accepted = 0.0
    for i in range(moves):
        accepted += state.move() / moves
        kept[i] = state.x
        if i % 50 == 49:
            np.save(save, kept[: i + 1].numpy())
    np.save(save, kept.numpy())
    return {
        "seed": seed,
        "mode": mode.tolist(),
        "step": float(state.step),
        "acceptance": accepted,
        "chain_seconds": time.perf_counter() - begin,
        **figures(kept),
    }


def figures(x: Tensor) -> dict[str, Any]:
    """Means, widths, R-hat and effective sizes of draws ``(moves, chains, 64)`` of ln theta; the
    means of theta; and the means' root-mean-square change, in their standard errors and in
    posterior deviations, when the axes are exchanged."""
    size = effective_sample_size(x, chain_dim=1, sample_dim=0)
    theta = x.exp()
    theta_size = effective_sample_size(theta, chain_dim=1, sample_dim=0)
    mean, std = x.mean((0, 1)), x.flatten(0, 1).std(0)
    change = (mean - mean.view(8, 8).T.flatten()) / std
    unequal = ~torch.eye(8, dtype=torch.bool).flatten()
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "rhat": split_gelman_rubin(x, chain_dim=1, sample_dim=0).tolist(),
        "ess": size.tolist(),
        "exchange_in_std": float(change[unequal].square().mean().sqrt()),
        "exchange_in_errors": float((change.square() * size / 2)[unequal].mean().sqrt()),
        "theta_mean": theta.mean((0, 1)).tolist(),
        "theta_error": (theta.flatten(0, 1).std(0) / theta_size.sqrt()).tolist(),
    }


def compare(files: list[Path]) -> dict[str, Any]:
    """How far the means of independent runs are apart."""
    runs = [torch.from_numpy(np.load(file)) for file in files]
    found = [figures(run) for run in runs]
    one, two = found[0], found[1]
    mean = torch.tensor([one["mean"], two["mean"]])
    std = torch.tensor([one["std"], two["std"]])
    error = std / torch.tensor([one["ess"], two["ess"]]).sqrt()
    gap = mean[0] - mean[1]
    theta = torch.tensor([one["theta_mean"], two["theta_mean"]])
    theta_error = torch.tensor([one["theta_error"], two["theta_error"]])
    return {
        "worst_rhat": [max(each["rhat"]) for each in found],
        "least_ess": [min(each["ess"]) for each in found],
        "apart_in_std": float((gap / std.mean(0)).square().mean().sqrt()),
        "most_apart_in_std": float((gap / std.mean(0)).abs().max()),
        "apart_in_errors": float((gap / error.norm(dim=0)).square().mean().sqrt()),
        "std_ratio": [float((std[0] / std[1]).min()), float((std[0] / std[1]).max())],
        "theta_apart_in_errors": float(
            ((theta[0] - theta[1]) / theta_error.norm(dim=0)).square().mean().sqrt()
        ),
        "both": figures(torch.cat([run[: min(map(len, runs))] for run in runs], 1)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=Path, help="folder of the published data")
    parser.add_argument("--save", type=Path, help="where the draws go, as .npy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=60, help="moves before each of three stages")
    parser.add_argument("--moves", type=int, default=400)
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    args = parser.parse_args()
    if args.compare:
        run("darcy_64_chain", lambda: compare(args.compare))
    elif args.truth and args.save:
        run(
            "darcy_64_chain",
            lambda: sample(args.truth, args.seed, args.chains, args.warmup, args.moves, args.save),
        )
    else:
        parser.error("give --truth and --save, or --compare")
