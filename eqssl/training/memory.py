"""Settings of the C library that keep the memory freed by one training step for the next.

By default glibc returns large blocks to the kernel, which clears every page when the next step allocates as many: this
takes up to a seventh of a step's time on a CPU. The price is memory, since freed blocks do not fit all later ones.
Trials get the settings if the study starts Ray itself, elsewhere from the variables below; a variable that is already
in the environment is not changed.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Variable -> parameter in malloc.h, its value there and in the environment: no separate mapping of large blocks, no
# return to the kernel, and one arena for all threads, since only the main arena grows without limit.
KEEP = {
    "MALLOC_MMAP_MAX_": (-4, 0, "0"),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1, str(2**63 - 1)),
    "MALLOC_ARENA_MAX": (-8, 1, "1"),
}


def keep_freed() -> None:
    """Apply the settings to this process, before it starts threads; no effect on libraries other than glibc."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for variable, (parameter, value, _) in KEEP.items():
            if variable not in os.environ:
                mallopt(parameter, value)


@contextmanager
def children_keep_freed() -> Iterator[None]:
    """Apply the settings to processes started within the context."""
    added = {variable: text for variable, (_, _, text) in KEEP.items() if variable not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for variable in added:
            del os.environ[variable]
