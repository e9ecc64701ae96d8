"""SIGINT and SIGTERM: a study stops cleanly, with all that has ended on record."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The study was stopped by a signal; what has ended is on record, the rest goes on with `--resume`.

    It may come amid a request to a bucket or in Tune, and is none of the errors that these make good or translate.

    Args:
        number: of the signal.
        reason: who stopped it, if this process itself; default: the signal's name.
    """

    def __init__(self, number: int, reason: str | None = None):
        super().__init__(reason or signal.Signals(number).name)
        self.number = number


class StopSignals:
    """While entered, the first SIGINT or SIGTERM stops Tune cleanly if it runs; any other raises `Interrupted`.

    `number` is that of the signal which came, or None; `reason` is why `stop` was called, if it was.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.reason: str | None = None

    def __enter__(self) -> "StopSignals":
        # SIGUSR1 too, which Tune keeps after its run: the next study would be stopped in a Tune that has ended.
        self._before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR1)}
        self.arm()
        return self

    def arm(self) -> None:
        """Take the signals over; to be called again after `ray.init`, which takes SIGTERM for itself."""
        for number in STOPPING:
            signal.signal(number, self._stop)

    def __exit__(self, *raised: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, reason: str) -> None:
        """Stop as SIGTERM would, from any thread, unless it has come already."""
        if self.number is None:
            self.reason = reason
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    @contextmanager
    def after(self, hours: float | None) -> Iterator[None]:
        """Call `stop` if what is entered takes longer; None: never."""
        if hours is None:
            yield
            return
        timer = threading.Timer(hours * 3600, self.stop, [f"--max-hours {hours:g}"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        first, self.number = self.number is None, number
        if not first or not callable(signal.getsignal(signal.SIGUSR1)):
            raise Interrupted(number, self.reason)
        signal.raise_signal(signal.SIGUSR1)  # the one signal that Tune heeds whatever took the others over
