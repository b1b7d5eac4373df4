r"""Networks for two-time maps: a residual MLP for vectors, a compact U-Net for fields.

Both map ``(x (k n, d), s, t, context (n, ...))`` to ``(k n, d)``: k draws for each of n
observations, draws first. Times are ``(k n,)``, or ``(1,)`` where all points share them; what is
shared is computed once. Both see the times through smooth Fourier features, end in a
zero-initialised layer and have forward-mode derivatives (so no batch normalisation and no fused
attention).
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)

__all__ = ["MLP", "TimeFeatures", "UNet", "fresh_mlp"]

CONVOLVE = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""Convolutions and interpolations by the number of space axes."""


class TimeFeatures(nn.Module):
    """``(s, t)``, each ``(n,)``, to ``(n, 4 * frequencies + 2)``: sines and cosines of s and of t
    - s.

    Frequencies stay low: the losses differentiate the network in time, and a high frequency there
    is noise.
    """

    octaves: Tensor

    def __init__(self, num: int = 4) -> None:
        super().__init__()
        # Exact in every type; pi times them is not.
        self.register_buffer("octaves", 2.0 ** torch.arange(-1, num - 1), persistent=False)
        self.size = 4 * num + 2

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """Features of the times ``s, t (n,)``."""
        times = torch.stack([s, t - s], -1)
        angles = ((math.pi * times).unsqueeze(-1) * self.octaves).flatten(-2)
        return torch.cat([times, angles.sin(), angles.cos()], -1)


def fresh_mlp(sizes: list[int], zero_last: bool = False) -> nn.Sequential:
    """Linear layers of the given sizes with SiLU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after), nn.SiLU()]
    layers.pop()
    if zero_last:
        zero(layers[-1])
    return nn.Sequential(*layers)


def zero(layer: Layer) -> Layer:
    """Set a layer's weight and bias to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def add_shared(h: Tensor, shared: Tensor) -> Tensor:
    """``h (k n, ...)`` plus the observations' share ``(n, ...)`` in each of its draws."""
    return (h.unflatten(0, (-1, shared.shape[0])) + shared).flatten(0, 1)


class MLP(nn.Module):
    """Residual MLP.

    Args:
        dim: size of ``x`` and of the output.
        context_size: size of the context vector, 0 for none.
        width: hidden width.
        depth: residual blocks.
    """

    def __init__(self, dim: int, context_size: int = 0, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.times = TimeFeatures()
        self.enter = nn.Linear(dim, width)
        self.modulate = nn.Linear(self.times.size, width)
        self.condition = nn.Linear(context_size, width, bias=False) if context_size else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.SiLU(), zero(nn.Linear(width, dim)))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The network's output at ``x (k n, d)``."""
        h = self.enter(x) + self.modulate(self.times(s, t))
        if self.condition is not None:
            h = add_shared(h, self.condition(context))
        h = nn.functional.silu(h)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm, scaled and shifted by the time embedding."""

    def __init__(self, dims: int, channels: int, embedding: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norms = nn.ModuleList(nn.GroupNorm(min(8, channels), channels) for _ in range(2))
        self.first = conv(channels, channels, 3, padding=1)
        self.second = zero(conv(channels, channels, 3, padding=1))
        self.film = zero(nn.Linear(embedding, 2 * channels))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding).unflatten(1, (-1, *[1] * (h.dim() - 2))).chunk(2, 1)
        # Group norm refuses forward-mode derivatives of channels-last input before torch 2.15.
        residual = self.first(nn.functional.silu(self.norms[0](h.contiguous())))
        residual = self.norms[1](residual.contiguous()) * (1 + scale) + shift
        return h + self.second(nn.functional.silu(residual))


class Details(nn.Module):
    """Single pixels from features of patches: features of the pixels themselves, scaled and
    shifted by those of the patches, which are interpolated.

    Every pixel goes through the same filters, so that none differs from its neighbour by its place
    in a patch.

    Args:
        dims: number of space axes.
        channels: of the field.
        context_channels: of the context.
        width: channels of the patches.
    """

    def __init__(self, dims: int, channels: int, context_channels: int, width: int) -> None:
        super().__init__()
        conv, thin = CONVOLUTIONS[dims], max(width // 4, channels)
        self.enter = conv(channels, thin, 3, padding=1)
        self.condition = (
            conv(context_channels, thin, 3, padding=1, bias=False) if context_channels else None
        )
        self.film = conv(width, 2 * thin, 1)
        self.leave = zero(conv(thin, channels, 3, padding=1))
        self.mode = INTERPOLATIONS[dims]

    def forward(self, h: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Of patches ``h (k n, width, ...)`` and the field ``x (k n, channels, ...)``."""
        film = nn.functional.interpolate(self.film(h), size=x.shape[2:], mode=self.mode)
        scale, shift = film.chunk(2, 1)
        detail = self.enter(x)
        if self.condition is not None:
            detail = add_shared(detail, self.condition(context))
        out: Tensor = self.leave(nn.functional.silu(detail * (1 + scale) + shift))
        return out


