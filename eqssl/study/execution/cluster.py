"""Ray, started or joined, and how many trials it has room for."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eqssl.study.execution.environment import go_to
from eqssl.study.execution.nodes import HEAD, Cluster, Nodes, Resources, add_types, amounts, read_config, untold
from eqssl.study.options import StudyOptions
from eqssl.training.memory import children_keep_freed

RAY_VERSION = "2.60.0"  # what the tests ran with and ray_cluster.yaml installs
ANSWER_S = 10.0
TUNES_NAMES = {"CPU": "cpu", "GPU": "gpu"}


@dataclass(frozen=True)
class Room:
    """How many trials the cluster holds.

    Args:
        trials: at a time.
        worker: resources of one worker, in Ray's names.
        workers: of each trial, at most.
        resources: that Ray reserves for a trial's own process, in Tune's names.
        text: the arithmetic in words.
    """

    trials: int
    worker: dict[str, float]
    workers: int
    resources: dict[str, float]
    text: str

    @property
    def cpus(self) -> float:
        """Of one trial."""
        return self.workers * self.worker["CPU"]

    @property
    def gpus(self) -> float:
        """Of one trial."""
        return self.workers * self.worker.get("GPU", 0.0)


@contextmanager
def ray_running(config: str | None = None) -> Iterator[Cluster]:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine; yield what the cluster is at most.

    Args:
        config: file with the cluster's node types; default: that of the autoscaler on its head.

    Raises:
        ValueError: for a cluster that cannot be joined.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our own record is the only one
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints tables even if told to be silent
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # signals are ours, see `StopSignals`
    ours = not ray.is_initialized()
    if ours:
        _join_or_start()
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failed trial is told by us, once
    try:
        yield cluster_at_most(config)
    finally:
        if ours:
            ray.shutdown()


def _join_or_start() -> None:
    try:
        with children_keep_freed():  # trials, where Ray is started here
            ray.init(log_to_driver=False, logging_level="error")
    except Exception as error:  # no cluster there, another Ray or Python, a wrong token; of many kinds, bare ones too
        address = os.environ.get("RAY_ADDRESS", "not given")
        raise ValueError(f"Ray {ray.__version__} cannot be started (RAY_ADDRESS is {address}): {error}") from error


def cluster_at_most(config: str | None) -> Cluster:
    """Return what the cluster that was joined can become.

    Args:
        config: file with its node types; None: the one of the autoscaler that runs on the head, if there is one.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    head = next(node for node in alive if HEAD in node["Resources"])
    if config:
        types = read_config(config)
    elif head["NodeID"] == ray.get_runtime_context().get_node_id():  # as on a laptop, or in a job: no worker is needed
        types = _autoscaler_config()
    else:
        on_head = ray.remote(num_cpus=0, resources={HEAD: 0.001})(_autoscaler_config)
        types = ray.get(on_head.remote())
    if types and not untold(types):  # a cluster of machines that somebody owns tells nothing and adds nothing
        return add_types([Nodes(1, head["Resources"])], types)
    return Cluster([Nodes(1, node["Resources"]) for node in alive])


def _autoscaler_config() -> dict[str, Any] | None:
    """Return the configuration of the autoscaler of this head: nothing but its command line says where that is."""
    address = ray.get_runtime_context().gcs_address
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            options = dict(part.partition("=")[::2] for part in process.read_bytes().decode().split("\0"))
        except (OSError, UnicodeDecodeError):
            continue
        if options.get("--gcs-address") == address and "--autoscaling-config" in options:
            return read_config(options["--autoscaling-config"])
    return None


def cpus_per_worker(options: StudyOptions) -> int:
    """Return the CPUs that Ray reserves for each worker of a trial."""
    return options.run.train.threads or 1


def room(options: StudyOptions, cluster: Cluster) -> Room:
    """Return how many trials the cluster holds at a time.

    Args:
        options: workers, resources and concurrency asked for.
        cluster: with all that its autoscaler may add, or it would never grow.

    Raises:
        ValueError: for a trial that the cluster can never hold.
    """
    (least, most), gpus = options.workers, options.gpus_per_trial
    if gpus is None:
        gpus = float(most) if cluster.hold({"GPU": 1}) >= least else 0.0
    worker = {"CPU": cpus_per_worker(options)} | ({"GPU": gpus / most} if gpus else {}) | options.resources_per_worker
    asked = f"{most}" if least == most else f"{least}:{most}"
    driver = {}
    if most > 1:  # a driver must never hold what its workers wait for
        driver = {"train_driver": 1.0} if cluster.hold({"train_driver": 1}) else {HEAD: 0.001}
    hold = cluster.hold(worker)
    fits = max(hold // most, int(hold >= least))  # where not even one can grow to its most, one runs at a time
    trials = min(fits, cluster.hold(driver) if driver else fits, options.concurrency or fits)
    shown = [name for name in worker | driver if name != HEAD]
    needs = amounts(worker, shown)
    if most > 1:
        needs = f"{asked} x ({needs})" + (" + 1 train_driver" if "train_driver" in driver else "")
    if not trials:
        raise ValueError(
            f"--workers-per-trial is {asked}, --gpus-per-trial {gpus:g}: a trial takes {needs}, and the nodes of the "
            f"cluster ({cluster.text(shown)}) have room for {hold} of its workers, now and later"
        )
    text = f"nodes: {cluster.text(shown)}; a trial takes {needs}: {trials} at a time"
    if options.concurrency == trials:
        text += " by --concurrency"
    own = driver or {TUNES_NAMES.get(name, name): amount for name, amount in worker.items()}
    return Room(trials, worker, min(most, hold), own, text)


def start_in_worker(function: Callable[..., Any], worker: Resources, *arguments: Any) -> ray.ObjectRef:
    """Start a function in a process of the cluster; `ray.get` waits for what it returns.

    Args:
        function: with its arguments.
        worker: resources that it reserves.
    """
    others = {name: amount for name, amount in worker.items() if name not in TUNES_NAMES}
    task = ray.remote(num_cpus=worker["CPU"], num_gpus=worker.get("GPU", 0), resources=others, max_retries=0)(_call)
    return task.remote(os.getcwd(), function, *arguments)


def _call(cwd: str, function: Callable[..., Any], *arguments: Any) -> Any:
    go_to(cwd)
    return function(*arguments)


def on_every_node(check: Callable[..., str | None], *arguments: Any) -> None:
    """Call a function on every other node that is there.

    Args:
        check: with its arguments; returns what is wrong.

    Raises:
        ValueError: with what is wrong on a node, or for one that cannot say so within ten seconds.
    """
    own = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    task = ray.remote(num_cpus=0, max_retries=0)(check)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments): node
        for node in others
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    for answer in answered:
        try:
            wrong = ray.get(answer)
        except ray.exceptions.RayError as error:  # the package is not installed there, or the node has just gone
            wrong = f"node {asked[answer]} cannot run eqssl: {error}"
        if wrong:
            raise ValueError(wrong)
    if silent:
        raise ValueError(f"nodes that did not answer in {ANSWER_S:g} s: {', '.join(asked[one] for one in silent)}")
