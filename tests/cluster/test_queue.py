"""Trials of several workers that wait for nodes that no autoscaler adds: none holds for good what another needs."""

import json

import pytest

from eqssl.files import read
from tests.cluster.story import Job
from tests.head import Head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def head():
    """A head with room for the workers of one trial and the drivers of two, which says that nodes may be added."""
    resources = json.dumps({"train_driver": 2})
    head = Head(["--num-cpus", "2", "--resources", resources], environment={"RAY_NODE_TYPE_NAME": "head"})
    yield head
    head.end()


def test_two_drivers_take_turns_with_the_workers_place(head, tmp_path):
    places = {"output": tmp_path / "results", "tracking-uri": f"sqlite:///{tmp_path}/mlflow.db"}
    job = Job(head, "queued", tmp_path, places | {"workers-per-trial": 2, "train.epochs": 2, "seeds": 2})
    job.thread.join()
    assert job.result.returncode == 0, job.text()
    trials = json.loads(read(job.folder / "summary.json"))["trials"]
    assert [(trial["status"], trial["epochs"], trial["warm"]) for trial in trials] == 2 * [("COMPLETE", 2, False)]
    assert "a trial takes 2 x (1 CPU): up to 2 at a time" in job.text()
