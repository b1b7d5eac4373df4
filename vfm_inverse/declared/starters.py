"""A first settings file, or a first Python module, for a problem of one's own.

What is written runs as it is: numbers that nobody but the user can know (how large the errors are,
which samples to hold out) are filled in from a look at the files, and say so in a comment.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import xarray as xr

from vfm_inverse.formats.surveys import (
    column_of,
    fields,
    is_store,
    opened,
    plain,
    sample_dim,
    survey,
)
from vfm_inverse.runtime.config import POINTS

__all__ = ["code", "for_fields", "for_images", "for_problem", "write_starter"]

PATCH = 32
"""Side of a patch, unless pictures are smaller."""

HELD_OUT = 10
"""One sample of so many is held out."""

NOISE = 0.05
"""Standard deviation of the noise of pictures, whose white is 1."""

SETTINGS = """
[model]                             # how the map is made: most needs no setting
seed = 0

[fit]                               # how it is trained
# steps = 4000                      # of the optimiser; until nothing is gained where left out
batch_size = 64

[calibration]                       # how it is checked afterwards
num_simulations = 500
num_draws = 200
"""

PHYSICS = {
    "deepinv:Blur": 'filter = { name = "gaussian", sigma = 1.5 }\npadding = "circular"',
    "deepinv:BlurFFT": 'filter = { name = "gaussian", sigma = 1.5 }',
    "deepinv:Inpainting": "mask = [0.3, 0.7]                   # the share of pixels that is kept",
    "deepinv:Downsampling": 'factor = 2\nfilter = { name = "gaussian", sigma = 1.0 }',
    "deepinv:Denoising": "",
}
"""Arguments that an operator of deepinv needs, or is no use without."""

CODE = '''"""A problem of your own: train it with

    vfm-inverse train {module}:problem --out runs/{run}
"""

import torch
from deepinv.physics import GaussianNoise, LinearPhysics

from vfm_inverse import InverseProblem


class MovingMean(LinearPhysics):
    """The instrument: means over `width` neighbours, ``(B, 1, n) -> (B, 1, n - width + 1)``."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def A(self, x, **kwargs):
        return x.unfold(-1, self.width, 1).mean(-1)

    def A_adjoint(self, y, **kwargs):
        padded = torch.nn.functional.pad(y, (self.width - 1, self.width - 1))
        return padded.unfold(-1, self.width, 1).mean(-1)


def draw_signals(num, length=64):
    """The prior: `num` signals ``(num, 1, length)``; replace it by your simulator or your data."""
    return torch.randn(num, 1, length).cumsum(-1) / length**0.5


def problem(sigma=0.1):
    """Signals from noisy moving means; `sigma` is the standard deviation of the noise."""
    physics = MovingMean(5, noise_model=GaussianNoise(sigma))
    return InverseProblem(prior=draw_signals, physics=physics, dims=("position",))
