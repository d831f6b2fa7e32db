"""The peak memory of a process that loads a model and runs it. A program, as nothing of LRAI is to be in the sum.

Standard input: a pickled (path, optimization level, disabled optimizers, config, feeds, providers). Standard output:
bytes.
"""

from __future__ import annotations

import pickle
import resource
import sys
from pathlib import Path

import onnxruntime

_SEVERITY_FATAL = 4


def main() -> None:
    """Loads, runs each feed, prints the peak."""
    path, level, disabled, config, feeds, providers = pickle.load(sys.stdin.buffer)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = _SEVERITY_FATAL
    options.enable_mem_pattern = False
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if providers[0][0] != "CPUExecutionProvider":
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(
        path, options, providers, disabled_optimizers=set(disabled), enable_fallback=0
    )
    for feed in feeds:
        session.run(None, feed)
    print(_peak_bytes())


def _peak_bytes() -> int:
    """Of this process; getrusage would count the parent's too, as its pages were mapped before exec."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    main()
