"""The study of baselines, small: every entrant is tuned, then trained again with fresh seeds beside its controls."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from eqssl.config import RunConfig, replace
from eqssl.study import StudyOptions

SCRIPT = Path(__file__).parents[2] / "studies" / "baselines.py"


@pytest.fixture(scope="module")
def baselines():
    spec = importlib.util.spec_from_file_location("baselines", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_entrant_has_equally_many_settings_and_knows_what_it_is_compared_with(baselines):
    images = replace(RunConfig(), {"data.source": "parquet", "encoder.name": "test_vit"})
    for config in (RunConfig(), images):
        who = baselines.entrants(config)
        assert all(len(values) == 3 and method in who for method, _, _, values in who.values())
        assert ("ibot" in who) == (config is images) == ("vicreg + intermediate" in who)
        for name, (_, overrides, knob, values) in who.items():
            assert all(replace(config, overrides | {knob: value}) for value in values), name


def test_the_best_setting_is_accurate_enough_or_else_the_most_accurate(baselines):
    means = {"a": {"knn": 0.8, "r2_mean": 0.3}, "b": {"knn": 0.79, "r2_mean": 0.5}, "c": {"knn": 0.5, "r2_mean": 0.9}}
    assert baselines.best(means, list(means), 0.78) == "b"
    assert baselines.best(means, list(means), 0.9) == "a"


@pytest.mark.slow
def test_the_whole_study(baselines, base, tmp_path, monkeypatch):
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    monkeypatch.setattr(baselines, "METHODS", ("simclr", "vicreg"))
    run = replace(base, {"train.epochs": 1})
    options = StudyOptions(run=run, seeds=1, output=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    try:
        summary = baselines.run(dataclasses.replace(baselines.STUDY, base=run), options)
    finally:
        ray.shutdown()
    tuned = json.loads((tmp_path / "baselines_tuning" / "summary.json").read_text())
    who = baselines.entrants(run)
    assert {t["status"] for t in (*tuned["trials"], *summary["trials"])} == {"COMPLETE"}
    assert len(tuned["configurations"]) == 3 * len(who)
    rows = {c["name"]: c for c in summary["configurations"]}
    assert set(rows) == {"constant", "pixels", "random", "supervised", "recon-only", *who}
    assert summary["options"]["evaluate.split"] == "test" and summary["options"]["train.seed"] == 1000
    assert rows["simclr + reconstruction"]["params"]["recon.weight"] in baselines.WEIGHTS
