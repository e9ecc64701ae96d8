"""A stop by SIGINT, SIGTERM or --max-hours: trials save their state, and all finished trials are on record.

The way of a SIGTERM, from whoever sends it:

1. It reaches the study's own process alone. GNU timeout and a terminal's Ctrl-C signal a whole process group, systemd
   and Slurm a control group, and Ray's processes, started by the study, are in both: they block SIGTERM
   (`hold_sigterm`), as Ray makes them block SIGINT. `ray job stop` signals the group of the study's process, and kills
   it after RAY_JOB_STOP_WAIT_TIME_S (docs/cluster.md). --max-hours and the loss of the folder to another run of the
   command send SIGTERM to this process (`StopSignals.stop`).
2. `StopSignals` hears it. Before and after the trials it raises `Interrupted`. While Tune runs, a thread calls
   `before_stop`: the actor `SaveNotice` (preemption.py) wakes the `TrialContext` of every running trial (trial.py).
3. The training loop asks its context after every step whether to save, and does so; the context answers the notice. The
   study waits for all answers, `pool.SAVING_S` at most. A state that is saved already, as in the last evaluation, is
   answered for at once.
4. The thread sends SIGUSR1 to Tune, which returns. Ray ends, the summary is written with the status `stopped`, and
   `Interrupted` is raised: the command exits with 128 + the signal's number, and `--resume` continues.

A node that leaves takes the same way from `SaveNotice` on, for its own trials, which continue elsewhere. A signal after
the last trial lets the study end as complete; the command's next study does not start. A repeated signal within two
seconds is the same stop (GNU timeout sends two); a later one ends the study at once. `eqssl train` has no Ray: its
context (training/context.py) hears the signals itself.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from eqssl.signals import SignalHandler


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


@contextmanager
def hold_sigterm() -> Iterator[None]:
    """Start processes that SIGTERM does not reach; this process hears it by its own handler, which is put back.

    `ray.init`, for which this is made, replaces the handler by one that raises SystemExit. That ends the context early
    if another thread takes the signal; else the signal waits for the end of the context, 5 to 30 s.
    """
    heard = False
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which new processes inherit
    try:
        yield
    except SystemExit as stop:
        heard = stop.code == signal.SIGTERM
        if not heard:
            raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if heard:
        signal.raise_signal(signal.SIGTERM)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM stops Tune cleanly if it runs; any other raises `Interrupted`.

    Attributes:
        interruption: by the last signal, if there was one.
        before_stop: called in a thread before Tune stops.

    Raises:
        Interrupted: on entering, after a signal at the end of the process's last study.
    """

    _postponed: ClassVar[Interrupted | None] = None

    def __init__(self) -> None:
        self.interruption: Interrupted | None = None
        self.before_stop: Callable[[], None] | None = None
        self._reason: str | None = None
        self._handler = SignalHandler(self._handle)

    def __enter__(self) -> "StopSignals":
        if postponed := StopSignals._postponed:
            StopSignals._postponed = None
            raise postponed
        # SIGUSR1 too: Tune leaves its handler behind, by which the next study would stop a Tune that has ended.
        self._sigusr1 = signal.getsignal(signal.SIGUSR1)
        self._handler.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._handler.__exit__()
        signal.signal(signal.SIGUSR1, self._sigusr1)

    def postpone(self) -> None:
        """Let a study end that a signal found complete, and the next one of this process not start."""
        StopSignals._postponed = self.interruption

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

    def _handle(self, number: int, first: bool) -> None:
        self.interruption = Interrupted(number, self._reason)
        if not first or not callable(signal.getsignal(signal.SIGUSR1)):
            raise self.interruption
        threading.Thread(target=self._stop_tune, daemon=True).start()

    def _stop_tune(self) -> None:
        if self.before_stop:
            with suppress(Exception):  # as if a trial does not answer
                self.before_stop()
        os.kill(os.getpid(), signal.SIGUSR1)  # the one signal that Tune handles here
