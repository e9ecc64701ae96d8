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


ALONE = {"simclr": {"train.lr": 2e-3}, "vicreg": {"train.lr": 8e-3}}


def of(name: str, **metrics: float) -> dict:
    return {"name": name, "metrics": {figure: {"estimate": value} for figure, value in metrics.items()}}


@pytest.mark.parametrize("paired", [False, True])
def test_an_entrant_has_three_settings_at_the_rate_of_the_method_it_builds_on(baselines, paired):
    who = baselines.entrants(ALONE, paired)
    assert ("vicreg + intermediate" in who) != paired
    for name, (method, rows) in who.items():
        assert len(rows) == (1 if name.endswith("split-0") else 3)
        for overrides in rows.values():
            assert replace(RunConfig(), overrides).train.lr == ALONE[method]["train.lr"], name
    assert not any("sie" in name for name in baselines.entrants({"simclr": ALONE["simclr"]}, paired))


def test_the_best_setting_is_accurate_enough_or_else_the_most_accurate(baselines):
    rows = {name: {} for name in "abc"}
    means = {"a": (0.8, 0.3), "b": (0.79, 0.5), "c": (0.5, 0.9)}
    summary = {"configurations": [of(name, knn=knn, r2_mean=r2) for name, (knn, r2) in means.items()]}
    assert baselines.best(summary, rows, 0.78) == "b"
    assert baselines.best(summary, rows, 0.9) == "a"


def test_settings_that_failed_are_passed_over_and_data_without_labels_go_by_r2(baselines):
    rows = {name: {} for name in "ab"}
    assert baselines.best({"configurations": [of("a"), of("b", knn=0.5, r2_mean=0.1)]}, rows, 0.9) == "b"
    assert baselines.best({"configurations": [of("a"), of("b")]}, rows, 0.9) is None
    assert baselines.best({"configurations": [of("a", r2_mean=0.2), of("b", r2_mean=0.1)]}, rows, -0.01) == "a"


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
    stages = [json.loads((tmp_path / f"baselines_{n}" / "summary.json").read_text()) for n in ("alone", "tuning")]
    assert {t["status"] for stage in (*stages, summary) for t in stage["trials"]} == {"COMPLETE"}
    assert {stage["options"]["evaluate.split"] for stage in stages} == {"val"}
    rows = {c["name"]: c for c in summary["configurations"]}
    who = baselines.entrants(ALONE, paired=True)
    assert set(rows) == {"constant", "pixels", "random", "supervised", "recon-only", "simclr", "vicreg", *who}
    assert summary["options"]["evaluate.split"] == "test" and summary["options"]["train.seed"] == 1000
    with_recon = rows["simclr + reconstruction"]["params"]
    assert with_recon["recon.weight"] in baselines.WEIGHTS
    assert with_recon["train.lr"] == rows["simclr"]["params"]["train.lr"]
