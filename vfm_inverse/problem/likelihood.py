r"""From a physics to a density: ``p(y | x)`` of a deepinv ``Physics`` with its noise model.

``Likelihood(physics)(x, **params)`` is the law of the observation of the field ``x``: independent
data around ``A(x)`` with the density of the noise model (``noise_laws`` lists them). A likelihood
of your own, with a full covariance say, is any callable ``(x, **params) -> Distribution``.

deepinv stores every parameter that a call passes, so that a later call without it would see an
earlier call's value. Here the values stored at construction are the defaults for good, and a call
leaves the physics as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from pyro import distributions as dist
from torch import Tensor

from vfm_inverse.problem.noise_laws import Observed, noise_law

__all__ = ["Likelihood", "is_linear_gaussian", "restored"]


class Likelihood:
    """``p(y | x)`` of a deepinv physics, a function from fields to distributions.

    Args:
        physics: any deepinv ``Physics`` whose noise model has a density and whose sensor is the
            identity. Physics that mask their noise (``Inpainting``, ``MRI``) leave unseen data at
            0, without density.
        event_dim: number of dimensions of one field; the others of ``x`` are batch dimensions.
            Without it ``x`` has exactly one batch dimension.

    Raises:
        TypeError: ``physics`` is no deepinv ``Physics``.
        ValueError: its noise is zero or has no density, or its sensor is not the identity.
    """

    def __init__(self, physics: Physics, *, event_dim: int | None = None) -> None:
        if not isinstance(physics, Physics):
            raise TypeError(f"'physics' must be a deepinv Physics; got {type(physics).__name__}")
        self.physics = physics
        self.event_dim = event_dim
        self._law, names = noise_law(physics.noise_model)
        self._defaults = {name: getattr(physics.noise_model, name).clone() for name in names}
        # deepinv's masked operators override `noise` in order to mask it too.
        self._masks_noise = type(physics).noise is not Physics.noise
        if self._masks_noise and "mask" not in physics._buffers:
            raise ValueError(
                f"{type(physics).__name__} has a 'noise' of its own and no mask, so its density "
                "is unknown; pass likelihood= (a callable returning a Distribution) or simulator="
            )
        _check_sensor(physics)

    def __call__(self, x: Tensor, **params: Tensor | float) -> dist.TorchDistribution:
        """Law of the observations of the fields ``x``.

        Args:
            x: fields ``(*batch, *event)``.
            params: parameters of the physics and of the noise. A number or a 0-d tensor holds for
                all fields. Otherwise the leading dimension is the last batch dimension of ``x``
                (or 1), so that draws ``(num_draws, batch, *event)`` go with parameters ``(batch,
                ...)``; a field without batch dimensions takes parameters without one.

        Returns:
            A distribution with the batch shape of ``x`` and one observation as its event.

        Raises:
            ValueError: a noise parameter is not positive, or a parameter does not fit the batch.
        """
        lead = x.dim() - self.event_dim if self.event_dim is not None else 1
        batch_shape = x.shape[:lead]
        per_field = {
            name: _per_field(name, value, batch_shape, x) for name, value in params.items()
        }
        with restored(self.physics):
            mean = self.physics.A(x.reshape(-1, *x.shape[lead:]), **per_field)
            stored_mask = self.physics.mask if self._masks_noise else None
        if not isinstance(mean, Tensor):
            raise ValueError(
                f"the physics returns {type(mean).__name__}; an observation must be one tensor"
            )
        if mean.is_complex():
            raise ValueError(
                "the physics returns complex numbers; an observation must be real: give real and "
                "imaginary part as two channels, as with torch.view_as_real"
            )
        mean = mean.to(x.dtype.to_real())  # of some operators the field is complex
        mask = per_field.get("mask", stored_mask) if self._masks_noise else None
        if mask is not None:
            if mask.dim() < mean.dim():  # MultiCoilMRI: one mask for all coils
                mask = mask.unsqueeze(2)
            mask = (mask != 0).expand(mean.shape)
            # A datum that is not seen has A(x) = 0, which no gamma law allows.
            mean = torch.where(mask, mean, torch.ones_like(mean))
        values = {
            name: _per_datum(name, per_field.get(name, default), mean, stored=name not in params)
            for name, default in self._defaults.items()
        }
        shape = batch_shape + mean.shape[1:]
        law = self._law(
            mean.reshape(shape), **{name: value.reshape(shape) for name, value in values.items()}
        )
        if mask is not None:
            law = Observed(law, mask.reshape(shape))
        return law.to_event(len(shape) - lead)

    def noise_scale(self, **params: Tensor | float) -> Tensor | None:
        """Standard deviation of Gaussian noise: ``sigma`` as passed, else as first stored.

        ``None`` for every other noise model.
        """
        if not isinstance(self.physics.noise_model, GaussianNoise):
            return None
        sigma = torch.as_tensor(params.get("sigma", self._defaults["sigma"]))
        _check_positive("sigma", sigma)
        return sigma

    def __getstate__(self) -> dict[str, Any]:
        """Without the law, a local function, which the physics gives again."""
        return {name: value for name, value in vars(self).items() if name != "_law"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._law, _ = noise_law(self.physics.noise_model)

    def __repr__(self) -> str:
        noise = ", ".join(
            f"{name}={value.item():.6g}" if value.numel() == 1 else f"{name}={tuple(value.shape)}"
            for name, value in self._defaults.items()
        )
        model = type(self.physics.noise_model).__name__
        return f"{type(self.physics).__name__} with {model}({noise})"


def is_linear_gaussian(physics: object) -> bool:
    """Whether a physics is linear, with Gaussian noise."""
    return isinstance(physics, LinearPhysics) and isinstance(physics.noise_model, GaussianNoise)


@contextmanager
def restored(physics: Physics) -> Iterator[None]:
    """Undo what the calls in the block store in the physics."""
    # `named_buffers` leaves out the buffers that are None, a mask that was never set for one.
    saved = [(module, dict(module._buffers)) for module in physics.modules()]
    try:
        yield
    finally:
        for module, buffers in saved:
            module._buffers.update(buffers)


def _per_field(name: str, value: Tensor | float, batch_shape: torch.Size, x: Tensor) -> Tensor:
    """One value a field of the flattened batch, ``(prod(batch), ...)``."""
    value = torch.as_tensor(value, device=x.device)
    if value.is_floating_point():
        value = value.to(x.dtype)
    if value.dim() == 0 or not batch_shape:
        value = value.unsqueeze(0)
    if batch_shape and value.shape[0] not in (1, batch_shape[-1]):
        raise ValueError(
            f"'{name}' must hold one value for each of the {batch_shape[-1]} fields in its "
            f"leading dimension; got shape {tuple(value.shape)}"
        )
    lead = batch_shape or torch.Size([1])
    return value.expand(*lead, *value.shape[1:]).reshape(-1, *value.shape[1:])


def _per_datum(name: str, value: Tensor, mean: Tensor, *, stored: bool) -> Tensor:
    """A noise parameter expanded to ``mean``, ``(fields, *observation)``.

    Passed in a call it is ``(fields,)`` or ``(fields, *observation)``; stored in the noise model
    it is a number or one observation's worth of values, never one a field.
    """
    value = value.to(mean)
    _check_positive(name, value)
    if value.numel() == 1:
        value = value.reshape(())
    elif not stored and value.dim() == 1:
        value = value.reshape(-1, *(1,) * (mean.dim() - 1))
    try:
        return value.expand(mean.shape)
    except RuntimeError:
        raise ValueError(
            f"'{name}' must be a number, one value a field, or one value a datum of shape "
            f"{tuple(mean.shape[1:])}; got shape {tuple(value.shape)}"
        ) from None


def _check_positive(name: str, value: Tensor) -> None:
    try:
        smallest = float(value.min())
    except RuntimeError:  # under torch.func.vmap no value can be looked at
        return
    if not smallest > 0:
        raise ValueError(f"'{name}' must be positive; got {smallest:g}")


def _check_sensor(physics: Physics) -> None:
    """Refuse quantisation, saturation and the like: they change the density in unknown ways."""
    probe = torch.linspace(-1e3, 1e3, 1001) / 3
    try:
        identity = torch.equal(physics.sensor(probe), probe)
    except (RuntimeError, ValueError, TypeError, IndexError):
        identity = False
    if not identity:
        raise ValueError(
            "the physics has a sensor non-linearity, whose density is unknown; pass likelihood= "
            "(a callable returning a Distribution) or simulator="
        )