'''


def write_starter(
    path: str | Path | None = None,
    *,
    source: str | Path | None = None,
    stations: str | Path | None = None,
    physics: str | None = None,
    module: bool = False,
) -> tuple[Path, str]:
    """Write a new settings file, or a new module.

    Args:
        path: of the file; ``problem.toml`` or ``own_problem.py`` unless given.
        source: file of fields or folder of pictures that the prior is made of.
        stations: table of places.
        physics: operator, ``deepinv:CLASS`` or ``module:object``.
        module: whether to write Python code.

    Returns:
        The file, and what ``vfm-inverse train`` takes for it.

    Raises:
        FileExistsError: there is such a file already, which stays as it is.
        FileNotFoundError: there is no such source.
        OSError: the file cannot be written.
        ValueError: arguments do not go together, or a source cannot be read.
    """
    path = Path(path or ("own_problem.py" if module else "problem.toml"))
    if path.exists():
        raise FileExistsError(f"'{path}' exists already; choose another name")
    if module and not source is stations is physics is None:
        raise ValueError("'--code' goes without '--from', '--stations' and '--physics'")
    if not module and path.suffix != ".toml":
        raise ValueError(f"the name of a settings file must end in .toml; got '{path.name}'")
    if source is None and not stations is physics is None:
        raise ValueError("'--stations' and '--physics' go with '--from'; it is missing")
    if stations is not None and physics not in (None, POINTS):
        raise ValueError(f"'--stations' goes with no other '--physics' than '{POINTS}'")
    if module:
        text, target = code(path), f"{_module_name(path)}:problem"
    elif source is None:
        text, target = for_problem(), str(path)
    elif Path(source).is_dir() and not is_store(Path(source)):
        if stations is not None:
            raise ValueError("'--stations' goes with fields on a grid; '--from' is a folder")
        text, target = for_images(source, path, physics or "deepinv:Blur"), str(path)
    else:
        text, target = for_fields(source, path, stations, physics or POINTS), str(path)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return path, target


def code(path: str | Path) -> str:
    """A Python module with an operator, a prior and the problem of both.

    Args:
        path: where it will stand; the command that its first lines tell depends on it.

    Raises:
        ValueError: the name is none that Python can import.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ValueError(
            f"the name of a module must be letters, digits and '_', with '.py'; got '{path.name}'"
        )
    return CODE.format(module=_module_name(path), run=path.stem)


def _module_name(path: Path) -> str:
    """What Python calls a file from the current folder; from its own, where that is elsewhere."""
    try:
        parts = path.absolute().relative_to(Path.cwd()).with_suffix("").parts
    except ValueError:
        parts = (path.stem,)
    return ".".join(parts) if all(part.isidentifier() for part in parts) else path.stem


def for_problem(name: str = "gaussian-field") -> str:
    """Settings for a problem of the package."""
    named = _line(f"name = {json.dumps(name)}", "one of `vfm-inverse problems`")
    lines = ["[problem]", named, _line("# size = 16", "further keys are arguments of the problem")]
    return _headed("A problem of the package", "\n".join(lines) + "\n")


def for_fields(
    source: str | Path,
    path: str | Path,
    stations: str | Path | None = None,
    physics: str = POINTS,
) -> str:
    """Settings for fields on a grid, seen at stations or through another operator.

    Args:
        source: netCDF file or zarr store with samples of the field.
        path: where the settings will stand, which paths in them are relative to.
        stations: table of places; a network that changes unless given.
        physics: operator.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no samples of a field.
    """
    with opened(source) as data:
        names = fields(data)
        known = [name for name in names if sample_dim(data[name]) is not None]
        if not known:
            have = {name: tuple(data[name].dims) for name in names}
            raise ValueError(
                f"'{source}' must hold a variable with a dimension that counts samples, called "
                f"sample, time, member, realization or ensemble; got {have}"
            )
        variable = data[known[0]]
        sample = str(sample_dim(variable))
        about = survey(variable, sample)
        test, why = _held_out(variable, sample)
    told = [variable.attrs.get("long_name"), variable.attrs.get("units")]
    told += ["others: " + ", ".join(known[1:4])] if known[1:] else []
    lines = [
        _line("[problem.prior]", "what fields may look like, before anything is observed"),
        f"path = {_relative(source, path)}",
        _line(f"variable = {json.dumps(known[0])}", ", ".join(filter(None, told))),
        _line(f"sample = {json.dumps(sample)}", f"counts the {variable.sizes[sample]} samples"),
        _line(f"test = {json.dumps(test)}", why),
    ]
    if about["missing"]:
        lines += ["# NaN were found: choose a region without them, or fill them, before training"]
    spread = about["std"] or 1.0
    sigma: float | str = _rounded(spread / 10)
    reason = _of_spread(spread, about["units"])
    lines += ["", _line("[problem.physics]", "how fields are observed")]
    lines.append(f"operator = {json.dumps(physics)}")
    if physics != POINTS:
        lines += _arguments(physics)
    elif stations is None:
        lines += [_line("max_stations = 20", "anywhere on the grid: a network that changes")]
        lines += [_line('# stations = "stations.csv"', "instead: places by columns lat and lon")]
    else:
        with opened(stations) as table:
            error, num = column_of(table, "error"), max(table.sizes.values(), default=0)
        lines.append(_line(f"stations = {_relative(stations, path)}", f"{num} places"))
        lines.append(_line("# missing = 0.2", "the largest share that an observation may lack"))
        if error is not None:
            sigma, reason = error, "column of the table; a number or a range does as well"
    lines += ["", _line("[problem.noise]", "the errors of an observation")]
    lines += ['model = "gaussian"', _line(f"sigma = {json.dumps(sigma)}", reason)]
    return _headed("Fields, and how they are observed", "\n".join(lines) + "\n")


def for_images(folder: str | Path, path: str | Path, physics: str = "deepinv:Blur") -> str:
    """Settings for pictures seen through an operator.

    Args:
        folder: of PNG, JPEG, TIFF or npy pictures.
        path: where the settings will stand, which paths in them are relative to.
        physics: ``deepinv:CLASS``, or ``module:object``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds fewer than two pictures, or one that cannot be read.
    """
    from vfm_inverse.formats.image_folders import SUFFIXES  # which imports torch

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise ValueError(
            f"'{folder}' must hold two pictures at least ({', '.join(SUFFIXES)}), for training "
            f"and for tests; got {len(files)}"
        )
    sizes = [_size(file) for file in files]
    grey = not all(channels == 3 for *_, channels in sizes)
    side = min(min(size[:2]) for size in sizes)
    patch = min(PATCH, side)
    largest = "x".join(map(str, max(size[:2] for size in sizes)))
    found = f"{len(files)} pictures of up to {largest} pixels"
    lines = [
        _line("[problem.prior]", "what pictures may look like, before anything is observed"),
        _line(f"path = {_relative(folder, path)}", found),
        _line(f"patch = {patch}", "side of the patches that are drawn from them"),
        _line(f"grey = {json.dumps(grey)}", "false: in colour"),
        _line(f"test = {json.dumps(_share(len(files)))}", "share of the pictures held out"),
        "",
        _line("[problem.physics]", "how pictures are observed"),
        f"operator = {json.dumps(physics)}",
        *_arguments(physics),
        "",
        _line("[problem.noise]", "the errors of an observation; white is 1"),
        'model = "gaussian"',
        _line(f"sigma = {NOISE}", "or a range, [0.01, 0.1], drawn for every observation"),
    ]
    return _headed("Pictures seen through an operator", "\n".join(lines) + "\n")


def _arguments(physics: str) -> list[str]:
    return PHYSICS.get(physics, "# its arguments follow as further keys").splitlines()


def _line(text: str, comment: str) -> str:
    return f"{text:35} # {comment}" if comment else text


def _headed(title: str, problem: str) -> str:
    return f"# {title}.\n# Lines beside '#' are comments; other settings are in the docs.\n\n" + (
        problem + SETTINGS
    )


def _relative(target: str | Path, path: str | Path) -> str:
    """A path as seen from the settings file, as TOML writes it."""
    target, home = os.path.abspath(target), os.path.dirname(os.path.abspath(path))
    try:
        return json.dumps(Path(os.path.relpath(target, home)).as_posix(), ensure_ascii=False)
    except ValueError:  # another drive
        return json.dumps(Path(target).as_posix(), ensure_ascii=False)


def _held_out(variable: xr.DataArray, sample: str) -> tuple[Any, str]:
    """Which samples to hold out, and why: of a series in time the last, by their dates."""
    num = variable.sizes[sample]
    if num < 2:
        raise ValueError(
            f"'{sample}' must count two samples at least, for training and for tests; got {num}"
        )
    share = _share(num)
    if sample in variable.coords:
        labels = variable[sample].values
        first = num - max(1, round(share * num))
        if (variable[sample].dtype.kind == "M" or hasattr(labels[0], "calendar")) and bool(
            (labels[1:] > labels[:-1]).all()
        ):
            ends = [str(plain(labels[i])).replace(" ", "T") for i in (first, -1)]
            return "/".join(ends), "held out: the last tenth, or what you choose"
    return share, "share held out: the last samples, or what you choose"


def _share(num: int) -> float:
    """A tenth, or what holds one of few."""
    return 0.1 if num >= HELD_OUT else math.ceil(100 / num) / 100


def _of_spread(spread: float, units: str | None) -> str:
    unit = f" {units}" if units else ""
    return f"a guess, a tenth of the fields' spread of {spread:.3g}{unit}: say what yours is"


def _rounded(value: float) -> float:
    return float(f"{value:.1g}")


def _size(file: Path) -> tuple[int, int, int]:
    """Height, width and channels of a picture; its pixels are not read."""
    import numpy as np
    from PIL import Image

    try:
        if file.suffix.lower() == ".npy":
            shape = np.load(file, mmap_mode="r").shape
            if len(shape) == 2:
                return shape[0], shape[1], 1
            height, width, channels = shape
            return height, width, channels
        with Image.open(file) as picture:
            grey = picture.mode in ("1", "L", "LA", "F", "I", "I;16")
            return picture.height, picture.width, 1 if grey else 3
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"'{file}' is not a readable picture: {text}") from error
