"""Runs in MLflow; the only file that imports it.

The study's own process logs everything, so that no trial waits for the tracking server and none needs MLflow. Once
training has begun, tracking is never fatal: what cannot be logged is tried again, and counted if it is given up.
"""

import io
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.config import RunConfig, digest, get, identity
from eqssl.files import on_disk, read
from eqssl.images import image_grid
from eqssl.study.execution.trial import ENDED, EPOCHS
from eqssl.study.listener import Listener
from eqssl.study.search.space import Trial
from eqssl.study.store.records import TrialRecord

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
QUEUE = 10_000  # jobs that wait for a server that is away
DESCRIPTION = "mlflow.note.content"  # tag that MLflow shows as a run's description
OUTCOME = "outcome"  # tag of a trial's run
FINAL_STATUS = {"COMPLETE": "FINISHED", "STOPPED": "KILLED", "FAILED": "FAILED"}


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client and the experiment's id, made if it is not there.

    Raises:
        ValueError: for a server that cannot be reached or a URI that MLflow does not take.
    """
    # MLflow's own patience is minutes; ours is the queue below. It looks first whether a run is there: where only the
    # answer was lost, MLflow would make another one.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # between the lines of the progress
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        _make_database(uri)
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client, experiment, _artifacts(uri))
    except Exception as error:  # whatever the store's library raises
        raise ValueError(f"--tracking-uri is {uri!r}, which cannot be used: {_first_line(error)}") from error


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifacts)
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:  # else another process was first
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(f"its experiment {name} was deleted: restore it, or `mlflow gc` it for good")
    return found.experiment_id


def _make_database(uri: str) -> None:
    """Make a database file once, whole or not at all: MLflow cannot use one whose making was cut off."""
    from mlflow import MlflowClient

    from eqssl.data.write import make_once

    path = _database(uri)
    if path is None:
        return

    def make() -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        MlflowClient(tracking_uri=f"{SQLITE}{temporary}").search_experiments(max_results=1)
        temporary.replace(path)

    make_once(path, make)


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def _artifacts(uri: str) -> str | None:
    """Return where files go: beside a database file, so that any working folder finds them; a server knows itself."""
    path = _database(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


class StudyTracker(Listener):
    """A study's parent run and its trials' child runs, found again by their tags after a resume.

    Connecting begins at once in a thread, beside whatever else starts; `ready` waits for it.

    Args:
        uri: as MLflow has it.
        name: of the study, and of the experiment.
        varied: options that are logged with every trial that has them; all others belong to the parent.
        folder: of the study; in `trials/ID` lie a trial's `epochs.json` and `reconstructions.npy`.
    """

    def __init__(self, uri: str, name: str, varied: list[str], folder: Path):
        self._uri, self._name, self._varied, self._folder = uri, name, varied, folder
        self.dropped = 0
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE)
        self._runs: dict[str, tuple[str, int]] = {}  # trial id -> MLflow's id, last step logged
        self._deadline = float("inf")
        self._closing = threading.Event()
        self._connected: tuple[Any, str] | ValueError | None = None
        self._connecting = threading.Thread(target=self._connect, daemon=True)
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._connecting.start()

    def _connect(self) -> None:
        try:
            self._connected = connect(self._uri, self._name)
        except ValueError as error:
            self._connected = error

    def ready(self) -> None:
        """Wait until the server has answered.

        Raises:
            ValueError: if it cannot be reached.
        """
        self._connecting.join()
        if isinstance(self._connected, ValueError):
            raise self._connected
        self._client, self._experiment = self._connected

    def begin(self, study_id: str, base: RunConfig, records: list[TrialRecord], trials: list[Trial]) -> None:
        """Open the parent run, and close what an interrupted study has finished and not logged.

        Args:
            study_id: the tag under which runs are found again.
            base: the options of all trials, but for what is varied.
            records, trials: of the finished ones, empty for a new study.
        """
        self._study_id, self._base = study_id, base
        self._worker.start()
        self._put(self._open_parent)
        by_id = {trial.id: trial for trial in trials}
        for record in records:
            self._put(partial(self._end_trial, by_id[record.trial_id], record))

    def trial_started(self, trial: Trial) -> None:
        self._put(partial(self._run_of, trial, starts=True))

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        self._put(partial(self._log_epoch, trial, dict(metrics), time.time_ns() // 1_000_000))

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self._put(partial(self._end_trial, trial, record))

    def close(self, status: str, files: list[Path], patience_s: float = 30.0, description: str = "") -> None:
        """End the parent run and every child still open, and wait for all that is queued.

        Args:
            status: FINISHED, FAILED or KILLED.
            files: kept with the parent run.
            description: of the parent run: the study's answer, which MLflow shows above its metrics.
            patience_s: how long to go on trying where the server is away.
        """
        self._deadline = time.monotonic() + patience_s
        self._closing.set()
        self._put(partial(self._close, status, files, description))
        self._put(None)
        self._worker.join(patience_s + 10)
        if self._worker.is_alive():  # in a call that does not return
            self.dropped += 1 + self._jobs.qsize()

    def _put(self, job: Callable[[], None] | None) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            wait_s = 1.0
            while not self._done(job):
                if time.monotonic() > self._deadline:
                    self.dropped += 1
                    break
                if self._closing.wait(wait_s):
                    time.sleep(0.5)
                wait_s = min(2 * wait_s, 30.0)

    def _done(self, job: Callable[[], None]) -> bool:
        """Try once; whether the job needs no further attempt."""
        from mlflow.exceptions import MlflowException

        try:
            job()
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":  # no attempt would ever be taken
                self.dropped += 1
                return True
            return False
        except OSError:  # the server is away in one of many ways
            return False
        except Exception:  # ours, so no attempt would ever succeed
            logger.exception("an entry cannot be tracked")
            self.dropped += 1
        return True

    def _find(self, **tags: str) -> Any | None:
        query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([self._experiment], query, max_results=1)
        return found[0] if found else None

    def _open_parent(self) -> None:
        run = self._find(study_id=self._study_id, kind="study")
        if run is None:
            tags = {"study_id": self._study_id, "kind": "study"}
            run = self._client.create_run(self._experiment, tags=tags, run_name=self._name)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        # Found or not: the first attempt may have been cut off.
        _log_params(self._client, run.info.run_id, identity(self._base))
        self._parent = run.info.run_id

    def _run_of(self, trial: Trial, starts: bool = False) -> str:
        """Return the trial's run, found or made; one that had failed runs again where its trial starts."""
        if trial.id in self._runs:
            return self._runs[trial.id][0]
        run = self._find(study_id=self._study_id, trial_id=trial.id)
        last_step = -1
        if run is None:
            tags = {"study_id": self._study_id, "kind": "trial", "trial_id": trial.id}
            tags |= {"mlflow.parentRunId": self._parent, "configuration": trial.configuration.name}
            run = self._client.create_run(self._experiment, tags=tags, run_name=trial.name)
        else:
            history = self._client.get_metric_history(run.info.run_id, "epoch")
            last_step = max((metric.step for metric in history), default=-1)
            if starts or not _has_ended(run):
                self._client.update_run(run.info.run_id, status="RUNNING")
        _log_params(self._client, run.info.run_id, self._params(trial) | {"seed": trial.seed})
        # What waited for the server when a study was killed.
        for metrics in json.loads(read(self._folder / "trials" / trial.id / EPOCHS) or "[]"):
            if metrics["epoch"] > last_step:
                last_step, time_ms = int(metrics["epoch"]), metrics.pop(ENDED)
                _log_metrics(self._client, run.info.run_id, metrics, last_step, time_ms)
        self._runs[trial.id] = run.info.run_id, last_step
        return run.info.run_id

    def _params(self, trial: Trial) -> dict[str, Any]:
        """Return the varied options that the trial has a value of: for one `None`, MLflow takes numbers for words."""
        if trial.configuration.overrides is None:  # no encoder, so that the base's values would not be true of it
            return {}
        config = trial.run_config(self._base)
        values = {option: get(config, option) for option in self._varied}
        return {option: value for option, value in values.items() if value is not None}

    def _log_epoch(self, trial: Trial, metrics: dict[str, float], time_ms: int) -> None:
        run_id, step = self._run_of(trial), int(metrics["epoch"])
        if step > self._runs[trial.id][1]:
            _log_metrics(self._client, run_id, metrics, step, time_ms)
            self._runs[trial.id] = run_id, step

    def _end_trial(self, trial: Trial, record: TrialRecord) -> None:
        run_id = self._run_of(trial)
        run = self._client.get_run(run_id)
        if run.info.status != "RUNNING":
            return
        final = {f"final/{name}": value for name, value in record.metrics.items()}
        final |= {"final/wall_s": record.wall_s, "final/overhead_s": record.overhead_s}
        if not final.keys() <= run.data.metrics.keys():  # else logged before a kill, or only the answer was lost
            _log_metrics(self._client, run_id, final, record.epochs, time.time_ns() // 1_000_000)
        if images := read(self._folder / "trials" / trial.id / "reconstructions.npy"):
            grid = image_grid(np.load(io.BytesIO(images)))
            self._client.log_image(run_id, grid, artifact_file="reconstructions.png")
        if record.error or "error" in run.data.tags:
            self._client.set_tag(run_id, "error", (record.error or "")[:5000])
        # MLflow has no word for what was stopped early. The tag comes last, so that all else is there where it is.
        self._client.set_tag(run_id, OUTCOME, record.status)
        self._client.set_terminated(run_id, FINAL_STATUS[record.status])

    def _close(self, status: str, files: list[Path], description: str) -> None:
        for run_id, _ in self._runs.values():
            if self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, "KILLED")
        _log_metrics(
            self._client, self._parent, {"tracking/dropped": float(self.dropped)}, 0, time.time_ns() // 1_000_000
        )
        if description:
            self._client.set_tag(self._parent, DESCRIPTION, description[:5000])
        for file in files:
            with on_disk(file) as local:
                self._client.log_artifact(self._parent, str(local))
        self._client.set_terminated(self._parent, status)


