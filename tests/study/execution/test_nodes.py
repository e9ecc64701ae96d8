"""The choice of nodes for trials that have failed at some, without Ray."""

import pytest
from ray.tune import PlacementGroupFactory

from eqssl.study.execution import nodes
from eqssl.study.execution.nodes import FailingNodes

GOOD, BAD = "10.0.0.6", "10.0.0.7"
WORKER = {"CPU": 2.0, "GPU": 1.0}
ANYWHERE = PlacementGroupFactory([WORKER])
ELSEWHERE = PlacementGroupFactory([WORKER], bundle_label_selector=[{"ray.io/node-id": f"!in(id-{BAD})"}])


def alive(**cpus):
    return [
        {"NodeID": f"id-{address}", "NodeManagerAddress": address, "Resources": {"CPU": number, "GPU": 1.0}}
        for address, number in cpus.items()
    ]


@pytest.fixture
def there(monkeypatch):
    """The nodes that are alive, to be changed."""
    there = alive(**{GOOD: 2.0, BAD: 2.0})
    monkeypatch.setattr(nodes, "alive_nodes", lambda: there)
    return there


@pytest.mark.parametrize(("proven", "failures"), [(False, 1), (True, 2)])
def test_a_trial_avoids_a_node_where_it_failed_once_or_twice_if_it_has_passed_the_preflight(there, proven, failures):
    found = FailingNodes(WORKER, [BAD] if proven else [])
    for _ in range(failures):
        assert found.requirement("one") == ANYWHERE
        found.failed("one", BAD)
    assert found.requirement("one") == ELSEWHERE and found.requirement("two") == ANYWHERE
    found.progressed("two", BAD)  # perhaps on another GPU
    assert found.requirement("one") == (ELSEWHERE if proven else ANYWHERE)
    found.progressed("one", BAD)
    assert found.requirement("one") == ANYWHERE


@pytest.mark.parametrize("left", [{BAD: 2.0}, {GOOD: 1.0, BAD: 2.0}])
def test_a_node_is_not_avoided_without_another_with_room(there, left):
    found = FailingNodes(WORKER)
    found.failed("one", BAD)
    there[:] = alive(**left)
    assert found.requirement("one") == ANYWHERE


def test_all_trials_avoid_a_node_once_three_that_failed_there_went_on_elsewhere(there, caplog):
    found = FailingNodes(WORKER)
    for trial in ("one", "two", "three", "four"):
        assert (found.requirement("new") == ELSEWHERE) is (trial == "four")
        found.failed(trial, BAD)
        for _ in range(2):  # epochs
            found.progressed(trial, GOOD)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"node {BAD} is avoided from now on: 3 trials failed there and went on elsewhere"
    found.progressed("five", BAD)  # it was running there
    assert found.requirement("new") == ANYWHERE


def test_failures_of_a_node_where_trials_progress_in_between_are_not_added_up(there, caplog):
    found = FailingNodes(WORKER, [BAD])
    for trial in ("one", "two", "three", "four"):
        found.failed(trial, BAD)
        for _ in range(2):
            found.progressed(trial, GOOD)
            found.progressed("five", BAD)
    assert found.requirement("new") == ANYWHERE and not caplog.records


def test_trials_that_fail_everywhere_are_to_blame(there):
    found = FailingNodes(WORKER)
    found.progressed("good", GOOD)
    for trial in ("one", "two", "three", "four"):
        for address in (BAD, GOOD):
            found.failed(trial, address)
    assert found.requirement("new") == ANYWHERE
