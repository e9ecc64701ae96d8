"""One trial of two workers goes on through every fault that a cluster has, and ends like one that met none."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from tests.head import BIN, ROOT, Head, Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
EPOCHS = 12
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
    "workers-per-trial": 2,
    "seeds": 1,
}


class Cluster:
    """A head without CPUs that holds the trial's driver, and three nodes, one more than the trial takes."""

    def __init__(self):
        found_soon = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 1000,
        }
        config = json.dumps(found_soon | {"health_check_failure_threshold": 3})
        self.head = Head(["--num-cpus", "0", "--resources", '{"train_driver": 1}', "--system-config", config])
        self.nodes = [Node(self.head) for _ in range(3)]

    def workers(self) -> dict[str, int]:
        """Return node id -> process id of the trial's workers that live."""
        return {actor["node_id"]: actor["pid"] for actor in self.actors("RayTrainWorker")}

    def actors(self, name: str) -> list[dict]:
        found = self.head.listed("actors")
        return [actor for actor in found if actor["state"] == "ALIVE" and name in actor["class_name"]]

    def replace(self, node_id: str) -> None:
        """Kill the node, as a machine that loses its power, and start another one."""
        node = next(node for node in self.nodes if node.id == node_id)
        self.nodes.remove(node)
        node.kill()
        self.nodes.append(Node(self.head))

    def kill(self) -> None:
        for part in (self.head, *self.nodes):
            part.kill()


class Job:
    """A study of one trial, submitted."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *more: str):
        script = folder / f"{name}.py"
        script.write_text(STUDY.format(root=str(ROOT), name=name))
        self.folder = folder / "results" / name
        places = {"output": folder / "results", "tracking-uri": f"sqlite:///{folder}/mlflow.db"}
        options = OPTIONS | places | {"data.cache": folder / "cache"}
        arguments = [text for option, value in options.items() for text in (f"--{option}", str(value))]
        self.result: subprocess.CompletedProcess | None = None
        self.thread = threading.Thread(
            target=self._run, args=(cluster.head, ["python", str(script), *arguments, *more])
        )
        self.thread.start()

    def _run(self, head: Head, command: list[str]) -> None:
        self.result = head.submit("--", *command)

    def place(self) -> tuple[int, int]:
        """Return epochs and steps of the next that the trial's checkpoint holds."""
        for path in self.folder.glob("trials/*/checkpoint/checkpoint.pt"):
            state = torch.load(path, weights_only=True)["run"]
            return state["epoch"], state["step"]
        return 0, 0

    def wait_for(self, epoch: int) -> None:
        deadline = time.monotonic() + 240
        while self.place()[0] < epoch:
            assert time.monotonic() < deadline
            assert self.thread.is_alive(), self.text()
            time.sleep(0.1)

    def finished(self) -> dict:
        """Return the one trial of the summary, once the job has ended."""
        self.thread.join()
        assert self.result.returncode == 0, self.text()
        (trial,) = json.loads((self.folder / "summary.json").read_text())["trials"]
        return trial

    def text(self) -> str:
        return self.result.stdout + self.result.stderr


class Story:
    """The study that meets the faults, beside one that does not."""

    def __init__(self, folder: Path):
        self.folder, self.cluster = folder, Cluster()
        self.recovered_s: dict[str, float] = {}

    def begin(self) -> None:
        self.unharmed = Job(self.cluster, self.folder, "unharmed").finished()
        self.job = Job(self.cluster, self.folder, "harmed")

    def goes_on_after(self, fault: str, started: float, epoch: int) -> None:
        """Wait for the end of an epoch after this one, and note how long it took."""
        self.job.wait_for(epoch + 1)
        self.recovered_s[fault] = time.monotonic() - started


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    story = Story(tmp_path_factory.mktemp("story"))
    try:
        story.begin()
        yield story
    finally:
        story.cluster.kill()


def test_every_node_is_asked(story):
    code = "import ray; ray.init(); from eqssl.study.cluster import on_every_node as ask; ask(lambda: 'disk is full')"
    environment = story.cluster.head.environment | {"RAY_ADDRESS": story.cluster.head.gcs}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.endswith("ValueError: disk is full\n")


def next_fault(story: Story) -> tuple[float, int]:
    """Let an epoch be trained, and return the time and the epochs in the checkpoint."""
    epoch = story.job.place()[0] + 1
    story.job.wait_for(epoch)
    return time.monotonic(), epoch


def test_a_worker_is_killed(story):
    started, epoch = next_fault(story)
    os.kill(next(iter(story.cluster.workers().values())), signal.SIGKILL)
    story.goes_on_after("worker killed", started, epoch)


def test_a_node_is_killed(story):
    started, epoch = next_fault(story)
    story.cluster.replace(next(iter(story.cluster.workers())))
    story.goes_on_after("node killed", started, epoch)


def test_a_node_is_drained_and_the_state_saved_within_an_epoch(story):
    started, epoch = next_fault(story)
    node_id = next(iter(story.cluster.workers()))
    command = [
        BIN / "ray", "drain-node", "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot", "--deadline-remaining-seconds", "30", "--address", story.cluster.head.gcs,
    ]  # fmt: skip
    subprocess.run(command, env=story.cluster.head.environment, check=True, capture_output=True)
    deadline = time.monotonic() + 30
    while story.job.place()[1] == 0:  # until the state is saved within an epoch
        assert time.monotonic() < deadline
        time.sleep(0.02)
    story.cluster.replace(node_id)
    story.goes_on_after("node drained, then killed", started, epoch)


def test_the_trials_driver_is_killed(story):
    started, epoch = next_fault(story)
    (driver,) = story.cluster.actors("ImplicitFunc")
    os.kill(driver["pid"], signal.SIGKILL)
    story.goes_on_after("driver of the trial killed", started, epoch)


def test_the_head_is_killed_and_the_job_submitted_again(story):
    started, epoch = next_fault(story)
    study = json.loads((story.job.folder / "lease.json").read_text())["pid"]
    story.cluster.kill()
    os.kill(study, signal.SIGKILL)  # on a machine of its own it would be gone with the head
    story.job.thread.join()
    story.cluster = Cluster()
    story.job = Job(story.cluster, story.folder, "harmed", "--resume")
    story.goes_on_after("head killed, job submitted again", started, epoch)


def test_the_end_is_that_of_the_study_without_faults(story):
    trial = story.job.finished()
    assert (trial["status"], trial["epochs"]) == ("COMPLETE", EPOCHS)
    assert trial["trial_id"] == story.unharmed["trial_id"]
    for figure in ("loss", "ssl", "recon"):
        assert trial["metrics"][figure] == pytest.approx(story.unharmed["metrics"][figure], abs=1e-5)
    client = MlflowClient(f"sqlite:///{story.folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("harmed").experiment_id])
    (child,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [metric.step for metric in client.get_metric_history(child.info.run_id, "loss")] == list(
        range(1, EPOCHS + 1)
    )
    print("\nseconds until an epoch had been trained after")
    for fault, seconds in story.recovered_s.items():
        print(f"{seconds:6.1f}  {fault}")
