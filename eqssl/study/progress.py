"""The progress of a study: live bars on a terminal, elsewhere plain lines, at least one per minute."""

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID

from eqssl.environment import worker_environment
from eqssl.study.execution.preflight import duration
from eqssl.study.listener import Listener
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord

QUIET_S = 60.0  # of silence before a line with the running trials and what the waiting ones wait for
SHOWN = 3  # running trials listed in such a line


class StudyProgress(Listener):
    """Counts trials and estimates the time left.

    Args:
        console: the study's console.
        suggestions: the trials to come; the work of each is its epochs and one evaluation.
        why_waiting: returns in words why trials wait.
        tracking: returns in words what waits for the tracking server, or an empty text.
    """

    def __init__(
        self,
        console: Console,
        suggestions: Suggestions,
        why_waiting: Callable[[], str],
        tracking: Callable[[], str] = str,
    ):
        self._console, self._why_waiting, self._tracking = console, why_waiting, tracking
        self._base, self._metrics = suggestions.base, suggestions.objectives
        self._total, self._ended = suggestions.total, suggestions.ended
        self._work, self._work_of = suggestions.work(), dict[str, int]()  # left in all trials, and in each
        # Epochs and evaluations that ended, by trial, and the end of the first: the start-up before it is not timed.
        self._events, self._first_s = Counter[str](), 0.0
        self._start_s = self._said_s = time.perf_counter()
        self._running: dict[str, tuple[Trial, int, float]] = {}  # trial id -> trial, epochs, time of the last one
        self._environments = [worker_environment()]  # distinct ones: of this process, then of workers
        columns = "{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[note]}"
        self._live = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bars: dict[str, TaskID] = {}
        self._overall = self._live.add_task("trials", total=self._total, completed=self._ended, note="")

    def __enter__(self) -> "StudyProgress":
        self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._console.is_terminal:  # elsewhere it would print an empty line
            self._live.stop()

    def trial_started(self, trial: Trial) -> None:
        _, epochs, _ = self._running.get(trial.id, (trial, 0, 0.0))
        self._running[trial.id] = trial, epochs, time.perf_counter()
        if trial.id not in self._work_of:
            self._work_of[trial.id] = trial.work(self._base)
            self._bars[trial.id] = self._live.add_task(trial.name, total=self._work_of[trial.id], note="")

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        epoch = int(metrics["epoch"])
        self._running[trial.id] = trial, epoch, time.perf_counter()
        self._advance(trial, trial.work(self._base) - epoch)
        note = f"loss {metrics['loss']:.4g}" if "loss" in metrics else ""
        self._live.update(self._bars[trial.id], completed=epoch, note=note)
        self._live.update(self._overall, note=self._time_left())

    def trial_retried(self, trial: Trial, error: str) -> None:
        self._running.pop(trial.id, None)
        self._say(f"{trial.name}: {error}; tried again")

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self._ended += 1
        self._running.pop(trial.id, None)
        self._advance(trial, 0)
        if trial.id in self._bars:  # otherwise its process has never started
            self._live.remove_task(self._bars.pop(trial.id))
        self._live.update(self._overall, completed=self._ended, note=self._time_left())
        outcome = ", ".join(f"{name} {record.metrics[name]:.3f}" for name in self._metrics if name in record.metrics)
        if record.status == "STOPPED":
            outcome = f"stopped after epoch {record.epochs}: {outcome}"
        elif record.status == "FAILED":
            outcome = f"FAILED: {record.error}"
        self._say_count(f"{trial.name}: {outcome} ({record.wall_s:.1f} s)")
        self._compare_environment(trial, record.environment)

    def time_passed(self, running: int, waiting: int) -> None:
        tracking, now = self._tracking(), time.perf_counter()
        if now - self._said_s < QUIET_S or (self._console.is_terminal and not (waiting or tracking)):
            return
        places = [self._place(*of, now) for of in list(self._running.values())[:SHOWN]]
        places += [f"{running - SHOWN} others"] * (running > SHOWN)
        parts = [f"{running} running" + (f" ({'; '.join(places)})" if places else "")]
        if waiting:
            parts.append(f"{waiting} waiting for a node: {self._why_waiting()}")
        self._say_count(f"after {duration(now - self._start_s)}: " + ", ".join([*parts, *filter(None, [tracking])]))

    def _place(self, trial: Trial, epochs: int, since_s: float, now: float) -> str:
        """Return in words how far a running trial has come; its start-up counts as part of its first epoch."""
        every = trial.work(self._base) - 1
        doing = f"epoch {epochs + 1} of {every}" if epochs < every else "evaluation"
        return f"{trial.name}: {doing} for {duration(now - since_s)}"

    def _compare_environment(self, trial: Trial, environment: dict[str, str]) -> None:
        """Say once per worker environment how it differs from that of this process."""
        if not environment or environment in self._environments:
            return
        own = self._environments[0]
        self._environments.append(environment)
        pairs = {name: (environment.get(name), own.get(name)) for name in sorted(own | environment)}
        different = ", ".join(f"{name} {there} (here {here})" for name, (there, here) in pairs.items() if there != here)
        self._say(f"warning: {trial.name} ran with other versions than the study's own process: {different}")

    def _advance(self, trial: Trial, work: int) -> None:
        """Set the work left in a trial."""
        self._work += work - self._work_of.get(trial.id, 0)
        self._work_of[trial.id] = work
        if trial.work(self._base) == 1:
            return  # the evaluation of a row that is not trained says nothing about epochs
        self._events[trial.id] += 1
        if self._events.total() == 1:
            self._first_s = time.perf_counter()

    def _say_count(self, text: str) -> None:
        left = self._time_left()
        self._say(f"[{self._ended}/{self._total}] {text}" + (f"; {left}" if left else ""))

    def _say(self, text: str) -> None:
        self._said_s = time.perf_counter()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        if max(self._events.values(), default=0) < 2:
            return ""  # the first epochs of trials side by side end together, which would pass for a fast pace
        seconds = (time.perf_counter() - self._first_s) * max(self._work, 0) / (self._events.total() - 1)
        return f"about {duration(seconds)} left"
