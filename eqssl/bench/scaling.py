"""Speed of a second worker of a trial, on one core each and with the same batch per worker."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, interleave, row
from eqssl.bench.training import make_run
from eqssl.training.memory import keep_freed

WORKERS = 2
STEPS = 2
EFFICIENCY = 0.8


def measure(options: Options) -> list[Row]:
    """Return the scaling efficiency of every encoder: time of one worker alone over that of two together.

    Beside it the bound of the machine: two workers that exchange nothing, but share the memory's bandwidth.
    """
    return [made for encoder in options.encoders for made in _measure(options, encoder)]


def _measure(options: Options, encoder: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, _processes(options, encoder, Path(folder)) as (*apart, one, two):
        subjects = {
            "alone": partial(_train_steps, apart[:1]),
            "apart": partial(_train_steps, apart),
            "together": partial(_train_steps, [one, two]),
        }
        seconds = interleave(subjects, options.seconds)
    name = f"{encoder}: {STEPS} steps of one worker, {options.batch_size} images each"
    alone = partial(row, "scaling", name, seconds["alone"])
    return [
        alone("two that exchange nothing", seconds["apart"]),
        alone("two together (scaling efficiency)", seconds["together"], at_least=EFFICIENCY),
    ]


def _train_steps(processes: list[Connection]) -> None:
    for process in processes:
        process.send(True)
    for process in processes:
        process.recv()


@contextmanager
def _processes(options: Options, encoder: str, folder: Path) -> Iterator[list[Connection]]:
    """Yield pipes to two processes that train alone and to two that train together."""
    import torch.multiprocessing as mp

    context, pipes, started = mp.get_context("spawn"), [], []
    for rank, world_size in ((0, 1), (0, 1), *((rank, WORKERS) for rank in range(WORKERS))):
        here, there = context.Pipe()
        arguments = options, encoder, folder, rank, world_size, there
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


def _worker(options: Options, encoder: str, folder: Path, rank: int, world_size: int, pipe: Connection) -> None:
    """Train some steps for every message, until the pipe is closed."""
    import torch
    import torch.distributed as dist

    from eqssl.training.context import LocalContext

    keep_freed()
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    context = LocalContext()
    context.rank, context.world_size, context.device = rank, world_size, torch.device("cpu")
    sizes = dataclasses.replace(options, batch_size=world_size * options.batch_size, threads=1)
    run = make_run(sizes.run(encoder, recon=True), steps=STEPS, context=context)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        run.next_epoch()
        pipe.send(True)
