"""What a user sees while a study runs: a live bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from eqssl.config import RunConfig
from eqssl.study.listener import Listener
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord


class StudyProgress(Listener):
    """Counts trials and tells how long the rest will take.

    Args:
        console: where to show it.
        base: of the study; the work of a trial is its epochs and one evaluation.
        total, ended: trials in all, and those that were finished before a resume.
        work: of the trials to come.
        figures: what a finished trial is shown with.
    """

    def __init__(self, console: Console, base: RunConfig, total: int, ended: int, work: int, figures: list[str]):
        self._console, self._base, self._figures = console, base, figures
        self._total, self._ended, self._work = total, ended, work
        self._start, self._done = time.perf_counter(), 0
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
        if self._live and trial.id not in self._bars:
            self._bars[trial.id] = self._live.add_task(trial.name, total=trial.work(self._base) - 1, note="")

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        self._done += 1
        if self._live:
            note = f"loss {metrics['loss']:.4g}" if "loss" in metrics else ""
            self._live.update(self._bars[trial.id], completed=metrics["epoch"], note=note)
            self._live.update(self._overall, note=self._left())

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self._ended += 1
        self._done += 1 if record.status == "COMPLETE" else trial.work(self._base)
        if self._live:
            self._live.remove_task(self._bars.pop(trial.id))
            self._live.update(self._overall, completed=self._ended, note=self._left())
        figures = ", ".join(f"{name} {record.metrics[name]:.3f}" for name in self._figures if name in record.metrics)
        if record.status == "STOPPED":
            figures = f"stopped after epoch {record.epochs}: {figures}"
        outcome = f"FAILED: {record.error}" if record.status == "FAILED" else figures
        counted = f"[{self._ended}/{self._total}]"
        self._say(f"{counted} {trial.name}: {outcome} ({record.wall_s:.1f} s); {self._left()}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (time.perf_counter() - self._start) * max(self._work - self._done, 0) / self._done
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"
