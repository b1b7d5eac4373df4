"""Checkpoints that are damaged, forged or of an earlier version."""

from __future__ import annotations

import json
import random
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vfm_inverse as vi
from vfm_inverse import problems
from vfm_inverse.calibration import calibrate
from vfm_inverse.calibration.certification import certify
from vfm_inverse.posterior.card import Card
from vfm_inverse.runs.folder import open_run
from vfm_inverse.runtime import storage
from vfm_inverse.runtime.allocation import bounded_allocation

Metadata = dict[str, str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small certified map."""
    problem = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=300, width=8, depth=1)
    certify(vfm, problem, calibrate(vfm, problem, 60, 40))
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    vfm.save(path)
    return path


def opened(path: Path) -> tuple[dict[str, torch.Tensor], Metadata]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def forged(saved: Path, target: Path, sealed: bool = True, **changes: Any) -> None:
    """The map with another header, its checksum right or (format 2) missing."""
    tensors, metadata = opened(saved)
    header = json.loads(metadata["header"])
    for key, value in changes.items():
        header["config" if key in header["config"] else key] = (
            {**header["config"], key: value} if key in header["config"] else value
        )
    metadata["header"] = json.dumps(header)
    del metadata["sha256"]
    if sealed:
        metadata["sha256"] = storage.checksum(metadata, tensors)
    else:
        metadata["format"] = "vfm_inverse/2"
    save_file(tensors, target, metadata)


def test_the_previous_format_is_read(saved: Path, tmp_path: Path) -> None:
    forged(saved, tmp_path / "old.safetensors", sealed=False)
    old, new = vi.load(tmp_path / "old.safetensors", warn=False), vi.load(saved, warn=False)
    assert old.card == new.card is not None
    for name, value in new.state_dict().items():
        assert torch.equal(old.state_dict()[name], value)
    # It may lack the sum; the present format may not.
    tensors, metadata = opened(saved)
    del metadata["sha256"]
    save_file(tensors, tmp_path / "bare.safetensors", metadata)
    with pytest.raises(ValueError, match=r"bare.safetensors is damaged: .* checksum"):
        vi.load(tmp_path / "bare.safetensors")


def test_flipped_bits_are_noticed(saved: Path, tmp_path: Path) -> None:
    """In the header, where every bit counts, and in every tensor; also those that turn the number
    of the format into an earlier one."""
    whole = saved.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    tensors = json.loads(whole[8 : 8 + length])
    picks = random.Random(0)
    places = [picks.randrange(8 + length) for _ in range(60)]
    places += [8 + length + v["data_offsets"][0] for k, v in tensors.items() if "dtype" in v]
    target = tmp_path / "flipped.safetensors"
    for place in places:
        raw = bytearray(whole)
        raw[place] ^= 1 << picks.randrange(8)
        target.write_bytes(raw)
        with pytest.raises(ValueError, match=r"flipped.safetensors"):
            vi.load(target, warn=False)
    number = whole.index(b"vfm_inverse/3") + len("vfm_inverse/")
    for earlier in b"12":
        target.write_bytes(whole[:number] + bytes([earlier]) + whole[number + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            vi.load(target)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": "xyz"},
        {"adapter": ["full"]},
        {"adapter": None},
        {"observation": 3},
        {"rank": -1},
        {"rank": 10**12},
        {"width": 10**9},
        {"width": 60_000},
        {"depth": "deep"},
        {"steps": 0},
        {"gaussian_start": "no"},
        {"whitening": 5},
        {"whitening": "identical"},
        {"network": None},
        {"precision": "double-half"},
        {"problem": None},
        {"problem": {"name": 3, "kwargs": {}}},
        {"problem": {"name": "linear-gaussian", "kwargs": None}},
        {"problem": {"name": "linear-gaussian"}},
        {"problem": {"name": "linear-gaussian", "kwargs": {"dim": "4"}}},
        {"problem": {"name": "linear-gaussian", "kwargs": {"dim": 5}}},
        {"problem": {"name": "linear-gaussian", "kwargs": {"dim": 30_000}}},
        {"problem": {"name": "linear-gaussian", "kwargs": {"dim": 10**15}}},
        {"problem": {"name": "heat", "kwargs": {"size": 10**6}}},
        {"problem": {"name": "../linear-gaussian", "kwargs": {}}},
        {"config": None},
        {"config": []},
        {"card": {}},
        {"card": [1]},
        {"card": "pass"},
    ],
    ids=str,
)
def test_a_header_that_fits_nothing_is_refused_with_the_files_name(
    changes: dict[str, Any], saved: Path, tmp_path: Path
) -> None:
    target = tmp_path / "forged.safetensors"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for sealed in (True, False):
        forged(saved, target, sealed, **changes)
        with pytest.raises(ValueError, match="forged.safetensors") as refused:
            vi.load(target, warn=False)
        assert len(str(refused.value)) < 700 and "\n" not in str(refused.value)
        (tmp_path / "model.safetensors").write_bytes(target.read_bytes())
        with pytest.raises(ValueError, match="model.safetensors"):
            open_run(tmp_path, warn=False)
    # No gigabytes on the way (kilobytes here).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000


@pytest.mark.parametrize(
    "field",
    ["verdict", "num_draws", "alpha", "figures", "valid_range", "weights_sha256"],
)
def test_a_card_is_held_to_the_kinds_of_its_fields(field: str, saved: Path) -> None:
    card = json.loads(vi.load(saved, warn=False).card.to_json())
    assert Card.from_json(json.dumps(card)).to_json() == json.dumps(card)
    wrong: tuple[Any, ...] = (None, [], True, {"a": "b"}, {"a": ["b"]})
    for value in wrong:
        if field in ("figures", "valid_range") and value == []:
            continue
        with pytest.raises(ValueError, match="calibration card"):
            Card.from_json(json.dumps({**card, field: value}))
    with pytest.raises(ValueError, match="'verdict' of a calibration card must be 'pass' or"):
        Card.from_json(json.dumps({**card, "verdict": "certainly"}))


def test_json_that_nests_without_end(saved: Path, tmp_path: Path) -> None:
    tensors, metadata = opened(saved)
    for text in ("[" * 100_000, '{"a":' * 100_000, "nope", "[]", "3", "null"):
        metadata |= {"header": text}
        metadata["sha256"] = storage.checksum(
            {k: v for k, v in metadata.items() if k != "sha256"}, tensors
        )
        save_file(tensors, tmp_path / "deep.safetensors", metadata)
        with pytest.raises(ValueError, match="deep.safetensors"):
            vi.load(tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match="must be a calibration card"):
        Card.from_json("[" * 100_000)


@pytest.mark.parametrize("name", ["linear-gaussian", "gaussian-field", "darcy", "gravity", "mri"])
def test_problems_load_within_the_bound(name: str) -> None:
    dim = problems.load(name).field_shape.numel()
    with bounded_allocation(dim):
        problems.load(name).simulate(2, seed=0)


def test_what_is_too_large_is_refused_before_it_is_made() -> None:
    a, b = torch.zeros(40_000, 1), torch.zeros(1, 40_000)
    for make in (
        lambda: torch.randn(40_000, 40_000),
        lambda: torch.eye(40_000),
        lambda: torch.zeros(40_000 * 40_000),
        lambda: torch.arange(10**10),
        lambda: a - b,
        lambda: a @ b,
        lambda: torch.full((40_000, 40_000), 1.0),
    ):
        with pytest.raises(ValueError, match="its own tensors do not bear out"):
            with bounded_allocation(4):
                make()
    with bounded_allocation(4):
        torch.randn(1000, 1000) @ torch.eye(1000)


def test_a_training_state_of_another_map_is_refused(saved: Path, tmp_path: Path) -> None:
    problem = problems.load("linear-gaussian")
    vfm = vi.VariationalFlowMap.for_problem(problem, num_simulations=300, width=8, depth=1)
    path = tmp_path / "training.safetensors"
    quick = {"steps": 2, "batch_size": 8, "num_validation": 8, "progress": False, "device": "cpu"}
    for header in ({}, {"step": "x", "history": 3, "kept_step": 1}):
        storage.write(path, {"scores": torch.zeros(3)}, "training", header)
        with pytest.raises(ValueError, match="training.safetensors' is no training state of"):
            vi.fit(vfm, problem, resume=True, checkpoint_dir=tmp_path, **quick)
