"""What a correction shows of its progress."""

from __future__ import annotations

from typing import Any, Self

from tqdm import tqdm

__all__ = ["Bars"]


class Bars:
    """A bar by observation with the rung in its text, and one by the moves of the chains.

    Args:
        num: observations.
        shown: whether to show them.
    """

    def __init__(self, num: int, shown: bool) -> None:
        self.shown = shown
        self.outer = tqdm(total=num, desc="correct", unit="obs", disable=not shown)
        self.inner: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.outer.close()

    def rung(self, name: str, moves: int = 0) -> None:
        """On which rung it is, and how many moves it will take there, if that is known."""
        self.close()
        self.outer.set_postfix(rung=name)
        if moves:
            hidden = not self.shown
            self.inner = tqdm(
                total=moves, desc=f"  {name}", unit="move", leave=False, disable=hidden
            )

    def move(self) -> None:
        """One more move."""
        if self.inner is not None:
            self.inner.update()

    def done(self, num: int) -> None:
        """So many more observations."""
        self.close()
        self.outer.update(num)

    def close(self) -> None:
        """Take the inner bar away."""
        if self.inner is not None:
            self.inner.close()
            self.inner = None
