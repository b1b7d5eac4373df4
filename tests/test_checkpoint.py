"""Checkpoints: what is saved is what comes back, and nothing else is ever opened."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.gaussian.whitening import Whitening
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.warnings import CalibrationWarning

CASES = {
    "contraction on a vector": ("linear-gaussian", {}, {}),
    "noise level range": ("linear-gaussian", {"sigma": [0.1, 0.5]}, {"observation": "context"}),
    "full without a start": ("linear-gaussian", {}, {"gaussian_start": False}),
    "mixture": ("checkerboard", {}, {"adapter": "mixture"}),
    "low rank, dense": ("linear-gaussian", {}, {"adapter": "low-rank", "observation": "adapter"}),
    "field, spectral": (
        "gaussian-field",
        {"size": 16, "num_points": 5},
        {"whitening": "spectral"},
    ),
}


def built(name: str = "linear-gaussian", kwargs: dict | None = None, options: dict | None = None):
    problem = problems.load(name, **(kwargs or {}))
    vfm = vi.VariationalFlowMap.for_problem(
        problem, width=16, depth=1, num_simulations=500, **(options or {})
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in vfm.networks.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return problem, vfm


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_loaded_map_draws_what_the_saved_one_draws(case: str, tmp_path: Path) -> None:
    problem, vfm = built(*CASES[case])
    vfm.save(tmp_path / "model.safetensors")
    loaded = vi.load(tmp_path / "model.safetensors", warn=False)
    _, y, params = problem.simulate(4, seed=1)
    torch.manual_seed(2)
    expected = vfm(y, **params).sample((5,))
    torch.manual_seed(2)
    torch.testing.assert_close(loaded(y, **params).sample((5,)), expected, rtol=0, atol=0)
    assert loaded.config == json.loads(json.dumps(vfm.config))
    for name, value in vfm.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_of_format_1_is_read_and_uncertified(tmp_path: Path) -> None:
    """Format 1 had a verdict, of whichever weights, and a range of another kind."""
    problem, vfm = built()
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    tensors = {k: v for k, v in vfm.state_dict().items() if not k.startswith("range.")}
    tensors |= {"range.center": torch.zeros(2), "range.spread": torch.ones(2)}
    header = {"config": vfm.config, "verdict": {"calibration_verdict": "pass"}}
    metadata = {"format": "vfm_inverse/1", "kind": "model", "header": json.dumps(header)}
    save_file(tensors | {"range.farthest": torch.tensor(1.5)}, old, metadata)
    with pytest.warns(CalibrationWarning, match="old.safetensors' is uncertified"):
        loaded = vi.load(old)
    assert loaded.card is None and not loaded.range.fitted
    _, y, _ = problem.simulate(4, seed=1)
    torch.manual_seed(2)
    expected = vfm(y).sample((5,))
    torch.manual_seed(2)
    torch.testing.assert_close(loaded(y).sample((5,)), expected, rtol=0, atol=0)
    loaded.save(new)
    assert not vi.load(new, warn=False).range.fitted
    with safe_open(new, "pt") as file:
        assert file.metadata()["format"] == "vfm_inverse/3"


def test_a_problem_of_your_own_is_passed_again(tmp_path: Path) -> None:
    def own() -> InverseProblem:
        return InverseProblem(
            torch.randn(300, 3), simulator=lambda x: x[:, :2] + 0.1 * torch.randn(len(x), 2)
        )

    torch.manual_seed(0)
    vfm = vi.VariationalFlowMap.for_problem(own(), width=16, depth=1, num_simulations=500)
    vfm.save(tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="problem of your own; pass it as 'problem'"):
        vi.load(tmp_path / "own.safetensors")
    loaded = vi.load(tmp_path / "own.safetensors", problem=own(), warn=False)
    torch.testing.assert_close(loaded.whitening.mean, vfm.whitening.mean)
    with pytest.raises(ValueError, match="does not fit the problem"):
        vi.load(tmp_path / "own.safetensors", problem=problems.load("linear-gaussian", dim=7))


class Doubling(Whitening):
    """A whitening of the user's own."""

    def _multiply(self, xi: torch.Tensor) -> torch.Tensor:
        return 2 * xi

    def _divide(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_a_whitening_of_your_own_is_passed_again(tmp_path: Path) -> None:
    problem, vfm = built(options={"whitening": Doubling((4,))})
    vfm.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="whitening of your own"):
        vi.load(tmp_path / "model.safetensors")
    loaded = vi.load(tmp_path / "model.safetensors", whitening=Doubling((4,)), warn=False)
    _, y, _ = problem.simulate(2, seed=1)
    torch.manual_seed(2)
    expected = vfm(y).sample((5,))
    torch.manual_seed(2)
    torch.testing.assert_close(loaded(y).sample((5,)), expected, rtol=0, atol=0)


class Bomb:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("exploded",))


def test_a_pickle_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        vi.load(tmp_path / "model.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "torch.pt")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        vi.load(tmp_path / "torch.pt")
    assert not (tmp_path / "exploded").exists()


def test_truncated_foreign_and_other_versions_are_refused(tmp_path: Path) -> None:
    _, vfm = built()
    path = tmp_path / "model.safetensors"
    vfm.save(path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            vi.load(tmp_path / "cut.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of vfm_inverse"):
        vi.load(tmp_path / "foreign.safetensors")
    save_file(
        {"w": torch.ones(2)},
        tmp_path / "old.safetensors",
        {"format": "vfm_inverse/0", "kind": "model"},
    )
    with pytest.raises(ValueError, match="has checkpoint format 0"):
        vi.load(tmp_path / "old.safetensors")
    storage.write(tmp_path / "state.safetensors", {"w": torch.ones(2)}, "training", {})
    with pytest.raises(ValueError, match="must hold a 'model' checkpoint; got 'training'"):
        vi.load(tmp_path / "state.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        vi.load(tmp_path / "nothing.safetensors")


def test_killed_in_the_middle_of_a_save_the_old_one_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vfm = built()
    path = tmp_path / "model.safetensors"
    vfm.save(path)
    before = path.read_bytes()

    def half(tensors: dict, target: str, metadata: dict) -> None:
        Path(target).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        vfm.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_file_has_the_usual_permissions(tmp_path: Path) -> None:
    _, vfm = built()
    vfm.save(tmp_path / "model.safetensors")
    (tmp_path / "plain").write_text("")
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["plain"]


def test_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    _, vfm = built()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        vfm.save(tmp_path / "file" / "model.safetensors")
