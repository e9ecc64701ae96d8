"""Settings of the C library that keep the memory freed by one training step for the next.

By default glibc returns large blocks to the kernel, which clears every page when the next step allocates as many: on a
CPU up to a seventh of a step's time. The price is memory, since freed blocks do not fit all later ones. Trials have the
settings where the study starts Ray itself, elsewhere by the variables below; a variable in the environment is not
changed.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Variable -> parameter in malloc.h, its value there and in the environment: no separate mapping of large blocks, no
# return to the kernel, and one arena for all threads, since the main arena alone grows without limit.
KEEP = {
    "MALLOC_MMAP_MAX_": (-4, 0, "0"),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1, str(2**63 - 1)),
    "MALLOC_ARENA_MAX": (-8, 1, "1"),
}


def keep_freed() -> None:
    """Apply the settings to this process, before it starts threads; without effect on other libraries than glibc."""
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
