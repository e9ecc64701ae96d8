"""A study of one trial that meets faults: what is submitted, and how far its checkpoint has come."""

import json
import shlex
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from eqssl import checkpoint
from eqssl.files import as_path, find, read
from tests.head import ROOT, Head

EPOCHS = 16
START = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["head_start_ray_commands"][-1]
SHIPPED = [part for part in shlex.split(START) if part.startswith("--system-config")]
STUDY = """
import sys
sys.path.insert(0, {root!r})
from eqssl.study import Study, main

if __name__ == "__main__":
    sys.exit(main(Study(name={name!r}, question="?", space={{}}, rows={{}}, configurations=1)))
"""
OPTIONS = {
    "data.objects": 100,
    "train.batch-size": 32,
    "train.epochs": EPOCHS,
    "train.precision": "fp32",
    "evaluate.train-images": 64,
    "evaluate.images": 16,
    "seeds": 1,
}


class Job:
    """A study of one trial, submitted.

    Args:
        head: of the cluster.
        name: of the study.
        folder: for its script and what it caches.
        options: beside those of all.
    """

    def __init__(self, head: Head, name: str, folder: Path, options: dict[str, object], *more: str):
        script = folder / f"{name}.py"
        script.write_text(STUDY.format(root=str(ROOT), name=name))
        self.folder = as_path(str(options["output"])) / name
        options = OPTIONS | {"data.cache": folder / "cache"} | options
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


def assert_trained_the_same(trial: dict, other: dict, tolerance: float = 1e-5) -> None:
    """Two trials ended with the same losses."""
    for figure in ("loss", "ssl", "recon"):
        assert trial["metrics"][figure] == pytest.approx(other["metrics"][figure], abs=tolerance)
