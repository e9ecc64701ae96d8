"""A study's runs in MLflow.

A thread of the study's process logs everything: no trial waits for the tracking server, and no worker needs MLflow.
Entries queue up in a file, however many there are and however slow the server is. A store that cannot be used is
refused before training begins. Otherwise tracking is never fatal: without MLflow nothing is tracked, with a warning; a
failed entry is retried, and counted if it is given up; a resume of the study logs it from the trials' files.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqssl.config import RunConfig, get, identity, replace
from eqssl.files import on_disk, parse_or_set_aside, read
from eqssl.images import image_grid, read_arrays
from eqssl.study.listener import Listener
from eqssl.study.search.space import Params, Trial
from eqssl.study.store.records import ENDED, EPOCHS, TrialRecord
from eqssl.tracking.connection import NoMLflow, connect, import_mlflow, log_metrics, log_params, now_ms, title_of
from eqssl.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

PAGE = 200  # runs of one request, as the answer has to come within the timeout
STOP_S = 15.0  # given to waiting entries when the study is stopped
HANG_S = 10.0  # of a call that does not return, beyond the patience
OBJECTIVE = "Objective/"  # prefix of objectives: MLflow's pages sort by code point and show the first metric
DESCRIPTION = "mlflow.note.content"  # tag that MLflow shows as a run's description
OUTCOME = "outcome"  # tag with a trial's status, as MLflow has none for a pruned run
FINAL_STATUS = {"COMPLETE": "FINISHED", "STOPPED": "KILLED", "FAILED": "FAILED"}


class StudyTracker(Listener):
    """A study's parent run and its trials' child runs, found again by their tags after a resume.

    Parameters are the varied options alone, and the objectives are the metrics that sort first, also on the parent,
    which has those of the chosen configuration: MLflow's comparison takes the first ones as its axes, and draws a run
    that lacks one at a value of its own. The seed and what a row overrides beside the varied options are tags of the
    child; all other options are tags of the parent and in its config.yaml. A thread imports MLflow while the rest of a
    study starts, connects once it is `ready`, and then logs.

    Args:
        uri: of MLflow.
        name: of the study and of the experiment.
        varied: options that are parameters of every trial with a value for them.
        objectives: of the study.
        folder: of the study; `trials/ID` holds a trial's `epochs.json` and `reconstructions.npy`.
    """

    def __init__(self, uri: str, name: str, varied: list[str], objectives: Collection[str], folder: Path):
        self._uri, self._name, self._varied, self._folder = uri, name, varied, folder
        self._objectives = objectives
        self.dropped = 0  # entries that were given up
        self._is_away = False  # whether the last entry has not reached the server yet
        self._begun = False
        self._spool = Spool()  # of methods' names with their arguments; None is the last
        self._earlier: deque[tuple[Trial, TrialRecord]] = deque()  # ended before a resume, perhaps not logged
        self._runs: dict[str, tuple[str, int]] = {}  # of trials that go on: id -> MLflow's id, last step logged
        self._closing = threading.Event()
        self._patience_s, self._last_success, self._deadline = math.inf, 0.0, math.inf
        self._wanted = threading.Event()
        self._connected: Future[str] = Future()  # with the reason why nothing is tracked, or an empty text
        self.missing = ""  # this reason, once `ready`
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def ready(self) -> None:
        """Connect, creating a missing database or experiment; without MLflow `missing` says why nothing is tracked.

        Raises:
            ValueError: for a server that cannot be reached.
        """
        self._wanted.set()
        self.missing = self._connected.result()

    def begin(self, study_id: str, base: RunConfig, records: Iterable[TrialRecord]) -> None:
        """Open the parent run, and log what an interrupted study has finished and not logged.

        Args:
            study_id: tag that identifies the study's runs.
            base: options of all trials, except varied ones.
            records: of the trials that have ended before this run of the command.
        """
        self._study_id, self._base, self._begun = study_id, base, not self.missing
        if self.missing:
            return
        self._earlier.extend((record.trial, record) for record in records)
        self._put("_open_parent")

    def trial_started(self, trial: Trial) -> None:
        self._put("_run_of", trial, now_ms(), True)

    def epoch_ended(self, trial: Trial, metrics: dict[str, float]) -> None:
        self._put("_log_epoch", trial, metrics, now_ms())

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self._put("_end_trial", trial, record, now_ms())

    def close(
        self,
        status: str,
        files: list[Path],
        patience_s: float = 30.0,
        summary: Mapping[str, Any] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """End the parent run and every open child, once all that waits is logged, and count the entries given up.

        Nothing happens the second time.

        Args:
            status: FINISHED, FAILED or KILLED.
            files: kept with the parent run.
            patience_s: for a server that is unreachable; one that takes entries, however slowly, is waited for.
            summary: of the study; its sentence becomes the parent's description, and the chosen configuration's
                options and objectives its parameters and metrics.
            stopped: whether the user wants the study to end, so that entries are given up after 15 s.
        """
        if self._closing.is_set():
            return
        self._last_success, self._patience_s = time.monotonic(), patience_s
        self._closing.set()
        if not self._begun:  # of a study that was refused, or without MLflow
            self._wanted.set()
            return
        summary = summary or {}
        self._put("_close", status, files, _chosen(summary), summary.get("sentence", ""))
        with suppress(OSError):  # of a full disk: what waits is given up once nothing has been logged for some time
            self._spool.put(None)
        while self._worker.is_alive() and time.monotonic() < self._last_success + patience_s + HANG_S:
            if stopped():
                self._deadline = min(self._deadline, time.monotonic() + STOP_S)
            self._worker.join(0.1)
        if self._worker.is_alive():
            self.dropped += self.waiting  # the entry that hangs in the place of the None

    @property
    def waiting(self) -> int:
        """Number of entries that are not logged yet."""
        return self._spool.waiting + len(self._earlier)

    def behind(self) -> str:
        """Return in words how many entries wait for an unreachable server; empty if it is reachable."""
        return f"{self.waiting + 1} entries waiting for {self._uri}" if self._is_away else ""

    def _put(self, method: str, *arguments: object) -> None:
        if not self._begun:  # without MLflow
            return
        try:
            self._spool.put((method, arguments))
        except OSError:
            self.dropped += 1

    def _work(self) -> None:
        try:
            import_mlflow()  # meanwhile
            self._wanted.wait()
            if self._closing.is_set():
                return
            self._client, self._experiment = connect(self._uri, self._name)
        except NoMLflow as error:
            self._connected.set_result(f"nothing is tracked, since {error}")
            return
        except BaseException as error:
            self._connected.set_exception(error)
            return
        self._connected.set_result("")
        try:
            self._log_entries()
        except Exception as error:  # such as of a disk that does not give back what waits
            self.dropped += 1 + self.waiting
            logger.warning("tracking ends, since an entry cannot be read: %s: %s", type(error).__name__, error)

    def _log_entries(self) -> None:
        for method, arguments in self._entries():
            if time.monotonic() > self._deadline and method != "_close":
                self.dropped += 1
                continue
            wait_s = 1.0
            while not self._is_done(getattr(self, method), arguments):
                self._is_away = True
                if time.monotonic() > min(self._last_success + self._patience_s, self._deadline):
                    self.dropped += 1
                    break
                if self._closing.wait(wait_s):
                    time.sleep(0.5)
                wait_s = min(2 * wait_s, 30.0)
            self._is_away = False

    def _entries(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield all entries up to the last: the opening of the parent, trials of an earlier process, new events."""
        while (entry := self._spool.take()) is not None:
            yield entry
            while self._earlier:
                yield "_end_trial", self._earlier.popleft()

    def _is_done(self, job: Callable[..., object], arguments: Sequence[Any]) -> bool:
        """Try an entry once; return whether another attempt is useless."""
        from mlflow.exceptions import MlflowException

        try:
            job(*arguments)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                return False
            self.dropped += 1
        except OSError:  # the server is away in one of many ways
            return False
        except Exception:
            logger.exception("an entry cannot be tracked")
            self.dropped += 1
        self._last_success = time.monotonic()
        return True

    def _find(self, **tags: str) -> "Run | None":
        query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([self._experiment], query, max_results=1)
        return found[0] if found else None

    def _open_parent(self) -> None:
        run = self._find(study_id=self._study_id, kind="study")
        if run is None:
            fixed = {name: value for name, value in identity(self._base).items() if name not in self._varied}
            tags = {name: str(value) for name, value in fixed.items() if value is not None}
            tags |= {"study_id": self._study_id, "kind": "study"}
            name = f"{self._name}, {title_of(self._base)}"
            run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        self._client.update_run(run.info.run_id, status="RUNNING")
        self._client.log_dict(run.info.run_id, asdict(self._base), "config.yaml")
        self._parent = run.info.run_id
        if self._earlier:
            logged = self._outcomes()
            self._earlier = deque(of for of in self._earlier if logged.get(of[0].id) != of[1].status)

    def _outcomes(self) -> dict[str, str]:
        """Return trial id -> status of every run that is complete."""
        query, found, token = f"tags.study_id = '{self._study_id}' and tags.kind = 'trial'", {}, None
        while token != "":
            page = self._client.search_runs([self._experiment], query, max_results=PAGE, page_token=token)
            for run in page:
                if _has_outcome(run):
                    found[run.data.tags["trial_id"]] = run.data.tags[OUTCOME]
            token = page.token or ""
            self._last_success = time.monotonic()
        return found

    def _run_of(self, trial: Trial, start_ms: int | None = None, starts: bool = False) -> str:
        """Return the id of a trial's run, found or created; a failed trial's is opened again when the trial starts.

        Args:
            trial: of the study.
            start_ms: of a run that is created, ms since 1970; default: now.
            starts: whether the trial starts, perhaps again.
        """
        if trial.id in self._runs:
            return self._runs[trial.id][0]
        run = self._find(study_id=self._study_id, trial_id=trial.id)
        steps: set[int] = set()
        if run is None:
            tags = {"study_id": self._study_id, "kind": "trial", "trial_id": trial.id}
            tags |= {"mlflow.parentRunId": self._parent, "configuration": trial.configuration.name}
            overrides = {"seed": trial.seed} | (trial.configuration.overrides or {})
            tags |= {name: str(value) for name, value in overrides.items() if name not in self._varied}
            run = self._client.create_run(self._experiment, start_ms, tags, trial.name)
        else:
            history = self._client.get_metric_history(run.info.run_id, "epoch")
            steps = {metric.step for metric in history}
            if starts or not _has_outcome(run):
                self._client.update_run(run.info.run_id, status="RUNNING")
        log_params(self._client, run.info.run_id, self._params(trial.configuration.overrides))
        # Epochs that had not reached the server when a study was stopped or killed.
        missing = [of for of in self._epochs(trial) if int(of["epoch"]) not in steps]
        ends_ms = [of.pop(ENDED) for of in missing]
        entries = [(self._named(of), int(of["epoch"]), ms) for of, ms in zip(missing, ends_ms, strict=True)]
        log_metrics(self._client, run.info.run_id, entries)
        self._runs[trial.id] = run.info.run_id, max(steps | {step for _, step, _ in entries}, default=-1)
        return run.info.run_id

    def _epochs(self, trial: Trial) -> list[dict[str, Any]]:
        path = self._folder / "trials" / trial.id / EPOCHS
        return parse_or_set_aside(path, read(path), list, move=False) or []

    def _params(self, overrides: Params | None) -> dict[str, Any]:
        """Return the varied options with a value, as MLflow would plot numbers beside None as text.

        Args:
            overrides: of a configuration; None: a row without an encoder.
        """
        if overrides is None:
            return {}
        config = replace(self._base, overrides)
        values = {option: get(config, option) for option in self._varied}
        return {option: value for option, value in values.items() if value is not None}

    def _log_epoch(self, trial: Trial, metrics: dict[str, float], time_ms: int) -> None:
        run_id, step = self._run_of(trial), int(metrics["epoch"])
        if step > self._runs[trial.id][1]:
            log_metrics(self._client, run_id, [(self._named(metrics), step, time_ms)])
            self._runs[trial.id] = run_id, step

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {OBJECTIVE + name if name in self._objectives else name: value for name, value in metrics.items()}

    def _end_trial(self, trial: Trial, record: TrialRecord, time_ms: int | None = None) -> None:
        if time_ms is None:  # it ended in an earlier process
            epochs = self._epochs(trial)
            time_ms = int(epochs[-1][ENDED]) if epochs else now_ms()
        run_id = self._run_of(trial, time_ms - round(1000 * record.wall_s))
        run = self._client.get_run(run_id)
        if run.info.status == "RUNNING":
            self._log_end(trial, record, run, time_ms)
        self._runs.pop(trial.id)

    def _log_end(self, trial: Trial, record: TrialRecord, run: "Run", time_ms: int) -> None:
        run_id = run.info.run_id
        final = {name: value for name, value in self._named(record.metrics).items() if name not in run.data.metrics}
        final |= {"wall_s": record.wall_s, "overhead_s": record.overhead_s}
        log_metrics(self._client, run_id, [(final, record.epochs, time_ms)])
        images = read_arrays(self._folder / "trials" / trial.id / "reconstructions.npy")
        if images is not None:
            self._client.log_image(run_id, image_grid(images), artifact_file="reconstructions.png")
        if record.error or "error" in run.data.tags:
            self._client.set_tag(run_id, "error", (record.error or "")[:5000])
        self._client.set_tag(run_id, OUTCOME, record.status)  # last: a run with an outcome is complete
        self._client.set_terminated(run_id, FINAL_STATUS[record.status], time_ms)

    def _close(self, status: str, files: list[Path], chosen: Mapping[str, Any] | None, sentence: str) -> None:
        for run_id, _ in self._runs.values():
            if self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, "KILLED")
        log_metrics(self._client, self._parent, [({"tracking/dropped": float(self.dropped)}, 0, now_ms())])
        if chosen:
            means = {name: of["estimate"] for name, of in chosen["metrics"].items() if name in self._objectives}
            step = self._base.train.epochs  # in charts, where the trials end
            log_metrics(self._client, self._parent, [(self._named(means), step, now_ms())])
            self._client.set_tag(self._parent, "configuration", chosen["name"])
            # A stopped study may choose another configuration when it goes on, and parameters cannot be changed.
            if status == "FINISHED" and not self._client.get_run(self._parent).data.params:
                log_params(self._client, self._parent, self._params(chosen["params"]))
        if sentence:
            self._client.set_tag(self._parent, DESCRIPTION, sentence[:5000])
        for file in files:
            with on_disk(file) as local:
                self._client.log_artifact(self._parent, str(local))
        self._client.set_terminated(self._parent, status)


def _chosen(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the chosen configuration of a summary, or the subject of a study without a search."""
    name = (summary.get("chosen") or summary.get("answer") or {}).get("configuration")
    return next((of for of in summary.get("configurations", ()) if of["name"] == name), None)


def _has_outcome(run: "Run") -> bool:
    """Return whether a trial's run is complete, as its outcome is logged last."""
    return bool(run.info.status == FINAL_STATUS.get(run.data.tags.get(OUTCOME, "")))
