"""Ray, started or joined, and how many trials it has room for."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from eqssl.study.options import StudyOptions

RAY_VERSION = "2.60.0"  # what the tests ran with and ray_cluster.yaml installs


@dataclass(frozen=True)
class Room:
    """How many trials the cluster holds.

    Args:
        trials: at a time.
        cpus, gpus: of each trial, over all its workers.
        resources: that Ray reserves for a trial's own process, in Tune's names.
        text: the arithmetic in words.
    """

    trials: int
    cpus: int
    gpus: float
    resources: dict[str, float]
    text: str


@contextmanager
def ray_running() -> Iterator[dict[str, float]]:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine; yield the resources in all."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our own record is the only one
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints tables even if told to be silent
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # signals are ours, see `StopSignals`
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="error")
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial is told by us, once
    try:
        yield ray.cluster_resources()
    finally:
        if ours:
            ray.shutdown()


def cpus_per_worker(options: StudyOptions) -> int:
    """Return the CPUs that Ray reserves for each worker of a trial."""
    return options.run.train.threads or 1


def room(options: StudyOptions, cluster: dict[str, float]) -> Room:
    """Return how many trials the cluster holds at a time.

    Args:
        options: workers, GPUs and concurrency asked for.
        cluster: its resources in all, as `ray.cluster_resources` tells them.

    Raises:
        ValueError: for a trial that the cluster can never hold.
    """
    workers, gpus = options.workers_per_trial, options.gpus_per_trial
    if gpus is None:
        gpus = float(workers) if cluster.get("GPU", 0) >= workers else 0.0
    needs = {"CPU": workers * cpus_per_worker(options)} | ({"GPU": gpus} if gpus else {})
    own = {"cpu": needs["CPU"], "gpu": gpus}
    if workers > 1:  # a driver must never hold what its workers wait for
        driver = {"train_driver": 1.0} if "train_driver" in cluster else {"node:__internal_head__": 0.001}
        needs, own = needs | driver, driver
    fits = {name: int(cluster.get(name, 0) / need + 1e-9) for name, need in needs.items()}
    scarce = min(fits, key=fits.__getitem__)
    if not fits[scarce]:
        raise ValueError(
            f"--workers-per-trial is {workers}, --gpus-per-trial {gpus:g}: a trial needs {needs[scarce]:g} {scarce}, "
            f"and the cluster has {cluster.get(scarce, 0):g}"
        )
    text = f"{cluster[scarce]:g} {scarce} / {needs[scarce]:g} a trial = {fits[scarce]} at a time"
    if options.concurrency:
        text += f", at most {options.concurrency} by --concurrency"
    return Room(min(fits[scarce], options.concurrency or fits[scarce]), needs["CPU"], gpus, own, text)


def start_in_worker(function: Callable[..., Any], cpus: int, gpus: float, *arguments: Any) -> ray.ObjectRef:
    """Start a function in a process of the cluster; `ray.get` waits for what it returns."""
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(function).remote(*arguments)
