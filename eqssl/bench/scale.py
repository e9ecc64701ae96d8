"""A large study without training: growth of its resume, summary and report, its memory, and MLflow's entries.

The trials are made up: their metrics are random, and all share the files of contributions and epochs. Each measurement
runs in its own process, whose memory is that of a study's process.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.bench.command import Options
from eqssl.bench.timing import Row, limited
from eqssl.config import RunConfig
from eqssl.files import write_json
from eqssl.report.report import write_report
from eqssl.study import Study, StudyOptions, log_uniform, uniform
from eqssl.study.execution import cluster, pool, trial
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.stop import StopSignals
from eqssl.study.listener import Listener
from eqssl.study.live import current_summary
from eqssl.study.options import settle
from eqssl.study.results import summarise, write_results
from eqssl.study.search.sampler import write_journal
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import CONTRIBUTIONS, ENDED, StudyFolder, TrialRecord
from eqssl.study.store.records import EPOCHS as EPOCHS_FILE
from eqssl.tracking.study import StudyTracker

MAX_EXPONENT, MAX_S, MAX_MB, LARGE = 1.1, 60.0, 1500.0, 10_000  # the last: trials of a large study
EPOCHS, SEEDS, IMAGES = 100, 2, 2000
METRICS = ("linear", "knn", "r2_mean", "equivariance", *(f"r2/{factor}" for factor in range(20)))
# A trial's files are links to those of the study; any file serves as the encoder, which is only copied.
FILES = {CONTRIBUTIONS: CONTRIBUTIONS, EPOCHS_FILE: EPOCHS_FILE, "encoder/model.safetensors": CONTRIBUTIONS}
STUDY = Study(name="scale", question="", space={"recon.weight": log_uniform(0.1, 10.0), "augment.hue": uniform(0, 1)})


def measure(options: Options) -> list[Row]:
    """Return times and exponents of finished studies, then memory and lost entries of one that runs in Tune."""
    sizes, (trials, epochs) = sorted(options.study_trials), options.simulated
    finished, running = _in_own_process(ended, *sizes), _in_own_process(simulated, trials, epochs)
    rows, last = [], f"{sizes[-1]} trials"
    for step, measured in finished["seconds"].items():
        wall_s, cpu_s = (np.array(of) for of in zip(*measured, strict=True))
        note = ", ".join(f"{n}: {s:.3g} s, CPU {c:.3g} s" for n, s, c in zip(sizes, wall_s, cpu_s, strict=True))
        rows.append(limited(f"{step}, {last}", float(wall_s[-1]), "s", MAX_S, note=note))
        if len(sizes) > 1:  # from CPU seconds, which other work on the machine affects less
            rows.append(limited(f"{step}: k of trials^k", exponent(sizes, cpu_s), "", MAX_EXPONENT))
    rows.append(limited(f"peak memory of these, {last}", finished["peak_mb"], "MB", MAX_MB))
    made, slope = f"{trials} trials of {epochs} epochs", running["mb_per_trial"]
    note = f"extrapolated from {made}: {running['last_mb']:.0f} MB, {slope:.3f} MB a trial"
    large_mb = running["last_mb"] + slope * max(0, LARGE - trials)
    rows.append(limited(f"memory of a study that runs, {LARGE} trials", large_mb, "MB", MAX_MB, note=note))
    return [*rows, Row(name="entries that MLflow has not got", value=running["dropped"], note=made)]


def _in_own_process(function: Callable[..., dict[str, Any]], *numbers: int) -> dict[str, Any]:
    """Return a function's result; everything printed goes to stderr, beside the bench's table."""
    with ProcessPoolExecutor(1, get_context("spawn"), os.dup2, (2, 1)) as process:
        return process.submit(function, *numbers).result()


def exponent(sizes: list[int], seconds: np.ndarray) -> float:
    """Return k of the least-squares fit seconds ~ sizes^k."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def suggestions_of(trials: int) -> Suggestions:
    """Return a study's suggestions, for about that many trials."""
    configs = max(1, trials // SEEDS - len(STUDY.reference_configurations()))
    return Suggestions(*settle(STUDY, StudyOptions(configs=configs, seeds=SEEDS, sampler="random")))


def random_metrics(rng: np.random.Generator) -> dict[str, float]:
    return dict(zip(METRICS, rng.normal(size=len(METRICS)).tolist(), strict=True))


def ended_study(folder: Path, trials: int) -> None:
    """Write the folder of a finished study, with 99 evaluated epochs per trial in addition to the last."""
    import pandas as pd

    store, rng = StudyFolder.open(folder, {}, resume=False), np.random.default_rng(0)
    store.create("")
    columns = {"metric": np.repeat(METRICS, IMAGES), "unit": np.tile(np.arange(IMAGES), len(METRICS))}
    columns |= {name: rng.uniform(size=IMAGES * len(METRICS)).astype(np.float32) for name in ("value", "weight")}
    pd.DataFrame(columns).to_parquet(folder / CONTRIBUTIONS)
    write_json(folder / EPOCHS_FILE, [random_metrics(rng) | {"epoch": e + 1.0, ENDED: e} for e in range(EPOCHS)])
    history = {str(epoch): dict.fromkeys(STUDY.objectives, 0.5) for epoch in range(1, EPOCHS)}
    suggestions = suggestions_of(trials)
    while (made_up := suggestions.next()) is not None:
        record = trial.record_of(made_up, "COMPLETE", epochs=EPOCHS, metrics=random_metrics(rng), history=history)
        store.trial_suggested(made_up)
        for listener in (store, suggestions):
            listener.trial_ended(made_up, record)
        of_trial = store.trial_folder(made_up)
        (of_trial / "encoder").mkdir()
        for name, source in FILES.items():
            (of_trial / name).hardlink_to(folder / source)


def resume(folder: Path) -> None:
    """Read a study's trials and replay its search, until none is left."""
    found = StudyFolder.open(folder, {}, resume=True)
    suggestions = suggestions_of(len(found.records()))
    suggestions.restore(found.configurations(), found.records())
    suggestions.next()


def summary(folder: Path) -> None:
    """Write the summary, the table of trials and the search's journal of a finished study."""
    about: dict[str, Any] = {"study_id": "0", "status": "complete", "wall_s": 0.0, "concurrency": "", "options": {}}
    records = list(StudyFolder.open(folder, {}, resume=True).records().values())
    made = summarise(STUDY, records, about | {"data": {"name": "", "digest": ""}}, folder)
    write_results(made, records, folder)
    write_journal(STUDY, records, folder / "optuna.journal")


def report(folder: Path) -> None:
    """Write the report of a finished study."""
    write_report(current_summary(folder), folder)


def ended(*sizes: int) -> dict[str, Any]:
    """Return each step's wall-clock and CPU seconds, one pair per size, and the peak memory in MB."""
    steps = (resume, summary, report)
    seconds: dict[str, list[tuple[float, float]]] = {step.__name__: [] for step in steps}
    with tempfile.TemporaryDirectory() as folder:
        for place, size in enumerate((min(sizes), *sizes)):  # the first is not counted: it imports libraries
            path = Path(folder, str(size))
            if not path.exists():
                ended_study(path, size)
            for step in steps:
                wall_s, cpu_s = time.perf_counter(), time.process_time()
                step(path)
                took = time.perf_counter() - wall_s, time.process_time() - cpu_s
                if place:
                    seconds[step.__name__].append(took)
                    print(f"{step.__name__}, {size} trials: {took[0]:.1f} s, CPU {took[1]:.1f} s", file=sys.stderr)
    return {"seconds": seconds, "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    """Return this process's peak memory; getrusage reports that of the parent, if it is higher."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


class _Memory(Listener):
    """Records the memory of this process after every trial's end, in MB."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
        self.used.append(int(pages) * resource.getpagesize() / 2**20)


def _simulated_trial(config: dict[str, Any], setup: StudySetup, epochs: int) -> None:
    """Report made-up epochs, as a trial in Tune's process does."""
    context = trial.TrialContext(config["trial"], setup, trial.report_to_tune, set())
    rng = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        metrics = random_metrics(rng) | {"epoch": float(epoch), "evaluate_s": 0.0}
        context.report(metrics, None)
    trial.report_to_tune(context.record("COMPLETE", metrics))


def simulated(trials: int, epochs: int) -> dict[str, float]:
    """Run a study in Tune that trains nothing; return its memory in MB and the number of entries that MLflow lacks."""
    pool.run_trial = partial(_simulated_trial, epochs=epochs)  # in place of a training
    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals, cluster.ray_running():
        uri = f"sqlite:///{folder}/mlflow.db"
        tracker = StudyTracker(uri, STUDY.name, [*STUDY.space], STUDY.objectives, Path(folder))
        tracker.ready()
        tracker.begin("0", RunConfig(), [])
        suggestions, memory = suggestions_of(trials), _Memory()
        capacity = cluster.capacity(
            settle(STUDY, StudyOptions(concurrency=1))[1], cluster.alive_nodes(), suggestions.total
        )
        setup = StudySetup(folder, tuple(STUDY.objectives), worker=capacity.worker)
        listeners = [StudyFolder(Path(folder), "0", {}), suggestions, tracker, memory]
        pool.run_trials(suggestions, lambda of: of.run_config(RunConfig()), setup, capacity, listeners, signals)
        tracker.close("FINISHED", [])
    first = len(memory.used) // 4  # libraries are imported, and buffers grow, during the first trials
    per_trial = (memory.used[-1] - memory.used[first]) / (len(memory.used) - first)
    return {"last_mb": memory.used[-1], "mb_per_trial": per_trial, "dropped": tracker.dropped}
