"""What is freed stays with the process: the next step's memory is there already."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
CODE = """
import os, resource, subprocess, sys, threading
from eqssl.training.memory import children_keep_freed, keep_freed

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        b"x" * (50 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "child":
    before = dict(os.environ)
    with children_keep_freed():
        print(subprocess.check_output([sys.executable, __file__, "as it is"], text=True))
    assert os.environ == before
else:
    if sys.argv[1] == "keep":
        keep_freed()
    print(pages())
    thread = threading.Thread(target=lambda: print(pages()))
    thread.start()
    thread.join()
"""


@pytest.fixture
def pages(tmp_path):
    """Return a function: how many pages the kernel gave for steps in the main thread and in another one."""
    script = tmp_path / "steps.py"
    script.write_text(CODE)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    plain["PYTHONPATH"] = str(Path(__file__).parents[2])

    def of(how: str, **environment: str) -> list[int]:
        text = subprocess.check_output([sys.executable, script, how], env=plain | environment, text=True)
        return [int(number) for number in text.split()]

    return of


@pytest.mark.parametrize("how", ["keep", "child"])
def test_memory_is_cleared_once_and_not_at_every_step(pages, how):
    every_step, kept = pages("as it is"), pages(how)
    assert len(kept) == 2 and min(every_step) > 5 * max(kept)


def test_the_users_own_setting_is_left_alone(pages):
    assert min(pages("keep", MALLOC_MMAP_MAX_="65536", MALLOC_TRIM_THRESHOLD_="1000000")) > 5 * max(pages("keep"))
