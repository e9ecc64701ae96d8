"""A trial by several workers of Ray Train, which outlive it: processes, process group and data serve the next one too.

Started anew for every trial they cost it the imports of all their processes. The trial's own process, its driver, runs
in Tune's actor. It hands the trial out through a broker, takes its records from there, passes them on to Tune and
answers whether the trial goes on. Of the workers rank 0 alone talks to the broker, and tells the others.
"""

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any

import ray

from eqssl.config import RunConfig
from eqssl.files import as_path, ray_storage
from eqssl.study.execution.preemption import SaveSchedule, start_here, this_node
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.trial import RESET_S, TrialContext, attempt, report_to_tune
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord

RESIZE_S = 20.0  # between two looks for more room; workers that start again lose little, see `preemption`
IDLE_S = 60.0  # without a trial, after which workers end: those of another driver may wait for their place
COLLECTIVE_S = 4 * 3600  # for the others while rank 0 evaluates; a process that dies is found out without
Job = tuple[Trial, RunConfig]


class Stopped(BaseException):
    """The trial does not go on, which is no error."""


class TrialBroker:
    """The meeting place of a trial's driver and rank 0 of its workers: an actor, on the node of the former."""

    def __init__(self) -> None:
        self._number = 0
        self._job: Job | None = None  # the trial that is on
        self._closed = False
        self._changed = asyncio.Condition()
        self._records: asyncio.Queue[tuple[TrialRecord, asyncio.Future[bool]] | None] = asyncio.Queue()
        self._answer: asyncio.Future[bool]  # to the record that was taken

    async def hand_out(self, job: Job) -> bool:
        """Give the workers a trial; return whether there still are any."""
        async with self._changed:
            if not self._closed:
                self._number, self._job = self._number + 1, job
                self._changed.notify_all()
            return not self._closed

    async def next_trial(self, after: int) -> tuple[int, Job | None]:
        """Wait for a trial that is on and has a higher number, and return both; no trial: there was none for long."""
        async with self._changed:
            while self._job is None or self._number <= after:
                try:
                    await asyncio.wait_for(self._changed.wait(), IDLE_S)
                except TimeoutError:
                    self._closed = True
                    break
            return self._number, None if self._closed else self._job

    async def report(self, number: int, record: TrialRecord) -> bool:
        """Return whether the trial of that number goes on, once its driver knows."""
        if self._job is None or number != self._number:  # as from workers that were started again since
            return False
        answer = asyncio.get_running_loop().create_future()
        self._records.put_nowait((record, answer))
        return await answer

    async def take(self) -> TrialRecord | None:
        """Wait for a record, which stays without an answer until `answer`; None: there are no workers any more."""
        taken = await self._records.get()
        if taken is None:
            return None
        record, self._answer = taken
        return record

    async def answer(self, goes_on: bool) -> None:
        """Answer the record that was taken; a trial that does not go on is nobody's any more."""
        if not self._answer.done():
            self._answer.set_result(goes_on)
        if not goes_on:
            self._job = None

    async def close(self) -> None:
        """Take note that there are no workers any more."""
        self._closed = True
        self._records.put_nowait(None)


class WorkerGroup:
    """Workers that serve one trial after another, until one fails, there is none for long, or this process ends."""

    def __init__(self, name: str, setup: StudySetup):
        self.broker = start_here(TrialBroker)
        self.error = "the workers have ended"
        self._thread = threading.Thread(target=self._serve, args=(name, setup), daemon=True)
        self._thread.start()

    def hand_out(self, job: Job) -> bool:
        """Give the workers a trial; return whether there still are any, and if not, when they have left their place."""
        taken: bool = ray.get(self.broker.hand_out.remote(job))
        if not taken:
            self._thread.join()
        return taken

    def _serve(self, name: str, setup: StudySetup) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

        least, most = setup.workers
        scaling: dict[str, Any] = {
            "num_workers": most if least == most else (least, most),
            "use_gpu": setup.gpu,
            "resources_per_worker": dict(setup.worker),
            "elastic_resize_monitor_interval_s": RESIZE_S,
        }
        # Failures are counted in one place, by Tune; a node that leaves after a notice is none.
        storage = ray_storage(as_path(setup.folder) / ".ray")
        trainer = TorchTrainer(
            _serve_trials,
            train_loop_config={"broker": self.broker, "setup": setup},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_S),
            scaling_config=ScalingConfig(**scaling),
            run_config=RunConfig(name=name, **storage, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            failures = [error.worker_failures[rank] for rank in sorted(error.worker_failures)]
            died = any(isinstance(failure, ray.exceptions.RayActorError) for failure in failures)
            self.error = "the process of a worker died" if died else str(failures[0])
        except Exception as error:
            self.error = str(error)
        self.broker.close.remote()


_group: WorkerGroup | None = None  # of this process


def run_with_workers(config: dict[str, Any], setup: StudySetup) -> None:
    """Run one trial by the workers of this process, started if necessary; Tune's trainable for several workers.

    Args:
        config: `trial` and its `run`, a RunConfig.
        setup: of the study.

    Raises:
        RuntimeError: for workers that have ended.
    """
    global _group
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", RESET_S)
    job = config["trial"], config["run"]
    if _group is None or not _group.hand_out(job):
        _group = WorkerGroup(f"train-{config['trial'].id}", setup)
        _group.hand_out(job)
    broker, goes_on = _group.broker, True
    while goes_on:
        record: TrialRecord | None = ray.get(broker.take.remote())
        if record is None:
            raise RuntimeError(_group.error)
        goes_on = False
        try:
            report_to_tune(record)
            goes_on = record.status == "STOPPED"
        finally:
            ray.get(broker.answer.remote(goes_on))  # before another trial is handed out


def _serve_trials(config: dict[str, Any]) -> None:
    """Train one trial after another: the loop of every worker."""
    import ray.train

    from eqssl.distributed import all_gather_object

    broker: Any = config["broker"]
    setup: StudySetup = config["setup"]
    place = ray.train.get_context()
    rank, world_size = place.get_world_rank(), place.get_world_size()
    nodes = set(all_gather_object(this_node()))
    number, warm = 0, False

    def tell(record: TrialRecord) -> None:
        goes_on: Any = ray.get(broker.report.remote(number, record)) if rank == 0 else None
        if not all_gather_object(goes_on)[0]:
            raise Stopped

    while True:
        asked: Any = ray.get(broker.next_trial.remote(number)) if rank == 0 else None
        number, job = all_gather_object(asked)[0]
        if job is None:
            return
        setup.apply()
        trial, run = job
        # Rank 0 alone saves the state.
        with suppress(Stopped), SaveSchedule(trial.id, nodes, setup.save_notice if rank == 0 else None) as schedule:
            context = TrialContext(trial, setup, tell, schedule, rank=rank, world_size=world_size, warm=warm)
            tell(attempt(trial, run, context))
        warm = True
