"""The datatypes of the Open Inference Protocol as little-endian numpy arrays, and back. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import BadRecord

# BF16 is missing: numpy has no such type, so a kernel could not be fed from it without a copy per element.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
FLOATS = frozenset({"FP16", "FP32", "FP64"})

_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items() if name != "BYTES"}
_LENGTH = struct.Struct("<I")


def itemsize(datatype: str) -> int | None:
    """Bytes of one element; None for BYTES, whose elements differ.

    Raises BadRecord('unknown_datatype') for a name that is not in DTYPES.

    >>> itemsize("FP32"), itemsize("BYTES")
    (4, None)
    """
    return None if datatype == "BYTES" else dtype_of(datatype).itemsize


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The numpy dtype; object for BYTES. Raises BadRecord('unknown_datatype')."""
    try:
        return DTYPES[datatype]
    except KeyError:
        fix = "send FP32 instead" if datatype == "BF16" else f"use one of {', '.join(DTYPES)}"
        raise BadRecord("unknown_datatype", f"datatype {datatype!r} is not supported; {fix}") from None


def split_bytes(buffer: bytes | memoryview) -> list[bytes]:
    """The elements of a BYTES tensor: each is preceded by its length as a little-endian uint32.

    Raises BadRecord('wrong_byte_count') when the lengths do not add up to the buffer.

    >>> split_bytes(b"\\x02\\x00\\x00\\x00ab\\x00\\x00\\x00\\x00")
    [b'ab', b'']
    """
    whole, end, at = bytes(buffer), len(buffer), 0
    items: list[bytes] = []
    while at + 4 <= end:
        start = at + 4
        at = start + _LENGTH.unpack_from(whole, at)[0]
        items.append(whole[start:at])
    if at != end:
        raise BadRecord(
            "wrong_byte_count",
            f"BYTES data of {end} bytes breaks off in element {max(len(items) - (at > end), 0)}; "
            "put the length of each element before it as a little-endian uint32",
        )
    return items


def join_bytes(items: Iterable[bytes]) -> bytes:
    """The inverse of `split_bytes`.

    >>> join_bytes([b"ab", b""])
    b'\\x02\\x00\\x00\\x00ab\\x00\\x00\\x00\\x00'
    """
    pack = _LENGTH.pack
    return b"".join([part for item in items for part in (pack(len(item)), item)])


def from_wire(datatype: str, shape: tuple[int, ...], buffer: bytes | memoryview) -> npt.NDArray[Any]:
    """The tensor; numbers are a view of the buffer, BYTES become an object array of str (UTF-8).

    Raises BadRecord: unknown_datatype, wrong_byte_count, invalid_utf8.
    """
    dtype, count = dtype_of(datatype), int(np.prod(shape, dtype=np.int64))
    if datatype != "BYTES":
        if len(buffer) != count * dtype.itemsize:
            raise BadRecord(
                "wrong_byte_count",
                f"data has {len(buffer)} bytes; {datatype} of shape {list(shape)} needs {count * dtype.itemsize}",
            )
        return np.frombuffer(buffer, dtype).reshape(shape)
    items = split_bytes(buffer)
    if len(items) != count:
        raise BadRecord("wrong_byte_count", f"data has {len(items)} elements; shape {list(shape)} needs {count}")
    array = np.empty(count, object)
    try:
        array[:] = [item.decode() for item in items]
    except UnicodeDecodeError as err:
        raise BadRecord("invalid_utf8", f"a BYTES element is not UTF-8 ({err.reason}); encode it as UTF-8") from None
    return array.reshape(shape)


def to_wire(array: npt.NDArray[Any]) -> tuple[str, bytes]:
    """The datatype and the raw bytes, row-major and little-endian; strings and objects become BYTES.

    Raises BadRecord('unknown_datatype') for a dtype that the protocol does not know (complex, dates).

    >>> to_wire(np.array([1.0], np.float32)), to_wire(np.array(["a"]))
    (('FP32', b'\\x00\\x00\\x80?'), ('BYTES', b'\\x01\\x00\\x00\\x00a'))
    """
    if array.dtype.kind in "OUS":
        flat = array.reshape(-1).tolist()
        return "BYTES", join_bytes([item if isinstance(item, bytes) else str(item).encode() for item in flat])
    name = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
    if name is None:
        raise BadRecord("unknown_datatype", f"dtype {array.dtype} has no datatype; use one of {', '.join(DTYPES)}")
    return name, array.astype(DTYPES[name], order="C", copy=False).tobytes()
