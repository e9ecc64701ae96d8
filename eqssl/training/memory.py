"""Have the C library keep what a training step frees for the next step.

By default glibc hands large blocks back to the kernel, which clears every page of them when the next step asks for as
many: on a CPU up to a seventh of a step's time. What is kept costs memory, as freed blocks do not fit all later ones.
Trials have it where the study starts Ray itself, elsewhere by the variables below; who sets one has the last word.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Variable -> number of the parameter in malloc.h, its value there and in the environment: no block is mapped by itself,
# nothing is handed back, and all threads share the main arena, which alone grows without limit.
KEEP = {
    "MALLOC_MMAP_MAX_": (-4, 0, "0"),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1, str(2**63 - 1)),
    "MALLOC_ARENA_MAX": (-8, 1, "1"),
}


def keep_freed() -> None:
    """Set it for this process, whose threads are still to come; other libraries than glibc are left alone."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for variable, (parameter, value, _) in KEEP.items():
            if variable not in os.environ:
                mallopt(parameter, value)


@contextmanager
def children_keep_freed() -> Iterator[None]:
    """Set it for the processes that are started meanwhile."""
    added = {variable: text for variable, (_, _, text) in KEEP.items() if variable not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for variable in added:
            del os.environ[variable]
