"""What certificates look like in the documentation: a row of the table, and the page of a
problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.certify_settings import Setting
from vfm_inverse.runtime.files import replacing

__all__ = ["BEGIN", "END", "figures", "put", "table"]

BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"

NAMED = 3
"""Failing quantities that a row names."""

COLUMNS = (
    "problem",
    "raw",
    "corrected",
    "fails by",
    "energy score over the start's",
    "misfit a datum (truth's)",
    "ms a draw / an observation",
    "training [min]",
    "simulations, seed",
)


def put(path: Path, mark: str, text: str) -> None:
    """Replace what stands between two marks of a page.

    Raises:
        ValueError: the page does not have them.
    """
    begin, end = BEGIN.format(mark), END.format(mark)
    old = path.read_text(encoding="utf-8")
    head, first, rest = old.partition(begin)
    _, last, tail = rest.partition(end)
    if not (first and last):
        raise ValueError(f"'{path}' must have lines '{begin}' and '{end}'")
    with replacing(path) as temporary:
        temporary.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}", encoding="utf-8")


def table(names: Sequence[str], certificates: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all problems; dashes where there is no certificate."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name in names:
        cells = row(certificates[name]) if name in certificates else ["–"] * (len(COLUMNS) - 1)
        lines.append("| " + " | ".join([f"[`{name}`](problems/{name}.md)", *cells]) + " |")
    done = [certificates[name] for name in names if name in certificates]
    raw = sum(one["raw"]["verdict"] == "pass" for one in done)
    either = sum(one["raw"]["verdict"] == "pass" or counts(one) for one in done)
    machines = sorted({one["machine"] for one in done})
    told = (
        f"{raw} of {len(names)} problems pass as they are sampled, {either} as they are sampled "
        f"or corrected; {len(names) - len(done)} have no certificate yet."
    )
    where = f" Times are those of one thread ({'; '.join(machines)})." if machines else ""
    return "\n".join(lines) + f"\n\n{told}{where}\n"


def counts(one: Mapping[str, Any]) -> bool:
    """Whether corrected draws passed a check of as many simulations as the other."""
    corrected = one["corrected"] or {"verdict": "none"}
    enough = corrected.get("simulations", 0) >= one["raw"]["simulations"]
    return bool(corrected["verdict"] == "pass" and enough)


def row(one: Mapping[str, Any]) -> list[str]:
    """The cells of a certificate, without its name."""
    raw, corrected, setting = one["raw"], one["corrected"], one["setting"]
    after = "–" if corrected is None else verdict(corrected)
    if after != "–" and (num := corrected["simulations"]) != raw["simulations"]:
        after += f" ({num} simulations)"
    return [
        verdict(raw),
        after,
        fails(raw),
        number(raw.get("over_start"), ".3f"),
        misfit(one),
        f"{number(one['ms_draw'], '.2g')} / {number(one['ms_observation'], '.2g')}",
        number(one["training_minutes"], ".1f"),
        f"{raw['simulations']} x {raw['draws']}, {setting['seed']}",
    ]


def verdict(check: Mapping[str, Any]) -> str:
    """Pass, or how many fail."""
    if check["verdict"] == "pass":
        return "pass"
    if check["verdict"] == "not possible":
        return "–"
    return f"**fail** ({len(check['failing'])} of {check['quantities']})"


def fails(check: Mapping[str, Any]) -> str:
    """The quantities that fail most strongly, with offset and width, and the joint tests."""
    failing = check["failing"]
    told = [sized(one) for one in failing[:NAMED]]
    if len(failing) > NAMED:
        told.append(f"{len(failing) - NAMED} more")
    alpha = 0.05
    if check.get("failing_density"):
        told.append(f"density regions of {check['failing_density']}")
    if check.get("joint_p", 1.0) <= alpha:
        told.append(f"joint coverage (p = {check['joint_p']:.2g})")
    return ", ".join(told)


def sized(one: Mapping[str, Any]) -> str:
    """``"`log_likelihood` -2.3 sd, x 1.4"``: offset in posterior standard deviations, and the
    width against the one that the truth needs."""
    width = "" if one["width"] is None else f", x {one['width']:.2f}"
    return f"`{one['quantity']}` {number(one['offset'], '+.2g')} sd{width}"


def misfit(one: Mapping[str, Any]) -> str:
    """That of draws and of truths."""
    if one["misfit"] is None:
        return "–"
    return f"{one['misfit'][0]:.3g} ({one['misfit'][1]:.3g})"


def number(value: float | None, form: str) -> str:
    """A figure, or a dash."""
    return "–" if value is None else f"{value:{form}}"


def figures(name: str, one: Mapping[str, Any]) -> str:
    """What stands between the marks of a problem's page: the picture, and a table."""
    raw, corrected = one["raw"], one["corrected"]
    score = raw["energy_score"]
    scores = [f"{score:.4g} with this map"]
    if "over_start" in raw:
        scores.append(f"{score / raw['over_start']:.4g} untrained")
    if one["energy_score_exact"] is not None:
        scores.append(f"{one['energy_score_exact']:.4g} exact")
    if "over_prior" in raw:
        scores.append(f"{score / raw['over_prior']:.4g} from the prior")
    rows = {"calibration": f"**{raw['verdict']}**: {raw['reason']}"}
    if corrected is not None:
        rows["corrected draws"] = f"**{corrected['verdict']}**: {corrected['reason']}"
        if "method" in corrected:
            rows["corrected draws"] += f" ({corrected['method']})"
    share = f"{100 * raw['coverage_90']:.1f} %"
    rows |= {
        "90 % intervals hold": f"{share} of the truths ({raw['simulations']} simulations of "
        f"{raw['draws']} draws)",
        "energy score": ", ".join(scores),
        "misfit a datum": f"{misfit(one)}: of draws (of truths), in variances of the noise",
        "time": f"{one['training_minutes']:.1f} minutes of training; {one['ms_observation']:.2g} "
        f"ms an observation, {one['ms_draw']:.2g} ms a draw ({one['machine']})",
    }
    if one["prior"]:
        rows["prior"] = one["prior"]
    lines = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    title = f"Truth, observation, posterior and calibration of {name}"
    setting = Setting(**one["setting"])
    return (
        f"![{title}](../_static/problems/{name}.png)\n\n| | |\n|---|---|\n{lines}\n"
        f"`python -m tests.benchmarks.certify {name}` makes picture and figures, from\n\n"
        f"```console\n$ {setting.shown(name)}\n```\n"
    )
