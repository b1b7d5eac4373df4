r"""The noise-space posterior as ordinary Pyro functions, and its refinement for one observation.

With a map of the prior (``observation="adapter"``) the model is generative,

.. math:: z \sim \mathcal N(0, I), \qquad y \sim p(y \mid f(z)),

and the guide is the adapter, so that ``Trace_ELBO`` of the two is the reverse objective. Under a
conditional map z is the noise of the map, and the model weighs it by the density of the posterior
in these coordinates (:class:`~vfm_inverse.sampling.target.Target`).

Both draw inside a plate over observations, at the sites ``"z"`` and, deterministic, ``"x"``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from vfm_inverse.flow.adapter import Diagonal, Full
from vfm_inverse.gaussian.normals import standard_normal
from vfm_inverse.posterior.push_forward import PushForward
from vfm_inverse.posterior.variational import VariationalFlowMap
from vfm_inverse.runtime.calls import checked
from vfm_inverse.runtime.randomness import seeded
from vfm_inverse.sampling.target import Target

__all__ = ["guide", "model", "refine"]

FULL_LIMIT = 64
"""Most dimensions for which a refinement has a full covariance under a conditional map."""


def model(vfm: VariationalFlowMap, y: Tensor, **params: Tensor) -> Tensor:
    """Pyro model of the observations ``(n, *obs)``; returns fields ``(n, *event)``.

    Raises:
        ValueError: the posterior's density is unknown (:class:`Target`).
    """
    y, params, _ = vfm.batch(y, params)
    with pyro.plate("observation", len(y)):
        if vfm.observation == "adapter":
            if vfm.likelihood is None:
                raise ValueError("a model needs a likelihood; this map has a simulator only")
            answer = vfm.answer(vfm.condition(y, params))
            z = pyro.sample("z", standard_normal(len(y), vfm.whitening.mean))
            x = pyro.deterministic("x", vfm.decode(z, answer), event_dim=len(vfm.event_shape))
            law = vfm.likelihood(x, **params)
            if isinstance(law, TorchDistribution):
                pyro.sample("y", law, obs=y)
            else:  # a distribution of torch alone cannot be sampled by Pyro
                pyro.factor("y", law.log_prob(y))
            return x
        target = Target(vfm, y, params)
        z = pyro.sample("z", target.reference)
        pyro.factor("posterior", target.log_ratio(z))
        return pyro.deterministic("x", target.field(z[None])[0], event_dim=len(vfm.event_shape))


def guide(vfm: VariationalFlowMap, y: Tensor, **params: Tensor) -> Tensor:
    """Pyro guide: the adapter's law (under a conditional map, that of its noise) at ``"z"``,
    ``(n, d)``. Its parameters are registered, so that ``SVI`` trains the adapter."""
    y, params, _ = vfm.batch(y, params)
    if vfm.adapter is not None:
        pyro.module("adapter", vfm.adapter)
    answer = vfm.answer(vfm.condition(y, params))
    with pyro.plate("observation", len(y)):
        return pyro.sample("z", answer.noise)


@checked("correction", vfm="VariationalFlowMap")
def refine(
    vfm: VariationalFlowMap,
    y: Tensor,
    steps: int = 300,
    *,
    num_draws: int = 16,
    learning_rate: float = 0.02,
    seed: int | None = None,
    **params: Tensor,
) -> PushForward:
    """Improve the variational law for given observations; no network is trained.

    The numbers that describe q start where the adapter puts them and minimise
    ``KL(q || p(z | y))``, each observation's by themselves (semi-amortized inference, Kim et al.
    2018, https://arxiv.org/abs/1802.02550). Under a conditional map q is a Gaussian over the map's
    noise and starts at N(0, I).

    Args:
        vfm: the map.
        y: observations ``(n, *obs)`` or one ``(*obs)``.
        steps: of Adam.
        num_draws: draws for each observation and step.
        learning_rate: of Adam, falling to zero along a cosine.
        seed: of the draws; the global generator without one.
        params: parameters of the observations.

    Returns:
        The posterior with the refined law; ``latent`` is that law.

    Raises:
        ValueError: the posterior's density is unknown (:class:`Target`), or the family has no
            reparametrised draws.
    """
    y, params, batched = vfm.batch(y, params)
    target = Target(vfm, y, params, direct=False)
    condition = vfm.condition(y, params)
    law: Callable[[Tensor], TorchDistribution]
    if vfm.observation == "adapter":
        adapter = vfm.networks.adapter
        assert adapter is not None  # the map's constructor saw to it
        if not adapter.family.has_rsample:
            raise ValueError("'refine' needs reparametrised draws; the mixture family has none")
        with torch.no_grad():
            numbers = adapter.head(adapter.encoder(condition.features))
        law = partial(adapter.family, start=condition.start)
    else:
        family = (Full if target.dim <= FULL_LIMIT else Diagonal)(target.dim).to(y)
        law, numbers = family, family.initial().to(y).expand(len(y), -1)
    numbers = numbers.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([numbers], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with seeded(seed), torch.enable_grad():
        for _ in range(steps):
            q = law(numbers)
            z = q.rsample(torch.Size([num_draws]))
            log_prob = target.noise_log_prob(z)
            # A draw without density carries no gradient.
            usable = torch.isfinite(log_prob)
            loss = torch.where(usable, q.log_prob(z) - log_prob, 0.0).mean(0).sum()
            optimizer.zero_grad()
            (numbers.grad,) = torch.autograd.grad(loss, numbers)
            numbers.grad.nan_to_num_(0.0)
            optimizer.step()
            schedule.step()
    q = law(numbers.detach())
    generate, unwhiten = target.answer.generate, vfm.whitening.unwhiten
    return PushForward(q, lambda z: unwhiten(generate(z, vfm.steps)), vfm.event_shape, batched)
