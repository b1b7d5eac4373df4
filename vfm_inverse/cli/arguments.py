"""The arguments of the command line; :mod:`vfm_inverse.cli.commands` acts on them.

Nothing here imports torch, so that ``--help`` does not wait for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vfm_inverse.runtime.settings import COUNT, SETTINGS, Setting
from vfm_inverse.runtime.version import __version__

__all__ = ["build_parser", "numbers", "parsed"]


Add = Callable[..., argparse.ArgumentParser]
"""From a name, a summary and parsers of options to the parser of a subcommand."""


def build_parser(subcommands: Mapping[str, Callable[..., int]]) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Args:
        subcommands: what runs each subcommand, by its name; it becomes the argument ``run``.
    """
    parser = argparse.ArgumentParser(
        prog="vfm-inverse",
        description="Calibrated posterior draws for inverse problems, with variational flow maps.",
    )
    parser.add_argument("--version", action="version", version=f"vfm-inverse {__version__}")
    commands = parser.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print one JSON object, no bar")
    output.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add(name: str, summary: str, *options: Any) -> argparse.ArgumentParser:
        parents = [*options, output]
        sub = commands.add_parser(name, help=summary, description=summary, parents=parents)
        sub.set_defaults(run=subcommands[name])
        return sub

    add("problems", "List the problems that come with the package.")
    for describe in (_new, _inspect, _train, _draw, _calibrate, _report, _verify, _demo):
        describe(add)
    return parser


def _setting(function: str, name: str) -> Callable[[str], int]:
    return lambda text: parsed(SETTINGS[function][name], text)


def _compute(seed: int | None = 0, device: str | None = "auto") -> argparse.ArgumentParser:
    # A parser each: argparse shares the options of a parent, defaults included.
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--seed", type=_setting("sample", "seed"), default=seed, help="of all draws (default: 0)"
    )
    options.add_argument(
        "--device", default=device, help="'cpu', 'cuda', ..., or 'auto' (default): a GPU if any"
    )
    return options


def _own() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--problem",
        metavar="module:object|CONFIG.toml",
        help="problem of the run, where its code or its files are elsewhere now",
    )
    return options


def _new(add: Add) -> None:
    sub = add("new", "Write a first settings file, or a first module, that runs as it is.")
    sub.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FIELDS.nc|IMAGES",
        help="fields (netCDF, zarr) or a folder of pictures, of which the prior is made",
    )
    sub.add_argument(
        "--stations", type=Path, metavar="TABLE.csv", help="places where the fields are observed"
    )
    sub.add_argument(
        "--physics", metavar="deepinv:CLASS|module:object", help="operator that observes them"
    )
    sub.add_argument("--code", action="store_true", help="write a Python module instead")
    sub.add_argument(
        "out",
        nargs="?",
        type=Path,
        metavar="OUT",
        help="file to write (default: problem.toml, or own_problem.py); it must be a new one",
    )


def _inspect(add: Add) -> None:
    sub = add("inspect", "Say what a run, a data file or a settings file is, in ten lines.")
    sub.add_argument("path", type=Path, metavar="RUN|FILE|CONFIG.toml", help="what to look at")


def _train(add: Add) -> None:
    # Without defaults: what the command line leaves out, the settings file may say.
    unset = _compute(seed=None, device=None)
    sub = add("train", "Train a map and check its calibration.", unset)
    sub.add_argument(
        "target",
        metavar="PROBLEM|CONFIG.toml|module:object",
        help="problem, settings, or a problem of yours in a Python module",
    )
    sub.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    sub.add_argument(
        "--steps",
        type=_setting("fit", "steps"),
        help="optimiser steps, or 'auto' (default): until the held-out score stalls",
    )
    sub.add_argument(
        "--minutes",
        type=_setting("fit", "minutes"),
        help="computing time after which 'auto' ends in any case",
    )
    sub.add_argument(
        "--batch-size", type=_setting("fit", "batch_size"), help="simulations per step"
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="one more setting, as in the file: --set problem.size=64; may be repeated",
    )
    sub.add_argument("--resume", action="store_true", help="continue the run in the folder")
    sub.add_argument(
        "--prior-map",
        action="store_true",
        help="train at once the map of the prior that 'correct' may need",
    )


def _draw(add: Add) -> None:
    draw = "Draw from the posterior of an observation."
    correction = "Draw, and correct the draws until their diagnostics are satisfied."
    for name, summary, num in (("sample", draw, 1000), ("correct", correction, 1024)):
        sub = add(name, summary, _compute(), _own())
        sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a trained run")
        sub.add_argument("observation", type=Path, metavar="OBS.nc", help="what was observed")
        sub.add_argument(
            "-n",
            "--num-draws",
            type=_setting("sample", "num_draws"),
            default=num,
            help=f"draws (default: {num})",
        )
        sub.add_argument(
            "--out", type=Path, required=True, metavar="POST.nc", help="file to write"
        )
        sub.add_argument(
            "--summary",
            action="store_true",
            help="write mean, standard deviation and quantiles instead of the draws",
        )
        sub.add_argument(
            "--quantiles",
            type=numbers,
            metavar="LEVEL,...",
            help="levels of the summary's quantiles (default: 0.05,0.5,0.95)",
        )
        sub.add_argument("--draws", action="store_true", help="write the draws too")
        if name == "sample":
            sub.add_argument(
                "--raw",
                action="store_true",
                help="draws of the map alone, where others would be made exact",
            )


def _calibrate(add: Add) -> None:
    sub = add("calibrate", "Check the calibration of a trained map.", _compute(), _own())
    sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a trained run")
    sub.add_argument(
        "--num-simulations",
        type=_setting("calibration", "num_simulations"),
        help="simulated truths (default: 1000, with --corrected 200)",
    )
    sub.add_argument(
        "--num-draws",
        type=_setting("calibration", "num_draws"),
        help="draws for each of them (default: 1000, with --corrected 128)",
    )
    sub.add_argument(
        "--corrected", action="store_true", help="check the draws as 'correct' corrects them"
    )
    sub.add_argument(
        "--strict", action="store_true", help="exit with 1 when the verdict is 'fail'"
    )


def _report(add: Add) -> None:
    sub = add("report", "Write the report page of a run from its files.", _compute(), _own())
    sub.add_argument("folder", type=Path, metavar="RUN", help="folder of a calibrated run")


def _verify(add: Add) -> None:
    sub = add("verify", "Certify adjoint, derivatives and noise of an operator.")
    sub.add_argument(
        "target", nargs="?", metavar="OPERATOR|PROBLEM|module:object", help="what to verify"
    )
    sub.add_argument("--all", action="store_true", help="every operator of the package")
    sub.add_argument(
        "--seed",
        type=_setting("sample", "seed"),
        default=0,
        help="of the random directions (default: 0)",
    )


def _demo(add: Add) -> None:
    sub = add("demo", "Deblur photographs: train, sample, calibrate, draw.", _compute())
    sub.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder to write (default: runs/demo)"
    )
    sub.add_argument(
        "--steps",
        type=lambda text: parsed(COUNT, text),
        help="optimiser steps, for a shorter or longer demo",
    )


def numbers(text: str) -> tuple[float, ...]:
    """Argparse type: numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be numbers between commas; got {text!r:.40}"
        ) from error


def parsed(setting: Setting, text: str) -> Any:
    """Argparse type: a number in the range of a setting, or one of its words."""
    try:
        value = setting.check("", text if text in setting.words else setting.kind(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {setting}; got {text!r:.40}") from error
    return value