def _has_ended(run: Any) -> bool:
    """Return whether a trial's run has its outcome, rather than having been closed with an interrupted study."""
    return run.info.status == FINAL_STATUS.get(run.data.tags.get(OUTCOME))


@contextmanager
def track_run(
    uri: str, experiment: str, config: RunConfig, *, resume: bool = False
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Log a single run outside a study; yields what takes an epoch's metrics.

    A server that goes away later costs its metrics and no training.

    Args:
        uri: as MLflow has it.
        experiment: made if it is not there.
        config: logged as flat parameters.
        resume: go on with the last run of this configuration that was cut off.

    Raises:
        ValueError: if the server cannot be reached.
    """
    client, experiment_id = connect(uri, experiment)
    tags = {"kind": "run", "config": digest(config)}
    query = f"tags.config = '{tags['config']}' and attributes.status != 'FINISHED'"
    found = client.search_runs([experiment_id], query, max_results=1) if resume else []
    run = found[0] if found else client.create_run(experiment_id, tags=tags)
    run_id = run.info.run_id
    client.update_run(run_id, status="RUNNING")
    _log_params(client, run_id, identity(config))

    def log(metrics: dict[str, float]) -> None:
        try:
            _log_metrics(client, run_id, metrics, int(metrics["epoch"]), time.time_ns() // 1_000_000)
        except Exception as error:  # whatever the store's library raises
            logger.warning("epoch %d is not tracked: %s", metrics["epoch"], _first_line(error))

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        with suppress(Exception):
            client.set_terminated(run_id, status)


def _log_params(client: Any, run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])


def _log_metrics(client: Any, run_id: str, metrics: dict[str, float], step: int, time_ms: int) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(name, value, time_ms, step) for name, value in metrics.items()])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
