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
from tests.cluster.story import EPOCHS, SHIPPED, Job, assert_trained_the_same
from tests.head import BIN, ROOT, Head, Node
from tests.mlflow_server import mlflow_server
from tests.storage import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STORE_AWAY_S, TRACKING_AWAY_S = 30.0, 60.0


class Cluster:
    """A head without CPUs that holds the trial's driver, and three nodes, one more than the trial takes."""

    def __init__(self):
        self.head = Head(["--num-cpus", "0", "--resources", '{"train_driver": 1}', *SHIPPED])
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


class Story:
    """The study that meets the faults, beside one that does not."""

    def __init__(self, folder: Path, store: Proxy, tracking: Proxy):
        self.folder, self.store, self.tracking, self.cluster = folder, store, tracking, Cluster()
        self.recovered_s: dict[str, float] = {}

    def submit(self, name: str, *more: str, workers: str = "2") -> Job:
        places = {"output": "s3://studies/faults", "tracking-uri": f"http://127.0.0.1:{self.tracking.port}"}
        return Job(self.cluster.head, name, self.folder, places | {"workers-per-trial": workers}, *more)

    def begin(self) -> None:
        self.unharmed = self.submit("unharmed").finished()
        self.job = self.submit("harmed")

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
            story.begin()
            yield story
        finally:
            story.cluster.kill()


def test_every_node_is_asked(story):
    code = "import ray; ray.init(); from eqssl.study.cluster import on_every_node as ask; ask(lambda: 'disk is full')"
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
    (driver,) = story.cluster.actors("ImplicitFunc")
    os.kill(driver["pid"], signal.SIGKILL)
    story.goes_on_after("driver of the trial killed", started, epoch)
    time.sleep(max(0.0, started + TRACKING_AWAY_S - time.monotonic()))
    story.tracking.back()


def test_the_bucket_is_away(story):
    started, epoch = story.job.next_epoch()
    story.store.away()
    time.sleep(STORE_AWAY_S)
    story.store.back()
    story.goes_on_after(f"bucket away for {STORE_AWAY_S:.0f} s", started, epoch)


def test_the_head_is_killed_and_the_job_submitted_again(story):
    started, epoch = story.job.next_epoch()
    study = json.loads(read(story.job.folder / "lease.json"))["pid"]
    story.cluster.kill()
    os.kill(study, signal.SIGKILL)  # on a machine of its own it would be gone with the head
    story.job.thread.join()
    story.cluster = Cluster()
    story.job = story.submit("harmed", "--resume")
    story.goes_on_after("head killed, job submitted again", started, epoch)


def test_the_end_is_that_of_the_study_without_faults(story):
    trial = story.job.finished()
    assert trial["trial_id"] == story.unharmed["trial_id"]
    assert_trained_the_same(trial, story.unharmed)
    client = MlflowClient(f"http://127.0.0.1:{story.tracking.port}")
    runs = client.search_runs([client.get_experiment_by_name("harmed").experiment_id])
    (child,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "loss")]
    assert steps == list(range(1, EPOCHS + 1))
    print("\nseconds until an epoch had been trained after")
    for fault, seconds in story.recovered_s.items():
        print(f"{seconds:6.1f}  {fault}")


def test_an_elastic_trial_has_as_many_workers_as_there_is_room_for(story):
    cluster = story.cluster
    for node in cluster.nodes[1:]:
        node.kill()
    del cluster.nodes[1:]
    job = story.submit("elastic", workers="1:2")
    job.wait_for(1)
    assert len(cluster.workers()) == 1
    cluster.nodes.append(Node(cluster.head))
    while len(cluster.workers()) < 2:
        assert job.thread.is_alive(), job.text()
        time.sleep(0.5)
    job.next_epoch()
    cluster.nodes.pop().kill()
    # Another number of workers sums in another order, which training magnifies from epoch to epoch.
    assert_trained_the_same(job.finished(), story.unharmed, tolerance=0.01)
