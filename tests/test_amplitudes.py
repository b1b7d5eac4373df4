"""Mixtures over amplitudes: today's start with one class, the direct density, the exact posterior
of a prior that is such a mixture, and pairs for the training that agree with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics
from torch import Tensor
from torch.distributions import MultivariateNormal

from vfm_inverse import VariationalFlowMap
from vfm_inverse.correction.recalibration import Tempered
from vfm_inverse.gaussian import choose_start
from vfm_inverse.gaussian.amplitude_mixture import AmplitudeMixture
from vfm_inverse.gaussian.amplitudes import Amplitudes, bands_of
from vfm_inverse.gaussian.amplitudes_start import AmplitudesStart
from vfm_inverse.gaussian.operator_start import FixedOperatorStart, VaryingOperatorStart
from vfm_inverse.gaussian.whitening import DenseWhitening, fit_whitening
from vfm_inverse.problem.inverse_problem import InverseProblem
from vfm_inverse.runs.loading import load
from vfm_inverse.sampling.target import Target
from vfm_inverse.statistics.scores import energy_score
from vfm_inverse.training import fit
from vfm_inverse.training.objective import Objective

DIM, DATA, SIGMA = 8, 5, 1.0
VARIANCES = torch.tensor([[0.02, 0.05, 0.1], [1.3, 0.4, 0.2], [3.0, 4.0, 5.0]])
WEIGHTS = torch.tensor([0.4, 0.35, 0.25])


class Matrix(LinearPhysics):
    """A fixed matrix."""

    def __init__(self) -> None:
        super().__init__(noise_model=GaussianNoise(SIGMA))
        generator = torch.Generator().manual_seed(4)
        self.matrix = torch.randn(DATA, DIM, generator=generator)

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x @ self.matrix.T.to(x)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y @ self.matrix.to(y)


def normalised() -> Tensor:
    """The variances with which the mixture has unit variance."""
    return VARIANCES / (WEIGHTS @ VARIANCES)


def covariance() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    return factor @ factor.T / DIM + 0.1 * torch.eye(DIM)


def whitening() -> DenseWhitening:
    return DenseWhitening.from_moments((DIM,), torch.linspace(-1, 1, DIM).double(), covariance())


def planted() -> Amplitudes:
    """The classes of the prior, as if they had been found."""
    amplitudes, root = Amplitudes(), whitening().root.double()
    amplitudes.basis = torch.linalg.eigh(root)[1].flip(1).float().contiguous()
    amplitudes.band = bands_of(DIM)
    amplitudes.variances, amplitudes.weights = normalised(), WEIGHTS
    return amplitudes


def prior(num: int) -> Tensor:
    """Fields of a mixture over amplitudes."""
    amplitudes = planted()
    k = torch.multinomial(WEIGHTS, num, True)
    xi = (amplitudes.stds()[k] * torch.randn(num, DIM)) @ amplitudes.basis.T
    return whitening().unwhiten(xi)


def fixed_problem() -> InverseProblem:
    return InverseProblem(prior=prior, physics=Matrix())


def masked_problem() -> InverseProblem:
    def params(num: int) -> dict[str, Tensor]:
        return {
            "mask": (torch.rand(num, 1, 2, 4) < 0.6).float(),
            "sigma": 0.1 + 0.4 * torch.rand(num),
        }

    physics = Inpainting((1, 2, 4), mask=torch.ones(1, 2, 4), noise_model=GaussianNoise(0.2))
    return InverseProblem(
        prior=lambda num: prior(num).reshape(-1, 1, 2, 4), physics=physics, params=params
    )


PROBLEMS = {"fixed": fixed_problem, "varying": masked_problem}


def start_of(problem: InverseProblem, amplitudes: Amplitudes) -> AmplitudesStart:
    coordinates = whitening()
    coordinates.inner_shape = torch.Size(problem.field_shape)
    num_data = problem.observation_shape.numel()
    start = AmplitudesStart(problem.physics, problem.likelihood, coordinates, num_data)
    start.amplitudes = amplitudes
    return start


@pytest.mark.parametrize("kind", sorted(PROBLEMS))
def test_one_class_is_todays_start(kind: str) -> None:
    torch.manual_seed(0)
    problem = PROBLEMS[kind]()
    x, y, params = problem.simulate(50, seed=0)
    one = planted()
    one.variances, one.weights = torch.ones(1, 3), torch.ones(1)
    start = start_of(problem, one)
    args = (problem.physics, problem.likelihood, start._whitening)
    today = (
        FixedOperatorStart(*args) if kind == "fixed" else VaryingOperatorStart(*args, y[0].numel())
    )
    today.fit(x, y, params, 8)
    q, expected = start(y, params), today(y, params)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(q.mean, expected.mean, **close)
    torch.testing.assert_close(q.variance, expected.variance, **close)
    z = torch.randn(3, 50, DIM)
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z), **close)
    if kind == "fixed":  # of any operator the frame is another, with the same law
        zeta = q.standardize(z)[..., :-1]
        torch.testing.assert_close(zeta, expected.standardize(z), **close)


def exact(
    problem: InverseProblem, y: Tensor, params: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``(n, K)``, means ``(n, K, d)`` and covariances ``(n, K, d, d)`` of the exact
    posterior in whitened coordinates, from the formulas for observations of a Gaussian."""
    coordinates, amplitudes, shape = whitening(), planted(), problem.field_shape
    unit, none = torch.eye(DIM), torch.zeros(1, DIM)
    fields = torch.cat([coordinates.color(unit), coordinates.unwhiten(none)])
    weights, means, covariances = [], [], []
    for i in range(len(y)):
        own = {k: v[i : i + 1].expand(DIM + 1, *v.shape[1:]) for k, v in params.items()}
        data = problem.physics.A(fields.reshape(-1, *shape), **own).flatten(1).double()
        b, residual = data[:-1].T, y[i].flatten().double() - data[-1]
        sigma = float(params["sigma"][i]) if "sigma" in params else SIGMA
        logs, loc, cov = [], [], []
        for k in range(3):
            prior_k = amplitudes.power_of_root(k, 1.0).double()
            marginal = b @ prior_k @ b.T + sigma**2 * torch.eye(len(b)).double()
            law = MultivariateNormal(torch.zeros(len(b)).double(), marginal)
            logs.append(WEIGHTS[k].log() + law.log_prob(residual))
            gain = torch.linalg.solve(marginal, b @ prior_k).T
            loc.append(gain @ residual)
            cov.append(prior_k - gain @ b @ prior_k)
        weights.append(torch.stack(logs).softmax(0))
        means.append(torch.stack(loc))
        covariances.append(torch.stack(cov))
    return torch.stack(weights), torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("kind", sorted(PROBLEMS))
