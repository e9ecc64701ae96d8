"""Scale of a study, without training: growth of its resume, summary and report, its memory, and MLflow's entries."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, exponent, interleave
from eqssl.config import RunConfig
from eqssl.report.report import write_report
from eqssl.study import Study, StudyOptions, log_uniform, uniform
from eqssl.study.execution import cluster, pool, trial
from eqssl.study.execution.preemption import SaveSchedule
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.signals import StopSignals
from eqssl.study.listener import Listener
from eqssl.study.live import current_summary
from eqssl.study.results import summarise
from eqssl.study.search.schedule import Suggestions
from eqssl.study.search.space import Trial
from eqssl.study.store.records import CONTRIBUTIONS, StudyFolder, TrialRecord
from eqssl.study.summary import SUMMARY
from eqssl.tracking import StudyTracker

EXPONENT = 1.1
MB = 0.12  # of memory a trial: 1.2 GB at 10,000, beside .3 of the libraries
EPOCHS, SEEDS, IMAGES = 100, 2, 2000
METRICS = ("linear", "knn", "r2_mean", "equivariance", *(f"r2/{factor}" for factor in range(20)))
STUDY = Study(name="scale", question="", space={"recon.weight": log_uniform(0.1, 10.0), "augment.hue": uniform(0, 1)})


def measure(options: Options) -> list[Row]:
    """Return how times grow with the trials, the memory of a trial, and how many entries MLflow has not got."""
    with tempfile.TemporaryDirectory() as folder:
        stores = {count: ended_study(Path(folder, str(count)), count) for count in options.study_trials}
        rows = [growth(options, of, stores) for of in (resumed, summary, report)]
    done = subprocess.run(
        [sys.executable, "-m", "eqssl.bench.scale", *map(str, options.simulated)], capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"the simulated study of the part scale failed:\n{done.stdout}{done.stderr}")
    megabytes, dropped = json.loads(done.stdout.splitlines()[-1])
    note = "{} trials of {} epochs".format(*options.simulated)
    memory = Row(
        part="scale", name="memory of a trial", value=megabytes, unit="MB", against=f"{MB} MB",
        ratio=megabytes / MB, at_most=1.0, note=note,
    )  # fmt: skip
    return [*rows, memory, Row(part="scale", name="entries that MLflow has not got", value=dropped, note=note)]


def growth(options: Options, subject: Callable[[StudyFolder], Any], stores: dict[int, StudyFolder]) -> Row:
    """Return the exponent k of seconds ~ trials^k."""
    seconds = interleave({str(count): partial(subject, store) for count, store in stores.items()}, options.seconds)
    per_round = [exponent(list(stores), of_round) for of_round in zip(*seconds.values(), strict=True)]
    low, k, high = np.quantile(per_round, [0.25, 0.5, 0.75])
    times = ", ".join(f"{count}: {np.median(of):.2g} s" for count, of in seconds.items())
    return Row(
        part="scale", name=f"{subject.__name__} ~ trials^k", value=float(k), unit="= k", rounds=len(per_round),
        against="linear", ratio=float(k), low=float(low), high=float(high), at_most=EXPONENT, note=times,
    )  # fmt: skip


def suggestions_of(trials: int) -> Suggestions:
    """Return a study's trials, about that many."""
    configs = max(1, trials // SEEDS - len(STUDY.reference_configurations()))
    return Suggestions(STUDY, StudyOptions(configs=configs, seeds=SEEDS, sampler="random"))


def ended_study(folder: Path, trials: int) -> StudyFolder:
    """Write the folder of a study that has ended."""
    import pandas as pd

    store, suggestions, rng = StudyFolder(folder, "0", {}), suggestions_of(trials), np.random.default_rng(0)
    columns = {"metric": np.repeat(METRICS, IMAGES), "unit": np.tile(np.arange(IMAGES), len(METRICS))}
    columns |= {name: rng.uniform(size=IMAGES * len(METRICS)).astype(np.float32) for name in ("value", "weight")}
    folder.mkdir()
    pd.DataFrame(columns).to_parquet(folder / CONTRIBUTIONS)
    history = {str(epoch): dict.fromkeys(STUDY.objectives, 0.5) for epoch in range(1, EPOCHS)}
    while (made_up := suggestions.next()) is not None:
        metrics = dict(zip(METRICS, rng.normal(size=len(METRICS)).tolist(), strict=True))
        record = trial.record_of(made_up, "COMPLETE", epochs=EPOCHS, metrics=metrics, history=history)
        store.trial_suggested(made_up)
        for listener in (store, suggestions):
            listener.trial_ended(made_up, record)
        (store.trial_folder(made_up) / CONTRIBUTIONS).hardlink_to(folder / CONTRIBUTIONS)
    (folder / SUMMARY).write_text(json.dumps(summary(store)))
    return store


def resumed(store: StudyFolder) -> None:
    """Read a study's trials and replay its search, until none is left."""
    records = store.records()
    suggestions = suggestions_of(len(records))
    suggestions.restore(store.suggested_trials(), records)
    suggestions.next()


def summary(store: StudyFolder) -> dict[str, Any]:
    """Return the summary of a study that has ended."""
    about: dict[str, Any] = {"study_id": "0", "status": "complete", "wall_s": 0.0, "concurrency": "", "options": {}}
    about["data"] = {"name": "", "digest": ""}
    return summarise(STUDY, list(store.records().values()), about, store.folder)


def report(store: StudyFolder) -> None:
    """Write the report of a study that has ended."""
    write_report(current_summary(store.folder), store.folder)


class Memory(Listener):
    """Notes the memory of this process after every trial's end, in MB."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def trial_ended(self, trial: Trial, record: TrialRecord) -> None:
        self.used.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)


def simulated_trial(config: dict[str, Any], setup: StudySetup, epochs: int) -> None:
    """Report made-up epochs, as a trial in Tune's process does."""
    context = trial.TrialContext(config["trial"], setup, trial.report_to_tune, SaveSchedule("", set(), None))
    rng = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        metrics = dict(zip(METRICS, rng.normal(size=len(METRICS)).tolist(), strict=True))
        metrics |= {"epoch": float(epoch), "evaluate_s": 0.0}
        context.report(metrics, None)
    trial.report_to_tune(context.record("COMPLETE", metrics))


def main(trials: int, epochs: int) -> None:
    """Run a study in Tune that trains nothing; print the MB of a trial in memory and the entries MLflow has not got."""
    pool.run_trial = partial(simulated_trial, epochs=epochs)  # in the place of a training
    with tempfile.TemporaryDirectory() as folder, StopSignals() as signals, cluster.ray_running():
        tracker = StudyTracker(
            f"sqlite:///{folder}/mlflow.db", STUDY.name, [*STUDY.space], STUDY.objectives, Path(folder)
        )
        tracker.ready()
        tracker.begin("0", RunConfig(), [], [])
        suggestions, memory = suggestions_of(trials), Memory()
        capacity = cluster.capacity(StudyOptions(concurrency=1), cluster.alive_nodes(), suggestions.total)
        setup = StudySetup(folder, tuple(STUDY.objectives), worker=capacity.worker)
        listeners = [StudyFolder(Path(folder), "0", {}), suggestions, tracker, memory]
        pool.run_trials(suggestions, lambda of: of.run_config(RunConfig()), setup, capacity, listeners, signals)
        tracker.close("FINISHED", [])
    first = len(memory.used) // 4  # libraries are imported, and buffers grow, during the first trials
    print(json.dumps([(memory.used[-1] - memory.used[first]) / (len(memory.used) - first), tracker.dropped]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
