"""Functions run in several gloo processes, for the tests of what holds across workers."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eqssl.training.context import LocalContext

multiprocessing.set_forkserver_preload(["eqssl.training.loop", "timm"])  # what all import, once for all of them


class Worker(LocalContext):
    """The context of one of several processes, on the CPU and without Ray."""

    def __init__(self, rank: int, world_size: int, folder: Path | None = None):
        super().__init__(folder)
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")


def _enter(rank: int, world_size: int, environment: dict, folder: str, function: Callable, arguments: tuple) -> None:
    os.environ.clear()  # of the server's first use
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(function(rank, world_size, *arguments), os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def run_workers(world_size: int, function: Callable, *arguments: Any) -> list[Any]:
    """Return what `function(rank, world_size, *arguments)` returns in each of `world_size` gloo processes."""
    with tempfile.TemporaryDirectory() as folder:
        given = (world_size, dict(os.environ), folder, function, arguments)
        mp.start_processes(_enter, given, nprocs=world_size, start_method="forkserver")
        return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]
