"""Which trial workers get, who waits, and whose record is taken."""

import asyncio

from eqssl.study.execution import workers as module
from eqssl.study.execution.trial import record_of
from eqssl.study.execution.workers import TrialBroker
from eqssl.study.search.space import Configuration, Trial

RECORD = record_of(Trial(Configuration("base", {}), 0), "STOPPED")


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, 5.0)


async def waits(task: asyncio.Task) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


def start(awaitable) -> asyncio.Task:
    return asyncio.ensure_future(awaitable)


async def opened(*jobs: str) -> TrialBroker:
    broker = TrialBroker()
    for job in jobs:
        assert await broker.hand_out(job)
    return broker


def story(test):
    """Turn a coroutine into a test."""

    def run(monkeypatch):
        asyncio.run(test(*[monkeypatch] * test.__code__.co_argcount))

    run.__name__ = test.__name__
    return run


@story
async def test_workers_get_a_trial_once_and_wait_for_the_next():
    broker = await opened()
    early = start(broker.next_trial(0))
    assert await waits(early)
    await broker.hand_out("first")
    assert await soon(early) == (1, "first")
    later = start(broker.next_trial(1))
    assert await waits(later)
    await broker.hand_out("second")
    assert await soon(later) == (2, "second")


@story
async def test_workers_wait_for_the_answer_to_their_record():
    broker = await opened("first")
    for goes_on in (True, False):
        worker = start(broker.report(1, RECORD))
        assert await soon(broker.take()) == RECORD and await waits(worker)
        await broker.answer(goes_on)
        assert await soon(worker) == goes_on


@story
async def test_a_record_of_an_earlier_trial_is_never_taken_for_one_of_the_next():
    broker = await opened("first", "second")
    assert not await soon(broker.report(1, RECORD))
    assert await waits(start(broker.take()))


@story
async def test_workers_that_start_again_get_a_trial_that_goes_on_and_none_that_has_ended():
    broker = await opened("first")
    assert await soon(broker.next_trial(0)) == (1, "first")
    dead = start(broker.report(1, RECORD))
    assert await soon(broker.next_trial(0)) == (1, "first")
    new = start(broker.report(1, RECORD))
    for worker, goes_on in ((dead, True), (new, False)):
        await soon(broker.take())
        await broker.answer(goes_on)
        assert await soon(worker) == goes_on
    again = start(broker.next_trial(0))
    assert await waits(again)
    await broker.hand_out("second")
    assert await soon(again) == (2, "second")


@story
async def test_workers_that_have_ended_are_given_no_trial():
    broker = await opened("first")
    await broker.close()
    assert await soon(broker.take()) is None
    assert not await broker.hand_out("second")


@story
async def test_workers_without_a_trial_end_after_a_while_and_others_do_not(monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.2)
    broker = await opened("first")
    number, _ = await soon(broker.next_trial(0))
    await asyncio.sleep(0.4)  # it is trained
    worker = start(broker.report(number, RECORD))
    assert await soon(broker.take()) == RECORD
    await broker.answer(False)
    assert not await soon(worker)
    assert await soon(broker.next_trial(number)) == (1, None)
    assert not await broker.hand_out("second")
