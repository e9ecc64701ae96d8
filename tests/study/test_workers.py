"""Workers that outlive a trial: how they get the next one, and what trials have by which they were handed through."""

import asyncio
import os

import pytest

from eqssl.config import replace
from eqssl.study import Study, StudyOptions, choice, run_study
from eqssl.study.results import COSTS
from eqssl.study.workers import Exchange
from eqssl.training import train

ROWS = {"cold": {"recon.weight": 0.5}, "fails": {"recon.weight": 3e38}}  # the first two trials


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, 5.0)


async def waits(task: asyncio.Task) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


def test_every_worker_gets_the_trial_once_and_waits_for_the_next():
    async def story():
        exchange = Exchange()
        early = asyncio.ensure_future(exchange.trial(0))
        assert await waits(early)
        await exchange.hand_out("first")
        assert await soon(early) == (1, "first") and await soon(exchange.trial(0)) == (1, "first")
        after = asyncio.ensure_future(exchange.trial(1))
        assert await waits(after)
        await exchange.hand_out("second")
        assert await soon(after) == (2, "second")

    asyncio.run(story())


def test_a_report_waits_for_the_answer():
    async def story():
        exchange = Exchange()
        await exchange.hand_out("first")
        for goes_on in (True, False):
            report = asyncio.ensure_future(exchange.report({"loss": 1.0}))
            assert await soon(exchange.take()) == {"loss": 1.0} and await waits(report)
            await exchange.answer(goes_on)
            assert await soon(report) is goes_on

    asyncio.run(story())


def test_a_worker_that_starts_again_gets_a_trial_that_goes_on_and_none_that_has_ended():
    async def story():
        exchange = Exchange()
        await exchange.hand_out("first")
        assert await soon(exchange.trial(0)) == (1, "first") == await soon(exchange.trial(0))
        reports = [asyncio.ensure_future(exchange.report({"of": who})) for who in ("dead", "new")]
        assert (await soon(exchange.take()))["of"] == "dead"
        await exchange.answer(False)
        assert await soon(reports[1]) is False and not await soon(exchange.report({}))
        again = asyncio.ensure_future(exchange.trial(0))
        assert await waits(again)
        await exchange.hand_out("second")
        assert await soon(again) == (2, "second")

    asyncio.run(story())


def test_workers_that_end_between_two_trials_are_missed_by_the_next():
    async def story():
        exchange = Exchange()
        ended = asyncio.ensure_future(exchange.report(None))
        assert await waits(ended)
        await exchange.hand_out("first")
        assert await soon(exchange.take()) is None

    asyncio.run(story())


@pytest.fixture(scope="module")
def nested(tmp_path_factory, base):
    """Return run and trials of a study with two workers a trial: the row, then one that fails and some ended early."""
    import ray

    folder = tmp_path_factory.mktemp("nested")
    run = replace(base, {"train.epochs": 3, "train.warmup_epochs": 0.5, "train.precision": "fp32"})
    weights = choice(1.0, 0.1, 10.0, 0.5)
    study = Study(name="nested", question="?", space={"recon.weight": weights}, rows=ROWS, base=run)
    options = StudyOptions(
        run=run,
        seeds=1,
        workers_per_trial=2,
        stopping="halving",
        output=str(folder),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(num_cpus=2, log_to_driver=False)
    trials = run_study(study, options)["trials"]
    yield run, sorted(trials, key=lambda trial: (trial["number"] is not None, trial["configuration"]))
    ray.shutdown()


@pytest.mark.slow
def test_workers_go_on_with_the_next_trial_after_one_that_failed_or_was_ended_early(nested):
    _, (cold, *others) = nested
    assert [cold["status"], others[0]["status"]] == ["COMPLETE", "FAILED"]
    assert {t["status"] for t in others[1:]} == {"STOPPED", "COMPLETE"}
    assert [cold["warm"], *(t["warm"] for t in others)] == [False] + 5 * [True]


@pytest.mark.slow
def test_what_they_train_is_what_one_process_trains(nested):
    run, (cold, *_) = nested
    alone = train(replace(run, cold["params"]))
    assert cold["metrics"]["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)  # three epochs in float32


@pytest.mark.slow
def test_earlier_trials_leave_nothing_behind(nested):
    _, (cold, *others) = nested
    (warm,) = (t for t in others if t["params"] == cold["params"])
    assert warm["warm"] and warm["status"] == "COMPLETE"
    figures = [{name: value for name, value in t["metrics"].items() if name not in COSTS} for t in (warm, cold)]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_only_the_first_trial_waits_for_workers(nested):
    _, (cold, *others) = nested
    assert max(t["overhead_s"] for t in others) < 0.25 * cold["overhead_s"]
