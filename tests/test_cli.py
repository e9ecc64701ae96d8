"""A signal ends any command without a traceback."""

import signal
import subprocess
import sys

import pytest

from eqssl import signals

LONG = """
import sys, types
from eqssl import cli

def main(arguments):
    print("started", flush=True)
    import time
    try:
        time.sleep(60)
    except BaseException:  # as a module does that tries an import
        if not arguments:
            raise
    time.sleep(60)
    return 0

sys.modules["long"] = types.SimpleNamespace(main=main)
cli.COMMANDS["evaluate"] = ("long", "")
sys.exit(cli.main(["evaluate", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(("number", "swallowed"), [("SIGINT", ""), ("SIGTERM", ""), ("SIGTERM", "swallowed")])
def test_a_signal_ends_a_command_without_a_traceback(number, swallowed):
    command = [sys.executable, "-c", LONG, *[swallowed] * bool(swallowed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(getattr(signal, number))
        output, errors = process.communicate(timeout=50)
    assert (process.returncode, output, errors) == (128 + getattr(signal, number), "", f"stopped by {number}\n")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in signals.STOPPING]
    with pytest.raises(signals.Interrupted), signals.SignalHandler(signals.terminate):
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in signals.STOPPING] == before
    assert signal.alarm(0) == 0
