"""Adapters: every family is a normalised density that starts where it should and whose parameters
can learn."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from vfm_inverse.flow.adapter import FAMILIES, NoiseAdapter, Spline
from vfm_inverse.gaussian.frames import standardize, unstandardize
from vfm_inverse.gaussian.normals import ContractedNormal, standard_normal
from vfm_inverse.networks.encoders import FieldEncoder, VectorEncoder

DIM, WIDTH = 2, 8
PLAIN = sorted(FAMILIES.keys() - {"contraction"})
ALL = ["contraction", *PLAIN, *(f"{name} stacked" for name in PLAIN)]


def start() -> ContractedNormal:
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(DIM, 1))[0]
    return ContractedNormal(torch.randn(3, DIM), basis, torch.full((3, 1), 0.3))


def adapter(name: str) -> tuple[NoiseAdapter, ContractedNormal | None]:
    """An adapter, and the start that it is given."""
    torch.manual_seed(0)
    kind = name.removesuffix(" stacked")
    family = FAMILIES[kind](DIM, 1) if kind == "contraction" else FAMILIES[kind](DIM)
    encoder = VectorEncoder(WIDTH, WIDTH)
    return NoiseAdapter(encoder, family), start() if name not in PLAIN else None


def trained(name: str) -> tuple[NoiseAdapter, TorchDistribution]:
    """Weights as after training, and what the adapter says of three encodings."""
    made, first = adapter(name)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05 if "spline" in name else 0.2)
    return made, made(torch.randn(3, WIDTH), first)


@pytest.mark.parametrize("name", ALL)
def test_starts_at_the_standard_normal_or_at_its_start(name: str) -> None:
    made, first = adapter(name)
    q = made(torch.randn(3, WIDTH), first)
    z = torch.randn(500, 3, DIM)
    expected = standard_normal(3, z) if first is None else first
    # The mixture's components and the low-rank factor start a little apart, to have gradients to
    # part with.
    slack = {"mixture": 0.3, "low-rank": 2e-2}.get(name.removesuffix(" stacked"), 1e-5)
    difference = q.log_prob(z) - expected.log_prob(z)
    assert difference.square().mean().sqrt() <= slack


def test_contraction_stays_near_its_start() -> None:
    made, first = adapter("contraction")
    nn.init.normal_(made.head.weight, std=1e4)
    far = made(torch.randn(3, WIDTH), first)
    shift = first.project(far.loc - first.loc) / first.scale
    assert shift.abs().max() < 4.01
    assert (far.scale / first.scale).log().abs().max() < 1.39
    with pytest.raises(ValueError, match="needs a Gaussian start"):
        made(torch.randn(3, WIDTH))


@pytest.mark.parametrize("name", ALL)
def test_density_integrates_to_one(name: str) -> None:
    _, q = trained(name)
    # A grid of each law's own size: 12 standard deviations to either side, 0.05 apart (0.1 for the
    # spline, whose evaluation takes longer).
    axis = torch.linspace(-12, 12, 241 if "spline" in name else 481)
    draws = q.sample((10_000,))
    std = draws.std(0)
    grid = draws.mean(0) + std * torch.cartesian_prod(axis, axis).unsqueeze(1)
    with torch.no_grad():
        mass = q.log_prob(grid).exp().sum(0) * std.prod(-1) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_draws_follow_the_stated_moments_and_batch_alone(name: str) -> None:
    made, q = trained(name)
    assert q.batch_shape == (3,)
    assert q.event_shape == (DIM,)
    draws = q.sample((40_000 if "spline" in name else 100_000,))
    mean = draws.mean(0)
    if "spline" not in name:  # which has no mean in closed form
        torch.testing.assert_close(mean, q.mean, atol=0.05, rtol=0.02)
    # The density the draws were made with: importance weights to it average to one.
    wide = torch.distributions.MultivariateNormal(mean[0], 2 * torch.cov(draws[:, 0].T))
    other = wide.sample((100_000,)).unsqueeze(1).expand(-1, 3, -1)
    with torch.no_grad():
        weight = (q.log_prob(other)[:, 0] - wide.log_prob(other[:, 0])).exp()
    second = (weight.unsqueeze(-1) * (other[:, 0] - mean[0]).square()).mean(0)
    torch.testing.assert_close(second, draws[:, 0].var(0), atol=0.02, rtol=0.05)
    h, first = torch.randn(3, WIDTH), None if name in PLAIN else start()
    alone = made(h[:1], None if first is None else first[:1]).log_prob(draws[:5, :1])
    together = made(h, first).log_prob(draws[:5])[:, :1]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_both_training_terms_reach_every_parameter(name: str) -> None:
    made, q = trained(name)
    z = torch.randn(3, DIM)
    (-q.log_prob(z)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters())
    if name.startswith("mixture"):
        return  # it has no reparametrised draws, and the objective refuses the reverse term
    made.zero_grad()
    _, q = trained(name)
    assert q.rsample((2,)).requires_grad


@pytest.mark.parametrize("name", ["contraction", "diagonal", "full", "full stacked", "spline"])
def test_families_have_a_frame(name: str) -> None:
    _, q = trained(name)
    zeta = standardize(q, q.sample((40_000,)))
    torch.testing.assert_close(unstandardize(q, zeta), unstandardize(q, zeta).clone())
    torch.testing.assert_close(standardize(q, unstandardize(q, zeta)), zeta, atol=1e-4, rtol=1e-4)
    for i in range(3):
        torch.testing.assert_close(torch.cov(zeta[:, i].T), torch.eye(DIM), atol=0.04, rtol=0)
    z = zeta[:4]
    if name == "spline":
        return
    # Affine: the density is that of N(0, I) up to a constant.
    gap = q.log_prob(unstandardize(q, z)) - standard_normal(3, z).log_prob(z)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), atol=1e-3, rtol=1e-4)


def test_forward_kl_fits_a_bimodal_posterior_where_one_normal_cannot() -> None:
    torch.manual_seed(2)

    def simulate(num: int) -> tuple[Tensor, Tensor]:
        y = torch.rand(num, 1)
        sign = torch.where(torch.rand(num, 1) < 0.5, -1.0, 1.0)
        return sign * (1 + y) + 0.1 * torch.randn(num, DIM), y

    values = {}
    for name in ("full", "mixture"):
        adapter = NoiseAdapter(VectorEncoder(1, 32), FAMILIES[name](DIM))
        optimizer = torch.optim.Adam(adapter.parameters(), 5e-3)
        for _ in range(400):
            z, y = simulate(256)
            optimizer.zero_grad()
            (-adapter(y).log_prob(z).mean()).backward()
            optimizer.step()
        z, y = simulate(4000)
        values[name] = float(-adapter(y).log_prob(z).mean().detach())
    # Entropy of the truth: two coordinates of N(., 0.1^2) and one fair bit.
    entropy = 2 * 0.5 * (1 + torch.log(torch.tensor(2 * torch.pi * 0.01))) + torch.log(
        torch.tensor(2.0)
    )
    assert values["mixture"] < float(entropy) + 0.15
    assert values["full"] > values["mixture"] + 0.5


@pytest.mark.parametrize("shape", [(3, 8), (2, 16, 12)])
def test_field_encoder_takes_any_grid(shape: tuple[int, ...]) -> None:
    encoder = FieldEncoder(shape[0], shape[1:], width=16)
    assert encoder(torch.randn(5, *shape)).shape == (5, 16)


def test_a_spline_of_a_large_field_acts_on_informed_directions_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vfm_inverse.flow.adapter.SPLINE_LIMIT", 4)
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 3))[0]
    scale = torch.tensor([0.9, 0.1, 0.5]).expand(3, -1)
    first = ContractedNormal(torch.randn(3, 6), basis, scale)
    family = Spline(6, informed=2)
    made = NoiseAdapter(VectorEncoder(WIDTH, WIDTH), family)
    h = torch.randn(3, WIDTH)
    z = torch.randn(50, 3, 6)
    torch.testing.assert_close(made(h, first).log_prob(z), first.log_prob(z), atol=1e-4, rtol=1e-4)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    q = made(h, first)
    zeta = torch.randn(50, 3, 6)
    moved = standardize(q, unstandardize(q, zeta))
    torch.testing.assert_close(moved, zeta, atol=1e-4, rtol=1e-4)
    # Directions: the two smallest scales; what is orthogonal to them is the start's.
    torch.testing.assert_close(first.leading(2), basis[:, [1, 2]])
    rest = torch.linalg.qr(torch.cat([basis[:, [1, 2]], torch.randn(6, 4)], 1))[0][:, 2:]
    draws = first.standardize(unstandardize(q, zeta))
    torch.testing.assert_close(draws @ rest, zeta @ rest, atol=1e-4, rtol=1e-4)
    # The density is the one of the change of variables.
    jacobian = torch.autograd.functional.jacobian(
        lambda v: unstandardize(q, v.expand(3, -1))[0], zeta[0, 0]
    )
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    expected = standard_normal(1, zeta).log_prob(zeta[0, :1]) - log_det
    there = unstandardize(q, zeta[0, 0].expand(3, -1))
    torch.testing.assert_close(q.log_prob(there)[:1], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="needs a Gaussian start above 4 dimensions"):
        family(torch.randn(3, 64))
    own = ContractedNormal(first.loc, basis.expand(3, -1, -1), scale)
    with pytest.raises(ValueError, match="directions that all observations share"):
        made(h, own)
