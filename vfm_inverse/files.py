"""Writing files so that there is never half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` when the block ends without an
    error."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        # Some writers make files that only their owner can read; take the mode of an ordinary new
        # file.
        (ordinary := Path(folder) / f"{path.name}.mode").touch()
        shutil.copymode(ordinary, temporary)
        os.replace(temporary, path)
