"""What is freed stays with the process: the next step's memory is there already."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
CODE = """
import resource, threading
from eqssl.memory import keep_freed, keep_freed_in_children
{setting}

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        b"x" * (50 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages())
thread = threading.Thread(target=lambda: print(pages()))
thread.start()
thread.join()
"""


def pages(setting: str = "", **environment: str) -> list[int]:
    """Return how many pages the kernel gave for steps in the main thread and in another one."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    code = [sys.executable, "-c", CODE.format(setting=setting)]
    return [int(line) for line in subprocess.check_output(code, env=plain | environment, text=True).split()]


def test_memory_is_cleared_once_and_not_at_every_step():
    every_step = pages()
    kept = pages("keep_freed()")
    assert min(every_step) > 10 * max(kept)


def test_processes_that_are_started_have_it_from_the_environment(monkeypatch):
    from eqssl.memory import KEEP, keep_freed_in_children

    for variable in KEEP:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    keep_freed_in_children()
    inherited = {variable: os.environ[variable] for variable in KEEP}
    assert inherited.pop("MALLOC_ARENA_MAX") == "2"  # the user's word
    assert min(pages()) > 10 * max(pages(**inherited, MALLOC_ARENA_MAX="1"))


def test_the_users_own_setting_is_left_alone():
    assert min(pages("keep_freed()", MALLOC_MMAP_THRESHOLD_="1000000")) > 10 * max(pages("keep_freed()"))
