"""Pictures of a folder as a prior: whole ones of one size, or patches drawn from them at random.

Integers are divided by the largest number of their type, so that black is 0 and white is 1;
floating-point pictures (TIFF, npy) are taken as they are. Grey is the luminance of ITU-R BT.709.
A patch is drawn as a picture, all being equally likely, and then a place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["SUFFIXES", "Pictures", "picture", "read_picture"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")

LUMINANCE = (0.2126, 0.7152, 0.0722)

MOST = 2**32
"""Bytes of pictures that are held; more of them are better kept in a zarr store."""


def read_picture(path: str | Path, grey: bool | None = None) -> np.ndarray:
    """One picture ``(C, H, W)``, its numbers as they are stored; transparency is left out.

    Args:
        path: PNG, JPEG, TIFF or BMP; or npy, ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``.
        grey: one channel (true), three (false), or as it is stored.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no picture, or a grey one where colour is asked for.
    """
    path = Path(path)
    try:
        values = np.load(path) if path.suffix.lower() == ".npy" else _decoded(path)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"'{path}' is not a readable picture: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"'{path}' is not a readable picture: {error}") from error
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3 and values.shape[-1] <= 4 < values.shape[0]:
        values = np.moveaxis(values, -1, 0)
    if values.ndim != 3 or values.shape[0] > 4 or values.dtype.kind not in "buf":
        raise ValueError(
            f"'{path}' must be a picture (H, W) or (H, W, channels) of real numbers; got "
            f"{values.shape} of {values.dtype}"
        )
    if grey is not None and len(values) not in (1, 3):
        raise ValueError(f"'{path}' has {len(values)} channels and is neither grey nor coloured")
    if grey is False and len(values) == 1:
        raise ValueError(f"'{path}' is grey; give grey = true for a folder of mixed pictures")
    if grey and len(values) == 3:
        values = np.tensordot(LUMINANCE, _scaled(values), 1)[None]
    return values


def picture(path: str | Path, grey: bool | None = None) -> np.ndarray:
    """One picture ``(C, H, W)``, black 0 and white 1; see :func:`read_picture`."""
    return _scaled(read_picture(path, grey))


def _decoded(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as opened:
        picture: Image.Image = opened
        if picture.mode not in ("F", "I;16", "L", "RGB"):
            picture = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
        values = np.asarray(picture)
    return values if values.ndim == 2 else np.moveaxis(values, -1, 0)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Black 0 and white 1, where integers say what is white."""
    white = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    return values.astype(np.float32) / np.float32(white)


class Pictures:
    """Draws of pictures or of their patches: ``pictures(num)`` is ``(num, C, H, W)``.

    Args:
        paths: of the pictures.
        patch: side of a patch in pixels; whole pictures of one size where missing.
        grey: as for :func:`read_picture`.

    Raises:
        ValueError: pictures are smaller than a patch, differ in size or in channels, or are more
            than a machine should hold.
    """

    def __init__(
        self, paths: Sequence[Path], patch: int | None = None, grey: bool | None = None
    ) -> None:
        pixels: list[np.ndarray] = []
        sizes: list[tuple[int, ...]] = []
        held = 0
        for path in paths:
            values = read_picture(path, grey)
            size = values.shape
            if patch is not None and min(size[1:]) < patch:
                raise ValueError(
                    f"'{path}' has {size[1]} x {size[2]} pixels, fewer than 'patch' = {patch}"
                )
            if sizes and (size[0] != sizes[0][0] or (patch is None and size != sizes[0])):
                raise ValueError(
                    f"'{path}' is {size[0]} x {size[1]} x {size[2]} (channels, height, width), "
                    f"'{paths[0]}' {' x '.join(map(str, sizes[0]))}: give 'patch' for pictures of "
                    "several sizes, and grey = true for grey ones among coloured"
                )
            held += values.nbytes
            if held > MOST:
                raise ValueError(
                    f"the pictures take more than {MOST / 1e9:.1f} GB of memory; store patches of "
                    "them in a zarr archive and give its path"
                )
            pixels.append(values.reshape(-1))
            sizes.append(size)
        # Bytes stay bytes, which is what most pictures are.
        small = all(values.dtype == np.uint8 for values in pixels)
        pixels = pixels if small else [_scaled(values) for values in pixels]
        # All pixels in a row, each picture from its own beginning on.
        self.pixels = torch.from_numpy(np.concatenate(pixels))
        self.white = 255.0 if small else 1.0
        self.sizes = torch.tensor(sizes)
        self.first = torch.tensor([0, *(len(values) for values in pixels[:-1])]).cumsum(0)
        side = sizes[0][1:] if patch is None else (patch, patch)
        self.shape = (sizes[0][0], *side)

    def __len__(self) -> int:
        return len(self.sizes)

    def __call__(self, num: int) -> Tensor:
        """Patches ``(num, C, H, W)``."""
        channels, height, width = self.shape
        which = torch.randint(len(self), (num,))
        room = self.sizes[which][:, 1:] - torch.tensor([height, width]) + 1
        corner = (torch.rand(num, 2, dtype=torch.float64) * room).long()
        _, tall, wide = self.sizes[which].T
        rows = (corner[:, :1] + torch.arange(height)) * wide[:, None]
        columns = corner[:, 1:] + torch.arange(width)
        planes = torch.arange(channels) * (tall * wide)[:, None]
        place = planes[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None, :]
        place = place + self.first[which][:, None, None, None]
        values = self.pixels[place].to(torch.get_default_dtype())
        return values / self.white
