"""Two workers of a trial, and two trials side by side, against one alone; each on a core of its own."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

from eqssl.bench.command import Options
from eqssl.bench.step import make_run
from eqssl.bench.timing import Row, interleave, row
from eqssl.training.memory import keep_freed

STEPS = 2
EFFICIENCY = 0.8
# Rank, workers of the trial, threads: one trial on two cores, two on one core each, and two workers of one trial.
PROCESSES = ((0, 1, 2), (0, 1, 1), (0, 1, 1), (0, 2, 1), (1, 2, 1))


def measure(options: Options) -> list[Row]:
    """Return for every encoder the scaling efficiency and the gain of two trials side by side.

    The efficiency is the time of one worker alone over that of two with the same batch each. For comparison, there are
    two trials, which exchange nothing but share the memory bandwidth, and one trial that has both cores.
    """
    rows = []
    for encoder in options.encoders:
        with _processes(options, encoder) as (both_cores, first, second, *workers):
            subjects = {"alone": [first], "pair": [first, second], "workers": workers, "both": [both_cores]}
            seconds = interleave({name: partial(_train, of) for name, of in subjects.items()}, options.seconds)
        alone = partial(row, "workers", f"{encoder}: one worker on one core", seconds["alone"])
        rows.append(alone("two workers of a trial (scaling efficiency)", seconds["workers"], at_least=EFFICIENCY))
        rows.append(alone("two trials side by side", seconds["pair"]))
        name, turns, images = f"{encoder}: two trials side by side", 2 * seconds["both"], 2 * STEPS * options.batch_size
        against = "one after the other on both cores"
        rows.append(row("workers", name, seconds["pair"], against, turns, count=images, unit="images/s"))
    return rows


def _train(processes: Sequence[Connection]) -> None:
    for process in processes:
        process.send(True)
    for process in processes:
        process.recv()


@contextmanager
def _processes(options: Options, encoder: str) -> Iterator[list[Connection]]:
    """Yield pipes to `PROCESSES`."""
    import torch.multiprocessing as mp

    context, pipes, started = mp.get_context("spawn"), [], []
    with tempfile.TemporaryDirectory() as folder:
        for place in PROCESSES:
            here, there = context.Pipe()
            arguments = options, encoder, folder, *place, there
            started.append(context.Process(target=_worker, args=arguments, daemon=True))
            started[-1].start()
            there.close()  # so that the pipe ends with the process
            pipes.append(here)
        try:
            yield pipes
        finally:
            for pipe in pipes:
                pipe.close()
            for process in started:
                process.join()


def _worker(
    options: Options, encoder: str, folder: str, rank: int, world_size: int, threads: int, pipe: Connection
) -> None:
    """Train a few steps per message, until the pipe is closed."""
    import torch
    import torch.distributed as dist

    from eqssl.training.context import LocalContext

    keep_freed()
    torch.set_num_threads(threads)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    context = LocalContext()
    context.rank, context.world_size, context.device = rank, world_size, torch.device("cpu")
    sizes = dataclasses.replace(options, batch_size=world_size * options.batch_size, threads=threads)
    run = make_run(sizes.run(encoder, recon=1.0), steps=STEPS, context=context)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        run.next_epoch()
        pipe.send(True)
