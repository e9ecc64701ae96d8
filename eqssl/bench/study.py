"""Overhead of a study: seconds it adds to a trial, and the growth of its summary with the number of trials."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, exponent, interleave
from eqssl.study import Study
from eqssl.study.results import summarise
from eqssl.study.store.records import TrialRecord

WARM_S = 0.2
EXPONENT = 1.1
METRICS = ("linear", "r2_mean", "equivariance", *(f"r2/{factor}" for factor in range(20)))
SEEDS = 2
STUDY = """
import sys
from eqssl.study import Study, main

sys.exit(main(Study(name="overhead", question="", space={}, rows={}, configs=1)))
"""


def measure(options: Options) -> list[Row]:
    """Return the overhead of trials in new and reused processes, and the exponent of the summary's time."""
    cold, warm = overheads(trials(options, options.trials))
    first, later = overheads(trials(options, options.trials, "--workers-per-trial", "2"))
    return [
        _row("a trial in a new process", cold),
        _row("a trial in a reused process", warm, f"{WARM_S} s", [WARM_S], at_most=1.0),
        _row("a trial by two new workers of Ray Train", first, "a trial in a new process", cold),
        _row("a trial by two reused workers", later, "a trial by two new workers", first, at_most=0.5),
        summary_growth(options),
    ]


def overheads(records: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the seconds beyond training and evaluation of trials in new and in reused processes."""
    cold, warm = ([record["overhead_s"] for record in records if record["warm"] is state] for state in (False, True))
    return cold, warm


def trials(options: Options, count: int, *more: str) -> list[dict[str, Any]]:
    """Run a study of trials that differ in the seed, one at a time, and return their records."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "data.objects": 64, "data.cache": f"{folder}/data", "encoder.name": options.encoders[0],
            "train.batch-size": 32, "train.epochs": 1, "evaluate.train-images": 64, "evaluate.images": 16,
            "seeds": count, "concurrency": 1, "output": folder, "tracking-uri": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip
        arguments = [text for option, value in values.items() for text in (f"--{option}", str(value))]
        done = subprocess.run([sys.executable, "-c", STUDY, *arguments, *more], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"the study of the part study failed:\n{done.stdout}{done.stderr}")
        return [json.loads(path.read_text()) for path in Path(folder).glob("overhead/trials/*/result.json")]


def summary_growth(options: Options) -> Row:
    """Return the exponent k of seconds ~ trials^k for the statistics and the choice at a study's end."""
    study, counts = Study(name="growth", question="", space={}, configs=0), options.study_trials
    seconds = interleave({str(n): partial(summarise, study, _records(n), {}) for n in counts}, options.seconds)
    per_round = [exponent(counts, of_round) for of_round in zip(*seconds.values(), strict=True)]
    low, k, high = np.quantile(per_round, [0.25, 0.5, 0.75])
    times = ", ".join(f"{count}: {np.median(seconds[str(count)]):.2g} s" for count in counts)
    return Row(
        part="study", name="summary ~ trials^k", value=float(k), unit="= k", rounds=len(per_round), against="linear",
        ratio=float(k), low=float(low), high=float(high), at_most=EXPONENT, note=times,
    )  # fmt: skip


def _records(count: int) -> list[TrialRecord]:
    """Return made-up trials of two seeds a configuration, controls first."""
    rng, controls = np.random.default_rng(0), ("base", "no-recon", "autoencode")
    records = []
    for i in range(count):
        number = i // SEEDS - len(controls)
        name = f"no. {number}" if number >= 0 else controls[i // SEEDS]
        metrics = dict(zip(METRICS, rng.normal(size=len(METRICS)).tolist(), strict=True))
        records.append(
            TrialRecord(
                trial_id=str(i), configuration=name, number=number if number >= 0 else None, params={},
                seed=i % SEEDS, status="COMPLETE", metrics=metrics,
            )
        )  # fmt: skip
    return records


def _row(
    name: str, seconds: Sequence[float], against: str = "", base: Sequence[float] = (), at_most: float | None = None
) -> Row:
    value = float(np.median(seconds))
    ratio = value / float(np.median(base)) if base else None
    return Row(
        part="study", name=name, value=value, unit="s", rounds=len(seconds), against=against, ratio=ratio,
        at_most=at_most,
    )  # fmt: skip
