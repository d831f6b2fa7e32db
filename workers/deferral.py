"""Which batches of a window give way, so that others can still be in time. Pure.

Answers of a window are there when all of it has run. Under a backlog a queue in the order of arrival answers everything
late, though it could answer as much in time as it answers at all: late work should wait for fresh work, as its promise
is broken already (Nexus, SOSP 2019, drops it for the same reason; here it is answered later, by the lowest lane).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def kept(
    age_s: npt.NDArray[np.float64], run_s: npt.NDArray[np.float64], objective_s: float, more: bool
) -> npt.NDArray[np.bool_]:
    """bool[n]: the batches to run now, the largest set of the youngest that ends within the objective.

    `age_s`: float64[n] of the oldest request of each, and the time to write; `run_s`: float64[n] of its run; `more`:
    whether further batches wait. Where none can be in time and no more wait, all of them run.

    >>> kept(np.array([0.3, 0.02, 0.01]), np.array([0.01, 0.01, 0.01]), 0.1, False).tolist()
    [False, True, True]
    """
    order = np.argsort(age_s, kind="stable")
    fits = age_s[order] + np.cumsum(run_s[order]) <= objective_s
    found = np.zeros(len(age_s), bool)
    found[order] = np.logical_and.accumulate(fits)
    return found if found.any() or more else ~found
