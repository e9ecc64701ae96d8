"""What a user sees while a study runs: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from eqssl.config import RunConfig
from eqssl.study.execution.forecast import duration
from eqssl.study.listener import Listener
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord

WAITING_S, QUIET_S = 60.0, 600.0  # without a line, after which one says what is waited for, or that something trains


class StudyProgress(Listener):
    """Counts trials and estimates how long the rest will take.

    Args:
        console: where to show it.
        base: of the study; the work of a trial is its epochs and one evaluation.
        suggestions: the trials to come.
        metrics: that a finished trial is shown with.
        why_waiting: returns in words what is done about trials that wait for a node.
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
        self._work, self._work_of = suggestions.work(base), dict[str, int]()  # what is left
        self._first_s, self._events = 0.0, 0  # of epochs and evaluations: a start is no part of their pace
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
            self._live.remove_task(self._bars.pop(trial.id))
            self._live.update(self._overall, completed=self._ended, note=self._time_left())
        outcome = ", ".join(f"{name} {record.metrics[name]:.3f}" for name in self._metrics if name in record.metrics)
        if record.status == "STOPPED":
            outcome = f"stopped after epoch {record.epochs}: {outcome}"
        elif record.status == "FAILED":
            outcome = f"FAILED: {record.error}"
        self._say(f"[{self._ended}/{self._total}] {trial.name}: {outcome} ({record.wall_s:.1f} s); {self._time_left()}")

    def time_passed(self, running: int, waiting: int) -> None:
        quiet_s = time.perf_counter() - self._said_s
        if quiet_s < WAITING_S or (self._live and not waiting):
            return
        if waiting:
            self._say(f"{running} trials run, {waiting} wait for a node: {self._why_waiting()}")
        elif quiet_s > QUIET_S:
            self._say(f"[{self._ended}/{self._total}] {running} trials run; {self._time_left()}")

    def _advance(self, trial: Trial, work: int) -> None:
        """Note how much of a trial's work is left."""
        self._work += work - self._work_of.get(trial.id, 0)
        self._work_of[trial.id] = work
        self._events += 1
        if self._events == 1:
            self._first_s = time.perf_counter()

    def _say(self, text: str) -> None:
        self._said_s = time.perf_counter()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        if self._events < 2:
            return ""
        seconds = (time.perf_counter() - self._first_s) * max(self._work, 0) / (self._events - 1)
        return f"about {duration(seconds)} left"
