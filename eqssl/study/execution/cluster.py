"""Ray, started or joined: how many trials run at a time, and functions that run on its nodes."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eqssl.study.definition import LEARNING
from eqssl.study.execution.setup import StudySetup
from eqssl.study.options import StudyOptions
from eqssl.training.memory import children_keep_freed

RAY_VERSION = "2.60.0"  # what the tests ran with and ray_cluster.yaml installs
HEAD = "node:__internal_head__"  # a resource that Ray gives the head alone
NODE_GROUP = "ray.io/node-group"  # a label that Ray gives the nodes of a cluster with an autoscaler
GPUS_PER_WORKER = "EQSSL_GPUS_PER_WORKER"  # variable of a cluster whose nodes with GPUs may still have to be added
QUEUED = 200  # trials at a time, running or waiting for nodes that an autoscaler adds
QUEUED_LEARNING = 8  # where earlier trials decide about later ones, or each has a driver that takes the head's memory
ANSWER_S, WAIT_S = 10.0, 60.0
STARTS = 3  # attempts to start Ray on this machine
Resources = Mapping[str, float]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capacity:
    """The number of trials at a time, and the resources of each.

    Args:
        trials: at a time.
        worker: resources of one worker, in Ray's names.
        workers: of each trial, at most.
        driver: resources of a trial's own process where it has workers beside it.
        text: the arithmetic in words.
    """

    trials: int
    worker: Resources
    workers: int
    driver: Resources
    text: str

    @property
    def devices(self) -> tuple[str, float]:
        """GPU or CPU, and how many of them a trial reserves."""
        kind = "GPU" if "GPU" in self.worker else "CPU"
        return kind, self.workers * self.worker[kind]


@contextmanager
def ray_running() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine.

    Raises:
        ValueError: for a cluster that cannot be joined.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our own record is the only one
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")  # nor is Tune's state ever restored
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints tables even if told to be silent
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # signals are ours, see `StopSignals`
    ours = not ray.is_initialized()
    if ours:
        _start_or_join()
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the progress shows a failed trial, once
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _start_or_join() -> None:
    """Start Ray or join its cluster.

    A new node has 30 s, which Ray fixes and a machine under load exceeds, so that a late start is tried again.

    Raises:
        ValueError: with Ray's own error.
    """
    address = os.environ.get("RAY_ADDRESS")
    for attempt in range(1, STARTS + 1):
        try:
            with children_keep_freed():  # trials, where Ray is started here
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # no cluster there, another Ray or Python, a wrong token; bare exceptions too
            ray.shutdown()
            if address or "timed out" not in str(error) or attempt == STARTS:
                where = f"RAY_ADDRESS is {address or 'not given'}"
                raise ValueError(f"Ray {ray.__version__} cannot be started ({where}): {error}") from error
            logger.warning("Ray did not start within its 30 s; next attempt %d of %d", attempt + 1, STARTS)


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def capacity(options: StudyOptions, nodes: Sequence[Mapping[str, Any]], left: int) -> Capacity:
    """Return how many trials run at a time: as many as the nodes hold, or as many as may wait for an autoscaler's.

    An autoscaler adds nodes for what waits in Ray's queue, so there trials are started without regard to the nodes. A
    trial of several workers has a driver beside them that reserves no CPU or GPU: it never holds what workers wait for.

    Args:
        options: workers, resources and concurrency asked for.
        nodes: `Resources` and `Labels` of each that is alive.
        left: trials to come.

    Raises:
        ValueError: for a trial that the nodes cannot hold.
    """
    grows = any(NODE_GROUP in node["Labels"] for node in nodes)
    there = [node["Resources"] for node in nodes]
    worker = _worker(options, there, grows)
    (least, most), fitting = options.workers, _fitting(there, worker)
    driver: dict[str, float] = {}
    if most > 1:
        driver = {"train_driver": 1.0} if _fitting(there, {"train_driver": 1}) else {HEAD: 0.001}
    if grows:
        few = options.sampler in LEARNING or HEAD in driver
        trials = min(options.concurrency or (QUEUED_LEARNING if few else QUEUED), max(left, 1))
    else:
        fits = max(fitting // most, int(fitting >= least))  # where none can grow to its most, one runs at a time
        trials = min(options.concurrency or fits, fits)
    if driver:
        trials = min(trials, _fitting(there, driver))
    asked = f"{most}" if least == most else f"{least}:{most}"
    needs = _text(worker) if most == 1 else f"{asked} x ({_text(worker)})"
    shown = [name for name in worker | driver if name != HEAD]
    counts = Counter(_text({name: node.get(name, 0.0) for name in shown}) for node in there)
    text = " and ".join(f"{count} x {resources}" for resources, count in counts.items())
    if not trials:
        raise ValueError(
            f"--workers-per-trial is {asked}, --gpus-per-trial {worker.get('GPU', 0) * most:g}: a trial takes {needs}, "
            f"and the nodes of the cluster ({text}) have room for {fitting} of its workers"
        )
    text += ", and what the autoscaler adds" if grows else ""
    text = f"nodes: {text}; a trial takes {needs}: {'up to ' * grows}{trials} at a time"
    return Capacity(trials, worker, most if grows else min(most, fitting), driver, text)


def _worker(options: StudyOptions, nodes: Sequence[Resources], grows: bool) -> dict[str, float]:
    """Return the resources of a worker, by default with a GPU where there are any or the cluster says it adds them."""
    (least, most), gpus = options.workers, options.gpus_per_trial
    if gpus is None and _fitting(nodes, {"GPU": 1}) >= (1 if grows else least):
        gpus = float(most)
    elif gpus is None:
        gpus = most * float(os.environ.get(GPUS_PER_WORKER, 0)) if grows else 0.0
    worker = {"CPU": float(options.run.train.threads or 1)} | ({"GPU": gpus / most} if gpus else {})
    return worker | options.resources_per_worker


def _fitting(nodes: Sequence[Resources], need: Resources) -> int:
    """Return how many workers with these resources fit on the nodes."""

    def share(node: Resources, name: str) -> int:
        total, amount = node.get(name, 0), need[name]
        if name == "GPU" and amount < 1:  # no worker shares two GPUs
            return int(total) * int(1 / amount + 1e-9)
        return int(total / amount + 1e-9)

    return sum(min(share(node, name) for name in need) for node in nodes)


def _text(resources: Resources) -> str:
    """Return resources in words, such as `8 CPU + 1 GPU`."""
    there = [f"{amount:g} {name}" for name, amount in resources.items() if amount]
    return " + ".join(there) or f"0 {next(iter(resources))}"


def start_in_worker(function: Callable[..., Any], setup: StudySetup, *arguments: Any) -> ray.ObjectRef:
    """Start a function of the setup and arguments in a worker's process; `result_of` waits for its result."""
    cpus, gpus = setup.worker["CPU"], setup.worker.get("GPU", 0.0)
    others = {name: amount for name, amount in setup.worker.items() if name not in ("CPU", "GPU")}
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, resources=others, max_retries=0)(_call)
    return task.remote(function, setup, *arguments)


