"""What a trial leaves in its folder, without Ray."""

import pytest

from eqssl.config import replace, to_dict
from eqssl.evaluation.predictions import figures_of, load_predictions
from eqssl.study.trial import PREDICTIONS, TrialContext, _attempt


@pytest.fixture
def attempt(base, tmp_path):
    def run(level="full", row=None):
        config = replace(base, {"evaluate.level": level, "evaluate.images": 32, "train.epochs": 1})
        spec = {"row": row, "run": to_dict(config), "cpus": 1}
        final = _attempt(spec, TrialContext(tmp_path, report=lambda metrics: None))
        return final["metrics"], tmp_path / PREDICTIONS

    return run


@pytest.mark.parametrize("row", [None, "pixels", "constant"])
def test_predictions_of_a_full_evaluation_are_kept(attempt, row):
    metrics, path = attempt(row=row)
    again = figures_of(load_predictions(path))
    assert {"r2_mean", "linear", "mlp_r2_mean"} <= again.keys()
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6, nan_ok=True)


def test_a_trial_killed_after_its_last_checkpoint_has_them_too(attempt):
    _, path = attempt()
    before = path.read_bytes()
    path.unlink()
    attempt()
    assert path.read_bytes() == before


def test_a_quick_evaluation_keeps_none(attempt):
    assert not attempt(level="quick")[1].exists()
