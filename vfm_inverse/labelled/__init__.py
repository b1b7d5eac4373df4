"""Labelled data at the border: xarray in, xarray out, tensors inside."""

from vfm_inverse.labelled.write import (
    load_observation,
    observation_to_xarray,
    save_netcdf,
    summary,
    to_xarray,
)

__all__ = ["load_observation", "observation_to_xarray", "save_netcdf", "summary", "to_xarray"]
