"""netCDF files that show their damage."""

from __future__ import annotations

import os
import random
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from vfm_inverse.formats import netcdf_files
from vfm_inverse.formats.netcdf_files import check_content, read_netcdf, seal, write_netcdf


def dataset() -> xr.Dataset:
    names = np.array(["a", "bé", ""], dtype=object)
    return xr.Dataset(
        {
            "t": (("x", "y"), np.random.default_rng(0).normal(size=(3, 40)), {"units": "K"}),
            "flag": ("x", np.array([True, False, True])),
            "lag": ("x", np.array([1, 2, 3], "timedelta64[ns]")),
        },
        coords={"name": ("x", names), "time": np.datetime64("2020-01-01", "ns")},
        attrs={"title": "é", "list": [1.0, 2.0], "words": ["a", "b"]},
    )


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = write_netcdf(dataset(), tmp_path / "x.nc")
    check_content(path)
    read = read_netcdf(path)
    xr.testing.assert_equal(read.drop_vars("lag"), dataset().drop_vars("lag"))
    assert read["lag"].dtype.kind in "fi"  # a number in a unit stays one
    again = write_netcdf(read, tmp_path / "again.nc")  # the old seal is not taken for the new
    check_content(again)


def test_values_names_and_attributes_are_sealed(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    changes = {
        "value": lambda f: f["t"].__setitem__((0, 0), 7.0),
        "text": lambda f: f["name"].__setitem__(0, "A"),
        "attribute": lambda f: f.setncattr("title", "other"),
        "units": lambda f: f["t"].setncattr("units", "C"),
        "name": lambda f: f.renameVariable("t", "u"),
        "further": lambda f: f.createVariable("more", "f4", ()),
        "dimension": lambda f: f.renameDimension("y", "z"),
    }
    for what, change in changes.items():
        write_netcdf(dataset(), path)
        with netCDF4.Dataset(path, "a") as file:
            change(file)
        with pytest.raises(ValueError, match=r"x.nc' is damaged or was edited"):
            read_netcdf(path)
        with netCDF4.Dataset(path, "a") as file:
            file.delncattr("content_sha256")
        if what not in ("name",):
            read_netcdf(path)  # without a seal nothing is claimed


def test_chunks_of_large_variables_are_guarded(tmp_path: Path) -> None:
    large = xr.Dataset({"t": ("x", np.random.default_rng(0).normal(size=2**16))})
    path = write_netcdf(large, tmp_path / "x.nc")
    raw = bytearray(path.read_bytes())
    where = raw.find(large["t"].values[5000:5002].tobytes())
    raw[where] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x.nc' is not a readable netCDF file"):
        read_netcdf(path)
    with pytest.raises((OSError, RuntimeError)), xr.open_dataset(path, engine="netcdf4") as file:
        file.load()  # whoever reads it notices


def test_flipped_bits_are_noticed_or_harmless(tmp_path: Path) -> None:
    path = write_netcdf(dataset(), tmp_path / "x.nc")
    whole, truth = path.read_bytes(), read_netcdf(path)
    picks = random.Random(0)
    noticed = 0
    for _ in range(60):
        raw = bytearray(whole)
        raw[picks.randrange(len(raw))] ^= 1 << picks.randrange(8)
        path.write_bytes(raw)
        try:
            read = read_netcdf(path)
        except ValueError as error:
            assert "x.nc" in str(error)
            noticed += 1
        else:
            own = {k: v for k, v in read.attrs.items() if k in dataset().attrs}
            assert read.assign_attrs(truth.attrs).equals(truth) and str(own) == str(
                {k: truth.attrs[k] for k in own}
            )
            assert len(own) == 3 and all(read[k].attrs == truth[k].attrs for k in truth.variables)
    assert noticed > 3


def test_what_cannot_be_read_or_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file '.*x.nc'"):
        read_netcdf(tmp_path / "x.nc")
    for content in (b"", b"no netCDF", b"\x89HDF\r\n\x1a\n" + b"0" * 500):
        (tmp_path / "x.nc").write_bytes(content)
        with pytest.raises(ValueError, match=r"x.nc' is not a readable netCDF file"):
            read_netcdf(tmp_path / "x.nc")
    (tmp_path / "x.nc").unlink()

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(netcdf_files, "seal", fail)
    with pytest.raises(ValueError, match=r"cannot write '.*x.nc': NetCDF: HDF error"):
        write_netcdf(dataset(), tmp_path / "x.nc")
    stacked = xr.Dataset({"t": (("a", "b"), np.zeros((2, 2)))}, {"a": [0, 1], "b": [0, 1]})
    with pytest.raises(ValueError, match=r"cannot write '.*x.nc'"):
        write_netcdf(stacked.stack(cell=("a", "b")), tmp_path / "x.nc")
    assert os.listdir(tmp_path) == []


def test_a_dataset_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = xr.Dataset({"t": ("x", np.broadcast_to(0.0, 2**50))})
    with pytest.raises(OSError, match=r"No space left on device for 9.01e\+06 GB .*x.nc"):
        write_netcdf(huge, tmp_path / "x.nc")


def test_a_seal_is_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    dataset().to_netcdf(path)
    check_content(path)
    seal(path)
    with netCDF4.Dataset(path) as file:
        first = file.getncattr("content_sha256")
    seal(path)
    with netCDF4.Dataset(path) as file:
        assert file.getncattr("content_sha256") == first
