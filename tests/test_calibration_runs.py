"""Calibrations that go on and parts that are joined: of one posterior, whole, and bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vfm_inverse.calibration import calibrate, merge, posterior_sbc, simulations
from vfm_inverse.calibration.shards import read_part
from vfm_inverse.problem import InverseProblem, SimulationWarning

KILLS = int(os.environ.get("KILLS", "10"))


def exact(y: Tensor) -> Distribution:
    """Posterior of x ~ N(0, I) from y = x + e / 2."""
    return Independent(Normal(0.8 * y, 0.2**0.5), 1)


def problem() -> InverseProblem:
    return InverseProblem(
        prior=Independent(Normal(torch.zeros(3), 1.0), 1),
        likelihood=lambda x: Independent(Normal(x, 0.5), 1),
    )


class Counted:
    """A posterior function that counts what it was asked."""

    def __init__(self, answer: Callable[..., Any] = exact) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self, y: Tensor) -> Any:
        self.asked += len(y)
        return self.answer(y)


# -- identity -------------------------------------------------------------------------------------


def test_a_finished_run_gives_its_report_again(tmp_path: Path) -> None:
    path, one = tmp_path / "c.npz", Counted()
    first = calibrate(one, problem(), 20, 10, path=path)
    before, again = path.read_bytes(), Counted()
    path.chmod(0o444)
    xr.testing.assert_identical(first, calibrate(again, problem(), 20, 10, path=path))
    assert path.read_bytes() == before and again.asked <= 8
    xr.testing.assert_identical(first, calibrate(exact, problem(), 20, 10))
    # A seed that was drawn is that of the file.
    xr.testing.assert_identical(first, calibrate(exact, problem(), 20, 10, path=path, seed=None))
    other = calibrate(exact, problem(), 20, 10, path=path, alpha=0.2)
    assert other.attrs["alpha"] == 0.2


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "moved": (
        {"posterior_fn": lambda y: Independent(Normal(0.8 * y + 5, 0.2**0.5), 1)},
        "another posterior",
    ),
    "slightly wider": (
        {"posterior_fn": lambda y: Independent(Normal(0.8 * y, 0.2**0.5 * 1.0001), 1)},
        "another posterior",
    ),
    "baseline": (
        {"baseline": lambda y: Independent(Normal(0.7 * y, 1.0), 1)},
        "another baseline",
    ),
    "no baseline": ({"baseline": None}, "with baseline ="),
    "quantity": ({"quantities": {"a": lambda x, y: x[..., 1]}}, "other quantities"),
    "names": ({"quantities": {"b": lambda x, y: x[..., 0]}}, "with quantities ="),
    "draws": ({"num_draws": 11}, "num_draws = 10; expected 11"),
    "chunk": ({"chunk": 100}, "with chunk ="),
    "shard": ({"shard": (0, 2)}, "with shard ="),
    "joint": ({"joint": False}, "with joint ="),
    "provenance": ({"provenance": {"a": 1}}, "with provenance ="),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_another_check_is_refused_and_kept(what: str, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    options: dict[str, Any] = {
        "posterior_fn": exact,
        "problem": problem(),
        "num_simulations": 20,
        "num_draws": 10,
        "baseline": lambda y: Independent(Normal(torch.zeros_like(y), 1.0), 1),  # of one name
        "quantities": {"a": lambda x, y: x[..., 0]},
        "path": path,
        "chunk": 300,
    }
    options["baseline"].__qualname__ = "behind"
    calibrate(**options)
    before = path.read_bytes()
    change, text = OTHERS[what]
    if change.get("baseline"):
        change["baseline"].__qualname__ = "behind"
    with pytest.raises(ValueError, match=text) as caught:
        calibrate(**{**options, **change})
    assert len(str(caught.value)) < 300 and path.read_bytes() == before
    assert calibrate(**options, resume=True).attrs["num_simulations"] == 20


def test_a_map_that_was_trained_on_is_another_posterior(tmp_path: Path) -> None:
    from vfm_inverse import VariationalFlowMap

    path, ours = tmp_path / "c.npz", problem()
    vfm = VariationalFlowMap.for_problem(ours, seed=0, num_simulations=200)
    calibrate(vfm, ours, 10, 5, path=path)
    assert read_part(path)[1]["posterior_fn_sha256"].startswith("weights ")
    calibrate(vfm, ours, 10, 5, path=path)
    with torch.no_grad():
        next(vfm.networks.parameters()).flatten()[0] += 1e-6
    with pytest.raises(ValueError, match="holds a calibration of another posterior"):
        calibrate(vfm, ours, 10, 5, path=path)


def test_a_posterior_with_a_stream_of_its_own_is_named(tmp_path: Path) -> None:
    path, stream = tmp_path / "c.npz", np.random.default_rng(0)

    def own(y: Tensor) -> Any:
        def sample(shape: tuple[int]) -> Tensor:
            noise = torch.from_numpy(stream.normal(size=(*shape, *y.shape))).float()
            return 0.8 * y + 0.2**0.5 * noise

        return SimpleNamespace(sample=sample)

    with pytest.warns(UserWarning, match="draws of 'posterior_fn' do not follow the seed"):
        first = calibrate(own, problem(), 20, 10, path=path)
    with pytest.warns(UserWarning, match="do not follow the seed"):
        second = calibrate(own, problem(), 20, 10, path=path)
    xr.testing.assert_identical(first, second)
    with pytest.raises(ValueError, match="another posterior"):
        calibrate(exact, problem(), 20, 10, path=path)


def test_a_simulator_with_a_stream_of_its_own_is_named(tmp_path: Path) -> None:
    path, stream = tmp_path / "c.npz", np.random.default_rng(0)
    with pytest.warns(SimulationWarning, match="'simulator' does not follow the seed"):
        ours = InverseProblem(
            prior=Independent(Normal(torch.zeros(3), 1.0), 1),
            simulator=lambda x: x + 0.5 * torch.tensor(stream.normal(size=tuple(x.shape))).float(),
        )
    calibrate(exact, ours, 20, 10, path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="the simulator does not follow the seed"):
        calibrate(exact, ours, 20, 10, path=path)
    assert path.read_bytes() == before
    calibrate(exact, ours, 20, 10, path=path, resume=False)


# -- parts ----------------------------------------------------------------------------------------


def parts(folder: Path, count: int = 4, **options: Any) -> list[Path]:
    paths = [folder / f"{index}.npz" for index in range(count)]
    for index, path in enumerate(paths):
        calibrate(exact, problem(), 24, 10, chunk=100, path=path, shard=(index, count), **options)
    return paths


def test_parts_must_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = parts(tmp_path)
    whole = calibrate(exact, problem(), 24, 10, chunk=100)
    xr.testing.assert_identical(merge(paths), whole.assign_attrs(merge(paths).attrs))
    with pytest.raises(ValueError, match=r"all 24 simulations; got 18 in .*shard \[0, 4\]"):
        merge(paths[:3])
    assert merge(paths[:3], partial=True).attrs["num_simulations"] == 18
    assert merge(paths[0], partial=True).attrs["num_simulations"] == 6
    with pytest.raises(FileNotFoundError, match="no calibration at"):
        merge([*paths[:3], tmp_path / "5.npz"])

    def dying(y: Tensor) -> Distribution:
        calls.append(len(y))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return exact(y)

    calls: list[int] = []
    monkeypatch.setattr(simulations, "SAVE_SECONDS", 0.0)
    unfinished = tmp_path / "unfinished.npz"
    with pytest.raises(KeyboardInterrupt):
        calibrate(dying, problem(), 24, 10, chunk=100, path=unfinished, shard=(3, 4))
    with pytest.raises(ValueError, match="parts are missing or unfinished"):
        merge([*paths[:3], unfinished])
    assert merge([*paths[:3], unfinished], partial=True).attrs["num_simulations"] == 21
    # One that has only begun holds nothing yet.
    calls[:] = [0]
    with pytest.raises(KeyboardInterrupt):
        calibrate(dying, problem(), 24, 10, chunk=100, path=unfinished, shard=(3, 4), resume=False)
    assert merge([unfinished, *paths[:3]], partial=True).attrs["num_simulations"] == 18
    with pytest.raises(ValueError, match="at least 2 simulations; got 0"):
        merge([unfinished], partial=True)


def test_parts_of_two_posteriors_are_not_joined(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{index}.npz" for index in range(2))
    options: dict[str, Any] = {"chunk": 100}
    calibrate(exact, problem(), 24, 10, path=first, shard=(0, 2), **options)
    wide = Counted(lambda y: Independent(Normal(0.8 * y, 1.0), 1))
    calibrate(wide, problem(), 24, 10, path=second, shard=(1, 2), **options)
    with pytest.raises(ValueError, match="1.npz holds a calibration of another posterior"):
        merge([first, second])


# -- files ----------------------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    calibrate(exact, problem(), 20, 10, path=path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for bit in generator.integers(8 * len(content), size=200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c.npz is no readable calibration file") as caught:
            merge([path])
        assert "\n" not in str(caught.value)
    for cut in (0, 1, 60, 80, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"c.npz is no readable calibration file"):
            calibrate(exact, problem(), 20, 10, path=path)
    path.write_bytes(content)
    assert merge(path).sizes["simulation"] == 20


def test_a_place_that_cannot_be_written_to_is_known_before_the_work(tmp_path: Path) -> None:
    for path, error in (
        (tmp_path / "none" / "c.npz", "cannot write the calibration '.*c.npz': No such file"),
        (tmp_path, "cannot read the calibration '.*': it is no file"),
        (Path("/dev/null"), "cannot read the calibration '/dev/null': it is no file"),
    ):
        asked = Counted()
        with pytest.raises(OSError, match=error):
            calibrate(asked, problem(), 20, 10, path=path)
        assert asked.asked <= 8
    with pytest.raises(TypeError, match="'path' must be the path of a file; got int"):
        calibrate(exact, problem(), 20, 10, path=3)  # type: ignore[arg-type]


SCRIPT = """
import os, signal, sys, time
import numpy as np, torch
from pathlib import Path
from tests.test_calibration_runs import exact, problem
from vfm_inverse.calibration import calibrate, simulations
from vfm_inverse.calibration.shards import read_part

