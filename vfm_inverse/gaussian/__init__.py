"""The classical answer: Gaussian laws, whitened coordinates, and the start of a training."""

from vfm_inverse.gaussian.normals import ContractedNormal, Modes, StandardNormal

__all__ = ["ContractedNormal", "Modes", "StandardNormal"]
