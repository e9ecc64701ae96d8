"""A real study on a cluster that starts with no worker, grows to its maximum and shrinks to nothing, on one machine.

The node types are those of the shipped ray_cluster.yaml, started as raylets on this machine by Ray's own provider for
that. Without a GPU here, a node's GPU becomes its one CPU, so that a trial still takes a node of its own.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import ray
import yaml

from tests.head import ROOT, Head, free_port

pytestmark = pytest.mark.slow
HEAD_ID = "f" * 51 + "00000"
MOST = 2  # nodes: this machine has no room for more
IDLE_S = 30


def on_this_machine(shipped: dict, address: str) -> dict:
    """Return the configuration of an autoscaler whose nodes are raylets of this machine.

    Args:
        shipped: the cluster's configuration.
        address: of the head's GCS.
    """
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_TYPE
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(deepcopy(shipped))
    types = config["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    for kind in types.values():
        kind["node_config"] = {}
        kind["max_workers"] = min(kind["max_workers"], MOST)
        kind["resources"]["CPU"] = kind["resources"].pop("GPU")
    commands = {name: [] for name in config if name.endswith("_commands")}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "launch_multiple": True, "head_node_id": HEAD_ID}
    changed = {
        "provider": provider | {"gcs_address": address},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "max_workers": MOST,
        "idle_timeout_minutes": IDLE_S / 60,
        "file_mounts": {},
    }
    return config | commands | changed


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    port = free_port()
    shipped = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    config = on_this_machine(shipped, f"{ray.util.get_node_ip_address()}:{port}")
    home = tmp_path_factory.mktemp("home")
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(config))  # where `ray up` puts it
    resources = config["available_node_types"][config["head_node_type"]]["resources"]
    cpus = resources.pop("CPU")
    environment = {
        "HOME": str(home),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": config["head_node_type"],  # which `ray up` sets, too
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_worker_register_timeout_seconds": "300",  # or slow workers are started again and again
    }
    options = [
        "--num-cpus",
        str(cpus),
        "--resources",
        json.dumps(resources),
        "--autoscaling-config",
        "~/ray_bootstrap_config.yaml",
    ]
    head = Head(options, port, environment)
    yield head
    head.end()


def workers(head: Head) -> list[dict]:
    return [node for node in head.listed("nodes") if node["state"] == "ALIVE" and not node["is_head_node"]]


class Watch:
    """How many workers there were, and when that changed."""

    def __init__(self, head: Head):
        self.head, self.start, self.changes, self.markets = head, time.monotonic(), [], set()

    def look(self) -> int:
        """Note the workers of now, and return how many there are."""
        time.sleep(1)
        try:
            found = workers(self.head)
        except OSError:  # where all cores train, the dashboard may take its time
            return self.changes[-1][1]
        self.markets |= {node["labels"]["market"] for node in found}
        if not self.changes or self.changes[-1][1] != len(found):
            self.changes.append((round(time.monotonic() - self.start, 1), len(found)))
        return len(found)


@pytest.mark.timeout(1200)
def test_a_study_grows_the_cluster_to_its_maximum_and_back_to_nothing(head, tmp_path):
    command = [
        "python", "studies/loss_weight.py", "--smoke", "--configs", "3", "--seeds", "1",
        "--output", str(tmp_path / "results"), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--data.cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    watch = Watch(head)
    assert watch.look() == 0
    with ThreadPoolExecutor() as pool:
        job = pool.submit(head.submit, "--", *command)
        while not job.done():
            watch.look()
    result = job.result()
    assert result.returncode == 0, result.stdout + result.stderr
    done_s = time.monotonic() - watch.start
    while watch.look():
        assert time.monotonic() - watch.start < done_s + IDLE_S + 120, watch.changes
    print(f"\nworkers after seconds: {watch.changes}; the study ended after {done_s:.1f} s")
    counts = [count for _, count in watch.changes]
    assert counts[0] == counts[-1] == 0 and max(counts) == MOST
    assert watch.changes[-1][0] - done_s > 0  # none is taken from a study that runs
    assert watch.markets == {"spot"}
    assert "and more from the autoscaler; a trial takes 1 CPU: up to 14 at a time" in result.stdout
    check_complete(tmp_path / "results" / "loss_weight_smoke")


def check_complete(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert {trial["status"] for trial in summary["trials"]} == {"COMPLETE"}
    # The reference rows, the search and its auto-encoding twins: more than the nodes hold at a time.
    assert len(summary["trials"]) == 8 + 2 * 3


def test_a_demand_that_no_type_of_node_meets_is_told(head, tmp_path):
    command = ["python", "studies/loss_weight.py", "--smoke", "--resources-per-worker", "moon", "1"]
    command += ["--output", str(tmp_path / "results"), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    sent = head.submit("--submission-id", "moon", "--no-wait", "--", *command)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    deadline = time.monotonic() + 240
    while "the autoscaler starts none" not in (said := head.job("logs", "moon").stdout):
        assert time.monotonic() < deadline, said
        time.sleep(5)
    assert "waiting for a node with 1 CPU + 1 moon: " in said
    assert head.job("stop", "moon").returncode == 0
    assert not list(tmp_path.rglob("study.json"))
