"""How long a study will take, from a few real steps of its base configuration, before any trial starts."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from eqssl.config import RunConfig, replace
from eqssl.study.options import StudyOptions

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset

STEPS_S = 5.0  # for about as long steps are timed
ASK_ABOVE_S = 1800.0


def time_epoch(config: RunConfig, dataset: "Dataset", *, workers: int, gpu: bool) -> float:
    """Return the seconds of one epoch, from a few real steps after which nothing is kept.

    Of several workers one is timed alone, with its share of a batch: their communication is not in it.

    Args:
        config: of the run.
        dataset: its data.
        workers: of a trial.
        gpu: whether a worker has one.
    """
    import torch

    from eqssl.training.context import LocalContext
    from eqssl.training.loop import Run

    context = LocalContext()
    context.device = torch.device("cuda" if gpu else "cpu")
    parts = config.train.grad_accum_steps
    batch = config.train.batch_size // workers // parts * parts
    run = Run(replace(config, {"train.batch_size": batch, "train.epochs": 4, "train.eval_every": 0}), context, dataset)
    available = run.steps_per_epoch
    run.steps_per_epoch = min(2, available)  # an epoch's last step may not be compiled, so one alone would warm up half
    run.next_epoch()
    run.steps_per_epoch = 1
    one_s = run.next_epoch()["train_s"]
    run.steps_per_epoch = timed = min(max(2, int(STEPS_S / one_s)), available)
    more_s = run.next_epoch()["train_s"] - one_s  # the difference is of steps alone, without what ends an epoch
    return one_s + (available // workers - 1) * max(0.0, more_s) / max(1, timed - 1)


def duration(seconds: float) -> str:
    """Return seconds in the unit that a person would take."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} hours"


def approve(epochs: int, epoch_s: float, at_once: int, options: StudyOptions, console: Console) -> None:
    """Show the forecast; refuse one above --max-hours; above half an hour ask, where someone can answer.

    Args:
        epochs: of all trials to come.
        epoch_s: seconds of each, as of the base configuration.
        at_once: trials at a time.
        options: of the study.
        console: where it is shown and asked.

    Raises:
        ValueError: for a forecast that is above the limit or was declined.
    """
    wall_s = epochs * epoch_s / at_once
    arithmetic = f"{epochs} epochs x {epoch_s:.3g} s / {at_once} at a time = {duration(wall_s)}"
    console.print(f"forecast: {arithmetic}, starts and evaluations not counted", soft_wrap=True)
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
