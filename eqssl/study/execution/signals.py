"""SIGINT and SIGTERM: a study stops cleanly, with all that has ended on record."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

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

    Attributes:
        interruption: of the signal that came, if one did.
        before_stop: called in a thread before Tune is stopped.
    """

    def __init__(self) -> None:
        self.interruption: Interrupted | None = None
        self.before_stop: Callable[[], None] | None = None
        self._reason: str | None = None

    def __enter__(self) -> "StopSignals":
        # SIGUSR1 too, which Tune keeps after its run: the next study would be stopped in a Tune that has ended.
        self._before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR1)}
        self.arm()
        return self

    def arm(self) -> None:
        """Take the signals over; to be called again after `ray.init`, which takes SIGTERM for itself."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, reason: str) -> None:
        """Stop as SIGTERM would, from any thread, unless it has come already."""
        if self.interruption is None:
            self._reason = reason
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def after(self, hours: float | None) -> Iterator[None]:
        """Call `stop` if the body takes longer; None: never."""
        timer = threading.Timer((hours or 0.0) * 3600, self.stop, [f"--max-hours {hours or 0.0:g}"])
        timer.daemon = True
        if hours is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.interruption = self.interruption is None, Interrupted(number, self._reason)
        if not first or not callable(signal.getsignal(signal.SIGUSR1)):
            raise self.interruption
        threading.Thread(target=self._stop_tune, daemon=True).start()

    def _stop_tune(self) -> None:
        if self.before_stop:
            with suppress(Exception):  # as of a trial that does not answer
                self.before_stop()
        os.kill(os.getpid(), signal.SIGUSR1)  # the one signal that Tune heeds whatever took the others over
