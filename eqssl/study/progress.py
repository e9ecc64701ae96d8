"""The progress of a study: live bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from eqssl.config import RunConfig
from eqssl.study.execution.preflight import duration
from eqssl.study.listener import Listener
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord

WAITING_S, QUIET_S = 60.0, 600.0  # without a line, until one about waiting trials, or about running ones


class StudyProgress(Listener):
    """Counts trials and estimates the time left.

    Args:
        console: of the study.
        base: run of the study; the work of a trial is its epochs and one evaluation.
        suggestions: the trials to come.
        metrics: shown of a finished trial.
        why_waiting: returns the reason why trials wait, in words.
    """

    def __init__(
        self,
        console: Console,
        base: RunConfig,
        suggestions: Suggestions,
        metrics: list[str],
        why_waiting: Callable[[], str],
    ):
        self._console, self._base, self._metrics, self._why_waiting = console, base, metrics, why_waiting
        self._total, self._ended = suggestions.total, suggestions.ended
        self._work, self._work_of = suggestions.work(base), dict[str, int]()  # left of all trials, and of each
        self._first_s, self._events = 0.0, 0  # of epochs and evaluations: the start is no part of their pace
        self._said_s = time.perf_counter()
        self._bars: dict[str, TaskID] = {}
        self._live: Progress | None = None

    def __enter__(self) -> "StudyProgress":
        if self._console.is_terminal:
            note = TextColumn("{task.fields[note]}")
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note)
            self._live = Progress(*columns, console=self._console)
            self._overall = self._live.add_task("trials", total=self._total, completed=self._ended, note="")
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.stop()

    def trial_started(self, trial: Trial) -> None:
        if trial.id not in self._work_of:
            self._work_of[trial.id] = trial.work(self._base)
            if self._live:
                self._bars[trial.id] = self._live.add_task(trial.name, total=self._work_of[trial.id], note="")

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        epoch = int(metrics["epoch"])
        self._advance(trial, trial.work(self._base) - epoch)
        if self._live:
            note = f"loss {metrics['loss']:.4g}" if "loss" in metrics else ""
            self._live.update(self._bars[trial.id], completed=epoch, note=note)
            self._live.update(self._overall, note=self._time_left())

    def trial_retried(self, trial: Trial, error: str) -> None:
        self._say(f"{trial.name}: {error}; tried again")

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self._ended += 1
        self._advance(trial, 0)
        if self._live:
            if trial.id in self._bars:  # else its process has never started
                self._live.remove_task(self._bars.pop(trial.id))
            self._live.update(self._overall, completed=self._ended, note=self._time_left())
        outcome = ", ".join(f"{name} {record.metrics[name]:.3f}" for name in self._metrics if name in record.metrics)
        if record.status == "STOPPED":
            outcome = f"stopped after epoch {record.epochs}: {outcome}"
        elif record.status == "FAILED":
            outcome = f"FAILED: {record.error}"
        self._say_count(f"{trial.name}: {outcome} ({record.wall_s:.1f} s)")

    def time_passed(self, running: int, waiting: int) -> None:
        quiet_s = time.perf_counter() - self._said_s
        if waiting and quiet_s > WAITING_S:
            self._say(f"trials: {running} running, {waiting} waiting for a node: {self._why_waiting()}")
        elif quiet_s > QUIET_S and not self._live:
            self._say_count(f"{running} running")

    def _advance(self, trial: Trial, work: int) -> None:
        """Set the work that is left of a trial."""
        self._work += work - self._work_of.get(trial.id, 0)
        self._work_of[trial.id] = work
        self._events += 1
        if self._events == 1:
            self._first_s = time.perf_counter()

    def _say_count(self, text: str) -> None:
        left = self._time_left()
        self._say(f"[{self._ended}/{self._total}] {text}" + (f"; {left}" if left else ""))

    def _say(self, text: str) -> None:
        self._said_s = time.perf_counter()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        if self._events < 2:
            return ""
        seconds = (time.perf_counter() - self._first_s) * max(self._work, 0) / (self._events - 1)
        return f"about {duration(seconds)} left"
