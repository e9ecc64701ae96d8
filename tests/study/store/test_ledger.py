import pytest

from eqssl.study.store.ledger import ledger, ledger_line
from eqssl.study.store.records import TrialRecord


def record(status: str, **costs: float) -> TrialRecord:
    return TrialRecord(trial_id="", configuration="", number=0, params={}, seed=0, status=status, **costs)


RECORDS = [
    record("COMPLETE", epochs=10, wall_s=100.0, resumed_s=40.0, overhead_s=2.0),
    record("COMPLETE", epochs=10, wall_s=80.0, overhead_s=1.0),
    record("STOPPED", epochs=3, wall_s=30.0, overhead_s=0.5),
    record("FAILED", epochs=1, wall_s=7.0, resumed_s=7.0, overhead_s=9.0),
]


def test_costs_by_status_add_up_to_the_total():
    costs = ledger(RECORDS, "GPU", 0.5, [60.0, 70.0])
    assert costs["complete"] == {
        "trials": 2,
        "epochs": 20,
        "trial_s": 180.0,
        "resumed_s": 40.0,
        "overhead_s": 3.0,
        "device_hours": pytest.approx(183 * 0.5 / 3600),
    }
    assert (costs["stopped"]["trial_s"], costs["failed"]["overhead_s"]) == (30.0, 9.0)
    statuses = ("complete", "stopped", "failed", "unfinished")
    for name, value in costs["total"].items():
        assert sum(costs[status][name] for status in statuses) == pytest.approx(value)
    assert (costs["device"], costs["attempts"], costs["wall_s"]) == ("GPU", 2, 130.0)


def test_the_line_names_devices_and_statuses():
    line = ledger_line(ledger(RECORDS, "CPU", 4, [1800.0]))
    assert line.startswith(
        "cost: 0.255 CPU-hours (2 complete 0.203, 1 stopped 0.0339, 1 failed 0.0178), 57.4 s a trial"
    )
    assert "12.5 s overhead, 47.0 s before a resume; 30.0 min, runs of the command: 1" in line
    assert "no trial ended" in ledger_line(ledger([], "CPU", 4, [1.0]))


def test_trials_that_a_stop_interrupts_are_counted_too():
    costs = ledger(RECORDS, "GPU", 1, [60.0], [record("STOPPED", epochs=2, wall_s=20.0, overhead_s=5.0)])
    assert (costs["unfinished"]["trials"], costs["unfinished"]["trial_s"], costs["stopped"]["trials"]) == (1, 20.0, 1)
    assert (costs["total"]["trials"], costs["total"]["trial_s"]) == (5, 237.0)
    assert "1 unfinished 0.00694" in ledger_line(costs)
