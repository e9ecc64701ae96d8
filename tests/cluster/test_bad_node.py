"""A node that lacks a package and joins a running study: trials fail there, and none for good."""

import json
import re
import time

import pytest

from eqssl.files import find, read
from tests.cluster.story import HOLD, Job
from tests.head import Head, Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BAD = "127.0.0.2"
ROWS = {"long": {"train.epochs": 30}} | {f"short{weight}": {"recon.weight": float(weight)} for weight in range(1, 6)}

SMALL = {"train.epochs": 1, "train.batch-size": 8, "data.objects": 24, "data.image-size": 32, "evaluate.level": "quick"}


@pytest.fixture
def head():
    """A head with room for one trial, which says that nodes may be added, so that all trials wait in Ray's queue."""
    head = Head(["--num-cpus", "1"], environment={"RAY_NODE_TYPE_NAME": "head"})
    yield head
    head.end()


def test_a_trial_that_fails_at_a_bad_node_goes_on_elsewhere(head, tmp_path):
    places = {"output": tmp_path / "results", "tracking-uri": f"sqlite:///{tmp_path}/mlflow.db"}
    job = Job(head, "bad", tmp_path, places | SMALL, rows=ROWS)
    job.wait_for(1)
    (tmp_path / HOLD).touch()  # so that the only node with room is the bad one, however slow it is
    node = Node(head, ["env", "BROKEN=1"], ["--node-ip-address", BAD])
    try:
        while len(find(job.folder, "trials/*/error.txt")) < 3:
            assert job.thread.is_alive(), job.text()
            time.sleep(0.1)
        (tmp_path / HOLD).unlink()
        job.thread.join()
    finally:
        node.kill()
    text = job.text()
    assert job.result.returncode == 0, text
    trials = json.loads(read(job.folder / "summary.json"))["trials"]
    assert {trial["configuration"] for trial in trials} >= ROWS.keys()
    assert {trial["status"] for trial in trials} == {"COMPLETE"}, text
    failed = re.findall(rf"(\S+)[^:\n]*: ModuleNotFoundError: No module named 'timm' \(on {BAD}\); tried again", text)
    assert len(failed) == len(set(failed)) >= 3, text  # none has failed there twice
    assert text.count(f"node {BAD} is avoided from now on: 3 trials failed there and went on elsewhere") == 1, text