def test_mixture_is_the_exact_posterior(kind: str) -> None:
    """Evidence against the density of the data, moments and draws against the formulas."""
    torch.manual_seed(0)
    problem = PROBLEMS[kind]()
    _, y, params = problem.simulate(12, seed=1)
    q = start_of(problem, planted())(y, params)
    weights, means, covariances = exact(problem, y, params)
    torch.testing.assert_close(q.probabilities.double(), weights, atol=2e-3, rtol=0)
    mean = (weights.unsqueeze(-1) * means).sum(1)
    spread = means - mean.unsqueeze(1)
    within = covariances.diagonal(dim1=-2, dim2=-1) + spread.square()
    torch.testing.assert_close(q.mean.double(), mean, atol=0.02, rtol=0)
    variance = (weights.unsqueeze(-1) * within).sum(1)
    torch.testing.assert_close(q.variance.double(), variance, atol=0.02, rtol=0.02)
    k = torch.multinomial(weights, 4000, True).T
    factors = torch.linalg.cholesky(covariances)
    n = torch.arange(12)
    noise = torch.randn(4000, 12, DIM, dtype=torch.float64)
    direct = means[n, k] + (factors[n, k] @ noise.unsqueeze(-1)).squeeze(-1)
    for i in (0, 5, 11):
        assert same_law(q.sample((4000,))[:, i], direct[:, i].float())
        assert not same_law(q.sample((4000,))[:, i], 1.25 * direct[:, i].float())


def same_law(a: Tensor, b: Tensor) -> bool:
    """Whether two samples ``(n, d)`` pass an energy test against 19 permutations of them, with the
    margin of a factor."""
    a, b = a[:2500], b[:2500]
    both = torch.cat([a, b])
    distance = torch.cdist(both, both)

    def statistic(first: Tensor) -> float:
        sign = torch.full((len(both),), -1.0)
        sign[first] = 1.0
        return -float(sign @ distance @ sign)

    null = [statistic(torch.randperm(len(both))[: len(a)]) for _ in range(19)]
    return statistic(torch.arange(len(a))) < 1.5 * max(null)


