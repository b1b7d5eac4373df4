"""From a problem and a map to a trained map."""

from vfm_inverse.runtime.values import resolve_device
from vfm_inverse.training.loop import fit

__all__ = ["fit", "resolve_device"]
