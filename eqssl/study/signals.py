"""SIGINT and SIGTERM: a study stops cleanly, with all that has ended on record."""

import signal
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The study was stopped by a signal; what has ended is on record, the rest goes on with `--resume`."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """While entered, the first SIGINT or SIGTERM stops Tune cleanly if it runs; any other raises `Interrupted`.

    `number` is that of the signal which came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None

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

    def _stop(self, number: int, frame: FrameType | None) -> None:
        first, self.number = self.number is None, number
        if not first or not callable(signal.getsignal(signal.SIGUSR1)):
            raise Interrupted(number)
        signal.raise_signal(signal.SIGUSR1)  # the one signal that Tune heeds whatever took the others over
