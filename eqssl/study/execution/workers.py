"""Several workers for a trial, through Ray Train; their processes, process group and data serve the next trial too.

New workers for every trial would cost it the imports of all processes, about 30 s. The trial's own process, its driver,
is Tune's actor. It hands the trial out through a broker, passes each record on to Tune and answers whether the trial
continues. Only rank 0 talks to the broker; it broadcasts the answers to the other workers.
"""

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any

import ray

from eqssl.config import RunConfig
from eqssl.files import as_path, ray_storage
from eqssl.study.execution.preemption import start_here, this_node
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.trial import RESET_S, TrialContext, attempt, report_to_tune
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord

RESIZE_S = 20.0  # between two attempts to grow an elastic trial; a restart loses little, see `preemption`
NODES_S = str(7 * 24 * 3600)  # for a fixed number of workers to find room: queueing is not a failure
IDLE_S = 60.0  # without a trial, after which workers make room for those of another driver, to avoid a deadlock
STARTS = 3  # attempts to start elastic workers that find no room
COLLECTIVE_S = 4 * 3600  # for other ranks while rank 0 evaluates; Ray detects a dead process without a timeout
Job = tuple[Trial, RunConfig]


class Stopped(BaseException):
    """The trial does not continue, which is not an error."""


class TrialBroker:
    """Connects a trial's driver and rank 0 of its workers; an actor on the driver's node."""

    def __init__(self) -> None:
        self._number = 0
        self._job: Job | None = None  # the running trial
        self._closed = False
        self._changed = asyncio.Condition()
        self._records: asyncio.Queue[tuple[TrialRecord, asyncio.Future[bool]] | None] = asyncio.Queue()
        self._answer: asyncio.Future[bool]  # to the record taken last

    async def hand_out(self, job: Job) -> bool:
        """Give the workers a trial; return False if they have ended."""
        async with self._changed:
            if not self._closed:
                self._number, self._job = self._number + 1, job
                self._changed.notify_all()
            return not self._closed

    async def next_trial(self, after: int) -> tuple[int, Job | None]:
        """Wait for a running trial with a higher number and return both; trial None: the workers are to end."""
        async with self._changed:
            while self._job is None or self._number <= after:
                try:
                    await asyncio.wait_for(self._changed.wait(), IDLE_S)
                except TimeoutError:
                    self._closed = True
                    break
            return self._number, None if self._closed else self._job

    async def report(self, number: int, record: TrialRecord) -> bool:
        """Return whether the trial of that number continues, once its driver has answered."""
        if self._job is None or number != self._number:  # from workers that have been restarted since
            return False
        answer = asyncio.get_running_loop().create_future()
        self._records.put_nowait((record, answer))
        return await answer

    async def take(self) -> TrialRecord | None:
        """Wait for a record and return it, to be answered by `answer`; None: the workers have ended."""
        taken = await self._records.get()
        if taken is None:
            return None
        record, self._answer = taken
        return record

    async def answer(self, continues: bool) -> None:
        """Answer the last record; a trial that does not continue is not handed out again."""
        if not self._answer.done():
            self._answer.set_result(continues)
        if not continues:
            self._job = None

    async def close(self) -> None:
        """Note that the workers have ended."""
        self._closed = True
        self._records.put_nowait(None)


class WorkerGroup:
    """Workers for one trial after another, until a failure, a minute without a trial, or the end of this process.

    Args:
        name: name of the Ray Train run.
        setup: the study's setup.
    """

    def __init__(self, name: str, setup: StudySetup):
        self.broker = start_here(TrialBroker)
        self.error = "the workers have ended"
        self._thread = threading.Thread(target=self._serve, args=(name, setup), daemon=True)
        self._thread.start()

    def hand_out(self, job: Job) -> bool:
        """Give the workers a trial; if they have ended, return False once they have made room."""
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
        # Only Tune counts failures, including those of imports and of the process group, which Ray Train would silently
        # retry forever. Ray Train still restarts workers by itself after a node's notice, and elastic ones whose room
        # was taken before they started.
        if least == most:
            os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = NODES_S
        retries: dict[str, Any] = {"max_failures": 0, "controller_failure_limit": 0 if least == most else STARTS}
        storage = ray_storage(as_path(setup.folder) / ".ray")
        trainer = TorchTrainer(
            _serve_trials,
            train_loop_config={"broker": self.broker, "setup": setup},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_S),
            scaling_config=ScalingConfig(**scaling),
            run_config=RunConfig(name=name, **storage, failure_config=FailureConfig(**retries)),
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
    """Run one trial on this process's workers, started if necessary; Tune's trainable for several workers.

    Args:
        config: `trial` and its `run`, a RunConfig.
        setup: the study's setup.

    Raises:
        RuntimeError: if the workers fail.
    """
    global _group
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", RESET_S)
    job = config["trial"], config["run"]
    if _group is None or not _group.hand_out(job):
        _group = WorkerGroup(f"train-{config['trial'].id}", setup)
        _group.hand_out(job)
    broker, continues = _group.broker, True
    while continues:
        record: TrialRecord | None = ray.get(broker.take.remote())
        if record is None:
            raise RuntimeError(_group.error)
        continues = False
        try:
            report_to_tune(record)
            continues = record.status == "STOPPED"
        finally:
            ray.get(broker.answer.remote(continues))  # before another trial is handed out


def _serve_trials(config: dict[str, Any]) -> None:
    """Train one trial after another: the function that every worker runs."""
    import ray.train

    from eqssl.distributed import all_gather_object

    broker: Any = config["broker"]
    setup: StudySetup = config["setup"]
    place = ray.train.get_context()
    rank, world_size = place.get_world_rank(), place.get_world_size()
    nodes = set(all_gather_object(this_node()))
    number, warm = 0, False

    def tell(record: TrialRecord) -> None:
        continues: Any = ray.get(broker.report.remote(number, record)) if rank == 0 else None
        if not all_gather_object(continues)[0]:
            raise Stopped

    while True:
        asked: Any = ray.get(broker.next_trial.remote(number)) if rank == 0 else None
        number, job = all_gather_object(asked)[0]
        if job is None:
            return
        setup.apply()
        trial, run = job
        context = TrialContext(trial, setup, tell, nodes, rank=rank, world_size=world_size, warm=warm)
        with suppress(Stopped), context:
            tell(attempt(trial, run, context))
        warm = True
