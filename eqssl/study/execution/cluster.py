"""Ray: starting it or connecting to it, the number of trials at a time, and calling functions on its nodes."""

import gc
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
from eqssl.study.execution.stop import hold_sigterm
from eqssl.study.options import StudyOptions
from eqssl.training.memory import children_keep_freed

RAY_VERSION = "2.60.0"  # used by the tests and ray_cluster.yaml
HEAD = "node:__internal_head__"  # a resource that only the head has
NODE_GROUP = "ray.io/node-group"  # a label that nodes have in a cluster with an autoscaler
GPUS_PER_WORKER = "EQSSL_GPUS_PER_WORKER"  # environment variable for a cluster whose autoscaler adds nodes with GPUs
QUEUED = 200  # trials at a time, running or waiting for an autoscaler's nodes
QUEUED_LEARNING = 8  # the same limit if later trials depend on earlier ones, or each has a driver in the head's memory
ANSWER_S, WAIT_S = 180.0, 60.0  # for nodes to answer, importing torch from a cold disk; between two messages
CONNECT_S = 25.0  # for the head at RAY_ADDRESS to answer; Ray itself tries for 14 minutes
MAX_STARTS = 3  # attempts to start Ray on this machine: under load, a start exceeds Ray's fixed 30 s
Resources = Mapping[str, float]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capacity:
    """The number of trials at a time, and the resources of each.

    Args:
        trials: number of trials at a time.
        worker: resources of one worker, under Ray's names.
        workers: maximum number of workers per trial.
        driver: resources of a trial's driver process, if it has several workers.
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
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine.

    Raises:
        ValueError: if Ray cannot be started or reached.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the study has its own records
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")  # and it never restores Tune's state
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints tables at any verbosity
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # see `StopSignals`
    ours = not ray.is_initialized()
    if ours:
        _start_or_connect()
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the progress shows failures
    try:
        yield
    finally:
        if ours:
            _shut_down()


def _shut_down() -> None:
    """Shut Ray down without another thread's garbage collection.

    Tune leaves cycles with references to Ray's objects. If a thread, such as the one that sends to MLflow, frees one
    while Ray shuts down, Ray ends this process at once, with exit code 1.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if enabled:
            gc.enable()


def _start_or_connect() -> None:
    address = os.environ.get("RAY_ADDRESS")
    _check_answers(address)
    for attempt in range(1, MAX_STARTS + 1):
        try:
            with hold_sigterm(), children_keep_freed():
                # The dashboard would cost .7 s and a process, and shows nothing of a study that its terminal does not.
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            return
        except Exception as error:  # no cluster, other Ray or Python, wrong token; Ray raises bare exceptions too
            ray.shutdown()
            elsewhere = address not in (None, "", "local")
            if elsewhere or "timed out" not in str(error) or attempt == MAX_STARTS:
                where = f"RAY_ADDRESS is {address or 'not given'}"
                raise ValueError(f"Ray {ray.__version__} cannot be started ({where}): {error}") from error
            logger.warning("Ray did not start within 30 s: attempt %d of %d", attempt + 1, MAX_STARTS)


