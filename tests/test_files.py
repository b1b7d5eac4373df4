"""Files: whole or untouched, links and modes kept, nothing else replaced, one process a folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from vfm_inverse.runtime import files
from vfm_inverse.runtime.files import check_space, locked, replacing, same_file


def put(path: Path | str, content: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(content)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x").write_text("old")
    (tmp_path / "link").symlink_to("store/x")
    (tmp_path / "again").symlink_to("link")
    (tmp_path / "dangling").symlink_to("store/y")
    put(tmp_path / "again")
    put(tmp_path / "dangling", "made")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "again").is_symlink()
    assert (tmp_path / "store" / "x").read_text() == "new"
    assert (tmp_path / "store" / "y").read_text() == "made"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        put(tmp_path / "a")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_mode_stays(mode: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    os.chmod(tmp_path / "x", mode)
    put(tmp_path / "x")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
    assert (tmp_path / "x").read_text() == "new"


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    put(tmp_path / "x")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_no_writable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "fixed").write_text("old")
    os.chmod(tmp_path / "fixed", 0o444)
    (tmp_path / "to-fifo").symlink_to("fifo")
    cases = {
        "fifo": "not a regular file",
        "to-fifo": "not a regular file",
        "folder": "Is a directory",
        "fixed": "not writable",
        "missing/x": "No such file or directory",
        "fixed/x": "Not a directory",
    }
    for name, text in cases.items():
        with pytest.raises(OSError, match=text) as refused:
            put(tmp_path / name)
        assert name in str(refused.value)
    with pytest.raises(OSError, match="not a regular file"):
        put("/dev/null")
    assert (tmp_path / "fixed").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["fifo", "fixed", "folder", "to-fifo"]


@pytest.mark.parametrize("name", ["x", "with space", "ö" * 120, "a.b[c]*"])
def test_an_error_leaves_the_old_file_and_nothing_else(name: str, tmp_path: Path) -> None:
    put(tmp_path / name, "old")
    with pytest.raises(KeyError), replacing(tmp_path / name) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert (tmp_path / name).read_text() == "old"
    assert os.listdir(tmp_path) == [name]


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom vfm_inverse.runtime.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "x"
    put(path, "old")
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2 and path.read_text() == "old"
    with replacing(path) as mine:
        assert len(os.listdir(tmp_path)) == 2  # mine and the old one
        put(path, "between")  # another writing does not take mine away
        mine.write_text("new")
    assert os.listdir(tmp_path) == ["x"] and path.read_text() == "new"


def test_what_another_live_process_writes_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as mine:
        other = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{os.getppid()}."))
        foreign = tmp_path / ".x.elsewhere.1.abc.tmp"
        for path in (mine, other, foreign):
            path.write_text("")
        put(tmp_path / "x")
        assert other.exists() and foreign.exists()


def test_file_and_folder_are_flushed_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    put(tmp_path / "x")
    assert done == ["file", "rename", "folder"]


def test_a_full_disk_is_named_whatever_the_library_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        with replacing(tmp_path / "x"):
            raise error

    with pytest.raises(RuntimeError, match="HDF"):
        fail(RuntimeError("NetCDF: HDF error"))
    with pytest.raises(OSError, match=r"No space left on device: '.*x'"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    usage = namedtuple("usage", "total used free")(10, 10, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"No space left on device: '.*x'"):
        fail(RuntimeError("NetCDF: HDF error"))
    with pytest.raises(OSError, match=r"for 4 GB \(0 GB free\): '.*x'"):
        check_space(tmp_path / "x", 4_000_000_000)
    assert os.listdir(tmp_path) == []


def test_space_is_only_asked_of_folders_that_are_there(tmp_path: Path) -> None:
    check_space(tmp_path / "x", 1000)
    with pytest.raises(OSError, match="No such file"):
        check_space(tmp_path / "missing" / "x", 1000)


def test_the_same_file_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("")
    (tmp_path / "soft").symlink_to("x")
    os.link(tmp_path / "x", tmp_path / "hard")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    for name in ("x", "soft", "hard", "folder/../x"):
        assert same_file(tmp_path / name, [tmp_path / "y", "../x"])
    assert same_file("new", [tmp_path / "folder" / "new"])
    assert not same_file(tmp_path / "y", [tmp_path / "x"])


HOLD = (
    "import os, signal, sys\nfrom vfm_inverse.runtime.files import locked\n"
    "with locked(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
)


def test_one_process_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with locked(folder), locked(folder):  # once more in the same process is fine
        pass
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OSError, match=r"another training or .* is at work .*run'"):
            with locked(folder):
                raise AssertionError
        holder.kill()
    with locked(folder):  # a killed process holds nothing
        pass


def test_another_thread_is_another(tmp_path: Path) -> None:
    seen: list[BaseException] = []

    def other() -> None:
        try:
            with locked(tmp_path):
                pass
        except OSError as error:
            seen.append(error)

    with locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        with pytest.raises(OSError, match="file"), locked(tmp_path / name):
            raise AssertionError
    assert files.LOCK not in os.listdir(tmp_path)
