"""Certified maps that come with the package."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vfm_inverse as vi
from vfm_inverse import calibration, problems
from vfm_inverse.runs import zoo
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.warnings import CalibrationWarning

KWARGS = {"dim": 4, "obs_dim": 2}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vi.VariationalFlowMap]:
    """A folder with one small map, and the map."""
    folder = tmp_path_factory.mktemp("zoo")
    problem = problems.load("linear-gaussian", **KWARGS)
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=500, width=16)
    with torch.no_grad():  # not at its start, where networks end in zeros
        for value in vfm.networks.parameters():
            value += 1e-3 * torch.randn_like(value)
    report = calibration.calibrate(vfm, problem, 60, 19)
    told = zoo.ship("linear-gaussian", vfm, problem, report, folder)
    assert told.startswith("shipped as")
    return folder, vfm


@pytest.fixture(autouse=True)
def zoo_of(shipped: tuple[Path, vi.VariationalFlowMap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", shipped[0])


def test_a_shipped_map_loads_by_its_name_with_its_card(
    shipped: tuple[Path, vi.VariationalFlowMap],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = vi.load("zoo:linear-gaussian")
    assert loaded.standing()[0] == "pass" and loaded.card is not None
    assert loaded.card.num_simulations == 60
    packed = shipped[1]
    _, y, _ = problems.load("linear-gaussian", **KWARGS).simulate(3, seed=1)
    torch.manual_seed(0)
    expected = packed(y).sample((5,))
    torch.manual_seed(0)
    torch.testing.assert_close(loaded(y).sample((5,)), expected)
    assert torch.equal(loaded.whitening.root, packed.whitening.root)


def test_a_file_is_small(shipped: tuple[Path, vi.VariationalFlowMap]) -> None:
    tensors, _ = storage.read(shipped[0] / "linear-gaussian.safetensors", "certified")
    assert not set(zoo.ROOTS) & set(tensors)
    kinds = {value.dtype for name, value in tensors.items() if name.startswith("networks.")}
    assert kinds == {torch.float16}


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'zoo:darcy'. Known are: linear-gaussian$"):
        vi.load("zoo:darcy")


def test_a_map_that_is_trained_on_is_no_longer_certified() -> None:
    loaded = vi.load("zoo:linear-gaussian")
    with torch.no_grad():
        next(loaded.networks.parameters()).add_(1)
    assert loaded.standing()[0] == "uncertified"


def test_another_physics_or_prior_is_not_certified(
    shipped: tuple[Path, vi.VariationalFlowMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, header = storage.read(shipped[0] / "linear-gaussian.safetensors", "certified")
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    other = header | {"card": header["card"] | {"physics": "another"}}
    storage.write(tmp_path / "physics.safetensors", tensors, "certified", other)
    with pytest.warns(CalibrationWarning, match="'zoo:physics'"):
        vi.load("zoo:physics")
    probe = [1.1 * value for value in header["whitening_probe"]]
    other = header | {"whitening_probe": probe}
    storage.write(tmp_path / "prior.safetensors", tensors, "certified", other)
    with pytest.raises(ValueError, match="the covariance of its prior is not the one"):
        vi.load("zoo:prior")


def test_damage_is_told(
    shipped: tuple[Path, vi.VariationalFlowMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (shipped[0] / "linear-gaussian.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-20] + bytes(20))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        vi.load("zoo:torn")


def test_what_fails_or_is_large_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.load("linear-gaussian", **KWARGS)
    vfm = vi.load("zoo:linear-gaussian")
    monkeypatch.setattr(zoo, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="must take 0.0001 MB at most; that of 'linear-gaussian'"):
        zoo.pack(vfm, problem, tmp_path / "large.safetensors")
    assert vfm.card is not None
    vfm.card = replace(vfm.card, verdict="fail")
    with pytest.raises(ValueError, match="must have passed its check"):
        zoo.pack(vfm, problem, tmp_path / "failed.safetensors")
    report = calibration.calibrate(vfm, problem, 200, 19)
    with torch.no_grad():
        vfm.whitening.mean += 1
    told = zoo.ship("wrong", vfm, problem, report, tmp_path)
    assert told.startswith("not shipped: in half precision it fails")
    assert not list(tmp_path.iterdir())


def test_the_maps_of_the_package_are_small() -> None:
    files = list((Path(zoo.__file__).parent / "certified").glob("*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    assert all(size <= zoo.MOST_BYTES + 2**16 for size in sizes) and sum(sizes) <= 20_000_000
    assert {path.stem for path in files} <= set(problems.available())
