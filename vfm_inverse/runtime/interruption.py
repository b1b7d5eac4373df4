"""Signals that ask a process to stop, and what is done about them.

While a training runs, the first SIGINT (Ctrl-C) or SIGTERM (``kill``, a batch system at the end of
its time) is noted and answered at the end of the step, when all of it can be saved; a second one
stops at once. Only Python's own handlers are replaced, in the main thread, and come back
afterwards: a program that handles these signals itself goes on doing so.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Interrupted", "going_on", "held_back", "terminable"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop and did so at the end of a step.

    Args:
        where: it stopped, and what was saved.
        hint: how to go on in Python.
    """

    def __init__(self, where: str, hint: str) -> None:
        super().__init__(f"{where}; {hint}")
        self.where = where


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold back SIGINT and SIGTERM in the block: a function that tells whether one came.

    A second one raises ``KeyboardInterrupt`` where the program stands.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    with _handled(SIGNALS, note):
        yield lambda: bool(came)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as SIGINT does, with ``KeyboardInterrupt``."""
    with _handled([signal.SIGTERM], _at_once):
        yield


def going_on(argv: Sequence[str], program: str | None = None) -> str:
    """The command that goes on with a run: what was typed, quoted for a shell, and ``--resume``.

    Args:
        argv: arguments of the program.
        program: its path; that of this process when missing.
    """
    path = Path(sys.argv[0] if program is None else program)
    as_module = path.parts[-2:] == ("vfm_inverse", "__main__.py")
    words = ["python", "-m", "vfm_inverse"] if as_module else ["vfm-inverse"]
    return shlex.join([*words, *argv] + ["--resume"] * ("--resume" not in argv))


def _at_once(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _at_once):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
