import time

from eqssl.study.execution import preemption as leaving
from eqssl.study.execution.preemption import NodeWatch


def test_the_state_is_saved_now_and_then_where_no_node_leaves(monkeypatch):
    monkeypatch.setattr(leaving, "SAVE_EVERY_S", 0.2)
    with NodeWatch(set()) as watch:
        assert not watch.due()
        time.sleep(0.25)
        assert watch.due()
        assert not watch.due()
        time.sleep(0.25)
        assert watch.due()


def test_a_notice_is_heard_after_ray_was_away(monkeypatch, caplog):
    answers = iter([ConnectionError("no head"), ConnectionError("no head"), {}, {"here": 1}])

    def draining():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(leaving, "POLL_S", 0.01)
    monkeypatch.setattr(leaving.state, "get_draining_nodes", draining)
    with caplog.at_level("WARNING", "eqssl"), NodeWatch({"here"}) as watch:
        deadline = time.monotonic() + 5
        while not watch.due() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert time.monotonic() < deadline
    assert caplog.text.count("no head") == 1
