"""Problems that a settings file declares, without code: prior, physics, noise.

.. code-block:: toml

   [problem.prior]                   # vfm_inverse.declared.prior
   path = "anomalies.nc"
   variable = "tas"
   sample = "time"

   [problem.physics]                 # vfm_inverse.declared.physics
   operator = "point-observations"
   stations = "stations.csv"

   [problem.noise]
   model = "gaussian"                # laplace, uniform, gamma, fisher-tippett, poisson,
                                     # log-poisson, poisson-gaussian: deepinv's noise models
   sigma = [0.05, 0.5]               # a number; a range drawn for every observation; or the name
                                     # of a column of the station table

Every parameter of the noise's law is stated: ``sigma``, ``b`` of Laplace, ``a`` of uniform noise,
``l`` of gamma and Fisher-Tippett, ``gain`` of Poisson, ``N0`` and ``mu`` of log-Poisson noise.
From a range it is drawn log-uniformly, as suits a scale: one number for an observation, and one
for each station of a network that changes. Only an operator of the user's own may bring its noise
along. All else (units, names, coordinates) comes from the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv import physics as deepinv_physics
from deepinv.physics import NoiseModel
from torch import Tensor

from vfm_inverse.declared.physics import Operator, read_physics
from vfm_inverse.declared.prior import read_prior
from vfm_inverse.formats.units import converted
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.problem.noise_laws import noise_law
from vfm_inverse.problems.shared.noise_levels import noise_level
from vfm_inverse.runtime.arrays import real_array
from vfm_inverse.runtime.calls import attempt
from vfm_inverse.runtime.config import DECLARED, POINTS, check_keys, refuse_unknown
from vfm_inverse.runtime.settings import Setting

__all__ = ["declare"]

NOISES = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower(): f"{name}Noise"
    for name in ("Gaussian", "Laplace", "Uniform", "Gamma", "FisherTippett")
    + ("Poisson", "LogPoisson", "PoissonGaussian")
}

POSITIVE = Setting(float, 0, open_low=True)


def declare(tables: Mapping[str, Any], folder: Path) -> InverseProblem:
    """The problem that the tables ``prior``, ``physics`` and ``noise`` declare.

    Args:
        tables: of the section ``[problem]``.
        folder: that paths are relative to.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: a library that reads a file is missing.
        ValueError: a table or a key is missing or unknown, or what it says makes no sense.
    """
    refuse_unknown("key in [problem]", tables, DECLARED)
    if missing := [part for part in DECLARED[:2] if part not in tables]:
        raise ValueError(f"a declared problem must have the table [problem.{missing[0]}]")
    for part in tables:
        if not isinstance(tables[part], Mapping):
            raise ValueError(f"[problem.{part}] must be a table; got {tables[part]!r:.60}")
    signal = tables["physics"].get("operator") == POINTS
    fields = read_prior(tables["prior"], folder, signal=signal)
    operator = read_physics(tables["physics"], fields.labels, folder)
    draw = operator.params
    if "noise" in tables:
        noise, levels = _noise(tables["noise"], operator, fields.labels.units)
        operator.physics.set_noise_model(noise)
        draw = _Drawn(operator, levels) if levels or draw is not None else None
    elif not operator.own:
        raise ValueError("a declared problem must have the table [problem.noise]")
    train, test = fields.train, fields.test
    return InverseProblem(
        train,
        test_prior=test,
        physics=operator.physics,
        params=draw,
        **fields.keywords,
        **operator.labels,
        name=f"{fields.labels.name} by {tables['physics']['operator']}",
        kwargs=dict(tables),
    )


Level = Callable[[int], dict[str, Tensor]]


@dataclass(frozen=True)
class _Drawn:
    """Parameters of operator and noise, ``num -> dict``."""

    operator: Operator
    levels: Mapping[str, Level]

    def __call__(self, num: int) -> dict[str, Tensor]:
        rows = self.operator.rows
        drawn = {} if self.operator.params is None else self.operator.params(num)
        for name, level in self.levels.items():
            values = level(num * (rows or 1))["sigma"]
            drawn[name] = values if rows is None else values.reshape(num, rows)
        return drawn


def _noise(
    table: Mapping[str, Any], operator: Operator, units: str | None
) -> tuple[NoiseModel, dict[str, Level]]:
    """The noise model, and what draws its parameters."""
    arguments = dict(table)
    model = arguments.pop("model", None)
    if not isinstance(model, str):
        raise ValueError(
            f"[problem.noise] must have a 'model', one of {list(NOISES)}; got {model!r}"
        )
    refuse_unknown("'model' in [problem.noise]", [model], NOISES)
    kind = getattr(deepinv_physics, NOISES[model])
    check_keys("problem.noise", arguments, kind, reserved=("rng",))
    levels: dict[str, Level] = {}
    for name in noise_law(kind())[1]:
        if name not in arguments:
            raise ValueError(
                f"[problem.noise] must state '{name}' of the model '{model}': a number, a range "
                "[low, high], or a column of the station table"
            )
        value = arguments[name]
        if isinstance(value, str):
            arguments[name] = _column(value, name, operator, units)
            continue
        low, level = _level(value, name)
        arguments[name] = low
        if level is not None:
            levels[name] = level
    return attempt(kind, f"model = {model}", **arguments), levels


def _level(value: Any, name: str) -> tuple[float, Level | None]:
    parts = value if isinstance(value, list) else [value]
    try:
        numbers = [float(POSITIVE.check(name, part, "problem.noise")) for part in parts]
        return noise_level(numbers if isinstance(value, list) else numbers[0])
    except ValueError as error:
        raise ValueError(
            f"'{name}' in [problem.noise] must be a positive number, a range low < high of them, "
            f"or a column of the station table; got {value!r:.80}"
        ) from error


def _column(value: str, name: str, operator: Operator, units: str | None) -> Tensor:
    """A noise parameter of every station of the table."""
    if operator.table is None:
        raise ValueError(
            f"'{name}' in [problem.noise] is the column {value!r}, and [problem.physics] has no "
            "'stations', no table with columns"
        )
    if value not in operator.table.variables:
        raise ValueError(
            f"'{name}' in [problem.noise]: the station table has no column {value!r}; it has "
            f"{sorted(map(str, operator.table.variables))}"
        )
    column = operator.table[value]
    values = real_array(column, value).astype(np.float64)
    stated = column.attrs.get("units")
    if stated is not None and units is not None:
        values = converted(values, stated, units, f"'{value}'", difference=True)
    shape = operator.physics.points.shape[:1]
    if values.shape != tuple(shape) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"'{value}' of the station table must be positive for every station")
    channels = operator.physics.img_size[0]
    tensor = torch.from_numpy(values).to(torch.get_default_dtype())
    return tensor if channels == 1 else tensor.expand(channels, -1).clone()
