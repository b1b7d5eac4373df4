"""Training: terms of the loss, couplings, plans, interruption, what the settings change."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vfm_inverse as vi
from tests.benchmarks.behaviour_common import (
    QUIET,
    SHORT,
    VECTOR,
    Case,
    Results,
    built,
    by_samples,
    drawn,
    held_out,
    linear,
    prefixed,
    timeless,
    trained,
    untimed,
    weights,
)
from vfm_inverse.problem import InverseProblem
from vfm_inverse.training import fit

OBJECTIVES: dict[str, dict[str, Any]] = {
    "independent": {"coupling": "independent"},
    "minibatch-ot": {"coupling": "minibatch-ot"},
    "adapter": {"coupling": "adapter", "alpha": 0.3},
    "lagrangian": {"flow_loss": "lagrangian", "off_diagonal": 0.5},
    "eulerian": {"flow_loss": "eulerian", "off_diagonal": 0.5},
    "semigroup": {"flow_loss": "semigroup", "off_diagonal": 0.5},
    "diagonal": {"flow_loss": "diagonal", "tau": 2.0},
    "reverse": {"reverse": 1.0, "forward": 0.0, "adaptive": True},
    "all terms": {"reverse": 0.5, "forward": 0.5, "flow": 2.0},
    "adapter first": {"adapter_share": 0.5},
}

SETTINGS: dict[str, dict[str, Any]] = {
    "preset": {"objective": "vfm"},
    "optimiser": {"learning_rate": 1e-2, "weight_decay": 0.1, "clip": 0.1, "average_decay": 0.5},
    "scores": {"validations": 2, "num_validation": 40, "log_every": 7, "seed": 11},
}


def of_objective(objective: dict[str, Any], **options: Any) -> Results:
    """The terms of the loss by name, at one batch and step by step."""
    from vfm_inverse.training.objective import Objective

    problem = linear()
    vfm = built(problem, VECTOR, adapter="full", **options)
    x, y, params = problem.simulate(12, seed=2)
    torch.manual_seed(4)
    terms = Objective(vfm, **objective)(x, y, **params)
    gradients = torch.autograd.grad(terms["loss"], list(vfm.parameters()), allow_unused=True)
    results: Results = {"terms": terms, "gradients": list(gradients)}
    settings: dict[str, Any] = {
        "steps": 10,
        "log_every": 1,
        "validations": 1,
        "objective": objective,
    }
    try:
        results["history"] = trained(vfm, problem, **settings)
    except RuntimeError as error:  # "eulerian": the memory of its step cannot be counted
        results["refused"] = str(error)
    return {**results, "state": weights(vfm)}


def of_settings(settings: dict[str, Any]) -> Results:
    """A training with other settings than those that are given for nothing."""
    problem = linear()
    vfm = built(problem, VECTOR, observation="adapter")
    history = trained(vfm, problem, **settings)
    return {"history": history, "state": weights(vfm), "note": vfm.training_note}


class Stopped(Exception):
    """Raised by a callback."""


def resumed() -> Results:
    """A training that is interrupted and goes on, and one that is not."""
    rows: list[dict[str, float]] = []

    def stop(row: dict[str, float]) -> None:
        rows.append(row)
        if row["step"] >= 15:
            raise Stopped

    def make() -> tuple[InverseProblem, Any]:
        problem = linear()
        return problem, built(problem, VECTOR, adapter="full")

    settings: dict[str, Any] = {**SHORT, **QUIET, "seed": 5}
    results: Results = {}
    states = []
    for name in ("whole", "interrupted"):
        folder = Path(f"training-{name}")
        problem, vfm = make()
        if name == "interrupted":
            with suppress(Stopped):
                fit(vfm, problem, **settings, checkpoint_dir=folder, callbacks=[stop])
            problem, vfm = make()
        history = fit(vfm, problem, **settings, checkpoint_dir=folder, resume=True)
        states.append(weights(vfm))
        found = {
            "history": timeless(history),
            "state": states[-1],
            "log": untimed(folder / "log.csv"),
            "files": sorted(path.name for path in folder.iterdir()),
            "loaded": weights(vi.load(folder / "model.safetensors", warn=False)),
        }
        results |= prefixed(name, found)
        shutil.rmtree(folder)
    same = all(torch.equal(one, states[1][name]) for name, one in states[0].items())
    return {**results, "rows of the callback": timeless(rows), "the same": same}


def until_stalled() -> Results:
    """As long as it helps: on samples, of which too few are left to help for long."""
    problem = by_samples("linear-gaussian", 60, dim=2, obs_dim=1)
    vfm = built(problem, {**VECTOR, "width": 4}, observation="context")
    settings: dict[str, Any] = {"steps": "auto", "num_validation": 16, "log_every": 100}
    settings |= {"batch_size": 8, "objective": {"flow_loss": "diagonal"}}
    history = trained(vfm, problem, **settings)
    return {"history": history, "state": weights(vfm), "note": vfm.training_note}


def no_time() -> Results:
    """An open length, and no time at all: a step for the adapter, one for the map."""
    problem = linear()
    vfm = built(problem, VECTOR, adapter="full")
    history = trained(vfm, problem, steps="auto", minutes=1e-9)
    return {"history": history, "state": weights(vfm), "note": vfm.training_note}


def recorded() -> Results:
    """Simulations that were drawn once and for all."""
    problem = linear().record(64, seed=2)
    vfm = built(problem, VECTOR, adapter="full")
    history, simulated = trained(vfm, problem), held_out(problem, 5)
    return {"history": history, "simulations": list(simulated[:2]), "params": simulated[2]}


def stored() -> Results:
    """A map that is written and read: its weights, draws, and what its file says of it."""
    problem = linear()
    vfm = built(problem, VECTOR, adapter="spline")
    trained(vfm, problem, steps=5)
    vfm.save("stored.safetensors")
    again, by_name = (
        vi.load("stored.safetensors", given, warn=False) for given in (problem, None)
    )
    _, y, params = held_out(problem)
    told = vi.load("stored.safetensors").provenance()
    return {
        "state": [weights(one) for one in (vfm, again, by_name)],
        "draws": [drawn(one(y, **params)) for one in (vfm, again, by_name)],
        # As bytes: sums of weights must stay what they are, for cards to hold.
        "provenance": {k: str(v).encode() for k, v in told.items()},
    }


CASES: dict[str, Case] = {
    **{
        f"training {name}": partial(of_objective, one, observation="adapter")
        for name, one in OBJECTIVES.items()
    },
    **{
        f"training {name}, conditional": partial(of_objective, OBJECTIVES[name])
        for name in ("lagrangian", "eulerian", "semigroup", "diagonal")
    },
    **{f"training, other {name}": partial(of_settings, one) for name, one in SETTINGS.items()},
    "training, resumed": resumed,
    "training until it stalls": until_stalled,
    "training without time": no_time,
    "training on a record": recorded,
    "map in a file": stored,
}
