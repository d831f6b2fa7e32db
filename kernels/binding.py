"""Batches in memory that a device reads itself: pinned, so that a copy to a GPU needs no detour."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import _pybind_state as native

_LINE = 64  # bytes; each input begins at a multiple
_BYTES_MIN = 1 << 16


class Batches:
    """Runs a session on batches that are copied into such memory first; each thread has its own."""

    def __init__(self, session: onnxruntime.InferenceSession, outputs: list[str], memory: tuple[int, int, int]) -> None:
        """`memory`: type, kind and vendor of an OrtDevice; `pinned` is False where the session has none of it."""
        self._session, self._outputs, self._memory = session, outputs, memory
        self._own = threading.local()
        self.pinned = self._buffer(_BYTES_MIN).pinned

    def run(self, inputs: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs in order. Raises what the runtime raises."""
        sizes = [-(-each.nbytes // _LINE) * _LINE for each in inputs.values()]
        buffer, binding, at = self._buffer(sum(sizes)), self._session.io_binding(), 0
        for (name, each), size in zip(inputs.items(), sizes, strict=True):
            np.copyto(buffer.bytes[at : at + each.nbytes].view(each.dtype).reshape(each.shape), each)
            binding.bind_input(name, "cpu", 0, each.dtype.type, each.shape, buffer.address + at)
            at += size
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        found: list[npt.NDArray[Any]] = binding.copy_outputs_to_cpu()
        return found

    def _buffer(self, size: int) -> _Buffer:
        """This thread's; a larger one of the next power of two where it is too small."""
        found: _Buffer | None = getattr(self._own, "buffer", None)
        if found is None or found.bytes.nbytes < size:
            size = max(_BYTES_MIN, 1 << (size - 1).bit_length())
            found = self._own.buffer = _Buffer(self._session, size, self._memory)
        return found


class _Buffer:
    def __init__(self, session: onnxruntime.InferenceSession, size: int, memory: tuple[int, int, int]) -> None:
        try:  # the public call knows no kinds of memory
            self._owner: Any = session._sess.create_ortvalue_from_shape_and_type(
                [size], np.uint8, native.OrtDevice(*memory, 0)
            )
            self.address, self.pinned = self._owner.data_ptr(), True
        except (RuntimeError, AttributeError, TypeError):
            self._owner, self.pinned = np.empty(size, np.uint8), False
            self.address = self._owner.ctypes.data
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))