def observed_class(q: AmplitudeMixture, z: Tensor) -> Tensor:
    """The planted fault: frames of classes drawn from p(k | y), whatever the field."""
    k = torch.multinomial(q.probabilities, 1)[:, 0]
    zeta = q._by_class(k, z, lambda law, part: law.standardize(part))
    return torch.cat([zeta, q.classes.coordinate(k).unsqueeze(-1)], -1)


def own_class(q: AmplitudeMixture, z: Tensor) -> Tensor:
    """What the training does."""
    return q.standardize(z)


@pytest.mark.parametrize("kind", sorted(PROBLEMS))
@pytest.mark.parametrize("pairs, right", [(own_class, True), (observed_class, False)])
def test_pairs_of_the_training_are_standard(
    kind: str, pairs: Callable[[AmplitudeMixture, Tensor], Tensor], right: bool
) -> None:
    """The truth in the frame is N(0, I) with a prior that is the mixture; a class that is not the
    field's own is found out."""
    torch.manual_seed(0)
    problem = PROBLEMS[kind]()
    x, y, params = problem.simulate(2500, seed=2)
    start = start_of(problem, planted())
    q, xi = start(y, params), whitening().whiten(x.flatten(1))
    zeta = pairs(q, xi)
    torch.testing.assert_close(q.unstandardize(zeta), xi, atol=1e-3, rtol=1e-3)
    assert same_law(zeta, torch.randn(2500, DIM + 1)) is right


def test_classes_are_found_among_samples() -> None:
    torch.manual_seed(0)
    amplitudes = Amplitudes(3)
    xi = whitening().whiten(prior(20_000))
    amplitudes.fit(xi, whitening())
    total = amplitudes.weights @ amplitudes.variances
    torch.testing.assert_close(total, torch.ones(3), atol=1e-4, rtol=0)
    score = amplitudes.log_joint(xi).logsumexp(-1).mean()
    one = Amplitudes(1)
    one.fit(xi, whitening())
    torch.testing.assert_close(one.variances, torch.ones(1, 3), atol=1e-4, rtol=0)
    best = planted().log_joint(xi).logsumexp(-1).mean()
    plain = one.log_joint(xi).logsumexp(-1).mean()
    assert best - score < 0.25 * (best - plain)
    with pytest.raises(ValueError, match="'dense'; got SpectralWhitening"):
        amplitudes.fit(torch.randn(9, 16), fit_whitening(torch.randn(9, 1, 4, 4), "spectral"))


def built(problem: InverseProblem) -> VariationalFlowMap:
    return VariationalFlowMap.for_problem(
        problem,
        start="amplitudes",
        num_simulations=4000,
        whitening="dense",
        width=16,
        depth=1,
        progress=False,
    )


@pytest.mark.parametrize("kind", sorted(PROBLEMS))
def test_a_map_from_start_to_file(kind: str, tmp_path: Path) -> None:
    """Untrained it is the mixture; trained it keeps the class of its noise; a file brings both
    back."""
    problem = PROBLEMS[kind]()
    vfm = built(problem)
    assert vfm.config["start"] == "amplitudes" and isinstance(vfm.start, AmplitudesStart)
    x, y, params = problem.simulate(64, split="test", seed=5)
    answer = vfm.answer(vfm.condition(y, params))
    noise = answer.noise.sample((200,))
    assert noise.shape == (200, 64, DIM + 1)
    law = answer.q
    assert isinstance(law, AmplitudeMixture)
    torch.testing.assert_close(answer.generate(noise, 1), law.unstandardize(noise))
    torch.testing.assert_close(vfm.decode(noise, answer), vfm.decode(noise, answer))
    gaussian = VariationalFlowMap.for_problem(
        problem, num_simulations=4000, whitening="dense", progress=False
    )
    torch.manual_seed(1)
    draws, others = (m(y, **params).sample((200,)) for m in (vfm, gaussian))
    assert energy_score(draws, x).mean() < 0.95 * energy_score(others, x).mean()
    history = fit(vfm, problem, steps=6, batch_size=32, validations=1, progress=False)
    assert all(math.isfinite(history[-1][name]) for name in ("loss", "dispersion", "kl_per_dim"))
    answer = vfm.answer(vfm.condition(y, params))
    encoded = answer.map.encode(answer.to_frame(vfm.whitening.whiten(x)))
    again = answer.map.generate(encoded)
    assert torch.equal(law.classes.read(encoded[..., -1]), law.classes.read(again[..., -1]))
    vfm.save(tmp_path / "map.safetensors")
    again = load(tmp_path / "map.safetensors", problem, warn=False)
    torch.manual_seed(2)
    first = vfm(y, **params).sample((3,))
    torch.manual_seed(2)
    torch.testing.assert_close(again(y, **params).sample((3,)), first, atol=1e-5, rtol=1e-5)


