"""A stop by SIGINT, SIGTERM or --max-hours: trials save their state, and all finished trials are on record.

The path of a SIGTERM, whoever sends it:

1. It reaches only the study's own process. GNU timeout and a terminal's Ctrl-C signal a whole process group, systemd
   and Slurm a control group, and Ray's processes, started by the study, are in both: they block SIGTERM
   (`hold_sigterm`), as Ray makes them block SIGINT. `ray job stop` signals the group of the study's process, and kills
   it after RAY_JOB_STOP_WAIT_TIME_S (docs/cluster.md). --max-hours and the loss of the folder to another run of the
   command send SIGTERM to this process (`StopSignals.stop`).
2. `StopSignals` handles it. Before and after the trials it raises `Interrupted`. While Tune runs, a thread calls
   `before_stop`: the actor `SaveNotice` (preemption.py) wakes the `TrialContext` of every running trial (trial.py).
3. The training loop asks its context after every step whether to save, and does so; the context answers the notice. The
   study waits for all answers, at most `pool.SAVING_S`. If the state is saved already, as during the last evaluation,
   the context answers at once.
4. The thread sends SIGUSR1 to Tune, which returns. Ray ends, the summary is written with the status `stopped`, and
   `Interrupted` is raised: the command exits with 128 + the signal's number, and `--resume` continues.

A node that leaves follows the same path from `SaveNotice` on, for its own trials, which continue elsewhere. A signal
after the last trial lets the study end as complete, but the command's next study does not start. A signal repeated
within two seconds counts as the same stop (GNU timeout sends two); a later one ends the study at once. `eqssl train`
does not use Ray: its context (training/context.py) handles the signals itself.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from eqssl.signals import Interrupted, SignalHandler


@contextmanager
def hold_sigterm() -> Iterator[None]:
    """Start processes that SIGTERM does not reach; this process still handles it by its own handler, restored at exit.

    `ray.init`, for which this exists, replaces the handler with one that raises SystemExit. That ends the context early
    if another thread receives the signal; otherwise the signal waits until the context ends, 5 to 30 s.
    """
    heard = False
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # new processes inherit the mask
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
    """While entered, the first SIGINT or SIGTERM stops Tune cleanly if it is running; any other raises `Interrupted`.

    Attributes:
        interruption: the one by the last signal, if there was one.
        before_stop: called in a thread before Tune stops.

    Raises:
        Interrupted: on entering, after a signal at the end of the process's previous study.
    """

    _postponed: ClassVar[Interrupted | None] = None

    def __init__(self) -> None:
        self.interruption: Interrupted | None = None
        self.before_stop: Callable[[], None] | None = None
        self._reason: str | None = None
        self._thread: threading.Thread | None = None
        self._handler = SignalHandler(self._handle)

    def __enter__(self) -> "StopSignals":
        if postponed := StopSignals._postponed:
            StopSignals._postponed = None
            raise postponed
        # SIGUSR1 too: Tune leaves its handler behind, with which the next study would stop a Tune that has ended.
        self._sigusr1 = signal.getsignal(signal.SIGUSR1)
        self._handler.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self.tune_ended()  # SIGUSR1 of a thread would end a process without a handler
        self._handler.__exit__()
        signal.signal(signal.SIGUSR1, self._sigusr1)

    def postpone(self) -> None:
        """Let a study end if it was complete when a signal came, but keep this process's next study from starting."""
        StopSignals._postponed = self.interruption

    def stop(self, reason: str) -> None:
        """Stop as if by SIGTERM, from any thread, unless a signal has already come."""
        if self.interruption is None:
            self._reason = reason
            os.kill(os.getpid(), signal.SIGTERM)

    def tune_ended(self) -> None:
        """Return once no thread calls `before_stop`, nor will: it uses Ray, which is about to shut down.

        `before_stop` must return soon, as Tune has ended.
        """
        self.before_stop = None
        if self._thread:
            self._thread.join()

    @contextmanager
    def after(self, hours: float | None) -> Iterator[None]:
        """Call `stop` if the body takes longer; None: never."""
        wait_s = min((hours or 0.0) * 3600, threading.TIMEOUT_MAX)
        timer = threading.Timer(wait_s, self.stop, [f"--max-hours {hours or 0.0:g}"])
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
        self._thread = threading.Thread(target=self._stop_tune, daemon=True)
        self._thread.start()

    def _stop_tune(self) -> None:
        print("stopping: running trials save their state; a second signal ends the study at once", file=sys.stderr)
        if self.before_stop:
            with suppress(Exception):  # such as if a trial does not answer
                self.before_stop()
        os.kill(os.getpid(), signal.SIGUSR1)  # the one signal that Tune handles here
