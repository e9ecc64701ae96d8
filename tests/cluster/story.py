"""A study, usually of one trial, that meets faults: the submitted script, and the progress of its checkpoint."""

import functools
import json
import shlex
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
import yaml

from eqssl.config import RunConfig, replace
from eqssl.files import as_path, find, read
from eqssl.training import checkpoint
from eqssl.training.loop import train
from tests.head import ROOT, Head
from tests.workers import Worker, run_workers

EPOCHS = 16
HOLD = "hold"  # a file in the folder of a job: while it exists, no step ends
WORKER = "RayTrainWorker"  # the class of a trial's workers
START = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["head_start_ray_commands"][-1]
SHIPPED = [part for part in shlex.split(START) if part.startswith("--system-config")]
# Its steps take so long anywhere that the trial has not ended before it has met every fault.
STUDY = """
import os
import sys
import time
sys.path.insert(0, {root!r})
from eqssl import register_method
from eqssl.methods.vicreg import VICReg
from eqssl.study import Study, main


class Unhurried(VICReg):
    def __init__(self, *given, **options):
        if "BROKEN" in os.environ:
            raise ModuleNotFoundError("No module named 'timm'")
        super().__init__(*given, **options)

    def forward(self, pair):
        time.sleep(0.25)
        while os.path.exists({hold!r}):
            time.sleep(0.1)
        return super().forward(pair)


if __name__ == "__main__":
    register_method("unhurried", Unhurried)
    sys.exit(main(Study(name={name!r}, question="?", space={{}}, rows={rows!r}, configs=1)))
"""
OPTIONS = {
    "data.objects": 100,
    "data.image-size": 64,
    "train.batch-size": 32,
    "train.epochs": EPOCHS,
    "train.precision": "fp32",
    "evaluate.train-images": 64,
    "evaluate.images": 16,
    "seeds": 1,
}


class Job:
    """A study of one trial, or of some rows, submitted.

    Args:
        head: of the cluster.
        name: of the study.
        folder: for its script and what it caches.
        options: beside those of all.
        rows: of the study.
    """

    def __init__(
        self,
        head: Head,
        name: str,
        folder: Path,
        options: dict[str, object],
        *more: str,
        rows: dict[str, dict] | None = None,
    ):
        script = folder / f"{name}.py"
        script.write_text(STUDY.format(root=str(ROOT), name=name, rows=rows or {}, hold=str(folder / HOLD)))
        self.folder = as_path(str(options["output"])) / name
        options = OPTIONS | {"data.cache": folder / "cache", "method.name": "unhurried"} | options
        self.epochs = options["train.epochs"]
        arguments = [text for option, value in options.items() for text in (f"--{option}", str(value))]
        self.result: subprocess.CompletedProcess | None = None
        self.thread = threading.Thread(target=self._run, args=(head, ["python", str(script), *arguments, *more]))
        self.thread.start()

    def _run(self, head: Head, command: list[str]) -> None:
        self.result = head.submit("--", *command)

    def place(self) -> tuple[int, int]:
        """Return epochs and steps of the next that the trial's checkpoint holds."""
        for path in find(self.folder, f"trials/*/checkpoint/{checkpoint.FILE}"):
            state = checkpoint.load(path.parent)
            if state is not None:  # it is removed at the end
                return state["run"]["epoch"], state["run"]["step"]
        return 0, 0

    def wait_for(self, epoch: int) -> None:
        deadline = time.monotonic() + 240
        while self.place()[0] < epoch:
            assert time.monotonic() < deadline
            assert self.thread.is_alive(), self.text()
            time.sleep(0.1)

    def next_epoch(self) -> tuple[float, int]:
        """Let an epoch be trained, and return the time and the epochs in the checkpoint."""
        epoch = self.place()[0] + 1
        self.wait_for(epoch)
        return time.monotonic(), epoch

    def finished(self) -> dict:
        """Return the one trial of the summary, once the job has ended."""
        self.thread.join()
        assert self.result.returncode == 0, self.text()
        (trial,) = json.loads(read(self.folder / "summary.json"))["trials"]
        assert (trial["status"], trial["epochs"]) == ("COMPLETE", self.epochs), trial["error"]
        return trial

    def text(self) -> str:
        return self.result.stdout + self.result.stderr


def actors(head: Head, name: str) -> list[dict]:
    """Return the actors of a class that live."""
    found = head.listed("actors")
    return [actor for actor in found if actor["state"] == "ALIVE" and name in actor["class_name"]]


def _train(rank: int, world_size: int, values: dict[str, object]) -> dict[str, float]:
    return train(replace(RunConfig(), values), Worker(rank, world_size)).metrics


@functools.cache
def trained_without_faults() -> dict[str, float]:
    """Return the metrics of the trial, trained by two processes here, without Ray."""
    values = {option.replace("-", "_"): value for option, value in OPTIONS.items() if "." in option}
    with tempfile.TemporaryDirectory() as cache:
        return run_workers(2, _train, values | {"data.cache": cache})[0]


def assert_trained_the_same(trial: dict, metrics: dict[str, float], tolerance: float = 1e-5) -> None:
    """A trial ended with these losses."""
    for figure in ("loss", "ssl", "recon"):
        assert trial["metrics"][figure] == pytest.approx(metrics[figure], abs=tolerance)
