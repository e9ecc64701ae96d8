"""Overhead of a study: seconds it adds to a trial."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqssl.bench.options import Options
from eqssl.bench.timing import Row

WARM_S = 0.2
STUDY = """
import sys
from eqssl.study import Study, main

sys.exit(main(Study(name="overhead", question="", space={}, rows={}, configs=1)))
"""


def measure(options: Options) -> list[Row]:
    """Return the overhead of trials in new and reused processes."""
    cold, warm = overheads(trials(options, options.trials))
    first, later = overheads(trials(options, options.trials, "--workers-per-trial", "2"))
    return [
        _row("a trial in a new process", cold),
        _row("a trial in a reused process", warm, f"{WARM_S} s", [WARM_S], at_most=1.0),
        _row("a trial by two new workers of Ray Train", first, "a trial in a new process", cold),
        _row("a trial by two reused workers", later, "a trial by two new workers", first, at_most=0.5),
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


def _row(
    name: str, seconds: Sequence[float], against: str = "", base: Sequence[float] = (), at_most: float | None = None
) -> Row:
    value = float(np.median(seconds))
    ratio = value / float(np.median(base)) if base else None
    return Row(
        part="study", name=name, value=value, unit="s", rounds=len(seconds), against=against, ratio=ratio,
        at_most=at_most,
    )  # fmt: skip