def _call(function: Callable[..., Any], setup: StudySetup, *arguments: Any) -> Any:
    setup.apply()
    return function(setup, *arguments)


def result_of(task: ray.ObjectRef, setup: StudySetup, say: Callable[[str], None]) -> Any:
    """Return a task's result; each minute in which no node has room for it, say what the autoscaler does about that."""
    while True:
        try:
            return ray.get(task, timeout=WAIT_S)
        except ray.exceptions.GetTimeoutError:
            if not _fitting([node["Resources"] for node in alive_nodes()], setup.worker):
                say(f"waiting for a node with {_text(setup.worker)}: {autoscaler_status()}")


def autoscaler_status() -> str:
    """Return in words which nodes the autoscaler is starting."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception as error:  # the head may be away for a moment
        return f"the autoscaler does not answer ({error})"
    coming = Counter(node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        coming[launch.ray_node_type_name] += launch.count
    if coming:
        return "the autoscaler starts " + ", ".join(f"{count} x {name}" for name, count in coming.items())
    if status.failed_launches:
        failed = status.failed_launches[-1]
        return f"the autoscaler cannot start {failed.ray_node_type_name}: {failed.details}"
    return "the autoscaler starts none: no type of node has as much, or as many as may be are in use"


def on_every_node(check: Callable[..., str | None], *arguments: Any) -> None:
    """Call a function on every other node that is there.

    Args:
        check: with its arguments; returns what is wrong.

    Raises:
        ValueError: with what is wrong on a node, or for one that does not answer within ten seconds.
    """
    own = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, max_retries=0)(check)
    others = [node["NodeID"] for node in alive_nodes() if node["NodeID"] != own]
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in others]
    answers = [task.options(scheduling_strategy=node).remote(*arguments) for node in there]
    for node, answer in zip(others, answers, strict=True):
        try:
            wrong = ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:  # the package is not installed there, or the node has just gone
            wrong = f"node {node} cannot run eqssl, or does not answer in {ANSWER_S:g} s: {error}"
        if wrong:
            raise ValueError(wrong)
