"""What a study adds to a trial: in a new process, in one that ran a trial before, and with workers of its own."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from eqssl.bench.options import Options
from eqssl.bench.table import Row

WARM_S = 0.2
STUDY = """
import sys
from eqssl.study import Study, main

sys.exit(main(Study(name="overhead", question="", space={}, rows={}, configs=1)))
"""


def measure(options: Options) -> list[Row]:
    """Return the seconds that a study holds a trial's process beyond training and evaluation."""
    cold, warm = seconds(trials(options, options.trials))
    first, later = seconds(trials(options, options.trials, "--workers-per-trial", "2"))
    return [
        _row("a trial in a new process", cold),
        _row("a trial in a process that ran one before", warm, f"{WARM_S} s", [WARM_S], at_most=1.0),
        _row("a trial by two new workers of Ray Train", first, "in a new process", cold),
        _row("a trial by two workers that did one before", later, "by two new workers", first, at_most=0.5),
    ]


def seconds(records: list[dict]) -> tuple[list[float], list[float]]:
    """Return the overhead of trials in new processes, and in such as ran one before."""
    cold, warm = ([one["overhead_s"] for one in records if one["warm"] is state] for state in (False, True))
    return cold, warm


def trials(options: Options, count: int, *more: str) -> list[dict]:
    """Run a study of trials that differ in the seed, one at a time, and return their records."""
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "data.objects": 64, "data.cache": f"{folder}/data", "encoder.name": options.encoders[0],
            "train.batch-size": 32, "train.epochs": 1, "evaluate.train-images": 64, "evaluate.images": 16,
            "seeds": count, "concurrency": 1, "output": folder, "tracking-uri": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip
        arguments = [text for option, value in values.items() for text in (f"--{option}", str(value))]
        command = [sys.executable, "-c", STUDY, *arguments, *more]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"the study of the part overhead failed:\n{done.stdout}{done.stderr}")
        return [json.loads(path.read_text()) for path in Path(folder).glob("overhead/trials/*/result.json")]


def _row(
    name: str, seconds: list[float], against: str = "", base: list[float] | None = None, at_most: float | None = None
) -> Row:
    ratio = float(np.median(seconds) / np.median(base)) if base else None
    return Row(
        part="overhead", name=name, value=float(np.median(seconds)), unit="s", rounds=len(seconds),
        against=against, ratio=ratio, at_most=at_most,
    )  # fmt: skip
