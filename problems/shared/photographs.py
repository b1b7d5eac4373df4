"""Patches of the photographs that ship inside the scikit-image wheel: real pictures, no download.

Of the files in ``skimage/data`` these are the photographs of scenes and surfaces. Left out are
drawings and binary or synthetic pictures (chessboard, color, horse, logo, phantom), text (page,
text), microscopy and medical pictures (cell, ihc, microaneurysms, retina) and astronomy
(hubble_deep_field), whose statistics are not those of photographs; clock_motion, which is blurred
already; and motorcycle_right, the other eye of motorcycle_left, which would leak between the
splits.

The split is by photograph and fixed: no test picture is ever trained on. Each side has people or
things, a smooth scene and a texture.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import torch
from torch import Tensor

__all__ = ["TEST", "TRAIN", "draw_patches", "photograph"]

TRAIN = (
    "brick.png",
    "camera.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
TEST = ("astronaut.png", "chelsea.png", "gravel.png")
PHOTOGRAPHS = {"train": TRAIN, "test": TEST}


@cache
def photograph(name: str) -> Tensor:
    """One photograph in grey, ``(H, W)`` in [0, 1]: the luminance of ITU-R BT.709.

    Raises:
        ImportError: scikit-image is not installed, or its wheel lacks the file.
    """
    try:
        from skimage import color, io, util
    except ImportError as error:
        raise ImportError(
            "the photographs ship with scikit-image: pip install 'vfm-inverse[photos]'"
        ) from error
    path = resources.files("skimage") / "data" / name
    if not path.is_file():
        raise ImportError(
            f"this scikit-image has no 'data/{name}'; pip install --upgrade 'vfm-inverse[photos]'"
        )
    with resources.as_file(path) as file:
        picture = util.img_as_float64(io.imread(file))
    if picture.ndim == 3:
        picture = color.rgb2gray(picture)
    return torch.from_numpy(picture).to(torch.get_default_dtype())


def draw_patches(num: int, size: int, split: str, dequantize: bool = False) -> Tensor:
    """Random patches ``(num, 1, size, size)`` in [0, 1] of the photographs of a split.

    A photograph is drawn first, all being equally likely, then a place in it; training patches are
    flipped left-right and up-down with probability one half each.

    With ``dequantize``, a grey level of 256 is the interval that rounding made one of, and values
    are uniform in it: between 0 and 1, with a density, and no two alike.
    """
    names = PHOTOGRAPHS[split]
    which = torch.randint(len(names), (num,))
    place = torch.rand(num, 2)
    offset = torch.arange(size)
    patches = torch.empty(num, size, size)
    for number, name in enumerate(names):
        picture = photograph(name)
        chosen = which == number
        room = torch.tensor(picture.shape) - size + 1
        corner = (place[chosen] * room).long()
        rows, columns = corner[:, :1] + offset, corner[:, 1:] + offset
        patches[chosen] = picture[rows[:, :, None], columns[:, None, :]]
    if split == "train":
        flip = torch.rand(2, num, 1, 1) < 0.5
        patches = torch.where(flip[0], patches.flip(-1), patches)
        patches = torch.where(flip[1], patches.flip(-2), patches)
    if dequantize:
        patches = (255 * patches + torch.rand_like(patches)) / 256
    return patches.unsqueeze(1)
