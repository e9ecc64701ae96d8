"""What a second worker of a trial brings, on one core each and with the same batch a worker."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from eqssl.bench.growth import fitted
from eqssl.bench.options import Options
from eqssl.bench.subject import start
from eqssl.bench.table import Row, row
from eqssl.bench.timing import interleave
from eqssl.training.memory import keep_freed

WORKERS = 2
STEPS = 2
EFFICIENCY = 0.8


def measure(options: Options) -> list[Row]:
    """Return the scaling efficiency of every encoder: a step of one worker alone over one of two together.

    Beside it what the machine has for two that exchange nothing, which share its memory.
    """
    return [made for encoder in options.encoders for made in _measure(options, encoder)]


def _measure(options: Options, encoder: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, _processes(options, encoder, Path(folder)) as (*apart, one, two):
        seconds = interleave(
            {
                "alone": lambda: _step(apart[:1]),
                "apart": lambda: _step(apart),
                "together": lambda: _step([one, two]),
            },
            options.seconds,
        )
    name = f"{encoder}: {STEPS} steps of one worker, {options.batch_size} images each"
    made = partial(row, "scaling", name, seconds["alone"])
    as_many = {"1": seconds["alone"], str(WORKERS): seconds["together"] / WORKERS}
    return [
        made("of two that exchange nothing", seconds["apart"]),
        made("of two (scaling efficiency)", seconds["together"], at_least=EFFICIENCY),
        fitted("scaling", f"{encoder}: as many images ~ workers^k", (1, WORKERS), as_many),
    ]


def _step(processes: list[Connection]) -> None:
    for process in processes:
        process.send(True)
    for process in processes:
        process.recv()


@contextmanager
def _processes(options: Options, encoder: str, folder: Path) -> Iterator[list[Connection]]:
    """Yield the ends of two processes that train alone and of two that train together."""
    import torch.multiprocessing as mp

    context, ends, started = mp.get_context("spawn"), [], []
    for rank, world_size in ((0, 1), (0, 1), *((rank, WORKERS) for rank in range(WORKERS))):
        here, there = context.Pipe()
        arguments = options, encoder, folder, rank, world_size, there
        started.append(context.Process(target=_train, args=arguments, daemon=True))
        started[-1].start()
        there.close()  # so that the end of the process is the end of the pipe
        ends.append(here)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
        for process in started:
            process.join()


def _train(options: Options, encoder: str, folder: Path, rank: int, world_size: int, end: Connection) -> None:
    """Train some steps whenever the other end says so, until it is closed."""
    import torch
    import torch.distributed as dist

    from eqssl.training.context import Alone

    keep_freed()
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    context = Alone()
    context.rank, context.world_size, context.device = rank, world_size, torch.device("cpu")
    sizes = dataclasses.replace(options, batch_size=world_size * options.batch_size, threads=1)
    run = start(sizes.run(encoder, recon=True), STEPS, context)
    while True:
        try:
            end.recv()
        except EOFError:
            return
        run.next_epoch()
        end.send(True)
