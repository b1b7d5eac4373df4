"""Every check of ``operators.verify`` passes what is right and finds the fault planted for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

from vfm_inverse import operators, problems
from vfm_inverse.cli.program import main
from vfm_inverse.operators import Verification, verify

X = torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(0))


class Steps(LinearPhysics):
    """Differences, with one thing wrong a subclass."""

    def __init__(self) -> None:
        super().__init__(img_size=(1, 6), noise_model=GaussianNoise(0.3))

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x.diff(dim=-1)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        edge = torch.zeros_like(y[..., :1])
        return -torch.cat([edge, y, edge], -1).diff(dim=-1)


class WrongAdjoint(Steps):
    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return 1.000001 * super().A_adjoint(y)


class Affine(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x) + 1e-7


class Curved(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x) + 1e-8 * x[..., 1:] ** 2


class Clamped(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x).clamp(-20, 20)


class Coupled(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x - 1e-6 * x.mean(0, keepdim=True))


class Random(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x) * (1 + 1e-9 * torch.randn((), dtype=x.dtype))


class Remembering(Steps):
    last = 0.0

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        y = super().A(x) + 1e-9 * self.last
        self.last = float(x.detach().sum())
        return y


class InPlace(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        y = super().A(x)
        if not x.requires_grad:
            x.mul_(1 + 1e-9)
        return y


class OnlyDouble(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x.double())


class Coarse(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        y = super().A(x)
        return y if x.dtype == torch.float64 else y + 1e-3


class SecretlySingle(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x.float()).to(x)


class OpenlySingle(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x.float())


class Louder(Steps):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.A(x) + 1.05 * self.noise_model.sigma * torch.randn_like(self.A(x))


class Shifted(Steps):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x) + 0.03


class Uniform(Steps):
    """Mean and variance are right."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y = self.A(x)
        return y + 3**0.5 * self.noise_model.sigma * (2 * torch.rand_like(y) - 1)


class WrongSize(Steps):
    def __init__(self) -> None:
        super().__init__()
        self.img_size = (1, 7)


class Squeezed(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x).squeeze(0)


class Lost(Steps):
    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().A(x) / (x[..., 1:] - x[..., 1:])


