"""Who gets which trial, who waits, and whose report is taken."""

import asyncio

import pytest

from eqssl.study.execution import exchange as module
from eqssl.study.execution.exchange import Exchange

LOSS = {"loss": 1.0}


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, 5.0)


async def waits(task: asyncio.Task) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


def start(awaitable) -> asyncio.Task:
    return asyncio.ensure_future(awaitable)


async def opened(*specs: str) -> Exchange:
    exchange = Exchange()
    for spec in specs:
        await exchange.hand_out(spec)
    return exchange


async def gets_only_the_second(exchange: Exchange, after: int) -> None:
    """Check that a worker waits until another trial is handed out."""
    worker = start(exchange.trial(after))
    assert await waits(worker)
    await exchange.hand_out("second")
    assert await soon(worker) == (2, "second")


def story(test):
    """Turn a coroutine into a test."""

    def run():
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@story
async def test_every_worker_gets_the_trial_once_and_waits_for_the_next():
    exchange = await opened()
    early = start(exchange.trial(0))
    assert await waits(early)
    await exchange.hand_out("first")
    assert await soon(early) == (1, "first") == await soon(exchange.trial(0))
    await gets_only_the_second(exchange, after=1)


@story
async def test_all_workers_wait_for_the_answer_to_the_report_of_one():
    exchange = await opened("first")
    for count, goes_on in enumerate((True, False), start=1):
        workers = [start(exchange.report((1, "a", count), report)) for report in (None, LOSS, None)]
        assert await soon(exchange.take()) == LOSS and await waits(workers[0])
        await exchange.answer(goes_on)
        assert [await soon(worker) for worker in workers] == 3 * [goes_on]


@story
async def test_a_late_worker_gets_the_answer_that_the_others_had():
    exchange = await opened("first")
    quick = start(exchange.report((1, "a", 1), LOSS))
    await soon(exchange.take())
    await exchange.answer(True)
    last = start(exchange.report((1, "a", 2), LOSS))
    await soon(exchange.take())
    await exchange.answer(False)
    assert await soon(quick) and not await soon(last)
    assert await soon(exchange.report((1, "a", 1), None)) and not await soon(exchange.report((1, "a", 3), None))


@story
async def test_a_report_of_an_earlier_trial_is_never_taken_for_one_of_the_next():
    exchange = await opened("first", "second")
    assert not await soon(exchange.report((1, "a", 1), LOSS))
    assert await waits(start(exchange.take()))


@story
async def test_workers_that_start_again_get_a_trial_that_goes_on_and_none_that_has_ended():
    exchange = await opened("first")
    assert await soon(exchange.trial(0)) == (1, "first")
    reports = [start(exchange.report((1, group, 1), LOSS)) for group in ("dead", "new")]
    await soon(exchange.take())
    await exchange.answer(False)
    assert [await soon(report) for report in reports] == [False, False]
    await gets_only_the_second(exchange, after=0)


@story
async def test_workers_that_end_between_two_trials_are_missed_by_the_next():
    exchange = await opened()
    await exchange.close()
    await exchange.hand_out("first")
    assert await soon(exchange.take()) is None


@pytest.mark.parametrize("failed", [1, 2])
def test_an_error_of_one_worker_is_told_from_one_of_all(failed, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER_S", 0.3)

    async def workers():
        exchange = await opened("first")
        return await asyncio.gather(*(exchange.all_failed("a", 2) for _ in range(failed)))

    assert asyncio.run(workers()) == failed * [failed == 2]