path, kills = Path(sys.argv[1]), int(sys.argv[2])
simulations.SAVE_SECONDS = 0.0
torch.set_num_threads(1)
generator, held, finished = np.random.default_rng(0), 0, 0

def slow(y):
    time.sleep(0.005)
    return exact(y)

for kill in range(kills):
    child = os.fork()
    if child == 0:
        calibrate(slow, problem(), 200, 20, chunk=240, path=path)
        os._exit(0)
    time.sleep(float(generator.uniform(0.0, 1.0)))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    done = int(read_part(path)[0]["seen"].sum()) if path.exists() else 0
    assert done >= held, (done, held)
    held = done
    if status == 0 or done == 200:
        assert done == 200
        path.rename(f"{path}.{finished}")
        held, finished = 0, finished + 1
calibrate(exact, problem(), 200, 20, chunk=240, path=path)
print("killed", kills, "finished", finished)
"""


@pytest.mark.slow
def test_kills_lose_nothing(tmp_path: Path) -> None:
    """``KILLS=60`` in the environment for more of them."""
    whole = calibrate(exact, problem(), 200, 20, chunk=240)
    path = tmp_path / "c.npz"
    command = [sys.executable, "-c", SCRIPT, str(path), str(KILLS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"killed {KILLS}" in ended.stdout, ended.stderr
    print(ended.stdout)
    for found in tmp_path.glob("c.npz*"):
        xr.testing.assert_identical(merge(found), merge(path))
    xr.testing.assert_equal(whole, merge(path))


# -- answers and settings -------------------------------------------------------------------------


def drawing(convert: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda y: SimpleNamespace(sample=lambda shape: convert(exact(y).sample(shape)))


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(">f8"),
        lambda x: x.double(),
        lambda x: x.requires_grad_(),
        lambda x: xr.DataArray(x.numpy()),
        lambda x: x.tolist(),
        lambda x: x.numpy()[..., ::-1].copy()[..., ::-1],
    ],
)
def test_draws_of_every_kind_are_taken(convert: Callable[[Tensor], Any]) -> None:
    expected = calibrate(drawing(lambda x: x), problem(), 20, 10)
    xr.testing.assert_identical(expected, calibrate(drawing(convert), problem(), 20, 10))


ANSWERS: dict[str, tuple[Any, type[Exception], str]] = {
    "tensor": (lambda y: y, TypeError, "'posterior_fn' must return an object with sample"),
    "number": (lambda y: 3.0, TypeError, "'posterior_fn' must return .* got float"),
    "nothing": (lambda y: None, ValueError, "'posterior_fn' must return a posterior; got None"),
    "no draws": (drawing(lambda x: None), TypeError, "'draws of posterior_fn' must hold real"),
    "complex": (drawing(lambda x: x + 1j), TypeError, "'draws of posterior_fn' .* complex"),
    "NaN": (drawing(lambda x: x * torch.nan), ValueError, "'posterior_fn' must give finite draws"),
    "infinite": (drawing(lambda x: x / 0), ValueError, "200 of 200 hold NaN or infinite"),
    "shape": (drawing(lambda x: x[..., :2]), ValueError, r"shape \(10, 20, 3\); got"),
    "too large": (drawing(lambda x: x.double() * 1e300), ValueError, "beyond the range"),
    "no function": (3, TypeError, "'posterior_fn' must be a function .* got 3"),
    "none": (None, TypeError, "'posterior_fn' must be a function .* got None"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_answers_of_another_kind_are_refused_by_name(what: str) -> None:
    answer, error, text = ANSWERS[what]
    with pytest.raises(error, match=text):
        calibrate(answer, problem(), 20, 10)
    if answer is not None:
        with pytest.raises(error, match=text.replace("posterior_fn", "baseline")):
            calibrate(exact, problem(), 20, 10, baseline=answer)


SETTINGS: dict[str, tuple[Any, type[Exception]]] = {
    "num_simulations": (1, ValueError),
    "num_draws": (2.5, ValueError),
    "alpha": (float("nan"), ValueError),
    "seed": (-1, ValueError),
    "chunk": (0, ValueError),
    "memory": (float("inf"), ValueError),
    "shard": ((2, 2), ValueError),
    "joint": ("no", TypeError),
    "local": (0, TypeError),
    "resume": (None, TypeError),
    "progress": ("", TypeError),
    "quantities": ({}, ValueError),
    "baseline": ("prior", TypeError),
    "split": ("valid", ValueError),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_have_ranges(name: str) -> None:
    value, error = SETTINGS[name]
    with pytest.raises(error, match=f"'{name}' must"):
        calibrate(exact, problem(), **{"num_simulations": 20, "num_draws": 10, name: value})


@pytest.mark.parametrize("shard", [3, "01", (1,), (0, 1, 2), None, (-1, 2), (0.5, 2), (True, 2)])
def test_a_part_is_a_pair(shard: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="'shard' must be"):
        calibrate(exact, problem(), 20, 10, shard=shard)


def test_what_is_no_problem_is_refused(tmp_path: Path) -> None:
    for action in (
        lambda: calibrate(exact, 3, 20, 10),  # type: ignore[arg-type]
        lambda: posterior_sbc(exact, exact, torch.zeros(1, 3)),  # type: ignore[arg-type]
        lambda: merge(tmp_path / "c.npz", problem=3),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="'problem' must be an InverseProblem"):
            action()
    with pytest.raises(TypeError, match="'paths' must be paths of files; got int"):
        merge(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'provenance' must be a mapping; got int"):
        calibrate(exact, problem(), 20, 10, provenance=3)  # type: ignore[arg-type]


def test_a_part_holds_two_simulations() -> None:
    with pytest.raises(ValueError, match=r"'shard' \(1, 2\) would hold 0 of 20 simulations"):
        calibrate(exact, problem(), 20, 10, shard=(1, 2))
    one = calibrate(exact, problem(), 20.0, np.int64(10), shard=[np.int64(0), 1.0])  # type: ignore
    assert one.attrs["num_simulations"] == 20


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_simulations": 1}, "'num_simulations' must be at least 2"),
        ({"seed": 1.5}, "'seed' must be a whole number"),
        ({"quantities": {}}, "'quantities' must name"),
        ({"both": 3}, "'both' must be a function"),
        ({"posterior_fn": lambda y: y}, "'posterior_fn' must return an object"),
        ({"posterior_fn": drawing(lambda x: x * torch.nan)}, "'posterior_fn' must give finite"),
    ],
)
def test_posterior_sbc_names_what_is_wrong(options: dict[str, Any], text: str) -> None:
    given = {"posterior_fn": exact, "both": lambda y, new: exact((y + new) / 2), **options}
    with pytest.raises((TypeError, ValueError), match=text):
        posterior_sbc(problem=problem(), y=torch.zeros(1, 3), **given)