class _Exponential(torch.autograd.Function):
    """With a gradient that is off by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.factor = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * w * ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx: Any, v: Tensor, _: None) -> Tensor:
        return v * ctx.saved_tensors[0]


class Exponential(Physics):
    factor = 1.0

    def __init__(self) -> None:
        super().__init__(noise_model=GaussianNoise(0.1))

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return _Exponential.apply(x, self.factor)


class OffByOnePercent(Exponential):
    factor = 1.01


class OffALittle(Exponential):
    factor = 1.0001


class OwnPullBack(Exponential):
    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return 1.01 * super().A_vjp(x, v)


class RootAtZero(Physics):
    """The value is right and the gradient is infinite."""

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return (x - x).abs().sqrt() + x


def states(result: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in result.checks}


@pytest.mark.parametrize("make", [Steps, Exponential])
def test_what_is_right_passes(make: Callable[[], Physics]) -> None:
    result = verify(make(), X)
    assert result.passed, str(result)
    passed = [name for name, state in states(result).items() if state]
    assert len(passed) >= 9
    assert result["gradient"].figure == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (WrongAdjoint, "adjoint"),
        (WrongAdjoint, "vjp"),
        (OffByOnePercent, "gradient"),
        (OffALittle, "gradient"),
        (OffByOnePercent, "forward mode"),
        (OffByOnePercent, "adjoint"),
        (OwnPullBack, "vjp"),
        (OwnPullBack, "adjoint"),
        (RootAtZero, "gradient"),
        (Affine, "linearity"),
        (Curved, "linearity"),
        (Clamped, "linearity"),
        (Coupled, "batching"),
        (Random, "determinism"),
        (Remembering, "determinism"),
        (InPlace, "determinism"),
        (OnlyDouble, "dtype"),
        (Coarse, "dtype"),
        (OpenlySingle, "dtype"),
        (SecretlySingle, "adjoint"),
        (SecretlySingle, "linearity"),
        (SecretlySingle, "gradient"),
        (Louder, "noise"),
        (Shifted, "noise"),
        (Uniform, "noise"),
        (WrongSize, "shapes"),
        (Squeezed, "shapes"),
        (Lost, "shapes"),
    ],
)
def test_a_planted_fault_is_found(make: Callable[[], Physics], check: str) -> None:
    result = verify(make(), X)
    assert not result.passed
    assert states(result)[check] is False, str(result)


@pytest.mark.parametrize("make", [Louder, Shifted, Uniform, Coarse, OnlyDouble])
def test_only_the_check_of_the_fault_fails(make: Callable[[], Physics]) -> None:
    failed = [name for name, state in states(verify(make(), X)).items() if state is False]
    assert len(failed) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.gpu
def test_a_tensor_that_stays_on_the_cpu_is_found() -> None:
    class Stuck(Steps):
        weight = torch.ones(1, dtype=torch.float64)

        def A(self, x: Tensor, **kwargs: Any) -> Tensor:
            return super().A(x) * self.weight[[0]]

    assert states(verify(Stuck(), X))["device"] is False
    assert states(verify(Steps(), X))["device"]


def test_the_noise_check_keeps_its_level() -> None:
    """p-values of a right noise model are not small more often than they say."""
    values = [verify(Steps(), X, seed=seed)["noise"].figure or 0 for seed in range(20)]
    assert sum(value < 0.05 for value in values) <= 5 and min(values) > 1e-4


@pytest.mark.parametrize(
    "noise",
    [
        dinv.physics.LaplaceNoise(0.2),
        dinv.physics.UniformNoise(0.3),
        dinv.physics.PoissonNoise(0.5),
        dinv.physics.GammaNoise(5.0),
        dinv.physics.PoissonGaussianNoise(gain=0.5, sigma=0.2),
        dinv.physics.LogPoissonNoise(1000.0, 0.3),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_noise_of_every_kind_is_checked(noise: dinv.physics.NoiseModel) -> None:
    physics = dinv.physics.Denoising(noise_model=noise)
    x = 1 + torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    check = verify(physics, x)["noise"]
    assert check.passed, check

    class Scaled(dinv.physics.Denoising):
        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            return self.A(x) + 1.2 * (super().forward(x) - self.A(x))

    assert verify(Scaled(noise_model=noise), x)["noise"].passed is False


def test_parameters_go_with_their_fields() -> None:
    physics = operators.HeatEquation((1, 6), (1.0,))
    kappa = torch.tensor([0.1, 1.0, 3.0])
    result = verify(physics, X, diffusivity=kappa, sigma=torch.tensor([0.1, 0.2, 0.5]))
    assert result.passed, str(result)
    single = verify(physics, X[:1], diffusivity=kappa[:1])
    assert single.passed and single["batching"].passed


@pytest.mark.parametrize(
    "physics",
    [
        dinv.physics.Inpainting((1, 8, 8), mask=0.5, noise_model=GaussianNoise(0.1)),
        dinv.physics.BlurFFT((1, 8, 8), filter=gaussian_blur(sigma=(1.0, 1.0))),
        dinv.physics.Blur(filter=gaussian_blur(sigma=(1.0, 1.0)), padding="circular"),
        dinv.physics.Downsampling((1, 8, 8), factor=2, filter="gaussian"),
        dinv.physics.Denoising(noise_model=GaussianNoise(0.1)),
        dinv.physics.MRI(torch.ones(1, 2, 8, 8), img_size=(2, 8, 8)),
    ],
    ids=lambda physics: type(physics).__name__,
)
def test_operators_of_deepinv_are_certified_and_left_as_they_were(physics: Physics) -> None:
    before = {name: value.clone() for name, value in physics.state_dict().items()}
    channels = 2 if isinstance(physics, dinv.physics.MRI) else 1
    x = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    result = verify(physics, x)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in physics.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    assert result.passed, str(result)


def test_a_stack_of_observations_is_certified() -> None:
    stacked = Steps().stack(Steps())
    result = verify(stacked, X)
    assert states(result)["adjoint"] and states(result)["gradient"], str(result)


def test_a_slow_operator_is_not_evaluated_for_every_draw_of_the_noise() -> None:
    class Counting(Steps):
        fields = 0

        def A(self, x: Tensor, **kwargs: Any) -> Tensor:
            Counting.fields += len(x)
            return super().A(x)

    assert verify(Counting(), X)["noise"].passed
    assert Counting.fields < 300
    physics = Counting()
    assert verify(physics, X).passed and "A" not in vars(physics)


def test_what_has_no_forward_mode_is_certified_by_its_gradient() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx: Any, w: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * w

    class Squares(Physics):
        def A(self, x: Tensor, **kwargs: Any) -> Tensor:
            return Square.apply(x)

        def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
            return 2 * x * v

    result = verify(Squares(noise_model=GaussianNoise(0.1)), X)
    assert result.passed, str(result)
    assert result["forward mode"].passed is None and result["adjoint"].passed is None
    assert result["vjp"].passed and result["gradient"].passed


def test_nothing_is_seen_and_nothing_fails() -> None:
    physics = dinv.physics.Inpainting(
        (1, 6), mask=torch.zeros(1, 6), noise_model=GaussianNoise(0.1)
    )
    result = verify(physics, X)
    assert result.passed and result["noise"].remark == "no datum is seen"


def test_the_table_and_the_dictionary() -> None:
    result = verify(WrongAdjoint(), X, name="mine")
    lines = str(result).splitlines()
    assert lines[0] == "mine: WrongAdjoint, FAIL" and len(lines) == 12
    assert any(line.split()[:2] == ["adjoint", "FAIL"] and "<= 1e-10" in line for line in lines)
    shown = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert shown["passed"] is False
    assert [check["name"] for check in shown["checks"]] == [check.name for check in result.checks]


@pytest.mark.parametrize(
    ("physics", "x", "error", "message"),
    [
        (torch.sin, X, TypeError, "'physics' must be a deepinv Physics; got builtin"),
        (Steps(), X.numpy(), TypeError, "'x' must be a torch.Tensor; got ndarray"),
        (Steps(), X.long(), TypeError, "'x' must hold floating-point numbers; got torch.int64"),
        (Steps(), X[:0], ValueError, r"finite fields \(batch, \*event\); got shape \(0, 1, 6\)"),
        (Steps(), X / 0, ValueError, "must hold finite fields"),
    ],
)
def test_wrong_input_is_refused(physics: Any, x: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        verify(physics, x)


# The command line -------------------------------------------------------------------------------


def test_the_command_verifies_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "seismogram"]) == 0
    out = capsys.readouterr().out
    assert "seismogram: Seismogram, pass" in out and "seismogram-traces" in out
    assert out.endswith("2 verified, 0 failed\n")


def test_the_command_verifies_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "linear-gaussian", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["passed"] and shown["operators"][0]["physics"] == "MatrixObservations"


MINE = """
import torch
from deepinv.physics import GaussianNoise, LinearPhysics

