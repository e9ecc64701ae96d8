"""Seconds that a study adds to a trial's training and evaluation."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from eqssl.bench.command import Options
from eqssl.bench.timing import Row, limited

TRIALS = 5
REUSED_AT_MOST_S, REUSED_PAIR_AT_MOST = 0.2, 0.5
STUDY = """
import sys
from eqssl.study import Study, main

sys.exit(main(Study(name="overhead", question="", space={}, rows={}, configs=1)))
"""


def measure(options: Options) -> list[Row]:
    """Return the overhead of trials in new and reused processes, with one worker and with two of Ray Train."""
    one, two = overheads(options, TRIALS), overheads(options, TRIALS, "--workers-per-trial", "2")
    new, reused, new_pair, reused_pair = (float(np.median(of[kind])) for of in (one, two) for kind in ("new", "reused"))
    made = partial(Row, unit="s")
    return [
        made(name="a trial in a new process", value=new, rounds=len(one["new"])),
        limited("a trial in a reused process", reused, "s", REUSED_AT_MOST_S, rounds=len(one["reused"])),
        made(name="a trial by two new workers of Ray Train", value=new_pair, rounds=len(two["new"])),
        made(
            name="a trial by two reused workers", value=reused_pair, rounds=len(two["reused"]),
            against="two new workers", ratio=reused_pair / new_pair, at_most=REUSED_PAIR_AT_MOST,
        ),
    ]  # fmt: skip


def overheads(options: Options, count: int, *more: str) -> dict[str, list[float]]:
    """Return `new` and `reused` process -> seconds beyond training and evaluation of a study's trials, one at a time.

    Args:
        options: the first encoder is used.
        count: number of trials, which differ in the seed.
        more: further options of the study.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "data.objects": 64, "data.cache": f"{folder}/data", "encoder.name": options.encoders[0],
            "train.batch-size": 32, "train.epochs": 1, "evaluate.train-images": 64, "evaluate.images": 16,
            "seeds": count, "concurrency": 1, "output": folder, "tracking-uri": f"sqlite:///{folder}/mlflow.db",
        }  # fmt: skip
        arguments = [text for option, value in values.items() for text in (f"--{option}", str(value))]
        done = subprocess.run([sys.executable, "-c", STUDY, *arguments, *more], capture_output=True, encoding="utf-8")
        if done.returncode:
            raise ValueError(f"the study of the part trials failed:\n{done.stdout}{done.stderr}")
        records = [json.loads(path.read_bytes()) for path in Path(folder).glob("overhead/trials/*/result.json")]
    seconds: dict[str, list[float]] = {"new": [], "reused": []}
    for record in records:
        seconds["reused" if record["warm"] else "new"].append(record["overhead_s"])
    return seconds
