"""Batches in memory that a GPU reads itself: pinned, so that a copy there needs no detour."""

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
PINNED = 1, 5, 0x10DE, 0  # OrtDevice: GPU, HOST_ACCESSIBLE, NVIDIA, the first: any GPU reads it


class Batches:
    """Runs a session on batches that are copied into such memory first; each thread has its own."""

    def __init__(
        self, session: onnxruntime.InferenceSession, outputs: list[str], memory: tuple[int, int, int, int] = PINNED
    ) -> None:
        """`memory`: an OrtDevice; where the session has none of it numpy's takes its place, and `pinned` is False."""
        self._session, self._outputs, self._memory = session, outputs, memory
        self._own = threading.local()
        self.pinned = True
        self._buffer(_BYTES_MIN)

    def run(self, inputs: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs in order. Raises what the runtime raises."""
        sizes = [-(-each.nbytes // _LINE) * _LINE for each in inputs.values()]
        buffer, binding, at = self._buffer(sum(sizes)), self._session.io_binding(), 0
        for (name, each), size in zip(inputs.items(), sizes, strict=True):
            place = buffer[at : at + each.nbytes]
            np.copyto(place.view(each.dtype).reshape(each.shape), each)
            binding.bind_input(name, "cpu", 0, each.dtype.type, each.shape, place.ctypes.data)
            at += size
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        found: list[npt.NDArray[Any]] = binding.copy_outputs_to_cpu()
        return found

    def _buffer(self, size: int) -> npt.NDArray[np.uint8]:
        """This thread's; a larger one, of the next power of two, where it is too small."""
        found: npt.NDArray[np.uint8] | None = getattr(self._own, "buffer", None)
        if found is None or len(found) < size:
            size = max(_BYTES_MIN, 1 << (size - 1).bit_length())
            try:  # the public call knows no kinds of memory
                make = self._session._sess.create_ortvalue_from_shape_and_type
                self._own.value = make([size], np.uint8, native.OrtDevice(*self._memory))
                found = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._own.value.data_ptr()))
            except (RuntimeError, AttributeError, TypeError):
                self.pinned, found = False, np.empty(size, np.uint8)
            self._own.buffer = found
        return found
