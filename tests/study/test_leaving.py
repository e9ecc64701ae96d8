import time

from eqssl.study import leaving
from eqssl.study.leaving import NodeWatch


def test_the_state_is_saved_now_and_then_where_no_node_leaves(monkeypatch):
    monkeypatch.setattr(leaving, "SAVE_EVERY_S", 0.2)
    with NodeWatch(set()) as watch:
        assert not watch.due()
        time.sleep(0.25)
        assert watch.due()
        assert not watch.due()
        time.sleep(0.25)
        assert watch.due()
