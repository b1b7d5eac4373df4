"""The networks of maps and adapters, and what they get to see of an observation."""

from vfm_inverse.networks.layers import MLP, TimeFeatures, UNet, fresh_mlp

__all__ = ["MLP", "TimeFeatures", "UNet", "fresh_mlp"]
