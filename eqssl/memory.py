"""Have the C library keep what a training step frees for the next step.

By default glibc hands large blocks back to the kernel, which clears every page of them when the next step asks for as
many: on a CPU up to a sixth of a step's time. Only the main arena grows without limit, so all threads share it. What is
kept costs memory, as freed blocks do not fit all later ones; who sets glibc's variables has the last word.
"""

import ctypes
import os
import sys

LIMIT = 2**31 - 1  # bytes, the most that mallopt takes
# Variable -> number of the parameter in malloc.h, and its value.
KEEP = {"MALLOC_ARENA_MAX": (-8, 1), "MALLOC_MMAP_THRESHOLD_": (-3, LIMIT), "MALLOC_TRIM_THRESHOLD_": (-1, LIMIT)}


def keep_freed() -> None:
    """Set it for this process, whose threads are still to come; other libraries than glibc are left alone."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for variable, (parameter, value) in KEEP.items():
            if variable not in os.environ:
                mallopt(parameter, value)


def keep_freed_in_children() -> None:
    """Set it for the processes that are started from here."""
    for variable, (_, value) in KEEP.items():
        os.environ.setdefault(variable, str(value))
