r"""Grades: what of a posterior may be trusted, each with its size in plain words.

The verdict says whether draws and truths differ at all; with many simulations it finds differences
that matter to nobody. A grade asks of one *aspect* how large the difference is:

* ``pass``: none of the verdict's tests that look at the aspect fails;
* ``borderline``: one fails, and the difference is small;
* ``fail``: one fails, and the difference matters.

So all grades pass exactly when the verdict passes, and a calibrated posterior gets one below
``pass`` with probability at most ``alpha``. Where the verdict fails, intervals are also looked at
over all elements of the field together, whose mean coverage has a small standard error: a width
that is wrong everywhere shows there before it shows at a single place.

**What matters.** Of the quantities whose test fails, the root mean square with the noise of
:math:`N` simulations removed, :math:`(\overline{e^2} - \mathrm{var}_N)_+^{1/2}`; of roughness,
which has next to no noise, the largest:

======================  ============  ===========================================================
error :math:`e`         matters over  because
======================  ============  ===========================================================
offset of draws         0.1 std       the error of the mean grows by half a per cent
coverage of 50 %, 90 %  2.5 points    as much as a width that is 5 to 8 % wrong
roughness (amplitude)   5 %           at that, two fields side by side look alike
======================  ============  ===========================================================

**Place or width.** A shift and a wrong width fail the same test of ranks. The failure counts as
one of place where the offset is beyond three of its standard errors :math:`1/\sqrt N`, and as one
of intervals where a coverage is beyond three of its own, or where it is none of place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr

from vfm_inverse.statistics.meanings import family, is_own, unit_of

__all__ = ["ABOUT", "Grade", "grades"]

OFFSET, SHARE, ROUGH = 0.1, 0.025, 0.05
"""An offset in posterior standard deviations, a share of truths, an amplitude that matter."""

SEEN = (0.5, 0.9)
"""Levels of intervals that are looked at."""

ASPECTS: dict[str, tuple[str, ...]] = {
    "means": ("pixel", "x"),
    "intervals": ("pixel", "x"),
    "regional means": ("mean", "block_mean"),
    "extremes": ("max", "min"),
    "small scales": ("gradient_energy", "band_power"),
    "whole field": ("distance", "norm"),
    "fit to the data": ("log_likelihood",),
}
"""Quantities of each aspect; the first two are of the same ones."""

ABOUT = {
    "means": "where draws of single places, or single numbers, are centred",
    "intervals": "how often intervals of single places, or single numbers, hold the truth",
    "regional means": "means over the field and over its blocks: place and intervals",
    "extremes": "largest and smallest value of the field: place and intervals",
    "small scales": "gradients and power at each scale: how rough draws are",
    "whole field": "all numbers at once: joint regions, and the distance from the centre",
    "fit to the data": "log-likelihood of the observation, of draws against truths",
    "own quantities": "the quantities that were asked for: place and intervals",
    "single observations": "whether draws are wrong for some observations, by classifiers",
}
"""What each aspect is."""

TITLES = {
    "max": "the maximum",
    "min": "the minimum",
    "mean": "the mean",
    "norm": "the norm",
    "distance": "the distance from the centre",
    "log_likelihood": "the log-likelihood",
}


class Grade(NamedTuple):
    """What may be trusted of one aspect.

    Attributes:
        aspect: which one.
        grade: ``"pass"``, ``"borderline"`` or ``"fail"``.
        size: how large the difference is, in a phrase.
    """

    aspect: str
    grade: Literal["pass", "borderline", "fail"]
    size: str


def grades(report: xr.Dataset) -> tuple[Grade, ...]:
    """The grades of the aspects that a report has quantities for.

    Args:
        report: from ``calibration.calibrate``, ``from_draws`` or ``merge``.

    Returns:
        Means and intervals of single places, regional means, extremes, small scales, the whole
        field at once, fit to the data, quantities of the user's own, single observations.
    """
    kinds = [_kind(report, str(name)) for name in report.quantity.values]
    found = []
    for aspect, families in ASPECTS.items():
        rows = [i for i, kind in enumerate(kinds) if kind in families]
        whole = aspect == "whole field" and "tarp_p_adjusted" in report
        if rows or whole:
            found.append(_Group(report, rows).grade(aspect))
    rows = [i for i, kind in enumerate(kinds) if kind == ""]
    if rows:
        found.append(_Group(report, rows).grade("own quantities"))
    if "local_global_p_adjusted" in report:
        found.append(_local(report))
    return tuple(found)


def _kind(report: xr.Dataset, name: str) -> str:
    """Family of a quantity, nothing for one of the user's own."""
    known = {kind for families in ASPECTS.values() for kind in families}
    return "" if is_own(report, name) or family(name) not in known else family(name)


