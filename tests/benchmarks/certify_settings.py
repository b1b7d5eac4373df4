"""With which setting every problem of the package is certified: the one place where it stands.

The pages of the problems show it as a command, and a certificate whose setting is another one is
made again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["SETTINGS", "Setting", "setting_of"]

LARGE = 32 * 32
"""Numbers in a field from which on fewer simulations check it."""


@dataclass(frozen=True)
class Setting:
    """How a problem is trained and checked.

    Args:
        steps: of the optimiser, or ``"auto"``.
        batch_size: simulations a step.
        minutes: with ``"auto"``, when the training ends in any case.
        problem: arguments of ``problems.load``.
        model: of ``VariationalFlowMap.for_problem``, where its defaults do not do.
        fit: of ``fit``, likewise.
        simulations: of the check; 1000 unless given, 500 for fields of 32 x 32 or more.
        draws: for each of them.
        corrected_simulations, corrected_draws: of the check of corrected draws, where the problem
            has a likelihood; no such check with 0, as many simulations as the other unless given.
        seed: of map, training and checks.
    """

    steps: int | str = 2000
    batch_size: int = 128
    minutes: float | None = None
    problem: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    simulations: int | None = None
    draws: int = 255
    corrected_simulations: int | None = None
    corrected_draws: int = 99
    seed: int = 0

    def settled(self, cells: int) -> Setting:
        """With numbers of simulations for fields of so many numbers."""
        num = self.simulations or (500 if cells >= LARGE else 1000)
        corrected = self.corrected_simulations
        return replace(
            self, simulations=num, corrected_simulations=num if corrected is None else corrected
        )

    def table(self) -> dict[str, Any]:
        """As a certificate keeps it."""
        return asdict(self)

    def train(self, name: str, folder: str | Path) -> list[str]:
        """Arguments of ``vfm-inverse`` that train and check the problem in a folder."""
        sets = {
            **{f"problem.{key}": value for key, value in self.problem.items()},
            **{f"model.{key}": value for key, value in self.model.items()},
            **{f"fit.{key}": value for key, value in self.fit.items()},
            "calibration.num_simulations": self.simulations,
            "calibration.num_draws": self.draws,
        }
        further = () if self.minutes is None else ("--minutes", f"{self.minutes:g}")
        further += ("--seed", str(self.seed)) if self.seed else ()
        return [
            *("train", name, "--out", str(folder)),
            *("--steps", str(self.steps), "--batch-size", str(self.batch_size), *further),
            *(part for key, value in sets.items() for part in ("--set", f"{key}={plain(value)}")),
        ]

    def shown(self, name: str) -> str:
        """What a reader types for the same."""
        return f"vfm-inverse {shlex.join(self.train(name, f'runs/{name}'))}"


def plain(value: Any) -> str:
    """A setting as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def exact(**others: Any) -> Setting:
    """Linear and Gaussian: the start is exact, and training can only do harm."""
    return Setting(100, 64, fit={"num_validation": 64, "validations": 2}, **others)


def field_of(steps: int, batch_size: int, **others: Any) -> Setting:
    """A field that convolutions see: fewer draws."""
    fit = {"num_validation": 64, "validations": 2}
    return Setting(steps, batch_size, fit=fit, draws=99, **others)


def framed(steps: int, num_frames: int, batch_size: int = 64, **others: Any) -> Setting:
    """A start with the physics in its frame: a search for a mode for each simulation, and few
    steps, since what is left to learn is little."""
    fit = {"num_frames": num_frames, "num_validation": 256, "validations": 4}
    return Setting(steps, batch_size, fit=fit, draws=99, **others)


VECTOR = Setting(fit={"num_validation": 512, "validations": 2})
FEW = replace(VECTOR, corrected_simulations=0)
"""Few unknowns, whose draws are exact as they are sampled: nothing is left to correct."""

SETTINGS: dict[str, Setting] = {
    "linear-gaussian": replace(VECTOR, steps=500),
    "rotated-gaussian": replace(VECTOR, steps=500),
    "gaussian-field": exact(),
    "lognormal-field": framed(1000, 12_000, 256, corrected_simulations=100),
    "checkerboard": FEW,
    "heat": exact(),
    "advection-diffusion": exact(),
    "travel-time": exact(),
    "gravity": exact(),
    "seismic-deconvolution": replace(VECTOR, steps=500),
    "darcy": framed(400, 2048, corrected_simulations=0),
    "darcy-64": framed(1500, 6144, 256, corrected_simulations=0),
    "travel-time-eikonal": framed(300, 2048, corrected_simulations=0),
    "lorenz96-window": framed(500, 8192, 256, corrected_simulations=0),
    # A simulation takes milliseconds: fewer of them for the Gaussian start.
    "fwi-small": field_of(150, 32, model={"num_simulations": 8000}, corrected_simulations=0),
    "ct": field_of(400, 32, corrected_simulations=0),
    "mri": field_of(400, 32, corrected_simulations=0),
    "two-moons": FEW,
    "slcp": FEW,
    "gaussian-mixture": FEW,
    "gaussian-linear-uniform": FEW,
    "bernoulli-glm": FEW,
    "mixture-linear": FEW,
    "student-t": FEW,
    "increments": replace(VECTOR, steps=500, corrected_simulations=0),
    "photo-deblur": field_of(500, 64, corrected_simulations=0),
    "photo-inpaint": field_of(500, 64, corrected_simulations=0),
}
"""Every problem of the package; a test compares the names."""

QUICK = {
    "steps": 20,
    "batch_size": 32,
    "minutes": None,
    "model": {"num_simulations": 500},
    "fit": {"num_validation": 32, "validations": 1},
    "simulations": 30,
    "draws": 19,
    "corrected_simulations": 4,
    "corrected_draws": 19,
}
"""What a smoke test has instead: it shows that all of it runs, and nothing else."""


def setting_of(
    name: str,
    *,
    quick: bool = False,
    steps: int | str | None = None,
    minutes: float | None = None,
    corrected: int | None = None,
    seed: int | None = None,
) -> Setting:
    """The setting of a problem.

    Args:
        name: of the problem.
        quick: that of a smoke test.
        steps, minutes, corrected, seed: in place of its own; ``corrected`` are the simulations
            that check corrected draws, and minutes alone stand for steps ``"auto"``.

    Raises:
        ValueError: the problem has none.
    """
    if name not in SETTINGS:
        raise ValueError(f"unknown problem '{name}'; 'vfm-inverse problems' lists them")
    setting = replace(SETTINGS[name], **QUICK) if quick else SETTINGS[name]
    if minutes is not None:
        setting = replace(setting, steps="auto", minutes=minutes)
    if steps is not None:
        setting = replace(setting, steps=steps)
    if corrected is not None:
        setting = replace(setting, corrected_simulations=corrected)
    return setting if seed is None else replace(setting, seed=seed)
