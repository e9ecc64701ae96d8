"""SIGINT and SIGTERM: a study stops cleanly, with all finished trials on record."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The stop of a study by a signal; `--resume` continues it.

    It may interrupt a request to a bucket or Tune, and is no `Exception`, which these would handle.

    Args:
        number: of the signal.
        reason: of a stop by this process itself; default: the signal's name.
    """

    def __init__(self, number: int, reason: str | None = None):
        super().__init__(reason or signal.Signals(number).name)
        self.number = number


class StopSignals:
    """While entered, the first SIGINT or SIGTERM stops Tune cleanly if it runs; any other raises `Interrupted`.

    Attributes:
        interruption: by the last signal, if there was one.
        before_stop: called in a thread before Tune stops.
    """

    def __init__(self) -> None:
        self.interruption: Interrupted | None = None
        self.before_stop: Callable[[], None] | None = None
        self._reason: str | None = None

    def __enter__(self) -> "StopSignals":
        # SIGUSR1 too: Tune leaves its handler behind, by which the next study would stop a Tune that has ended.
        self._before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGUSR1)}
        self.arm()
        return self

    def arm(self) -> None:
        """Take over the signals; to be called again after `ray.init`, which takes over SIGTERM."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, reason: str) -> None:
        """Stop as by SIGTERM, from any thread, unless a signal has come already."""
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
            with suppress(Exception):  # as if a trial does not answer
                self.before_stop()
        os.kill(os.getpid(), signal.SIGUSR1)  # the one signal that Tune handles here
