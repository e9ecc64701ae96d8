"""Two workers of a trial, and two trials side by side, against one alone; each on a core of its own."""

import dataclasses
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial

import torch
import torch.distributed as dist

from eqssl.bench.command import Options
from eqssl.bench.step import make_run
from eqssl.bench.timing import Row, interleave, row
from eqssl.training.context import LocalContext
from eqssl.training.loop import Run
from eqssl.training.memory import keep_freed

STEPS = 2
EFFICIENCY = 0.8
# Rank, workers of the trial, threads: one trial on two cores, two on one core each, and two workers of one trial.
PROCESSES = ((0, 1, 2), (0, 1, 1), (0, 1, 1), (0, 2, 1), (1, 2, 1))

_run: Run  # of a process in `PROCESSES`


def measure(options: Options) -> list[Row]:
    """Return for every encoder the scaling efficiency and the gain of two trials side by side.

    The efficiency is the time of one worker alone over that of two with the same batch each. For comparison, there are
    two trials, which exchange nothing but share the memory bandwidth, and one trial that has both cores.
    """
    rows, spawn = [], multiprocessing.get_context("spawn")
    for encoder in options.encoders:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            both_cores, first, second, *workers = (
                stack.enter_context(ProcessPoolExecutor(1, spawn, _start, (options, encoder, folder, *place)))
                for place in PROCESSES
            )
            subjects = {"alone": [first], "pair": [first, second], "workers": workers, "both": [both_cores]}
            seconds = interleave({name: partial(_train, of) for name, of in subjects.items()}, options.seconds)
        alone = partial(row, f"{encoder}: one worker on one core", seconds["alone"])
        rows.append(alone("two workers of a trial (scaling efficiency)", seconds["workers"], at_least=EFFICIENCY))
        rows.append(alone("two trials side by side", seconds["pair"]))
        name, turns, images = f"{encoder}: two trials side by side", 2 * seconds["both"], 2 * STEPS * options.batch_size
        against = "one after the other on both cores"
        rows.append(row(name, seconds["pair"], against, turns, count=images, unit="images/s"))
    return rows


def _train(processes: list[ProcessPoolExecutor]) -> None:
    """Train a few steps in every process, concurrently."""
    for trained in [process.submit(_train_here) for process in processes]:
        trained.result()


def _train_here() -> None:
    _run.next_epoch()


def _start(options: Options, encoder: str, folder: str, rank: int, world_size: int, threads: int) -> None:
    """Set up the run of a process."""
    global _run
    keep_freed()
    torch.set_num_threads(threads)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    context = LocalContext()
    context.rank, context.world_size, context.device = rank, world_size, torch.device("cpu")
    sizes = dataclasses.replace(options, batch_size=world_size * options.batch_size, threads=threads)
    _run = make_run(sizes.run(encoder, recon=1.0), steps=STEPS, context=context)