class UNet(nn.Module):
    """Compact U-Net on vectors ``(L,)`` and fields ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)``,
    given flat.

    Sides may have any length: inside, they are continued by their last value to a multiple of what
    is halved. An axis too short for that is left alone. From 32 pixels a side the residual blocks
    work on patches of 2 x 2 (``patch`` pixels a side): four times cheaper, and wider for it.

    Args:
        event_shape: shape of one field.
        context_channels: channels of the context, which has the field's spatial shape; 0 for none.
        width: channels at the first resolution, doubled once below it.
        levels: number of halvings, of each axis until it is 1; ``None`` halves what stays at 4 or
            more, at most 3 times.
        patch: pixels a side merged by the first layer; ``None`` chooses.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_channels: int = 0,
        width: int = 32,
        levels: int | None = None,
        patch: int | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size((1,) * (len(event_shape) == 1) + tuple(event_shape))
        channels, *sides = self.event_shape
        if patch is None:
            patch = 2 if min(sides) >= 32 else 1
        strides = halvings([-(-n // patch) for n in sides], levels)
        factors = [patch * math.prod(along) for along in zip(*strides, strict=True)] or [
            patch
        ] * len(sides)
        self.margins = [-n % factor for n, factor in zip(sides, factors, strict=True)]
        dims = len(sides)
        conv = CONVOLUTIONS[dims]
        transpose = TRANSPOSED[dims]
        widths = [width] + [2 * width] * len(strides)
        embedding = 4 * width
        self.times = TimeFeatures()
        self.embed = fresh_mlp([self.times.size, embedding, embedding])
        self.patch = patch
        self.enter = conv(channels, width, 3, padding=1)
        self.condition = (
            conv(context_channels, width, 3, padding=1, bias=False) if context_channels else None
        )
        self.down_blocks = nn.ModuleList(ResidualBlock(dims, w, embedding) for w in widths)
        steps = list(zip(widths[:-1], widths[1:], strides, strict=True))
        self.down = nn.ModuleList(conv(a, b, stride, stride=stride) for a, b, stride in steps)
        self.middle = ResidualBlock(dims, widths[-1], embedding)
        self.up = nn.ModuleList(transpose(b, a, stride, stride=stride) for a, b, stride in steps)
        self.up_blocks = nn.ModuleList(ResidualBlock(dims, w, embedding) for w in widths[:-1])
        last = [nn.GroupNorm(min(8, width), width), nn.SiLU()]
        if patch == 1:
            last.append(zero(conv(width, channels, 3, padding=1)))
        self.leave = nn.Sequential(*last)
        self.details = Details(dims, channels, context_channels, width) if patch > 1 else None

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """The network's output at ``x (k n, d)``."""
        embedding = self.embed(self.times(s, t))
        x = self.extend(x.unflatten(-1, self.event_shape))
        h = means(self.enter, x, self.patch)
        if self.condition is not None and context is not None:
            context = self.extend(context)
            h = add_shared(h, means(self.condition, context, self.patch))
        skips = []
        for i, block in enumerate(self.down_blocks):
            h = block(h, embedding)
            if i < len(self.down):
                skips.append(h)
                h = self.down[i](h)
        h = self.middle(h, embedding)
        for i in reversed(range(len(self.up))):
            h = self.up_blocks[i](self.up[i](h) + skips[i], embedding)
        h = self.leave(h)
        if self.details is not None:
            h = self.details(h, x, context)
        for axis, size in enumerate(self.event_shape[1:], 2):
            h = h.narrow(axis, 0, size)
        return h.flatten(1)

    def extend(self, x: Tensor) -> Tensor:
        """Continue each side by its last value, ``margins`` pixels far."""
        margins = [pixels for margin in reversed(self.margins) for pixels in (0, margin)]
        return nn.functional.pad(x, margins, mode="replicate") if any(margins) else x


def means(layer: Any, x: Tensor, patch: int) -> Tensor:
    """Means over patches of what a convolution of size 3 makes of ``x``: in one convolution, whose
    filter cannot tell the places in a patch apart."""
    kernel = layer.weight
    dims = kernel.dim() - 2
    for axis in range(dims):
        shifts = [[0] * 2 * axis + [i, patch - 1 - i] for i in range(patch)]
        kernel = torch.stack([nn.functional.pad(kernel, shift) for shift in shifts]).mean(0)
    return CONVOLVE[dims](x, kernel, layer.bias, stride=patch, padding=1)


def halvings(sides: list[int], levels: int | None) -> list[tuple[int, ...]]:
    """Strides of each halving along each axis: 2 where the axis is long enough for it, or 1."""
    least, most = (4, 3) if levels is None else (1, levels)
    strides: list[tuple[int, ...]] = []
    while len(strides) < most and (levels is not None or max(sides) >= 2 * least):
        strides.append(tuple(2 if n >= 2 * least else 1 for n in sides))
        sides = [-(-n // stride) for n, stride in zip(sides, strides[-1], strict=True)]
    return strides
