"""The border for numbers: what holds them, and what does not."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from vfm_inverse.runtime.arrays import floating_type, real_array, real_tensor

NUMBERS = np.arange(6.0).reshape(2, 3)

HOLDERS = {
    "float64": NUMBERS,
    "float32": NUMBERS.astype("f4"),
    "half": NUMBERS.astype("f2"),
    "long double": NUMBERS.astype(np.longdouble),
    "big-endian": NUMBERS.astype(">f4"),
    "big-endian integers": NUMBERS.astype(">i2"),
    "unsigned": NUMBERS.astype("u1"),
    "backwards": NUMBERS[::-1].copy()[::-1],
    "every other": np.repeat(NUMBERS, 2, 1)[:, ::2],
    "Fortran": np.asfortranarray(NUMBERS),
    "read-only": np.broadcast_to(NUMBERS, (2, 3)),
    "masked, nothing hidden": np.ma.masked_array(NUMBERS),
    "list": NUMBERS.tolist(),
    "DataArray": xr.DataArray(NUMBERS),
    "DataFrame": pd.DataFrame(NUMBERS),
    "tensor": torch.from_numpy(NUMBERS),
    "bfloat16": torch.from_numpy(NUMBERS).bfloat16(),
    "int64": torch.from_numpy(NUMBERS).long(),
    "sparse": torch.from_numpy(NUMBERS).to_sparse(),
    "with a gradient": torch.from_numpy(NUMBERS).requires_grad_(),
}


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_holds_numbers_becomes_a_tensor(name: str, dtype: torch.dtype) -> None:
    tensor = real_tensor(HOLDERS[name], "y", dtype=dtype)
    assert tensor.dtype == dtype
    assert torch.equal(tensor.detach(), torch.from_numpy(NUMBERS).to(dtype))
    assert np.array_equal(real_array(HOLDERS[name], "y"), NUMBERS)


def test_numbers_and_booleans() -> None:
    assert float(real_tensor(0.5, "sigma")) == 0.5
    assert float(real_tensor(np.float32(0.5), "sigma", dtype=torch.float64)) == 0.5
    assert real_tensor([True, False], "mask", dtype=torch.float32).tolist() == [1.0, 0.0]


def test_a_tensor_keeps_its_graph_and_its_memory() -> None:
    y = torch.ones(3, requires_grad=True)
    assert real_tensor(y, "y") is y
    assert real_tensor(y, "y", dtype=torch.float64).requires_grad


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (NUMBERS + 1j, "'y' must hold real numbers; got complex"),
        (torch.zeros(3, dtype=torch.complex64), "got complex"),
        (np.array(["2020-01-01"], "M8[ns]"), "got dates"),
        (np.array([1], "m8[s]"), "got durations"),
        (np.array(["1.0"]), "got text"),
        (np.array([1, None]), "got Python objects"),
        ("1.0", "got str '1.0'"),
        (None, "got NoneType None"),
        ({"y": 1.0}, "got dict"),
        (object(), "got object"),
        (xr.Dataset({"a": 1}), "must be one array; got a Dataset"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "f4")]), "records"),
    ],
)
def test_what_is_no_real_number_is_refused_by_name(value: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        real_tensor(value, "y")


def test_values_that_would_be_lost_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2"):
        real_tensor(np.ma.masked_array([1.0, 2.0], [False, True]), "y")
    with pytest.raises(ValueError, match="must be an array of real numbers"):
        real_tensor([[1.0], [2.0, 3.0]], "y")
    with pytest.raises(ValueError, match="'y' holds 1e\\+300, beyond the range of torch.float32"):
        real_tensor(np.array([1e300, np.inf]), "y", dtype=torch.float32)
    with pytest.raises(ValueError, match="'meta'"):
        real_tensor(torch.empty(3, device="meta"), "y")


def test_floating_types() -> None:
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool)
    single, double = torch.float32, torch.float64
    assert [floating_type(kind) for kind in kinds] == [single, double, *[single] * 4]