def _check_answers(address: str | None) -> None:
    """Refuse an address HOST:PORT at which no gRPC server answers; other forms, and TLS, are left to Ray.

    Raises:
        ValueError: after `CONNECT_S`.
    """
    if not address or "://" in address or ":" not in address or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    import grpc  # comes with ray[default]

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_S)
        except grpc.FutureTimeoutError:
            raise ValueError(
                f"RAY_ADDRESS is {address}, and no Ray answers there within {CONNECT_S:g} s; allowed: HOST:PORT of a "
                "head's `ray start --head --port PORT` (6379; the dashboard's 8265 is for `ray job submit` alone), or "
                "no RAY_ADDRESS, which starts Ray on this machine"
            ) from None


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def capacity(options: StudyOptions, nodes: Sequence[Mapping[str, Any]], left: int) -> Capacity:
    """Return the number of trials at a time: all that fit on the nodes, or a longer queue if an autoscaler adds nodes.

    An autoscaler adds nodes only for trials that wait in Ray's queue. A trial with several workers also has a driver,
    which reserves no CPU or GPU, so that it never holds the resources that workers wait for.

    Args:
        options: workers, resources and concurrency asked for.
        nodes: `Resources` and `Labels` of each live node.
        left: number of trials to come.

    Raises:
        ValueError: if a trial does not fit and there is no autoscaler.
    """
    grows = any(NODE_GROUP in node["Labels"] for node in nodes)
    there = [node["Resources"] for node in nodes]
    worker = _worker(options, there, grows)
    (least, most), fitting = options.workers, room_for(there, worker)
    driver: dict[str, float] = {}
    if most > 1:
        driver = {"train_driver": 1.0} if room_for(there, {"train_driver": 1}) else {HEAD: 0.001}
    if grows:
        few = options.sampler in LEARNING or HEAD in driver
        trials = min(options.concurrency or (QUEUED_LEARNING if few else QUEUED), max(left, 1))
    else:
        fits = max(fitting // most, int(fitting >= least))  # a single elastic trial may have less than its maximum
        trials = min(options.concurrency or fits, fits)
    if driver:
        trials = min(trials, room_for(there, driver))
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
    text += ", and more from the autoscaler" if grows else ""
    text = f"nodes: {text}; a trial takes {needs}: {'up to ' * grows}{trials} at a time"
    return Capacity(trials, worker, most if grows else min(most, fitting), driver, text)


def _worker(options: StudyOptions, nodes: Sequence[Resources], grows: bool) -> dict[str, float]:
    """Return the resources of a worker, by default with a GPU if there are GPUs or the autoscaler adds them."""
    (least, most), gpus = options.workers, options.gpus_per_trial
    if gpus is None and room_for(nodes, {"GPU": 1}) >= (1 if grows else least):
        gpus = float(most)
    elif gpus is None:
        gpus = most * float(os.environ.get(GPUS_PER_WORKER, 0)) if grows else 0.0
    worker = {"CPU": float(options.run.train.threads or 1)} | ({"GPU": gpus / most} if gpus else {})
    return worker | options.resources_per_worker


def room_for(nodes: Sequence[Resources], need: Resources) -> int:
    """Return how many workers with these resources fit on all nodes together."""

    def share(node: Resources, name: str) -> int:
        total, amount = node.get(name, 0), need[name]
        if name == "GPU" and amount < 1:  # no worker spans two GPUs
            return int(total) * int(1 / amount + 1e-9)
        return int(total / amount + 1e-9)

    return sum(min(share(node, name) for name in need) for node in nodes)


def _text(resources: Resources) -> str:
    """Return resources in words, such as `8 CPU + 1 GPU`."""
    there = [f"{amount:g} {name}" for name, amount in resources.items() if amount]
    return " + ".join(there) or f"0 {next(iter(resources))}"


def start_in_worker(worker: Resources, function: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
    """Start a function with the resources of a worker; `result_of` waits for its result."""
    others = {name: amount for name, amount in worker.items() if name not in ("CPU", "GPU")}
    task = ray.remote(num_cpus=worker["CPU"], num_gpus=worker.get("GPU", 0), resources=others, max_retries=0)(function)
    return task.remote(*arguments)


def result_of(task: ray.ObjectRef, worker: Resources, say: Callable[[str], None]) -> Any:
    """Return the result of the checks in a worker; report every minute that they run, or which node they wait for."""
    minutes = 0
    while True:
        try:
            return ray.get(task, timeout=WAIT_S)
        except ray.exceptions.GetTimeoutError:
            minutes += 1
            if room_for([node["Resources"] for node in alive_nodes()], worker):
                say(f"after {minutes} min: a worker prepares the data, checks the options on them and times an epoch")
            else:
                say(f"waiting for a node with {_text(worker)}: {autoscaler_status()}")
        except ray.exceptions.WorkerCrashedError as error:
            raise ValueError(
                "the process that checked data and options died, perhaps for lack of memory; allowed: smaller "
                "--train.batch-size or data, or more memory"
            ) from error


def autoscaler_status() -> str:
    """Return in words why work waits for a node."""
    if not any(NODE_GROUP in node["Labels"] for node in alive_nodes()):
        return "all are in use"
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception as error:  # the head may be unreachable for a moment
        return f"the autoscaler does not answer ({error})"
    coming = Counter(node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        coming[launch.ray_node_type_name] += launch.count
    if coming:
        return "the autoscaler starts " + ", ".join(f"{count} x {name}" for name, count in coming.items())
    if status.failed_launches:
        failed = status.failed_launches[-1]
        return f"the autoscaler cannot start {failed.ray_node_type_name}: {failed.details}"
    return "the autoscaler starts none: no node type is large enough, or the maximum of nodes is in use"


def on_every_node(check: Callable[..., str | None], *arguments: Any) -> None:
    """Call a function on every node but this one.

    Args:
        check, arguments: the function and its arguments; it returns an error, or None.

    Raises:
        ValueError: with the first error, or for a node that does not answer within three minutes.
    """
    own = ray.get_runtime_context().get_node_id()
    task = ray.remote(num_cpus=0, max_retries=0)(check)
    others = [node["NodeID"] for node in alive_nodes() if node["NodeID"] != own]
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in others]
    answers = [task.options(scheduling_strategy=node).remote(*arguments) for node in there]
    for node, answer in zip(others, answers, strict=True):
        try:
            wrong = ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:  # such as if the package or a user's module is missing
            if node not in {alive["NodeID"] for alive in alive_nodes()}:  # it has just left
                continue
            last = str(error).strip().rpartition("\n")[2]
            wrong = f"node {node} cannot run trials, or does not answer in {ANSWER_S:g} s: {last}"
        if wrong:
            raise ValueError(wrong)