class Twice(LinearPhysics):
    def __init__(self, wrong=False):
        super().__init__(img_size=(4,), noise_model=GaussianNoise(0.1))
        self.back = 2.1 if wrong else 2.0
    def A(self, x, **kwargs):
        return 2 * x
    def A_adjoint(self, y, **kwargs):
        return self.back * y

right, wrong = Twice(), Twice(wrong=True)
pair = (right, torch.ones(2, 4))
make = lambda: (right, torch.ones(2, 4), {"sigma": torch.tensor([0.1, 0.2])})
number = 3
"""


@pytest.mark.parametrize(
    ("name", "code"), [("right", 0), ("wrong", 1), ("pair", 0), ("make", 0), ("number", 2)]
)
def test_the_command_verifies_an_object_of_yours(
    name: str,
    code: int,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "operator_of_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["verify", f"operator_of_mine:{name}"]) == code
    captured = capsys.readouterr()
    if code == 1:
        assert "1 verified, 1 failed: operator_of_mine:wrong" in captured.out
    if code == 2:
        assert "must be a Physics, an InverseProblem" in captured.err


def test_all_are_the_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [("one", Steps(), X), ("two", WrongAdjoint(), X)]
    monkeypatch.setattr(operators, "examples", lambda: iter(two))
    assert main(["verify", "--all"]) == 1
    assert "2 verified, 1 failed: two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "give the name of what to verify, or --all"),
        (["heat", "--all"], "give the name of what to verify, or --all"),
        (["nonsense"], "unknown operator or problem 'nonsense'"),
        (["json:nothing"], "'json' has no 'nothing'"),
        (["no_such_module:thing"], "No module named 'no_such_module'"),
    ],
)
def test_the_command_refuses(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *command]) == 2
    assert message in capsys.readouterr().err


def test_a_problem_without_physics_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vfm_inverse.problem.inverse_problem import InverseProblem

    blind = InverseProblem(torch.rand(30, 2), simulator=lambda x: x)
    monkeypatch.setattr(problems, "load", lambda name: blind)
    assert main(["verify", "linear-gaussian"]) == 2
    assert "has no physics" in capsys.readouterr().err
