"""One trial of two workers goes on through every fault that a cluster has, and ends like one that met none.

Its results lie in a bucket and its runs on a tracking server, and both are away for a while.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from eqssl.files import read
from tests.cluster.story import EPOCHS, SHIPPED, WORKER, Job, actors, assert_trained_the_same, trained_without_faults
from tests.head import BIN, ROOT, Head, Node
from tests.mlflow_server import mlflow_server
from tests.storage import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STORE_AWAY_S, TRACKING_AWAY_S = 30.0, 60.0


class Cluster:
    """A head without CPUs that holds the trial's driver, and nodes of one CPU."""

    def __init__(self, nodes: int):
        self.head = Head(["--num-cpus", "0", "--resources", '{"train_driver": 1}', *SHIPPED])
        self.nodes = [Node(self.head) for _ in range(nodes)]

    def workers(self) -> dict[str, int]:
        """Return node id -> process id of the trial's workers that live."""
        return {actor["node_id"]: actor["pid"] for actor in actors(self.head, WORKER)}

    def replace(self, node_id: str) -> None:
        """Kill the node, as a machine that loses its power, and start another one."""
        node = next(node for node in self.nodes if node.id == node_id)
        self.nodes.remove(node)
        node.kill()
        self.nodes.append(Node(self.head))

    def kill(self) -> None:
        for part in (self.head, *self.nodes):
            part.kill()


class Story:
    """The study that meets the faults."""

    def __init__(self, folder: Path, store: Proxy, tracking: Proxy):
        self.folder, self.store, self.tracking = folder, store, tracking
        self.cluster = Cluster(nodes=3)  # one more than the trial takes
        self.recovered_s: dict[str, float] = {}
        self.tracking_back_at = 0.0

    def submit(self, *more: str) -> Job:
        places = {"output": "s3://studies/faults", "tracking-uri": f"http://127.0.0.1:{self.tracking.port}"}
        return Job(self.cluster.head, "harmed", self.folder, places | {"workers-per-trial": 2}, *more)

    def goes_on_after(self, fault: str, started: float, epoch: int) -> None:
        """Wait for the end of an epoch after this one, and note how long it took."""
        self.job.wait_for(epoch + 1)
        self.recovered_s[fault] = time.monotonic() - started


@pytest.fixture(scope="module")
def story(tmp_path_factory, s3):
    folder = tmp_path_factory.mktemp("story")
    with mlflow_server(folder) as port:
        story = Story(folder, s3, Proxy(port))
        try:
            story.job = story.submit()
            yield story
        finally:
            story.cluster.kill()


def test_every_node_is_asked(story):
    code = (
        "import ray; ray.init();"
        " from eqssl.study.execution.cluster import on_every_node as ask; ask(lambda: 'disk is full')"
    )
    environment = story.cluster.head.environment | {"RAY_ADDRESS": story.cluster.head.gcs}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.endswith("ValueError: disk is full\n")


def test_a_worker_is_killed(story):
    started, epoch = story.job.next_epoch()
    os.kill(next(iter(story.cluster.workers().values())), signal.SIGKILL)
    story.goes_on_after("worker killed", started, epoch)


def test_a_node_is_killed(story):
    started, epoch = story.job.next_epoch()
    story.cluster.replace(next(iter(story.cluster.workers())))
    story.goes_on_after("node killed", started, epoch)


def test_a_node_is_drained_and_the_state_saved_within_an_epoch(story):
    started, epoch = story.job.next_epoch()
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


def test_the_trials_driver_is_killed_while_the_tracking_server_is_away(story):
    started, epoch = story.job.next_epoch()
    story.tracking.away()
    (driver,) = actors(story.cluster.head, "ImplicitFunc")
    os.kill(driver["pid"], signal.SIGKILL)
    story.goes_on_after("driver of the trial killed", started, epoch)
    story.tracking_back_at = started + TRACKING_AWAY_S


def test_the_bucket_is_away_as_well(story):
    started, epoch = story.job.next_epoch()
    story.store.away()
    time.sleep(STORE_AWAY_S)
    story.store.back()
    story.goes_on_after(f"bucket away for {STORE_AWAY_S:.0f} s", started, epoch)
    time.sleep(max(0.0, story.tracking_back_at - time.monotonic()))
    story.tracking.back()


def test_the_head_is_killed_and_the_job_submitted_again(story):
    started, epoch = story.job.next_epoch()
    study = json.loads(read(story.job.folder / "runs" / "0001.json"))["pid"]
    story.cluster.kill()
    os.kill(study, signal.SIGKILL)  # on a machine of its own it would be gone with the head
    story.job.thread.join()
    story.cluster = Cluster(nodes=2)
    story.job = story.submit("--resume")
    story.goes_on_after("head killed, job submitted again", started, epoch)


def test_the_end_is_that_of_a_training_without_faults(story):
    trial = story.job.finished()
    assert_trained_the_same(trial, trained_without_faults())
    client = MlflowClient(f"http://127.0.0.1:{story.tracking.port}")
    runs = client.search_runs([client.get_experiment_by_name("harmed").experiment_id])
    (child,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "loss")]
    assert steps == list(range(1, EPOCHS + 1))
    print("\nseconds until an epoch had been trained after")
    for fault, seconds in story.recovered_s.items():
        print(f"{seconds:6.1f}  {fault}")
