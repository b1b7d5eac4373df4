"""What the command line prints: text and nothing else, on any console."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["emit", "one_line", "plain_warnings", "say"]


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Give what no calibration vouches for, and other warnings to users, a line of standard error
    each, whatever filters are set."""

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"vfm-inverse: warning: {message}", sys.stderr)
        else:
            ordinary(message, category, *args, **kwargs)

    with warnings.catch_warnings():
        ordinary, warnings.showwarning = warnings.showwarning, show
        warnings.simplefilter("always", UserWarning)
        yield


def say(line: object, stream: TextIO | None = None) -> None:
    """Print a line as text and nothing else: what a terminal would act on, or cannot show, is
    written as an escape."""
    stream = sys.stdout if stream is None else stream
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(line)
    )
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def one_line(error: BaseException) -> str:
    """The message of an error on one line; an operating system's error names its file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: '{error.filename}'"
    return " ".join(str(error).split()) or type(error).__name__


def emit(result: dict[str, Any]) -> int:
    """Print the result for machines."""
    say(json.dumps(result))
    return 0
