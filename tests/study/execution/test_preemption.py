import asyncio

from eqssl.study.execution import preemption
from eqssl.study.execution.preemption import SaveNotice


def test_a_notice_is_heard_after_ray_was_away_by_the_trials_of_the_node(monkeypatch, caplog):
    answers = [ConnectionError("no head"), ConnectionError("no head"), set(), {"here"}]

    def draining():
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def trials():
        notice = SaveNotice()
        watch = asyncio.ensure_future(notice.watch_nodes())
        here, there = (asyncio.ensure_future(notice.wait(name, {name, "both"})) for name in ("here", "there"))
        await asyncio.wait_for(here, 5.0)
        assert not there.done()
        watch.cancel()

    monkeypatch.setattr(preemption, "POLL_S", 0.01)
    monkeypatch.setattr(preemption, "draining_nodes", draining)
    with caplog.at_level("WARNING", "eqssl"):
        asyncio.run(trials())
    assert caplog.text.count("no head") == 1


def test_a_stop_waits_until_all_trials_that_run_have_saved():
    async def study():
        notice = SaveNotice()
        trials = [asyncio.ensure_future(notice.wait(name, set())) for name in ("ended", "first", "second")]
        await asyncio.sleep(0)
        await notice.saved("ended")
        stop = asyncio.ensure_future(notice.stop())
        await asyncio.wait_for(asyncio.gather(*trials), 5.0)
        late = asyncio.ensure_future(notice.wait("late", set()))
        await asyncio.wait_for(late, 5.0)
        for name in ("first", "second", "late"):
            await asyncio.sleep(0.2)
            assert not stop.done()
            await notice.saved(name)
        await asyncio.wait_for(stop, 5.0)

    asyncio.run(study())
