"""A study with halving of epochs and of seeds on one real Ray, and the final test of its choice."""

import dataclasses
import json
import os

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from eqssl.config import replace
from eqssl.study import Study, StudyOptions, log_uniform, run_study, uniform

pytestmark = pytest.mark.slow
ROWS = {"pixels": None, "base": {"encoder.equi_fraction": 0.0, "recon.weight": 0.0}}
SPACE = {"recon.weight": log_uniform(0.1, 10.0), "train.weight_decay": uniform(0.0, 1e-3)}


@pytest.fixture(scope="module")
def halved(tmp_path_factory, base):
    """Return folder, summary, study and options: 7 configurations, 3 of them with three seeds."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    folder = tmp_path_factory.mktemp("halved")
    run = replace(base, {"train.epochs": 3, "train.warmup_epochs": 0.5})
    study = Study(name="toy", question="?", space=SPACE, rows=ROWS, base=run)
    options = StudyOptions(
        run=run,
        seeds=3,
        configs=7,
        sampler="tpe",
        seed_schedule="halving",
        pruner="halving",
        final_test=2,
        output=str(folder),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    yield folder, run_study(study, options), study, options
    ray.shutdown()


def searched(summary) -> list[dict]:
    return [t for t in summary["trials"] if t["number"] is not None]


def test_trials_that_are_behind_end_at_a_rung_and_the_rows_never(halved):
    _, summary, _, _ = halved
    ends = {status: [t for t in searched(summary) if t["status"] == status] for status in ("STOPPED", "COMPLETE")}
    assert ends["STOPPED"] and ends["COMPLETE"] and sum(map(len, ends.values())) == len(searched(summary))
    assert {t["epochs"] for t in ends["STOPPED"]} == {1} and {t["epochs"] for t in ends["COMPLETE"]} == {3}
    assert all(t["history"].keys() == {"1"} and t["wall_s"] > 0 for t in ends["STOPPED"])
    assert all(t["history"].keys() == {"1", "2"} for t in ends["COMPLETE"])
    assert {t["status"] for t in summary["trials"] if t["number"] is None} == {"COMPLETE"}


def test_only_what_was_trained_to_its_end_is_in_the_table_and_gets_more_seeds(halved):
    _, summary, _, _ = halved
    whole = {t["configuration"] for t in searched(summary) if t["status"] == "COMPLETE"}
    rows = {c["name"]: c for c in summary["configurations"] if c["number"] is not None}
    assert {name for name, row in rows.items() if row["metrics"]} == whole
    seeds = {name: row["seeds"] for name, row in rows.items() if name in whole}
    assert [0, 1, 2] in seeds.values() and {len(s) for s in seeds.values()} <= {1, 3}
    assert seeds[summary["chosen"]["configuration"]] == [0, 1, 2]


def test_a_process_that_ended_a_trial_early_takes_the_next(halved):
    _, summary, _, _ = halved
    ended_early = sum(t["status"] == "STOPPED" for t in summary["trials"])
    # Two begin cold; of those that are idle before the next stage of seeds, Tune keeps one.
    assert len(summary["trials"]) - summary["overhead_s"]["warm_trials"] < 2 + ended_early
    assert summary["overhead_s"]["median_warm"] < 0.5


def test_mlflow_and_the_journal_know_what_was_stopped(halved):
    from mlflow import MlflowClient

    folder, summary, _, options = halved
    client = MlflowClient(options.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id], "tags.kind = 'trial'")
    outcomes = {run.data.tags["trial_id"]: (run.data.tags["outcome"], run.info.status) for run in runs}
    words = {"STOPPED": ("STOPPED", "KILLED"), "COMPLETE": ("COMPLETE", "FINISHED")}
    assert outcomes == {t["trial_id"]: words[t["status"]] for t in summary["trials"]}
    storage = JournalStorage(JournalFileBackend(str(folder / "toy" / "optuna.journal")))
    states = [t.state.name for t in optuna.load_study(study_name=None, storage=storage).trials]
    first = {t["number"]: t["status"] for t in searched(summary) if t["seed"] == 0}
    assert states == [{"STOPPED": "PRUNED", "COMPLETE": "COMPLETE"}[first[n]] for n in sorted(first)]


def test_the_choice_is_trained_again_with_fresh_seeds_and_reported_on_test(halved):
    folder, summary, _, _ = halved
    last = json.loads((folder / "toy_test" / "summary.json").read_text())
    chosen = summary["chosen"]["configuration"]
    assert {c["name"] for c in last["configurations"]} == {"pixels", "base", f"{chosen}, base", chosen}
    assert last["options"]["evaluate.split"] == "test" and last["options"]["train.seed"] == 1000
    trained = [t for t in last["trials"] if t["configuration"] != "pixels"]
    assert len(trained) == 6 and all(t["epochs"] == 3 for t in trained)


def test_a_final_test_that_was_begun_keeps_its_choice(halved, monkeypatch):
    folder, _, study, options = halved
    asked, other = [], {"configuration": "another", "params": {}, "trial_id": "0"}
    monkeypatch.setattr(
        "eqssl.study.command.run_search", lambda study, *options: asked.append(study) or {"chosen": other}
    )
    run_study(study, dataclasses.replace(options, resume=True))
    known = json.loads((folder / "toy_test" / "study.json").read_text())["identity"]
    assert json.loads(json.dumps(dict(asked[1].rows))) == known["rows"]


def test_the_control_of_a_choice_shares_all_but_the_reconstruction(halved):
    folder, summary, _, _ = halved
    last = json.loads((folder / "toy_test" / "summary.json").read_text())
    rows = {c["name"]: c for c in last["configurations"]}
    chosen = summary["chosen"]["configuration"]
    decay = summary["chosen"]["params"]["train.weight_decay"]
    control = rows[f"{chosen}, base"]
    assert control["params"] == {"train.weight_decay": decay, "encoder.equi_fraction": 0.0, "recon.weight": 0.0}
    knn = [rows[name]["metrics"]["knn"]["estimate"] for name in (chosen, f"{chosen}, base")]
    assert rows[chosen]["gains"]["knn"]["estimate"] == pytest.approx(knn[0] - knn[1])


def test_an_earlier_study_gives_a_warm_start(halved, tmp_path):
    folder, summary, study, options = halved
    more = dataclasses.replace(
        options,
        configs=1,
        seeds=1,
        seed_schedule="fixed",
        final_test=0,
        output=str(tmp_path),
        warm_start=str(folder / "toy"),
    )
    found = run_study(dataclasses.replace(study, rows={}), more)
    assert [t["status"] for t in found["trials"]] == ["COMPLETE"]
    known = json.loads((tmp_path / "toy" / "warm_start.json").read_text())
    assert len(known) == len([c for c in summary["configurations"] if c["number"] is not None and c["metrics"]])
    with pytest.raises(ValueError, match="--warm-start is 'nowhere'"):
        run_study(study, dataclasses.replace(more, warm_start="nowhere", output=str(tmp_path / "b")))
