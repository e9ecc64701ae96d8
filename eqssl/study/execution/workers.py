"""A trial by several workers of Ray Train, which outlive it: processes, process group and data serve the next one too.

Started anew for every trial they cost it the imports of four processes. They ask an exchange for trials and give it the
metrics of every epoch; the trial's own process, which has Tune's ear, takes them from there and says whether the trial
goes on.
"""

import contextlib
import threading
import uuid
from typing import Any

import ray

from eqssl.files import as_path, ray_storage
from eqssl.study.execution.exchange import Exchange, Report, Spec
from eqssl.study.execution.plugins import Plugins, register
from eqssl.study.execution.preemption import NodeWatch, this_node
from eqssl.study.execution.trial import FINAL, LOSSES, TrialContext, attempt

RESIZE_S = 20.0  # between two looks for more room; whoever starts again loses little, see `leaving`


class Stopped(BaseException):
    """The trial does not go on, which is nothing that has gone wrong."""


class Workers:
    """A group of workers, which serves until this process ends.

    Args:
        spec: of a trial; those of all others must be alike in workers and resources.
        plugins: sources and methods that the study's own file registered.
    """

    def __init__(self, spec: Spec, plugins: Plugins):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
        self.exchange = ray.remote(num_cpus=0, scheduling_strategy=here)(Exchange).remote()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, args=(spec, plugins), daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether they take trials."""
        return self._thread.is_alive()

    def _serve(self, spec: Spec, plugins: Plugins) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        least, most = spec["workers"]
        scaling = ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu="GPU" in spec["worker"],
            resources_per_worker=spec["worker"],
            elastic_resize_monitor_interval_s=RESIZE_S,
        )
        run = RunConfig(
            name=f"train-{spec['id']}",
            **ray_storage(as_path(spec["ray_folder"])),
            failure_config=FailureConfig(max_failures=LOSSES),
        )
        config = {"exchange": self.exchange, "plugins": plugins}
        try:
            TorchTrainer(_worker, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
        except Exception as error:
            self.error = error
        self.exchange.close.remote()


_workers: Workers | None = None  # of this process


def train_with_workers(spec: Spec, plugins: Plugins) -> None:
    """Run one trial by the workers of this process, which are started where there are none.

    Args:
        spec: what `runner.trial_spec` made.
        plugins: sources and methods that the study's own file registered.
    """
    from ray import tune
    from ray.train import TrainingFailedError

    global _workers
    if _workers is None or not _workers.alive:
        _workers = Workers(spec, plugins)
    exchange = _workers.exchange
    ray.get(exchange.hand_out.remote(spec))
    ended = False
    while not ended:
        report = ray.get(exchange.take.remote())
        if report is None:
            if not isinstance(_workers.error, TrainingFailedError):
                raise RuntimeError(f"the workers have ended: {_workers.error}")
            report = {FINAL: {"error": str(_workers.error), "warm": False}}
        ended, goes_on = FINAL in report, False
        try:
            tune.report(report)  # where Tune ends the trial, this does not come back
            goes_on = not ended
        finally:
            ray.get(exchange.answer.remote(goes_on))  # before another trial is handed out


def _worker(config: dict[str, Any]) -> None:
    """Serve trials: the loop of every worker."""
    from eqssl.training.distributed import all_gather_object

    register(config["plugins"])
    exchange, after, warm = config["exchange"], 0, False
    while True:
        number, spec = ray.get(exchange.trial.remote(after))
        numbers, nodes, names = zip(*all_gather_object((number, this_node(), uuid.uuid4().hex)), strict=True)
        after = max(numbers)
        if min(numbers) < after:  # another one was handed out between two workers' questions
            after -= 1
            continue
        with contextlib.suppress(Stopped):
            _run(spec, Line(exchange, number, names[0]), set(nodes), warm)
        warm = True


class Line:
    """A worker's line to the exchange during one trial.

    Args:
        exchange: the actor.
        number: of the trial.
        group: a name that the workers share for this trial.
    """

    def __init__(self, exchange: Any, number: int, group: str):
        import ray.train

        place = ray.train.get_context()
        self.rank, self.world_size = place.get_world_rank(), place.get_world_size()
        self._exchange, self._number, self._group, self._count = exchange, number, group, 0

    def tell(self, report: Report) -> None:
        """Report, on all workers.

        Raises:
            Stopped: on all of them, where the trial does not go on.
        """
        self._count += 1
        key = self._number, self._group, self._count
        if not ray.get(self._exchange.report.remote(key, report if self.rank == 0 else None)):
            raise Stopped

    def all_failed(self) -> bool:
        """Return whether the other workers have failed as well."""
        return ray.get(self._exchange.all_failed.remote(self._group, self.world_size))


def _run(spec: Spec, line: Line, nodes: set[str], warm: bool) -> None:
    """Run a worker's part of one trial.

    Args:
        spec: what was handed out.
        line: to the exchange.
        nodes: of all workers.
        warm: whether the process had run a trial before.

    Raises:
        Stopped: on all workers, where the trial does not go on.
        RuntimeError: for an error that this worker alone has met, while others may wait for it in a collective.
    """
    with NodeWatch(nodes if line.rank == 0 else set()) as watch:  # it alone saves the state
        places = line.rank, line.world_size
        context = TrialContext(as_path(spec["folder"]), line.tell, watch, "GPU" in spec["worker"], *places)
        context.warm = warm
        final = attempt(spec, context)
        alone = "error" in final and not line.all_failed()
        if line.rank == 0:
            with contextlib.suppress(Stopped):
                line.tell({FINAL: {**final, "warm": warm}})
        if alone:
            context.note_error(final["error"])
            raise RuntimeError(f"worker {line.rank} alone: {final['error']}")  # Ray starts all of them again
