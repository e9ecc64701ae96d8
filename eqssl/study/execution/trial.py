"""The process of a trial: one call of `train`, directly in Tune's actor or in one of several workers.

Checkpoints go to the study's folder in both cases, never through Ray, so that there is a single source to resume from.
Torch is imported in functions: neither the study's process nor the driver of several workers needs it.
"""

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import ray

from eqssl.config import DataConfig, RunConfig, changed_options, identity
from eqssl.environment import worker_environment
from eqssl.files import as_path, finite, is_no_lack_of_space, persist, write_atomically, write_json
from eqssl.study.execution.preemption import this_node
from eqssl.study.execution.setup import StudySetup
from eqssl.study.search.space import Trial
from eqssl.study.store.records import (
    ATTENTION,
    CONTRIBUTIONS,
    ENDED,
    EPOCHS,
    PREDICTIONS,
    RECONSTRUCTIONS,
    RETRIEVED,
    Status,
    TrialRecord,
    collapsed_parts,
    trial_outputs,
)

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset
    from eqssl.evaluation.predictions import Prediction

CHECKPOINT = "checkpoint"  # in the trial's folder
RECORD = "record"  # the only key of a report to Tune, which keeps statistics of all numbers outside an object
SAVE_EVERY_S = 300.0  # the most that a fault costs, however long an epoch is
SAVE_EVERY_LEAVING_S = 10.0  # after a notice
RESET_S = "60"  # for a pruned trial to leave its process; beyond that Tune loses the next trial

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
    """The context of `train` inside a study: state goes to the trial's folder, the record so far to Ray.

    While entered, state is saved every five minutes within an epoch, and at once after a notice, which is answered once
    the state is saved.

    Args:
        trial: the trial.
        setup: setup of its processes.
        tell: takes the record after every epoch, with only the history that earlier records did not have.
        nodes: ids of the trial's nodes.
        rank, world_size: this process's place among the workers.
        warm: whether the process has run a trial before.
    """

    def __init__(
        self,
        trial: Trial,
        setup: StudySetup,
        tell: Callable[[TrialRecord], None],
        nodes: set[str],
        *,
        rank: int = 0,
        world_size: int = 1,
        warm: bool = False,
    ):
        import torch

        self.folder = as_path(setup.folder) / "trials" / trial.id
        self.device = torch.device("cuda" if setup.gpu else "cpu")
        self.rank, self.world_size = rank, world_size
        self._trial, self._objectives, self._tell, self._nodes, self._warm = trial, setup.objectives, tell, nodes, warm
        self._notice = setup.save_notice if rank == 0 else None  # only rank 0 saves the state
        self._saved_s, self._leaving, self._ended = time.monotonic(), False, False
        self._unsaved = False  # whether steps have been trained since the last checkpoint
        self._earlier_s = 0.0
        self._epochs: list[dict[str, float]] = []  # metrics of each epoch
        self._told = 0  # epochs of the history that the study already has
        self.options: dict[str, Any] | None = None  # of its own states, see `identity`; None: any state is its own
        self.start_clock()

    def __enter__(self) -> "TrialContext":
        if self._notice:
            notice: ray.ObjectRef = self._notice.wait.remote(self._trial.id, self._nodes)
            threading.Thread(target=self._wait_for, args=(notice,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended = True
        self._answer()

    def _answer(self) -> None:
        if self._notice:
            self._notice.saved.remote(self._trial.id)

    def _wait_for(self, notice: ray.ObjectRef) -> None:
        with suppress(ray.exceptions.RayError):  # the study is gone
            ray.get(notice)
        if not self._ended:
            self._saved_s, self._leaving = float("-inf"), True
            if not self._unsaved:  # before the first step, or during an evaluation
                self._answer()

    def start_clock(self) -> None:
        """Start counting the seconds of training, after the data are loaded."""
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds of training, including those before a resume."""
        return self._earlier_s + time.perf_counter() - self._start

    def record(self, status: Status, metrics: dict[str, float], error: str | None = None) -> TrialRecord:
        """Return the record that the trial would have if it ended now.

        Args:
            status: STOPPED while the trial continues.
            metrics: those of the last epoch.
            error: why it failed.
        """
        metrics = finite(metrics)
        epochs = int(metrics.get("epoch", 0))
        earlier = {int(of["epoch"]): of for of in self._epochs if "evaluate_s" in of}
        if status == "COMPLETE":  # otherwise the last epoch is part of the history, not the result
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
            environment=worker_environment(),
        )

    def load(self) -> dict[str, Any] | None:
        from eqssl.training import checkpoint

        def is_own(state: dict[str, Any]) -> bool:
            run = state["run"]
            return self.options is None or not changed_options(run["options"], self.options, run["defaults"])

        state = checkpoint.load(self.folder / CHECKPOINT, is_own)
        if state is None:
            return None
        self._earlier_s, self._epochs = state["wall_s"], state["epochs"]
        if metrics := state["run"]["metrics"]:
            self._tell_epoch(metrics)  # a kill may have come between the checkpoint and the report
        return state["run"]

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        self._epochs.append(finite(metrics) | {ENDED: time.time_ns() // 1_000_000})
        self._unsaved = True
        if state is not None:
            self.save(state)
        self._tell_epoch(metrics)

    def _tell_epoch(self, metrics: dict[str, float]) -> None:
        """Tell the record so far, with only the new part of the history, so that reports do not grow."""
        record = self.record("STOPPED", metrics)
        new = dict(list(record.history.items())[self._told :])
        self._told = len(record.history)
        self._tell(dataclasses.replace(record, history=new))

    def should_checkpoint(self) -> bool:
        self._unsaved = True
        if time.monotonic() - self._saved_s < (SAVE_EVERY_LEAVING_S if self._leaving else SAVE_EVERY_S):
            return False
        self._saved_s = time.monotonic()
        return True

    def save(self, state: dict[str, Any]) -> None:
        from eqssl.training import checkpoint

        whole = {"run": state, "wall_s": self.seconds(), "epochs": self._epochs}

        def write() -> None:
            write_json(self.folder / EPOCHS, self._epochs)  # first, so that no epoch of the checkpoint is missing
            checkpoint.save(whole, self.folder / CHECKPOINT)

        persist(write, is_no_lack_of_space)
        self._unsaved = False
        if self._leaving:
            self._answer()


@lru_cache(maxsize=1)
def cached_data(config: DataConfig) -> "Dataset":
    """Return the data, loaded once for successive trials of a process."""
    from eqssl.data import load_data

    return load_data(config)


def run_trial(config: dict[str, Any], setup: StudySetup) -> None:
    """Run one trial in this process; Tune's trainable for trials with one worker.

    Args:
        config: `trial` and its `run`, a RunConfig.
        setup: the study's setup.
    """
    global _trials_in_this_process
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", RESET_S)
    trial, run = config["trial"], config["run"]
    warm, _trials_in_this_process = _trials_in_this_process > 0, _trials_in_this_process + 1
    setup.apply()
    with TrialContext(trial, setup, report_to_tune, {this_node()}, warm=warm) as context:
        report_to_tune(attempt(trial, run, context))


def report_to_tune(record: TrialRecord) -> None:
    """Report a trial's record to Tune; does not return if Tune ends the trial."""
    from ray import tune

    tune.report({RECORD: record})


def attempt(trial: Trial, run: RunConfig, context: TrialContext) -> TrialRecord:
    """Run a trial from its last checkpoint, if there is one, and return its record.

    Args:
        trial: the trial.
        run: its run.
        context: context of one of its processes.

    Raises:
        Exception: for an error that a retry may fix, such as one specific to a node, or that other workers may not have
            run into.
    """
    try:
        data = cached_data(run.data)
        context.start_clock()
        if trial.configuration.overrides is None:
            return _evaluate_row(trial.configuration.name, run, context, data)
        return _train(run, context, data)
    except FloatingPointError as error:
        return context.record("FAILED", {}, f"{type(error).__name__}: {error}")


def _train(run: RunConfig, context: TrialContext, data: "Dataset") -> TrialRecord:
    import numpy as np

    from eqssl.evaluation.protocol import evaluate
    from eqssl.evaluation.retrieved import retrieved_views
    from eqssl.models.export import export_encoder
    from eqssl.training.loop import train

    context.options = identity(run)
    result = train(run, context, data)
    record = context.record("COMPLETE", result.metrics)
    if context.rank > 0:
        return record
    predictions = result.predictions or []
    if result.predictions is None:  # the process was killed after the last checkpoint
        evaluate(result.encoder, data, config=run.evaluate, device=context.device, predictions=predictions)
    retrieved = retrieved_views(predictions, data, run.evaluate.split)

    def write() -> None:
        export_encoder(result.encoder, context.folder / "encoder", result.method)
        for name, images in {RECONSTRUCTIONS: result.reconstructions, RETRIEVED: retrieved}.items():
            if images is not None:
                array = images.numpy()
                write_atomically(context.folder / name, partial(np.save, arr=array))
        if result.attention is not None:
            arrays: dict[str, Any] = result.attention
            write_atomically(context.folder / ATTENTION, lambda temporary: np.savez_compressed(temporary, **arrays))
        _save_predictions(predictions, run, context, data)

    persist(write, is_no_lack_of_space)
    return replace(record, files=trial_outputs(context.folder))


def _evaluate_row(name: str, run: RunConfig, context: TrialContext, data: "Dataset") -> TrialRecord:
    """Evaluate a row without a trained encoder in one worker; the others only load the data, for the next trial."""
    from eqssl.evaluation.encoders import GRID, Constant, Pixels
    from eqssl.evaluation.protocol import evaluate
    from eqssl.models.encoder import token_grid

    metrics: dict[str, float] = {}
    if context.rank == 0:
        predictions: list[Prediction] = []
        # The R2 of masks depends on the size of the tokens, so that all rows have those of the study's encoder.
        is_dense = run.evaluate.level == "full" and data.train.masks is not None
        grid = token_grid(run.encoder, data.channels, data.image_size) if is_dense else GRID
        encoder = Constant(grid) if name == "constant" else Pixels(grid)
        metrics = evaluate(encoder, data, config=run.evaluate, device=context.device, predictions=predictions)
        persist(lambda: _save_predictions(predictions, run, context, data), is_no_lack_of_space)
    return replace(context.record("COMPLETE", metrics), files=trial_outputs(context.folder))


def _save_predictions(predictions: "list[Prediction]", run: RunConfig, context: TrialContext, data: "Dataset") -> None:
    """Write the contribution of every image or object of the eval split to the metrics.

    At level full, all predictions are written too. Views of one object are not an independent sample: if objects are
    known, they are the unit.
    """
    from eqssl.evaluation.predictions import save_contributions, save_predictions

    split = getattr(data, run.evaluate.split)
    objects = None if split.objects is None else dict(zip(split.ids.tolist(), split.objects.tolist(), strict=True))
    save_contributions(predictions, context.folder / CONTRIBUTIONS, objects)
    if run.evaluate.level == "full":
        save_predictions(predictions, context.folder / PREDICTIONS)
