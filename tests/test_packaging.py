"""The three import paths exist wherever the package comes from: wheel, sdist, repository root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["pyproject.toml", "README.md", "LICENSE", "vfm_inverse", "operators", "problems"]

PRINT_HOMES = """
import vfm_inverse, vfm_inverse.operators, vfm_inverse.problems
for module in (vfm_inverse, vfm_inverse.operators, vfm_inverse.problems):
    print(module.__file__)
"""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a command; what it wrote to stderr is shown where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, into: Path) -> Path:
    """Build a wheel with the environment's own setuptools: needs no network."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", into, source, cwd=into.parent)
    (wheel,) = into.glob("vfm_inverse-*.whl")
    return wheel


def modules_of(root: Path) -> set[str]:
    """Every Python file of the package, by its path inside an installed package."""
    homes = {
        "vfm_inverse": root / "vfm_inverse",
        "vfm_inverse/operators": root / "operators",
        "vfm_inverse/problems": root / "problems",
    }
    return {
        f"{home}/{file.relative_to(folder).as_posix()}"
        for home, folder in homes.items()
        for file in folder.rglob("*.py")
        if not any((folder / part).is_symlink() for part in file.relative_to(folder).parts[:1])
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing behind in the repository."""
    copy = tmp_path_factory.mktemp("source") / "vfm_inverse"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tree, tmp_path_factory.mktemp("build") / "wheels")


def test_every_package_is_listed() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {str(Path(module).parent).replace(os.sep, ".") for module in modules_of(ROOT)}
    assert set(declared["packages"]) == found


@pytest.mark.parametrize("name", ["operators", "problems"])
def test_the_import_path_is_a_relative_symlink(name: str) -> None:
    link = ROOT / "vfm_inverse" / name
    assert link.is_symlink()
    assert os.readlink(link) == os.path.join(os.pardir, name)


def test_an_installed_wheel_gives_the_three_packages(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run(*pip, "--target", target, wheel, cwd=elsewhere)
    printed = run(sys.executable, "-c", PRINT_HOMES, cwd=elsewhere, path=target)
    assert [Path(line) for line in printed.split()] == [
        target / "vfm_inverse" / "__init__.py",
        target / "vfm_inverse" / "operators" / "__init__.py",
        target / "vfm_inverse" / "problems" / "__init__.py",
    ]


def test_the_wheel_holds_every_module_and_the_data(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    data = {"vfm_inverse/py.typed", "vfm_inverse/cli/demo.safetensors"}
    maps = (ROOT / "vfm_inverse").glob("runs/certified/*.safetensors")
    data |= {path.relative_to(ROOT).as_posix() for path in maps}
    assert modules_of(ROOT) | data <= held
    assert not {name for name in held if name.startswith(("operators/", "problems/", "tests/"))}


def test_a_wheel_built_from_the_sdist_is_the_same(tree: Path, wheel: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=tree)
    (sdist,) = tmp_path.glob("vfm_inverse-*.tar.gz")
    # Not every machine can unpack a symbolic link.
    assert not [member for member in tarfile.open(sdist) if member.issym() or member.islnk()]
    again = build_wheel(sdist, tmp_path / "wheels")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_repository_root_gives_the_three_packages() -> None:
    # -S leaves site-packages out, and with them any installed copy; what the packages import is
    # then found through PYTHONPATH, behind the repository.
    import torch

    dependencies = Path(torch.__file__).parents[1]
    printed = run(sys.executable, "-S", "-c", PRINT_HOMES, cwd=ROOT, path=dependencies)
    assert [Path(line).resolve() for line in printed.split()] == [
        ROOT / "vfm_inverse" / "__init__.py",
        ROOT / "operators" / "__init__.py",
        ROOT / "problems" / "__init__.py",
    ]
