"""SIGINT and SIGTERM, which end a command: `eqssl train` and studies save their state first."""

import signal
import time
from collections.abc import Callable
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 2.0  # within which a second signal counts as part of the first: GNU timeout sends two
AGAIN_S = 5


class Interrupted(SystemExit):
    """The end of a command or a study by a signal; `--resume` continues it.

    It may interrupt Tune or a request to a bucket, which would handle an `Exception`, so it is not one.

    Args:
        number: of the signal; the exit code is 128 more.
        reason: why this process stops itself; default: the signal's name.
    """

    code: int

    def __init__(self, number: int, reason: str | None = None):
        super().__init__(reason or signal.Signals(number).name)
        self.number, self.code = number, 128 + number


def terminate(number: int, first: bool) -> None:
    """Raise `Interrupted`, and again every five seconds, since an import may swallow it; see `SignalHandler`."""
    signal.signal(signal.SIGALRM, lambda *_: terminate(number, False))
    signal.alarm(AGAIN_S)
    raise Interrupted(number)


class SignalHandler:
    """A context in the main thread in which SIGINT and SIGTERM call a function; the exit restores the earlier handlers.

    Args:
        handle: takes the signal's number and whether it is the first one.
    """

    def __init__(self, handle: Callable[[int, bool], object]):
        self._handle, self._heard_s = handle, float("-inf")

    def __enter__(self) -> "SignalHandler":
        self._before = {number: signal.signal(number, self._hear) for number in STOPPING}
        return self

    def __exit__(self, *raised: object) -> None:
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self._heard_s == float("-inf")
        if now - self._heard_s >= REPEAT_S:
            self._heard_s = now
            self._handle(number, first)
