"""How long a study will take, from a few real steps of its base configuration, before any trial starts."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from eqssl.config import RunConfig, replace
from eqssl.files import as_path
from eqssl.study.options import StudyOptions

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset

STEPS_S = 5.0  # about as long are steps timed
EVALUATE_ABOVE_S = 600.0  # of training: only then one evaluation more does not matter
ASK_ABOVE_S = 1800.0


@dataclass(frozen=True)
class Work:
    """What is left of a study.

    Args:
        trials: to come.
        epochs, evaluations: of all of them.
        checkpoints: folders that may hold the state of a trial which was begun; its epochs are done.
        at_once: trials at a time.
    """

    trials: int
    epochs: int
    evaluations: int
    checkpoints: Sequence[str]
    at_once: int


@dataclass(frozen=True)
class Timing:
    """What a trial of the base configuration costs, in a process that did nothing before.

    Args:
        start_s: until the first step, without the loading of the data.
        steps: an epoch.
        epoch_s: training one epoch.
        evaluate_s: one evaluation; None where too little is to be trained.
        epochs_done: in the checkpoints of `Work`.
    """

    start_s: float
    steps: int
    epoch_s: float
    evaluate_s: float | None
    epochs_done: int


@dataclass(frozen=True)
class Forecast:
    """Wall seconds of all trials to come, and the arithmetic in words."""

    wall_s: float
    text: str


def time_run(config: RunConfig, dataset: "Dataset", work: Work, *, workers: int, gpu: bool, earlier_s: float) -> Timing:
    """Train a few steps as a trial does, in the process of one of its workers, and keep nothing of them.

    Of several workers one is timed alone, with its share of a batch: what they tell each other is not in it.

    Args:
        config: of the run.
        dataset: its data.
        work: tells whether an evaluation is worth its time.
        workers: of a trial.
        gpu: whether a worker has one.
        earlier_s: seconds that this process has taken to start.
    """
    import torch

    from eqssl.training import checkpoint
    from eqssl.training.context import LocalContext
    from eqssl.training.loop import Run

    start = time.perf_counter()
    context = LocalContext()
    context.device = torch.device("cuda" if gpu else "cpu")
    parts = config.train.grad_accum_steps
    batch = config.train.batch_size // workers // parts * parts
    run = Run(replace(config, {"train.batch_size": batch, "train.epochs": 4, "train.eval_every": 0}), context, dataset)
    available = run.steps_per_epoch
    run.steps_per_epoch = min(2, available)  # an epoch's last step may not be compiled, so one alone would warm up half
    run.next_epoch()
    run.steps_per_epoch = 1
    start_s = earlier_s + time.perf_counter() - start
    one_s = run.next_epoch()["train_s"]
    run.steps_per_epoch = timed = min(max(2, int(STEPS_S / one_s)), available)
    more_s = run.next_epoch()["train_s"] - one_s  # the difference is of steps alone, without what ends an epoch
    steps = available // workers
    epoch_s = one_s + (steps - 1) * max(0.0, more_s) / max(1, timed - 1)
    saved = filter(None, (checkpoint.load(as_path(folder)) for folder in work.checkpoints))
    epochs_done = sum(state["run"]["epoch"] for state in saved)
    worth = (work.epochs - epochs_done) * epoch_s / work.at_once > EVALUATE_ABOVE_S
    run.steps_per_epoch = 1
    evaluate_s = run.next_epoch()["evaluate_s"] if worth else None
    return Timing(start_s, steps, epoch_s, evaluate_s, epochs_done)


def forecast(work: Work, timing: Timing, *, starts: int) -> Forecast:
    """Return how long the trials will take if all are like the base configuration.

    Args:
        work: what is left.
        timing: of the base configuration.
        starts: of processes, one after the other.
    """
    epochs = work.epochs - timing.epochs_done
    step_s = timing.epoch_s / timing.steps
    text = f"{epochs} epochs x {timing.steps} steps x {step_s:.3g} s"
    trials_s = epochs * timing.epoch_s
    if timing.evaluate_s is not None:
        trials_s += work.evaluations * timing.evaluate_s
        text += f" + {work.evaluations} evaluations x {timing.evaluate_s:.3g} s"
    start_s = starts * timing.start_s
    wall_s = trials_s / work.at_once + start_s
    text = f"({text}) / {work.at_once} at a time + {start_s:.0f} s to start"
    without = "" if timing.evaluate_s is not None else ", evaluations not counted"
    return Forecast(wall_s, f"forecast: {text} = {duration(wall_s)}{without}")


def duration(seconds: float) -> str:
    """Return seconds in the unit that a person would take."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} hours"


def approve(wall_s: float, options: StudyOptions, console: Console) -> None:
    """Refuse a forecast above --max-hours; above half an hour ask, where someone can answer.

    Raises:
        ValueError: for a forecast that is above the limit or was declined.
    """
    if options.max_hours is not None and wall_s > options.max_hours * 3600:
        raise ValueError(
            f"--max-hours is {options.max_hours:g}, and the forecast is {duration(wall_s)}; "
            "allowed: more hours, or fewer --configs, --seeds or --train.epochs"
        )
    can_answer = console.is_terminal and not console.quiet and sys.stdin.isatty()
    if wall_s <= ASK_ABOVE_S or options.yes or not can_answer:
        return
    try:
        answer = console.input("go on? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError("not started; --yes starts without a question")
