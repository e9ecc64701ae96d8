"""What runs in a trial's process: one run of `train`, alone in Tune's actor or in one of several workers.

Checkpoints go to the study's folder in both cases, never through Ray, so there is one truth to resume from. Torch is
imported inside the functions: the thin driver of several workers, and the study itself, do without.
"""

import functools
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqssl.config import DataConfig, RunConfig, from_dict
from eqssl.files import as_path, modified_s, read, write_atomically
from eqssl.study.execution.environment import go_to
from eqssl.study.execution.plugins import Plugins, register
from eqssl.study.store.records import CONTRIBUTIONS, GIVEN_UP, finite, write_json

if TYPE_CHECKING:
    from eqssl.data.dataset import Dataset
    from eqssl.evaluation.predictions import Prediction
    from eqssl.study.execution.preemption import NodeWatch

Report = Callable[[dict[str, Any]], None]
METRICS, HISTORY = "metrics", "history"  # keys of an epoch's report: its metrics, and those of evaluated epochs
FINAL = "final"  # the one key of a trial's last report
CHECKPOINT = "checkpoint"  # in the trial's folder
EPOCHS = "epochs.json"  # there: the metrics of all epochs that were trained, and when each ended
ENDED = "ended_ms"
ERROR = "error.txt"  # in the trial's folder: the traceback of an attempt that failed
BEGUN = "begun.json"  # beside the checkpoint: how often the trial was begun from there
ATTEMPTS = 3  # of a trial without progress, after which it has failed
RESET_S = "60"  # for a trial that is ended early to leave its process; later, Tune loses the next one
LOSSES = 1000  # of a trial's processes that Ray makes good: what must not go on for ever is counted in `ATTEMPTS`
PREDICTIONS = "predictions.parquet"  # there: what the probes of a full evaluation said

_trials_in_this_process = 0


class TrialContext:
    """The context of `train` inside a study: state into the trial's folder, metrics to Ray.

    Args:
        folder: of the trial, on storage that all its processes share.
        report: takes the metrics of an epoch.
        watch: tells when the state should be saved within an epoch.
        gpu: whether the trial was given one; Ray hides none from a trial that was not.
        rank, world_size: place among the workers.
    """

    def __init__(
        self, folder: Path, report: Report, watch: "NodeWatch", gpu: bool = False, rank: int = 0, world_size: int = 1
    ):
        import torch

        self.folder, self._report, self._watch = folder, report, watch
        self.device = torch.device("cuda" if gpu else "cpu")
        self.rank, self.world_size = rank, world_size
        self.warm = False  # whether the process had run a trial before
        self._earlier_s = 0.0
        self._epochs: list[dict[str, float]] = []  # metrics of all that were trained
        self.start_clock()

    @property
    def history(self) -> dict[str, dict[str, float]]:
        """Epoch -> its metrics, where there was an evaluation."""
        return {str(int(metrics["epoch"])): metrics for metrics in self._epochs if "evaluate_s" in metrics}

    def start_clock(self) -> None:
        """Begin to count, now that the data are there."""
        self._start = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of training: of this attempt, and with those before a resume."""
        attempt_s = time.perf_counter() - self._start
        return {"attempt_s": attempt_s, "wall_s": self._earlier_s + attempt_s}

    def load(self) -> dict[str, Any] | None:
        from eqssl.training import checkpoint

        state = checkpoint.load(self.folder / CHECKPOINT)
        if state is None:
            return None
        self._earlier_s = state["wall_s"]
        known = json.loads(read(self.folder / EPOCHS) or "[]")
        self._epochs = [metrics for metrics in known if metrics["epoch"] <= state["run"]["epoch"]]
        if metrics := state["run"]["metrics"]:
            self._tell(metrics)  # a kill may have come between saving and telling
        return state["run"]

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        self._epochs.append(finite(metrics) | {ENDED: time.time_ns() // 1_000_000})
        if state is not None:
            self.save(state)
        self._tell(metrics)

    def should_checkpoint(self) -> bool:
        return self._watch.due()

    def save(self, state: dict[str, Any]) -> None:
        from eqssl.training import checkpoint

        write_json(self.folder / EPOCHS, self._epochs)  # first, so that it has all that the checkpoint has
        checkpoint.save({"run": state, "wall_s": self.seconds()["wall_s"]}, self.folder / CHECKPOINT)

    def attempts(self, command: str) -> int:
        """Count one more attempt and return how many there were at this place of the training, by rank 0 alone.

        Another number of workers is another place: it is no failure of the trial.

        Args:
            command: names the run of the study's command; what an earlier one met does not count.
        """
        from eqssl.training import checkpoint

        path = self.folder / CHECKPOINT / BEGUN
        place = [command, self.world_size, modified_s(self.folder / CHECKPOINT / checkpoint.FILE)]
        known = json.loads(read(path) or "{}")
        count = known["count"] + 1 if known.get("place") == place else 1
        write_json(path, {"place": place, "count": count})
        return count

    def note_error(self, text: str) -> None:
        """Keep what went wrong in an attempt, for `last_error`."""
        write_atomically(self.folder / ERROR, lambda temporary: temporary.write_text(text))

    def _tell(self, metrics: dict[str, float]) -> None:
        self._report({METRICS: metrics, HISTORY: self.history, "warm": self.warm, **self.seconds()})


@functools.lru_cache(maxsize=1)
def cached_data(config: DataConfig) -> "Dataset":
    """Return the data, loaded once for all trials of a process."""
    from eqssl.data import load_data

    return load_data(config)


def run_trial(config: dict[str, Any], plugins: Plugins) -> None:
    """Run one trial; Tune's trainable.

    Args:
        config: `trial` -> what `runner.trial_spec` made.
        plugins: sources and methods that the study's own file registered.
    """
    from ray import tune

    from eqssl.study.execution.preemption import NodeWatch, this_node
    from eqssl.study.execution.workers import train_with_workers

    global _trials_in_this_process
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", RESET_S)
    spec = config["trial"]
    warm, _trials_in_this_process = _trials_in_this_process > 0, _trials_in_this_process + 1
    if max(spec["workers"]) > 1:
        train_with_workers(spec, plugins)
    else:
        register(plugins)
        with NodeWatch({this_node()}) as watch:
            context = TrialContext(as_path(spec["folder"]), tune.report, watch, "GPU" in spec["worker"])
            context.warm = warm
            tune.report({FINAL: {**attempt(spec, context), "warm": warm}})


def attempt(spec: dict[str, Any], context: TrialContext) -> dict[str, Any]:
    """Return how the trial ended; an error that another attempt might mend is noted and raised.

    Args:
        spec: what `runner.trial_spec` made.
        context: of one of the trial's processes.
    """
    from eqssl.training.distributed import all_gather_object

    go_to(spec["cwd"])
    count = all_gather_object(context.attempts(spec["command"]) if context.rank == 0 else 0)[0]
    if count > ATTEMPTS:
        return _given_up(context)
    try:
        return _evaluate_row(spec, context) if spec["row"] else _train(spec, context)
    except (ValueError, FloatingPointError) as error:
        return _failed(context, f"{type(error).__name__}: {error}")
    except Exception:
        context.note_error(traceback.format_exc())
        if count == ATTEMPTS and context.world_size == 1:  # several workers might wait for this one
            return _given_up(context)
        raise


def _given_up(context: TrialContext) -> dict[str, Any]:
    return _failed(context, f"{last_error(context.folder)} ({ATTEMPTS}{GIVEN_UP}")


def _failed(context: TrialContext, error: str) -> dict[str, Any]:
    """Return the end of a trial that failed, with what it had shown on its way: others were compared with that."""
    return {"error": error, HISTORY: context.history, **context.seconds()}


def last_error(folder: Path) -> str:
    """Return the last line of what the latest attempt noted in the trial's folder."""
    text = read(folder / ERROR)
    return text.decode().strip().rpartition("\n")[2] if text else "its process died"


