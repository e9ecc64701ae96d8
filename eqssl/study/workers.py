"""A trial by several workers of Ray Train, which outlive it: processes, process group and data serve the next one too.

Started anew for every trial they cost it the imports of four processes. They ask an exchange for trials and give it the
metrics of every epoch; the trial's own process, which has Tune's ear, takes them from there and says whether the trial
goes on.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from eqssl.files import as_path, ray_storage
from eqssl.study.plugins import Plugins, register
from eqssl.study.trial import FINAL, LOSSES, TrialContext, attempt

RESIZE_S = 20.0  # between two looks for more room; whoever starts again loses little, see `leaving`
Spec = dict[str, Any]


class Exchange:
    """Where a trial's own process and its workers meet; an actor, on the node of the former."""

    def __init__(self):
        self._number, self._spec = 0, None
        self._handed_out = asyncio.Condition()
        self._reports: asyncio.Queue[tuple[dict[str, Any] | None, asyncio.Future]] = asyncio.Queue()
        self._asked: asyncio.Future | None = None  # of the report that was taken

    async def hand_out(self, spec: Spec) -> None:
        """Give the workers a trial."""
        async with self._handed_out:
            self._number, self._spec = self._number + 1, spec
            self._handed_out.notify_all()

    async def trial(self, after: int) -> tuple[int, Spec]:
        """Wait for a trial that is still on, and later than that number; return its own and what was handed out."""
        async with self._handed_out:
            await self._handed_out.wait_for(lambda: self._spec is not None and self._number > after)
            return self._number, self._spec

    async def report(self, report: dict[str, Any] | None) -> bool:
        """Return whether the trial goes on, once the trial's own process knows; None: there are no workers any more."""
        if self._spec is None and report is not None:
            return False
        goes_on = asyncio.get_running_loop().create_future()
        self._reports.put_nowait((report, goes_on))
        return await goes_on

    async def take(self) -> dict[str, Any] | None:
        """Wait for a report; it stays without an answer until `answer`."""
        report, self._asked = await self._reports.get()
        return report

    async def answer(self, goes_on: bool) -> None:
        """Answer the report that was taken; a trial that does not go on is nobody's any more."""
        self._asked.set_result(goes_on)
        if not goes_on:
            self._spec = None
            while not self._reports.empty():  # of workers that died and of those that took their places
                self._reports.get_nowait()[1].set_result(False)


class Stopped(BaseException):
    """The trial does not go on, which is nothing that has gone wrong."""


class Workers:
    """A group of workers, which serves until this process ends.

    Args:
        spec: of a trial; those of all others must be alike in workers and resources.
        plugins: sources and methods that the study's own file registered.
    """

    def __init__(self, spec: Spec, plugins: Plugins):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
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
        self.exchange.report.remote(None)


_workers: Workers | None = None  # of this process


def train_with_workers(spec: Spec, plugins: Plugins) -> None:
    """Run one trial by the workers of this process, which are started where there are none.

    Args:
        spec: what `runner.trial_spec` made.
        plugins: sources and methods that the study's own file registered.
    """
    import ray
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
    import ray

    register(config["plugins"])
    exchange, number, warm = config["exchange"], 0, False
    while True:
        number, spec = ray.get(exchange.trial.remote(number))
        with contextlib.suppress(Stopped):
            _run(spec, lambda report: ray.get(exchange.report.remote(report)), warm)
        warm = True


def _run(spec: Spec, ask: Callable[[dict[str, Any]], bool], warm: bool) -> None:
    """Run a worker's part of one trial.

    Args:
        spec: what was handed out.
        ask: gives a report to the exchange and returns whether the trial goes on.
        warm: whether the process had run a trial before.

    Raises:
        Stopped: on all workers, where it does not go on.
    """
    import ray.train

    from eqssl.distributed import objects_of_all
    from eqssl.study.leaving import NodeWatch, this_node

    place = ray.train.get_context()
    rank, world_size = place.get_world_rank(), place.get_world_size()

    def tell(report: dict[str, Any]) -> None:
        if not objects_of_all(ask(report) if rank == 0 else None)[0]:
            raise Stopped

    nodes = set(objects_of_all(this_node()))
    with NodeWatch(nodes if rank == 0 else set()) as watch:  # it alone saves the state
        context = TrialContext(as_path(spec["folder"]), tell, watch, "GPU" in spec["worker"], rank, world_size)
        context.warm = warm
        final = attempt(spec, context)
        if rank == 0:
            ask({FINAL: {**final, "warm": warm}})