def test_the_class_enters_the_network() -> None:
    """The same point in two classes goes to two places, once the network is not zero."""
    torch.manual_seed(0)
    problem = fixed_problem()
    vfm = built(problem)
    for parameter in vfm.networks.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    _, y, params = problem.simulate(1, seed=0)
    answer = vfm.answer(vfm.condition(y.expand(400, -1), params))
    z = torch.cat([torch.ones(400, DIM), torch.randn(400, 1)], -1)
    data = answer.map.generate(z)[:, :-1]
    k = answer.map.classes.read(z[:, -1])
    assert len(k.unique()) > 1
    for one in k.unique():
        mine = data[k == one]
        torch.testing.assert_close(mine, mine[:1].expand_as(mine), atol=1e-5, rtol=1e-5)
    assert len(data.round(decimals=3).unique(dim=0)) == len(k.unique())


def test_refusals() -> None:
    problem = fixed_problem()
    with pytest.raises(ValueError, match="'start' must not be 'amplitudes' unless observation="):
        VariationalFlowMap.for_problem(problem, start="amplitudes", observation="adapter")
    with pytest.raises(ValueError, match="'dense'; got IdentityWhitening"):
        VariationalFlowMap.for_problem(
            problem, start="amplitudes", whitening="identity", num_simulations=100
        )
    vfm = built(problem)
    with pytest.raises(ValueError, match="'forward' must be 0 for a start"):
        Objective(vfm, forward=1.0)


def field_problem(mixed: bool) -> InverseProblem:
    """A noisy field whose prior is known by samples, of the mixture or of one Gaussian."""

    def fields(num: int) -> Tensor:
        flat = prior(num) if mixed else whitening().unwhiten(torch.randn(num, DIM))
        return flat.reshape(-1, 1, 2, 4)

    return InverseProblem(prior=fields, physics=Denoising(GaussianNoise(0.3)))


@pytest.mark.parametrize("mixed", [True, False])
def test_auto_takes_it_where_it_helps(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves every bit as it was where it does not."""
    options = {"num_simulations": 2000, "network": "mlp", "progress": False}
    vfm = VariationalFlowMap.for_problem(field_problem(mixed), **options)
    assert isinstance(vfm.start, AmplitudesStart if mixed else FixedOperatorStart)
    if mixed:
        assert vfm.config["start"] == "amplitudes"
        return
    monkeypatch.setattr(choose_start, "may_have_amplitudes", lambda *args: False)
    today = VariationalFlowMap.for_problem(field_problem(mixed), **options)
    assert vfm.weights_fingerprint() == today.weights_fingerprint()
    assert vfm.config == today.config


def test_corrections_of_a_mixture() -> None:
    """Its width may be changed and leaves the classes alone; its draws have no density."""
    torch.manual_seed(0)
    problem = fixed_problem()
    vfm = built(problem)
    _, y, params = problem.simulate(20, seed=3)
    noise = vfm.answer(vfm.condition(y, params)).noise.sample((50,))
    narrow, plain = Tempered(vfm, 0.5)(y), vfm(y)
    halved = torch.cat([0.5 * noise[..., :-1], noise[..., -1:]], -1)
    torch.testing.assert_close(narrow._decode(noise), plain._decode(halved))
    vfm.log_prior = lambda x: -0.5 * x.square().sum(-1)
    with pytest.raises(ValueError, match="'vfm' must not start from a mixture over amplitudes"):
        Target(vfm, y, params)
