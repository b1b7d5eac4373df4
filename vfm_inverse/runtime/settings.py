"""The range of every setting, by the function it is handed to.

One table serves Python, settings files and the command line. Nothing here imports torch or NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

__all__ = ["SETTINGS", "Setting", "brief", "check_settings"]


def brief(value: Any) -> str:
    """A value as Python writes it, in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True)
class Setting:
    """What a setting may be.

    Args:
        kind: ``int``, ``float`` or ``bool``.
        low, high: ends of the range; none where missing.
        open_low, open_high: whether the end itself is left out.
        optional: whether ``None`` is a value too.
        words: values besides numbers.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    optional: bool = False
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind is bool:
            return "true or false"
        ends = []
        if self.low is not None:
            ends.append(f"above {self.low:g}" if self.open_low else f"at least {self.low:g}")
        if self.high is not None and self.high not in (MAX_SEED, MOST):
            ends.append(f"below {self.high:.6g}" if self.open_high else f"at most {self.high:.6g}")
        alone = "".join(f" or {word!r}" for word in self.words)
        noun = "an integer" if self.kind is int else "a number"
        # "a number above 0", "an integer of at least 1"
        of = "" if not ends else " " if self.open_low else " of "
        return noun + of + " and ".join(ends) + " or None" * self.optional + alone

    def check(self, name: str, value: Any, section: str | None = None) -> Any:
        """The value as ``kind``: NumPy's numbers, and floats without a fraction, are integers too.

        Args:
            name: of the setting, for the message.
            value: what came.
            section: of the settings file where it stands, for the message.

        Raises:
            ValueError: it is of another kind, not finite, or out of range.
        """
        if value is None and self.optional:
            return None
        if isinstance(value, str) and value in self.words:
            return value
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            if type(value).__name__ in ("bool", "bool_"):  # NumPy's
                return bool(value)
        elif isinstance(value, Real) and not isinstance(value, bool):
            whole = isinstance(value, Integral) or float(value).is_integer()
            finite = whole or math.isfinite(float(value))
            if finite and (self.kind is float or whole) and self._holds(value):
                return self.kind(value)
        where = "" if section is None else f" in [{section}]"
        raise ValueError(f"'{name}'{where} must be {self}; got {brief(value)}")

    def _holds(self, value: Any) -> bool:
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return above and below


MAX_SEED = 2**63 - 1
MOST = 2**31 - 1
"""Largest number of anything that is counted."""

FLAG = Setting(bool)
SEED = Setting(int, 0, MAX_SEED)
ANY_SEED = Setting(int, 0, MAX_SEED, optional=True)
COUNT, PAIR = Setting(int, 1, MOST), Setting(int, 2, MOST)
WEIGHT, SHARE = Setting(float, 0), Setting(float, 0, 1)
POSITIVE = Setting(float, 0, open_low=True)

SETTINGS: dict[str, dict[str, Setting]] = {
    "model": {
        "gaussian_start": FLAG,
        "steps": COUNT,
        "width": Setting(int, 1, 2**16, optional=True),
        "depth": Setting(int, 0, 2**10, optional=True),
        "max_rank": COUNT,
        "num_simulations": PAIR,
        "seed": SEED,
        "progress": FLAG,
    },
    "fit": {
        "steps": Setting(int, 1, MOST, words=("auto",)),
        "minutes": Setting(float, 0, open_low=True, optional=True),
        "batch_size": PAIR,
        "learning_rate": POSITIVE,
        "weight_decay": WEIGHT,
        "clip": POSITIVE,
        "average_decay": Setting(float, 0, 1, open_high=True),
        "seed": SEED,
        "resume": FLAG,
        "checkpoint_every": COUNT,
        "log_every": COUNT,
        "validations": COUNT,
        "num_validation": Setting(int, 2, MOST, optional=True),
        "num_frames": COUNT,
        "progress": FLAG,
    },
    "objective": {
        "flow": WEIGHT,
        "forward": Setting(float, 0, optional=True),
        "reverse": WEIGHT,
        "alpha": SHARE,
        "tau": POSITIVE,
        "off_diagonal": SHARE,
        "adaptive": FLAG,
        "adapter_share": Setting(float, 0, 1, optional=True),
    },
    "calibration": {
        "num_simulations": PAIR,
        "num_draws": PAIR,
        "seed": ANY_SEED,
        "alpha": Setting(float, 0, 1, open_low=True, open_high=True),
        "joint": FLAG,
        "local": FLAG,
        "chunk": COUNT,
        "memory": COUNT,
        "resume": FLAG,
        "progress": FLAG,
    },
    "prior_map": {
        "steps": COUNT,
        "batch_size": PAIR,
        "num_simulations": PAIR,
        "num_draws": PAIR,
        "seed": SEED,
        "progress": FLAG,
    },
    "sample": {"num_draws": COUNT, "seed": SEED},
    "load": {"warn": FLAG},
    "correction": {
        "num_samples": COUNT,
        "seed": ANY_SEED,
        "ess": Setting(float, 0, 1, open_low=True, open_high=True),
        "moves": COUNT,
        "max_stages": COUNT,
        "num_chains": COUNT,
        "warmup": Setting(int, 0, MOST),
        "thin": Setting(int, 1, MOST, optional=True),
        "num_bootstrap": COUNT,
        "steps": COUNT,
        "num_draws": PAIR,
        "learning_rate": POSITIVE,
        "level": Setting(float, 0, 1, open_low=True, open_high=True),
        "num_simulations": PAIR,
        "largest": Setting(float, 1, open_low=True),
        "progress": FLAG,
    },
}
"""Range by function (``model`` is ``VariationalFlowMap.for_problem``) and argument; arguments that
choose by name are checked where the names are known."""


def check_settings(
    function: str, given: Mapping[str, Any], section: str | None = None
) -> dict[str, Any]:
    """Settings as numbers of their kind; those without a range as they came.

    Args:
        function: whose they are, a key of :data:`SETTINGS`.
        given: settings by name.
        section: of the settings file where they stand, for the message.

    Raises:
        ValueError: a setting is of another kind or out of range.
    """
    ranges = SETTINGS[function]
    return {
        name: ranges[name].check(name, value, section) if name in ranges else value
        for name, value in given.items()
    }
