"""What a trial leaves in its folder, without Ray."""

import json
import pickle
import threading
import time

import numpy as np
import pytest

from eqssl.config import replace
from eqssl.data import load_data
from eqssl.evaluation.encoders import Pixels
from eqssl.evaluation.predictions import load_predictions, metrics_of
from eqssl.evaluation.protocol import evaluate
from eqssl.files import write_json
from eqssl.study.execution import trial as module
from eqssl.study.execution.setup import StudySetup
from eqssl.study.execution.trial import TrialContext, attempt
from eqssl.study.search.space import Configuration, Trial
from eqssl.study.store.records import ATTENTION, EPOCHS, PREDICTIONS, RECONSTRUCTIONS, RETRIEVED

TRIAL = Trial(Configuration.suggested({"recon.weight": 1.0}, 0), 0)
ROWS = {None: TRIAL} | {name: Trial(Configuration(name, None), 0) for name in ("pixels", "constant")}


def context(output, trial=TRIAL, tell=lambda record: None, notice=None, **place):
    setup = StudySetup(str(output), objectives=("knn",), save_notice=notice)
    return TrialContext(trial, setup, tell, {"here"}, **place)


@pytest.fixture
def evaluated(base, tmp_path):
    def run(level="full", row=None):
        config = replace(base, {"evaluate.level": level, "evaluate.images": 32, "train.epochs": 1})
        trial = ROWS[row]
        record = attempt(trial, config, context(tmp_path, trial))
        return record.metrics, tmp_path / "trials" / trial.id / PREDICTIONS

    return run


@pytest.mark.parametrize("row", ROWS)
def test_predictions_of_a_full_evaluation_are_kept(evaluated, row):
    metrics, path = evaluated(row=row)
    again = metrics_of(load_predictions(path))
    assert {"r2_mean", "linear", "mlp_r2_mean"} <= again.keys()
    again = {name: value for name, value in again.items() if value == value}  # a record has finite metrics alone
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6)


def test_a_trial_killed_after_its_last_checkpoint_has_them_and_its_pictures_too(evaluated):
    _, path = evaluated()
    paths = [path, *(path.with_name(name) for name in (RECONSTRUCTIONS, ATTENTION, RETRIEVED))]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    evaluated()
    assert [path.read_bytes() for path in paths] == before
    maps, images = np.load(paths[2]), np.load(paths[1])
    assert (maps["reconstruction"] == images[2, : len(maps["reconstruction"])]).all() and len(before[2]) < 50_000


def test_a_quick_evaluation_keeps_none(evaluated):
    assert not evaluated(level="quick")[1].exists()


def test_a_row_is_evaluated_by_rank_0_of_several_workers(base, tmp_path):
    row, config = ROWS["constant"], replace(base, {"evaluate.level": "full"})
    record = attempt(row, config, context(tmp_path, row, rank=1, world_size=2))
    assert record.metrics == {} and not list(tmp_path.rglob(PREDICTIONS))


