"""What a trial leaves in its folder, without Ray."""

import json
import os

import pytest

from eqssl.config import RunConfig, replace, to_dict
from eqssl.evaluation.predictions import load_predictions, metrics_of
from eqssl.files import write_json
from eqssl.study.execution.plugins import registered
from eqssl.study.execution.pool import trial_record
from eqssl.study.execution.preemption import NodeWatch
from eqssl.study.execution.trial import ATTEMPTS, EPOCHS, ERROR, PREDICTIONS, TrialContext, attempt, run_trial
from eqssl.study.search.space import Configuration, Trial


@pytest.fixture
def evaluated(base, tmp_path):
    def run(level="full", row=None):
        config = replace(base, {"evaluate.level": level, "evaluate.images": 32, "train.epochs": 1})
        final = attempt(spec(config, row), context(tmp_path))
        return final["metrics"], tmp_path / PREDICTIONS

    return run


def spec(config, row=None, command="first"):
    return {"row": row, "run": to_dict(config), "worker": {"CPU": 1}, "command": command, "cwd": os.getcwd()}


def context(folder, **place):
    return TrialContext(folder, report=lambda metrics: None, watch=NodeWatch(set()), **place)


@pytest.mark.parametrize("row", [None, "pixels", "constant"])
def test_predictions_of_a_full_evaluation_are_kept(evaluated, row):
    metrics, path = evaluated(row=row)
    again = metrics_of(load_predictions(path))
    assert {"r2_mean", "linear", "mlp_r2_mean"} <= again.keys()
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6, nan_ok=True)


def test_a_trial_killed_after_its_last_checkpoint_has_them_too(evaluated):
    _, path = evaluated()
    before = path.read_bytes()
    path.unlink()
    evaluated()
    assert path.read_bytes() == before


def test_a_quick_evaluation_keeps_none(evaluated):
    assert not evaluated(level="quick")[1].exists()


def test_a_row_is_evaluated_by_one_of_several_workers_and_not_by_the_process_that_has_them(base, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("eqssl.study.execution.workers.train_with_workers", lambda spec, plugins: told.append(spec))
    row = spec(replace(base, {"evaluate.level": "full"}), "constant") | {"workers": [2, 2]}
    run_trial({"trial": row}, registered())
    assert told == [row]
    final = attempt(row, context(tmp_path, rank=1, world_size=2))
    assert "metrics" not in final and not (tmp_path / PREDICTIONS).exists()


def test_what_is_saved_before_an_epochs_end_comes_with_the_epochs_before_it(tmp_path):
    context = TrialContext(tmp_path, lambda metrics: None, NodeWatch(set()))
    context.report({"epoch": 1.0}, None)  # no checkpoint is due
    context.save({"epoch": 1, "step": 3, "metrics": {}})
    assert [metrics["epoch"] for metrics in json.loads((tmp_path / EPOCHS).read_text())] == [1.0]


def test_a_trial_that_fails_keeps_what_it_had_shown_on_its_way(tmp_path, monkeypatch):
    def fails(spec, context):
        metrics = {"epoch": 3.0, "evaluate_s": 1.0, "knn": 0.4}
        context.report(metrics, {"epoch": 3, "step": 0, "metrics": metrics})
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr("eqssl.study.execution.trial._train", fails)
    final = attempt(spec(RunConfig()), context(tmp_path))
    trial = Trial(Configuration.suggested({"recon.weight": 1.0}, 0), 0)
    record = trial_record(trial, final, 1.0, ["knn"])
    assert (record.status, record.error) == ("FAILED", "FloatingPointError: the loss is not finite")
    assert record.history == {"3": {"knn": 0.4}}


def test_an_attempt_knows_the_epochs_before_it_and_none_that_it_trains_again(tmp_path):
    told = []
    first, second = (TrialContext(tmp_path, told.append, NodeWatch(set())) for _ in range(2))
    for epoch in (1.0, 2.0):
        metrics = {"epoch": epoch, "evaluate_s": 1.0, "knn": epoch / 10, "n/a": float("nan")}
        first.report(metrics, {"epoch": epoch, "metrics": metrics})
    write_json(tmp_path / EPOCHS, [*json.loads((tmp_path / EPOCHS).read_text()), {"epoch": 3.0, "evaluate_s": 1.0}])
    told.clear()
    second.load()
    assert {epoch: figures["knn"] for epoch, figures in told[-1]["history"].items()} == {"1": 0.1, "2": 0.2}


class TestAttempts:
    """A trial goes on as often as its processes are lost, if it only comes further."""

    @pytest.fixture
    def broken(self, base, monkeypatch):
        def train(*arguments):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("eqssl.training.loop.train", train)
        return replace(base, {"train.epochs": 1})

    def test_the_third_without_progress_is_the_last(self, broken, tmp_path):
        for _ in range(ATTEMPTS - 1):
            with pytest.raises(RuntimeError):
                attempt(spec(broken), context(tmp_path))
        assert attempt(spec(broken), context(tmp_path))["error"] == "RuntimeError: out of memory (3 attempts)"

    def test_processes_that_die_without_a_word_are_counted(self, base, tmp_path):
        for _ in range(ATTEMPTS):
            context(tmp_path).attempts("first")
        assert attempt(spec(base), context(tmp_path))["error"] == "its process died (3 attempts)"
        assert not (tmp_path / ERROR).exists()

    def test_progress_and_a_new_command_begin_the_count_again(self, tmp_path):
        assert [context(tmp_path).attempts("first") for _ in range(2)] == [1, 2]
        context(tmp_path).save({"metrics": {}})
        assert [context(tmp_path).attempts("first") for _ in range(2)] == [1, 2]
        assert context(tmp_path).attempts("second") == 1