class _Group:
    """Quantities of one aspect: which of them fail, in which way, and by how much."""

    def __init__(self, report: xr.Dataset, rows: Sequence[int]) -> None:
        self.report, self.num = report, report.attrs["num_simulations"]
        part = report.isel(quantity=list(rows))
        self.names = [str(name) for name in part.quantity.values]
        alpha = report.attrs["alpha"]
        self.failed = part.p_adjusted.values <= alpha
        if "density_p_adjusted" in part:
            self.failed = self.failed | (part.density_p_adjusted.values <= alpha)
        self.offset, self.width = part["offset"].values, part["width"].values
        # Over all elements: share inside minus stated and its standard error; an older report has
        # neither.
        self.every, self.every_error = np.zeros(len(SEEN)), np.zeros(len(SEEN))
        if "held" in report:
            self.every = report.held.sel(level=list(SEEN)).values - SEEN
            self.every_error = report.held_error.sel(level=list(SEEN)).values
        kinds = [kind for kind in ("coverage", "hpd_coverage") if kind in part]
        level = np.array(SEEN)
        # (kinds, quantities, levels)
        share = [part[kind].sel(level=list(SEEN)).transpose("quantity", "level") for kind in kinds]
        self.share = np.stack([one.values for one in share])
        self.noise = level * (1 - level) / self.num
        self.off = self.share - level
        self.placed = np.abs(self.offset) > 3 / np.sqrt(self.num)
        beyond = (np.abs(self.off) > 3 * np.sqrt(self.noise)).any((0, 2))
        self.spread = self.failed & (beyond | ~self.placed)
        self.placed &= self.failed
        gone = np.full(len(self.names), np.nan)
        self.std, self.truth, self.drawn = (
            part[f"quantity_{key}"].values if f"quantity_{key}" in part else gone
            for key in ("std", "truth", "mean")
        )

    def grade(self, aspect: str) -> Grade:
        """The grade of these quantities as ones of an aspect."""
        if aspect == "means":
            phrase = (self._places() or [self._nearest()])[0]
            return self._of(aspect, self.placed.any(), self._far(), phrase)
        if aspect == "intervals":
            beyond = np.abs(self.every) > 3 * self.every_error
            together = self.report.attrs["verdict"] == "fail" and bool(beyond.any())
            matters = self._wide() or (together and bool((np.abs(self.every) > SHARE).any()))
            failed = bool(self.spread.any()) or together
            return self._of(aspect, failed, matters, self._intervals("", field=True))
        if aspect == "whole field":
            return self._whole()
        matters = self._wide() or self._far()
        if aspect == "small scales":
            matters = self._wide(self.spread & ~self.placed) or self._coarse()
            phrase = self._roughness()
        else:
            of = " of the log-likelihood" if aspect == "fit to the data" else ""
            phrase = "; ".join([*self._places(), self._intervals(of)])
        return self._of(aspect, self.failed.any(), matters, phrase)

    def _of(self, aspect: str, failed: bool, matters: bool, phrase: str) -> Grade:
        return Grade(aspect, ("fail" if matters else "borderline") if failed else "pass", phrase)

    def _far(self) -> bool:
        return _size(self.offset[self.placed], 1 / self.num) > OFFSET

    def _wide(self, rows: np.ndarray | None = None) -> bool:
        rows = self.spread if rows is None else rows
        return any(
            _size(self.off[kind, rows, level], self.noise[level]) > SHARE
            for kind in range(len(self.off))
            for level in range(len(SEEN))
        )

    def _coarse(self) -> bool:
        return bool((np.abs(self._amplitude()[self.failed]) > ROUGH).any())

    def _amplitude(self) -> np.ndarray:
        """Root of the power of draws over that of truths, minus one; NaN where not known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(self.truth > 0, self.drawn / self.truth, np.nan)
        return np.asarray(np.sqrt(ratio) - 1)

    def _places(self) -> list[str]:
        """Where draws are off by most, of the quantities that fail by their place."""
        if not self.placed.any():
            return []
        worst = int(np.where(self.placed, np.abs(self.offset), -1.0).argmax())
        side = "high" if self.offset[worst] > 0 else "low"
        title = TITLES.get(self.names[worst], f"'{self.names[worst]}'")
        return [f"{title} is drawn too {side} by {self._away(worst)}{self._others(self.placed)}"]

    def _nearest(self) -> str:
        worst = int(np.abs(self.offset).argmax())
        return f"off by at most {self._away(worst)}, at '{self.names[worst]}'"

    def _away(self, row: int) -> str:
        """How far draws are off: in the quantity's unit, and in posterior standard deviations."""
        offset, unit = float(self.offset[row]), unit_of(self.report, self.names[row])
        deviations = f"{abs(offset):.2g} posterior standard deviations"
        bias = float(self.drawn[row] - self.truth[row])
        if bias * offset < 0:  # skewed: the mean says another thing than the ranks
            bias = offset * float(self.std[row])
        known = bool(unit) and np.isfinite(bias)
        return f"{abs(bias):.2g} {unit} ({deviations})" if known else deviations

    def _intervals(self, of: str = "", field: bool = False) -> str:
        """What intervals hold: over the whole field or these quantities, and at the worst."""
        last = SEEN.index(0.9)
        share = float(self.share[0, :, last].mean())
        if field:
            share = float(self.report.coverage_map.sel(level=0.9).mean())
        phrase = f"90 % intervals{of} hold {100 * share:.1f} %"
        if field and "held" in self.report:
            phrase += f" ± {100 * float(self.every_error[last]):.1f} %"
        if not self.spread.any():
            return phrase
        if len(self.names) > 1:
            away = np.where(self.spread, np.abs(self.off[0, :, last]), -1.0)
            worst = int(away.argmax())
            phrase += f", those of '{self.names[worst]}' {100 * self.share[0, worst, last]:.1f} %"
        width = float(np.exp(np.log(self.width[self.spread]).mean()))
        if abs(np.log(width)) > 3 / np.sqrt(2 * self.num):  # False for NaN
            side = "narrow" if width < 1 else "wide"
            phrase += f", too {side}: {width:.2f} times the right width"
        return phrase + self._others(self.spread)

    def _roughness(self) -> str:
        """Amplitude at the smallest scale, or of the gradient where there are no bands, and at the
        scale that is farthest off."""
        known = self._amplitude()
        if np.isnan(known).all():
            return self._intervals()
        smallest = max(range(len(known)), key=lambda i: ("band" in self.names[i], self.names[i]))
        shown = [(smallest, "at the smallest scale")]
        failing = np.where(self.failed, np.nan_to_num(np.abs(known)), -1.0)
        worst = int(failing.argmax())
        if self.failed.any() and worst != smallest:
            shown.append((worst, f"in '{self.names[worst]}'"))
        words = [
            f"{100 * abs(known[row]):.1f} % {'rougher' if known[row] > 0 else 'smoother'}"
            f"{'' if i else ' than truths'} {where}"
            for i, (row, where) in enumerate(shown)
        ]
        phrase = f"draws are {', '.join(words)}"
        return f"{phrase}; {self._intervals()}" if self.spread.any() else phrase

    def _whole(self) -> Grade:
        """Joint coverage of all numbers, and the distances that the energy score is made of."""
        failed, matters, phrases = bool(self.failed.any()), self._wide() or self._far(), []
        report = self.report
        if "tarp_p_adjusted" in report:
            level = report.position.values
            off = report.tarp_coverage.values - level
            share = 100 * float(np.interp(0.9, level, report.tarp_coverage.values))
            phrases.append(f"joint 90 % regions hold {share:.1f} %")
            if float(report.tarp_p_adjusted) <= report.attrs["alpha"]:
                failed = True
                sets = report.tarp_set_coverage.values - level if "tarp_set" in report.dims else []
                noise = float((level * (1 - level)).mean()) / self.num
                matters |= any(_size(one, noise) > SHARE for one in (off, *sets))
        if self.failed.any() or not phrases:
            of = " of the distance" if self.names == ["distance"] else ""
            phrases += [*self._places(), self._intervals(of)]
        return self._of("whole field", failed, matters, "; ".join(phrases))

    def _others(self, rows: np.ndarray) -> str:
        """How many of the quantities the phrase stands for."""
        count = int(rows.sum())
        return f", {count} of {len(rows)} fail" if count and len(rows) > 1 else ""


def _size(errors: np.ndarray, noise: float) -> float:
    """Root mean square of errors without the variance that noise has."""
    square = np.nan_to_num(np.asarray(errors, dtype=float)) ** 2
    return float(np.sqrt(max(square.mean() - noise, 0.0))) if square.size else 0.0


def _local(report: xr.Dataset) -> Grade:
    """How many observations a classifier tells draws from truths at."""
    alpha = report.attrs["alpha"]
    share = float((report.local_p_value <= alpha).mean())
    failed = float(report.local_global_p_adjusted) <= alpha
    matters = share - alpha > 2 * SHARE
    grade: Literal["pass", "borderline", "fail"] = "pass"
    if failed:
        grade = "fail" if matters else "borderline"
    text = f"draws are told from truths at {100 * share:.1f} % of the observations"
    return Grade("single observations", grade, f"{text}; {100 * alpha:g} % by chance")