def _train(spec: dict[str, Any], context: TrialContext) -> dict[str, Any]:
    import numpy as np
    import torch

    from eqssl.evaluation.protocol import evaluate
    from eqssl.models.export import export_encoder
    from eqssl.training.loop import train

    torch.set_num_threads(spec["worker"]["CPU"])
    config = from_dict(RunConfig, spec["run"])
    data = cached_data(config.data)
    context.start_clock()
    result = train(config, context, data)
    seconds = context.seconds()
    if context.rank == 0:
        export_encoder(result.encoder, context.folder / "encoder", result.method)
        if result.reconstructions is not None:
            images = result.reconstructions.numpy()
            write_atomically(context.folder / "reconstructions.npy", lambda temporary: np.save(temporary, images))
        predictions = result.predictions
        if predictions is None:  # a kill came after the last checkpoint
            predictions = []
            evaluate(result.encoder, data, config=config.evaluate, device=context.device, predictions=predictions)
        _save_predictions(predictions, config, data, context.folder)
    return {METRICS: result.metrics, HISTORY: context.history, "epochs": result.epochs, **seconds}


def _evaluate_row(spec: dict[str, Any], context: TrialContext) -> dict[str, Any]:
    import torch

    from eqssl.evaluation.protocol import evaluate
    from eqssl.evaluation.rows import Pixels, constant_figures

    torch.set_num_threads(spec["worker"]["CPU"])
    config = from_dict(RunConfig, spec["run"])
    data = cached_data(config.data)
    context.start_clock()
    if context.rank > 0:  # it has the data for the next trial
        return {"epochs": 0, **context.seconds()}
    predictions: list[Prediction] = []
    if spec["row"] == "constant":
        metrics = constant_figures(data, config.evaluate, predictions)
    else:
        metrics = evaluate(Pixels(), data, config=config.evaluate, device=context.device, predictions=predictions)
    _save_predictions(predictions, config, data, context.folder)
    return {METRICS: metrics, "epochs": 0, **context.seconds()}


def _save_predictions(predictions: "list[Prediction]", config: RunConfig, data: "Dataset", folder: Path) -> None:
    """Write what every held-out image or object adds to the metrics, and at level full all predictions.

    Views of one object are no independent sample, so that the object is the unit wherever it is known.
    """
    from eqssl.evaluation.predictions import save_contributions, save_predictions

    split = getattr(data, config.evaluate.split)
    objects = None if split.objects is None else dict(zip(split.ids.tolist(), split.objects.tolist(), strict=True))
    save_contributions(predictions, folder / CONTRIBUTIONS, objects)
    if config.evaluate.level == "full":
        save_predictions(predictions, folder / PREDICTIONS)
