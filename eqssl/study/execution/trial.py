"""The process of a trial: one call of `train`, alone in Tune's actor or in one of several workers.

Checkpoints go to the study's folder in both cases, never through Ray, so there is one truth to resume from. Torch is
imported inside the functions: the thin driver of several workers, and the study itself, do without.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eqssl.config import DataConfig, RunConfig
from eqssl.files import as_path, finite, read, write_atomically, write_json
from eqssl.study.execution.preemption import SaveSchedule, this_node
from eqssl.study.execution.setup import StudySetup
from eqssl.study.search.space import Trial
from eqssl.study.store.records import CONTRIBUTIONS, PREDICTIONS, Status, TrialRecord, collapsed_parts

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset
    from eqssl.evaluation.predictions import Prediction

# In the trial's folder.
CHECKPOINT = "checkpoint"
EPOCHS = "epochs.json"  # the metrics of all epochs that were trained, and when each ended
ENDED = "ended_ms"

RECORD = "record"  # the one key of what Tune gets: an object, since Tune keeps statistics of every number that it sees
RESET_S = "60"  # for a trial that is ended early to leave its process; later, Tune loses the next one

_trials_in_this_process = 0


def record_of(trial: Trial, status: Status, **values: Any) -> TrialRecord:
    """Return the record of a trial with these values."""
    of = trial.configuration
    return TrialRecord(
        trial_id=trial.id,
        configuration=of.name,
        number=of.number,
        params=of.overrides or {},
        seed=trial.seed,
        status=status,
        **values,
    )


class TrialContext:
    """The context of `train` inside a study: state into the trial's folder, the trial's record so far to Ray.

    Args:
        trial: of the study.
        setup: of its processes.
        tell: takes the record after every epoch, whose history begins after that of the record before.
        schedule: tells when to save within an epoch.
        rank, world_size: place among the workers.
        warm: whether the process had run a trial before.
    """

    def __init__(
        self,
        trial: Trial,
        setup: StudySetup,
        tell: Callable[[TrialRecord], None],
        schedule: SaveSchedule,
        *,
        rank: int = 0,
        world_size: int = 1,
        warm: bool = False,
    ):
        import torch

        self.folder = as_path(setup.folder) / "trials" / trial.id
        self.device = torch.device("cuda" if setup.gpu else "cpu")
        self.rank, self.world_size = rank, world_size
        self._trial, self._objectives, self._tell, self._schedule = trial, setup.objectives, tell, schedule
        self._warm, self._earlier_s = warm, 0.0
        self._epochs: list[dict[str, float]] = []  # metrics of all that were trained
        self._told = 0  # epochs of the history that the study knows
        self.start_clock()

    def start_clock(self) -> None:
        """Begin to count, now that the data are there."""
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds of training, with those before a resume."""
        return self._earlier_s + time.perf_counter() - self._start

    def record(self, status: Status, metrics: dict[str, float], error: str | None = None) -> TrialRecord:
        """Return the record of the trial if it ended now.

        Args:
            status: STOPPED while the trial goes on.
            metrics: of the last epoch.
            error: why it failed.
        """
        metrics = finite(metrics)
        epochs = int(metrics.get("epoch", 0))
        earlier = {int(of["epoch"]): of for of in self._epochs if "evaluate_s" in of}
        if status == "COMPLETE":  # else the last epoch's metrics are no result
            earlier.pop(epochs, None)
        return record_of(
            self._trial,
            status,
            epochs=epochs,
            metrics=metrics,
            wall_s=self.seconds(),
            resumed_s=self._earlier_s,
            warm=self._warm,
            error=error,
            history={str(e): {name: of[name] for name in self._objectives if name in of} for e, of in earlier.items()},
            collapsed=collapsed_parts(metrics),
        )

    def load(self) -> dict[str, Any] | None:
        from eqssl.training import checkpoint

        state = checkpoint.load(self.folder / CHECKPOINT)
        if state is None:
            return None
        self._earlier_s = state["wall_s"]
        known = json.loads(read(self.folder / EPOCHS) or "[]")
        self._epochs = [metrics for metrics in known if metrics["epoch"] <= state["run"]["epoch"]]
        if metrics := state["run"]["metrics"]:
            self._tell_epoch(metrics)  # a kill may have come between saving and telling
        return state["run"]

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        self._epochs.append(finite(metrics) | {ENDED: time.time_ns() // 1_000_000})
        if state is not None:
            self.save(state)
        self._tell_epoch(metrics)

    def _tell_epoch(self, metrics: dict[str, float]) -> None:
        """Tell the record so far, with the new part of the history alone: a report is as small after 100 epochs."""
        record = self.record("STOPPED", metrics)
        new = dict(list(record.history.items())[self._told :])
        self._told = len(record.history)
        self._tell(dataclasses.replace(record, history=new))

    def should_checkpoint(self) -> bool:
        return self._schedule.is_due()

    def save(self, state: dict[str, Any]) -> None:
        from eqssl.training import checkpoint

        write_json(self.folder / EPOCHS, self._epochs)  # first, so that it has all that the checkpoint has
        checkpoint.save({"run": state, "wall_s": self.seconds()}, self.folder / CHECKPOINT)
        self._schedule.saved()


@functools.lru_cache(maxsize=1)
def cached_data(config: DataConfig) -> "Dataset":
    """Return the data, loaded once for all trials of a process."""
    from eqssl.data import load_data

    return load_data(config)


def run_trial(config: dict[str, Any], setup: StudySetup) -> None:
    """Run one trial in this process; Tune's trainable for trials of one worker.

    Args:
        config: `trial` and its `run`, a RunConfig.
        setup: of the study.
    """
    global _trials_in_this_process
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", RESET_S)
    trial, run = config["trial"], config["run"]
    warm, _trials_in_this_process = _trials_in_this_process > 0, _trials_in_this_process + 1
    setup.apply()
    with SaveSchedule(trial.id, {this_node()}, setup.save_notice) as schedule:
        report_to_tune(attempt(trial, run, TrialContext(trial, setup, report_to_tune, schedule, warm=warm)))


def report_to_tune(record: TrialRecord) -> None:
    """Give Tune a trial's record; where Tune ends the trial, this does not return."""
    from ray import tune

    tune.report({RECORD: record})


def attempt(trial: Trial, run: RunConfig, context: TrialContext) -> TrialRecord:
    """Run a trial, from its last checkpoint where it has one, and return its record.

    Args:
        trial: of the study.
        run: its configuration.
        context: of one of its processes.

    Raises:
        Exception: for an error that another attempt might mend, and one that not all workers may have met.
    """
    final = (FloatingPointError, ValueError) if context.world_size == 1 else FloatingPointError
    try:
        data = cached_data(run.data)
        context.start_clock()
        if trial.configuration.overrides is None:
            return _evaluate_row(trial.configuration.name, run, context, data)
        return _train(run, context, data)
    except final as error:
        return context.record("FAILED", {}, f"{type(error).__name__}: {error}")


def _train(run: RunConfig, context: TrialContext, data: "Dataset") -> TrialRecord:
    import numpy as np

    from eqssl.evaluation.protocol import evaluate
    from eqssl.models.export import export_encoder
    from eqssl.training.loop import train

    result = train(run, context, data)
    record = context.record("COMPLETE", result.metrics)
    if context.rank == 0:
        export_encoder(result.encoder, context.folder / "encoder", result.method)
        if result.reconstructions is not None:
            images = result.reconstructions.numpy()
            write_atomically(context.folder / "reconstructions.npy", lambda temporary: np.save(temporary, images))
        predictions = result.predictions
        if predictions is None:  # a kill came after the last checkpoint
            predictions = []
            evaluate(result.encoder, data, config=run.evaluate, device=context.device, predictions=predictions)
        _save_predictions(predictions, run, context, data)
    return record


def _evaluate_row(name: str, run: RunConfig, context: TrialContext, data: "Dataset") -> TrialRecord:
    """Evaluate a row that has no encoder to train, by one worker; the others have the data for the next trial."""
    from eqssl.evaluation.encoders import Constant, Pixels
    from eqssl.evaluation.protocol import evaluate

    metrics: dict[str, float] = {}
    if context.rank == 0:
        predictions: list[Prediction] = []
        encoder = Constant() if name == "constant" else Pixels()
        metrics = evaluate(encoder, data, config=run.evaluate, device=context.device, predictions=predictions)
        _save_predictions(predictions, run, context, data)
    return context.record("COMPLETE", metrics)


def _save_predictions(predictions: "list[Prediction]", run: RunConfig, context: TrialContext, data: "Dataset") -> None:
    """Write what every image or object of the eval split adds to the metrics, and at level full all predictions.

    Views of one object are no independent sample, so that the object is the unit wherever it is known.
    """
    from eqssl.evaluation.predictions import save_contributions, save_predictions

    split = getattr(data, run.evaluate.split)
    objects = None if split.objects is None else dict(zip(split.ids.tolist(), split.objects.tolist(), strict=True))
    save_contributions(predictions, context.folder / CONTRIBUTIONS, objects)
    if run.evaluate.level == "full":
        save_predictions(predictions, context.folder / PREDICTIONS)