def test_patches_of_pixels_are_those_of_the_study_s_encoder(base, tmp_path):
    options = {"encoder.name": "test_vit", "encoder.output_stride": 4, "evaluate.level": "full", "evaluate.images": 32}
    row, config = ROWS["pixels"], replace(base, options | {"evaluate.train_images": 64})
    record = attempt(row, config, context(tmp_path, row))
    data = load_data(config.data)
    expected = evaluate(Pixels((data.image_size // 4,) * 2), data, config=config.evaluate)
    assert record.metrics["dense/r2"] == pytest.approx(expected["dense/r2"], rel=1e-6)


def test_what_is_saved_before_an_epochs_end_comes_with_the_epochs_before_it(tmp_path):
    begun = context(tmp_path)
    begun.report({"epoch": 1.0}, None)  # no checkpoint is due
    begun.save({"epoch": 1, "step": 3, "metrics": {}})
    (path,) = tmp_path.rglob(EPOCHS)
    assert [metrics["epoch"] for metrics in json.loads(path.read_text())] == [1.0]


def test_the_state_is_saved_now_and_then_where_no_node_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.2)
    with context(tmp_path) as begun:
        assert not begun.should_checkpoint()
        time.sleep(0.25)
        assert begun.should_checkpoint()
        assert not begun.should_checkpoint()
        time.sleep(0.25)
        assert begun.should_checkpoint()


class Handle:
    """The handle of a notice that comes at once."""

    def __init__(self):
        self.told, self.wait, self.saved = [], self, self

    def remote(self, *arguments):
        self.told.append(arguments)


def test_at_a_notice_a_trial_saves_at_once_and_says_so(tmp_path, monkeypatch):
    came = threading.Event()
    monkeypatch.setattr(module.ray, "get", lambda reference: came.wait())
    notice = Handle()
    with context(tmp_path, notice=notice) as begun:
        begun.should_checkpoint()  # after a step
        came.set()
        deadline = time.monotonic() + 5
        while not begun.should_checkpoint():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert notice.told == [(TRIAL.id, {"here"})] and not begun.should_checkpoint()
        begun.save({"epoch": 1, "step": 3, "metrics": {}})
        assert notice.told[1:] == [(TRIAL.id,)]
    assert notice.told[1:] == 2 * [(TRIAL.id,)]  # at its end it says so too
    with context(tmp_path, notice=notice, rank=1, world_size=2):  # which saves nothing
        pass
    assert len(notice.told) == 3


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_notice_is_answered_at_once_where_nothing_is_unsaved(tmp_path, monkeypatch, epochs):
    came = threading.Event()
    monkeypatch.setattr(module.ray, "get", lambda reference: came.wait())
    notice, deadline = Handle(), time.monotonic() + 5
    with context(tmp_path, notice=notice) as begun:
        if epochs:
            begun.should_checkpoint()
            begun.report({"epoch": 1.0}, {"epoch": 1, "step": 0, "metrics": {}})
        came.set()
        while len(notice.told) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert notice.told[1:] == [(TRIAL.id,)]


def test_the_record_of_a_trial_that_goes_on_has_the_evaluation_of_its_last_epoch_in_its_history(tmp_path):
    told = []
    begun = context(tmp_path, tell=told.append)
    for epoch, evaluated in ((1.0, True), (2.0, False), (3.0, True)):
        metrics = {"epoch": epoch, "knn": epoch / 10, "loss": 1.0, "linear": float("nan")}
        begun.report(metrics | ({"evaluate_s": 1.0} if evaluated else {}), None)
    assert [record.epochs for record in told] == [1, 2, 3] and {record.status for record in told} == {"STOPPED"}
    assert [record.history for record in told] == [{"1": {"knn": 0.1}}, {}, {"3": {"knn": 0.3}}]  # each evaluation once
    assert told[-1].metrics == {"epoch": 3.0, "knn": 0.3, "loss": 1.0, "evaluate_s": 1.0}
    assert begun.record("COMPLETE", told[-1].metrics).history == {"1": {"knn": 0.1}}


def test_a_report_is_as_small_after_a_hundred_epochs(tmp_path):
    told = []
    begun = context(tmp_path, tell=lambda record: told.append(len(pickle.dumps(record))))
    for epoch in range(1, 101):
        begun.report({"epoch": float(epoch), "knn": 0.5, "evaluate_s": 1.0}, None)
    assert max(told) < told[0] + 20  # the digits of the epoch
    begun.report({"epoch": 101.0}, None)
    assert told[-1] < told[0]  # nothing new


def test_a_trial_that_fails_keeps_what_it_had_shown_on_its_way(base, tmp_path, monkeypatch):
    def train(run, context, data):
        metrics = {"epoch": 3.0, "evaluate_s": 1.0, "knn": 0.4}
        context.report(metrics, {"epoch": 3, "step": 0, "metrics": metrics})
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("eqssl.training.loop.train", train)
    record = attempt(TRIAL, base, context(tmp_path))
    assert (record.status, record.error) == ("FAILED", "FloatingPointError: the loss is not finite")
    assert (record.history, record.epochs) == ({"3": {"knn": 0.4}}, 0)


@pytest.mark.parametrize(
    ("error", "workers", "ends"),
    [
        (FloatingPointError, 1, True),
        (FloatingPointError, 2, True),  # of all workers together
        (ValueError, 1, False),  # perhaps of one node, such as a missing compiler or file
        (ValueError, 2, False),
        (RuntimeError, 1, False),  # perhaps of the machine: another attempt may mend it
    ],
)
def test_an_error_that_all_workers_would_meet_again_ends_the_trial(base, tmp_path, monkeypatch, error, workers, ends):
    def train(*arguments):
        raise error("no")

    monkeypatch.setattr("eqssl.training.loop.train", train)
    if ends:
        record = attempt(TRIAL, base, context(tmp_path, world_size=workers))
        assert record.error == f"{error.__name__}: no"
    else:
        with pytest.raises(error):
            attempt(TRIAL, base, context(tmp_path, world_size=workers))


def test_an_attempt_knows_the_epochs_before_it_and_none_that_it_trains_again(tmp_path):
    told = []
    first, second = (context(tmp_path, tell=told.append) for _ in range(2))
    for epoch in (1.0, 2.0):
        metrics = {"epoch": epoch, "evaluate_s": 1.0, "knn": epoch / 10, "n/a": float("nan")}
        first.report(metrics, {"epoch": epoch, "metrics": metrics})
    (path,) = tmp_path.rglob(EPOCHS)
    write_json(path, [*json.loads(path.read_text()), {"epoch": 3.0, "evaluate_s": 1.0}])
    told.clear()
    second.load()
    assert told[-1].history == {"1": {"knn": 0.1}, "2": {"knn": 0.2}} and told[-1].resumed_s > 0
