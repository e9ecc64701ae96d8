"""A node without a package fails no trial for good, and is avoided, without Ray."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as TuneTrial

from eqssl.study.execution import nodes
from eqssl.study.execution.nodes import BadNodes
from eqssl.study.execution.pool import MAX_ATTEMPTS, _Scheduler

GOOD, BAD = "10.0.0.6", "10.0.0.7"
MISSING = "ModuleNotFoundError: No module named 'timm'"


class Failing:
    """A trial of Tune, which fails on a node and is put back into the queue."""

    def __init__(self, folder: Path):
        self.status, self.max_failures, self.num_failures = TuneTrial.ERROR, MAX_ATTEMPTS - 1, 0
        self.error_file, self.resources = str(folder / "error.txt"), None

    def fails(self, scheduler: _Scheduler, error: str, node: str) -> bool:
        self.num_failures += 1
        again = self.num_failures <= self.max_failures
        text = f"ray::A.__init__() (pid=7, ip={node}, actor_id=1)\n{error}\n"
        Path(self.error_file).write_text(f"Failure # {self.num_failures} (occurred now)\n{text}")
        scheduler.on_trial_error(None, self)
        scheduler.on_trial_add(None, self)
        return again

    def update_resources(self, resources: PlacementGroupFactory) -> None:
        self.resources = resources


@pytest.fixture
def bad_nodes(monkeypatch):
    alive = [{"NodeID": f"id-{address}", "NodeManagerAddress": address} for address in (GOOD, BAD)]
    monkeypatch.setattr(nodes, "alive_nodes", lambda: alive)
    return BadNodes({"CPU": 2.0})


@pytest.fixture
def scheduler(bad_nodes):
    return _Scheduler(SimpleNamespace(trials={}), None, bad_nodes)


def test_what_a_node_lacks_costs_no_attempt_once_trials_progress_elsewhere(scheduler, bad_nodes, tmp_path, caplog):
    bad_nodes.progressed(GOOD)
    trial, other = Failing(tmp_path), Failing(tmp_path)
    assert all(trial.fails(scheduler, MISSING, BAD) for _ in range(5))
    elsewhere = PlacementGroupFactory([{"CPU": 2.0}], bundle_label_selector=[{"ray.io/node-id": f"!in(id-{BAD})"}])
    assert trial.resources == elsewhere
    scheduler.on_trial_add(None, other)  # a new trial
    assert other.resources == elsewhere
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(f"node {BAD} is avoided" in text and MISSING in text for text in said)
    assert "(3 failed" in said[1]
    assert [trial.fails(scheduler, "RuntimeError: odd", BAD) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("progress", "error", "node"),
    [
        ([], MISSING, BAD),  # perhaps all nodes lack it
        ([GOOD, BAD], MISSING, BAD),  # the trial may be to blame
        ([GOOD], "RuntimeError: shapes do not match", BAD),
        ([GOOD], MISSING, GOOD),
    ],
)
def test_any_other_failure_counts(scheduler, bad_nodes, tmp_path, progress, error, node):
    for address in progress:
        bad_nodes.progressed(address)
    trial = Failing(tmp_path)
    assert [trial.fails(scheduler, error, node) for _ in range(MAX_ATTEMPTS)] == [True, True, False]
    assert trial.resources is None


def test_without_a_good_node_left_no_node_is_avoided(bad_nodes, monkeypatch):
    bad_nodes.progressed(GOOD)
    assert bad_nodes.elsewhere() is None
    assert bad_nodes.is_to_blame(BAD, MISSING) and bad_nodes.elsewhere()
    monkeypatch.setattr(nodes, "alive_nodes", lambda: [{"NodeID": "1", "NodeManagerAddress": BAD}])
    assert bad_nodes.elsewhere() is None
    bad_nodes.progressed(BAD)
    assert not bad_nodes.is_to_blame(BAD, MISSING)
