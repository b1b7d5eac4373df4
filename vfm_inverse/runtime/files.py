"""Writing files so that there is never half of one, and never one in the place of another.

A file is written under a temporary name beside its target, flushed to the disk, and renamed. The
temporary name says which process of which machine writes it, so that the next writing of the same
target takes away what a killed process left.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["check_space", "check_writable", "locked", "replacing", "same_file"]

LOCK = ".lock"
"""File in a folder that a process holds while it works there."""

MODEL, STATE, LOG = "model.safetensors", "training.safetensors", "log.csv"
CONFIG, FRAMES = "config.json", "frames"
"""What a training writes into the folder of a run."""

FULL = 2**16
"""Free bytes below which a failed writing is put down to a full disk."""

_writing: set[Path] = set()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` when the block ends without an
    error.

    A symbolic link stays, and its target is replaced; the mode of a file that was there stays too.
    File and folder are flushed to the disk, so that a power cut leaves the old file or the new
    one.

    Raises:
        OSError: ``path`` is no regular file, is not writable, its folder is missing, or the disk
            is full; what was there stays as it was.
    """
    target = Path(os.path.realpath(path))
    before = _writable(path, target)
    host = re.sub(r"\W", "-", socket.gethostname())
    _remove_leftovers(target, host)
    name = f".{_short(target.name)}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    temporary = target.with_name(name)
    _writing.add(temporary)
    try:
        mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        mode = stat.S_IMODE(os.fstat(handle).st_mode) if before is None else mode
        os.close(handle)
        yield temporary
        if before is not None and hasattr(os, "chown"):
            with suppress(OSError):
                os.chown(temporary, before.st_uid, before.st_gid)
        os.chmod(temporary, mode)  # some writers make files that only their owner can read
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    except Exception as error:
        # What a library raises on a full disk depends on the library.
        if not isinstance(error, OSError) and shutil.disk_usage(target.parent).free < FULL:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif not isinstance(error, OSError):
            raise
        raise _named(error, path) from error
    finally:
        _writing.discard(temporary)
        with suppress(OSError):  # there is nothing left of it after a renaming
            # A library that failed may keep the file open; its room is given back at once.
            os.truncate(temporary, 0)
            temporary.unlink()


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder, made if need be, for the block: no other process can.

    A process that holds it already may take it again. The operating system frees it when a
    process ends, in whatever way.

    Raises:
        OSError: another process holds it, or it cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(os.path.realpath(folder / LOCK), is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            errno.EAGAIN, "another training or calibration is at work in the folder", str(folder)
        ) from error
    except OSError as error:
        raise _named(error, folder) from error
    try:
        yield
    finally:
        lock.release()


def same_file(path: str | os.PathLike[str], others: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether ``path`` is one of ``others``, by whatever name, link or relative path."""
    resolved = os.path.realpath(path)
    for other in others:
        if os.path.realpath(other) == resolved:
            return True
        with suppress(OSError):  # one of them does not exist
            if os.path.samefile(path, other):
                return True
    return False


def check_space(path: str | os.PathLike[str], size: int) -> None:
    """Refuse a file of ``size`` bytes that the disk has no room for.

    Raises:
        OSError: fewer bytes are free beside ``path``, or its folder is missing.
    """
    try:
        free = shutil.disk_usage(Path(os.path.realpath(path)).parent).free
    except OSError as error:
        raise _named(error, path) from error
    if size > free:
        text = f"{os.strerror(errno.ENOSPC)} for {size / 1e9:.3g} GB ({free / 1e9:.3g} GB free)"
        raise OSError(errno.ENOSPC, text, str(path))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that :func:`replacing` could not write to.

    Raises:
        OSError: it is no regular file, not writable, or its folder is missing or not writable.
    """
    target = Path(os.path.realpath(path))
    _writable(path, target)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder is not writable", os.fspath(path))


def _writable(path: str | os.PathLike[str], target: Path) -> os.stat_result | None:
    """What is at the target now; refused unless it may be replaced."""
    try:
        before = os.stat(target)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _named(error, path) from error
    if stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "not a regular file: never replaced", str(path))
    # Root may write to any file; a file that nobody may write to is meant to stay.
    if not before.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is not writable", str(path))
    return before


def _flush(path: Path) -> None:
    """Have the operating system write a file, or a folder's list of files, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems flush no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _remove_leftovers(target: Path, host: str) -> None:
    """Take away what killed processes of this machine left beside ``target``."""
    pattern = re.compile(
        rf"\.{re.escape(_short(target.name))}\.{re.escape(host)}\.(\d+)\.[^.]+\.tmp"
    )
    with suppress(OSError):
        for path in list(target.parent.iterdir()):
            found = pattern.fullmatch(path.name)
            if found and path not in _writing and not _runs(int(found[1])):
                path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this machine other than this one is alive."""
    if process == os.getpid():
        return False  # its own writings are known
    if os.name == "nt":
        return True  # signal 0 would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _short(name: str) -> str:
    """The beginning of a name that leaves room for the rest of a temporary one."""
    return name.encode()[:100].decode(errors="ignore")


def _named(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """The same error with the file's name."""
    if error.errno is None:
        return OSError(f"cannot write '{os.fspath(path)}': {error}")
    return OSError(error.errno, error.strerror or os.strerror(error.errno), os.fspath(path))
