from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRecord
from schemas.tensors import DTYPES, from_wire, itemsize, join_bytes, split_bytes, to_wire

SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": None,
}


def test_every_datatype_of_the_protocol_has_its_size() -> None:
    assert {name: itemsize(name) for name in DTYPES} == SIZES


@pytest.mark.parametrize("datatype", [name for name in SIZES if name != "BYTES"])
def test_numbers_come_back_equal(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(DTYPES[datatype])
    name, data = to_wire(array)
    assert name == datatype
    back = from_wire(name, (2, 3), data)
    assert back.dtype == DTYPES[datatype]
    np.testing.assert_array_equal(back, array)


def test_the_wire_is_little_endian_and_row_major() -> None:
    big = np.array([[1, 2], [3, 4]], ">i4").T
    assert to_wire(big) == ("INT32", struct.pack("<4i", 1, 3, 2, 4))


@pytest.mark.parametrize("array", [np.array(["a", "ü"]), np.array(["a", "ü"], object), np.array([b"a", "ü".encode()])])
def test_strings_of_every_kind_become_bytes(array: np.ndarray) -> None:
    assert to_wire(array) == ("BYTES", b"\x01\0\0\0a\x02\0\0\0\xc3\xbc")


@given(st.lists(st.binary(max_size=20)))
def test_split_undoes_join(items: list[bytes]) -> None:
    assert split_bytes(join_bytes(items)) == items


@given(st.binary(max_size=30))
def test_split_accepts_only_what_join_makes(buffer: bytes) -> None:
    try:
        items = split_bytes(memoryview(buffer))
    except BadRecord as err:
        assert err.code == "wrong_byte_count"
    else:
        assert join_bytes(items) == buffer


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "code", "words"),
    [
        ("FP32", (2,), b"1234567", "wrong_byte_count", "needs 8"),
        ("BYTES", (2,), join_bytes([b"a"]), "wrong_byte_count", "needs 2"),
        ("BYTES", (1,), b"\x05\0\0\0abc", "wrong_byte_count", "breaks off in element 0"),
        ("BYTES", (2,), join_bytes([b"a"]) + b"\1", "wrong_byte_count", "breaks off in element 1"),
        ("BYTES", (1,), join_bytes([b"\xff"]), "invalid_utf8", "UTF-8"),
        ("BF16", (1,), b"12", "unknown_datatype", "send FP32"),
        ("float", (1,), b"1234", "unknown_datatype", "use one of BOOL"),
    ],
)
def test_what_does_not_fit_is_refused(
    datatype: str, shape: tuple[int, ...], data: bytes, code: str, words: str
) -> None:
    with pytest.raises(BadRecord, match=words) as err:
        from_wire(datatype, shape, data)
    assert err.value.code == code


def test_a_dtype_without_a_datatype_is_refused() -> None:
    with pytest.raises(BadRecord, match="complex64"):
        to_wire(np.zeros(1, np.complex64))


def test_an_empty_tensor_has_no_bytes() -> None:
    assert from_wire("BYTES", (0, 3), b"").shape == (0, 3)
    assert to_wire(np.zeros((0, 2), np.float32)) == ("FP32", b"")
