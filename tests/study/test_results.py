import dataclasses
import math
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest

from eqssl.evaluation.statistics import paired_difference
from eqssl.report.tables import caption
from eqssl.study import Study, log_uniform
from eqssl.study.definition import REFERENCES
from eqssl.study.environment import commit
from eqssl.study.record import TrialRecord
from eqssl.study.results import choose, summarise, write_parquet
from eqssl.study.table import Table

STUDY = Study(name="toy", question="?", space={"recon.weight": log_uniform(0.1, 10.0)})
ABOUT = {"data": {}, "concurrency": "", "wall_s": 1.0, "options": {}, "status": "complete", "study_id": "0"}


def record(configuration, seed, number=None, status="COMPLETE", **metrics) -> TrialRecord:
    return TrialRecord(
        trial_id=f"{configuration}-{seed}",
        configuration=configuration,
        number=number,
        params={"recon.weight": float(number or 0)},
        seed=seed,
        status=status,
        epochs=3,
        metrics={"epoch": 3.0, **metrics},
        overhead_s=0.1 * (seed + 1),
        warm=True,
    )


def rows(means: dict[str, tuple[float, float]], seeds=3) -> list[TrialRecord]:
    """Return records with these (knn, r2_mean), the seeds .01 apart; weights are searched."""
    numbers = {name: int(name[-1]) if name.startswith("weight") else None for name in means}
    return [
        record(name, seed, numbers[name], knn=knn + 0.01 * seed, r2_mean=r2)
        for name, (knn, r2) in means.items()
        for seed in range(seeds)
    ]


def test_choice_is_the_best_r2_among_those_no_less_accurate():
    records = rows({"base": (0.8, 0.3), "split-0": (0.7, 0.4), "weight 1": (0.795, 0.5), "weight 2": (0.6, 0.9)})
    assert choose(STUDY, records).configuration == "weight 1"
    assert choose(STUDY, records).seed == 0


def test_choice_falls_back_to_accuracy_and_to_nothing():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.5, 0.9), "weight 2": (0.6, 0.5)})
    assert choose(STUDY, records).configuration == "weight 2"
    assert choose(STUDY, rows({"base": (0.8, 0.3)})) is None
    assert choose(STUDY, [record("weight 1", 0, 1, status="FAILED")]) is None


def test_choice_passes_over_what_collapsed():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.9), "weight 2": (0.8, 0.5)})
    records = [dataclasses.replace(r, collapsed=["equi"]) if r.configuration == "weight 1" else r for r in records]
    assert choose(STUDY, records).configuration == "weight 2"
    assert "weight 1" in caption(summarise(STUDY, records, ABOUT)).rpartition("Collapsed")[2]


def test_choice_counts_the_seeds_that_were_trained_to_their_end():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.9), "weight 2": (0.8, 0.5)}, seeds=3)
    records = [
        dataclasses.replace(r, status="STOPPED" if r.seed == 1 else "FAILED")
        if r.configuration == "weight 1" and r.seed > 0 else r
        for r in records
    ]  # fmt: skip
    assert choose(STUDY, records).configuration == "weight 2"


def test_choice_is_open_to_those_that_were_suggested_once_where_another_was_twice():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.9)}) + rows({"weight 2": (0.8, 0.5)}, seeds=6)
    assert choose(dataclasses.replace(STUDY, seeds=3), records).configuration == "weight 1"


def test_choice_without_labels_goes_by_what_there_is():
    records = [record(f"weight {n}", seed, n, r2_mean=0.1 * n) for n in (1, 2) for seed in (0, 1)]
    assert choose(STUDY, records).configuration == "weight 2"


def test_gains_are_paired_differences_from_the_better_control():
    records = rows({"base": (0.8, 0.3), "split-0": (0.7, 0.4), "weight 1": (0.75, 0.5)})
    table = Table(records)
    assert (table.better_control("knn"), table.better_control("r2_mean")) == ("base", "split-0")
    values = np.array([[0.8, 0.81, 0.82], [0.7, 0.71, 0.72], [0.75, 0.76, 0.77]])
    expected = paired_difference(values, 2, 0)
    assert table.gains("knn")["weight 1"].estimate == pytest.approx(expected.estimate)
    assert "base" not in table.gains("knn")


def test_a_row_is_compared_with_the_controls_it_names_and_with_the_best():
    records = rows({"base": (0.8, 0.3), "a": (0.5, 0.2), "a plain": (0.6, 0.1), "a split": (0.4, 0.15)})
    table = Table(records, {"a": ("a plain", "a split")})
    assert table.gains("knn")["a"].estimate == pytest.approx(-0.1)
    assert table.gains("r2_mean")["a"].estimate == pytest.approx(0.05)
    assert table.gains("knn")["a plain"].estimate == pytest.approx(-0.2)  # of base, having no controls of its own
    assert table.best("knn") == "base" and "base" not in table.behind("knn")
    assert table.behind("knn")["a split"].estimate == pytest.approx(-0.4)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_wins_nothing(reference):
    table = Table(rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.4), reference: (0.9, 0.5)}))
    assert (table.best("knn"), table.best("r2_mean")) == ("base", "weight 1")
    assert table.behind("knn").keys() == {"weight 1"}


def test_what_collapsed_wins_nothing_and_is_not_on_the_front():
    good = [record("weight 2", seed, 2, knn=0.9, r2_mean=0.9) for seed in (0, 1, 2)]
    collapsed = [dataclasses.replace(good[0], collapsed=["inv"]), *good[1:]]
    table = Table([*rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.4)}), *collapsed])
    assert (table.best("knn"), table.best("r2_mean")) == ("base", "weight 1")
    assert table.front_probability({"knn": "maximize", "r2_mean": "maximize"}).keys() == {"base", "weight 1"}


def test_without_a_split_all_features_stand_where_others_have_their_invariant_part():
    figures = {"base": {"invariance": 0.6}, "split-0": {"invariance": 0.3, "inv/invariance": 0.5}}
    figures["weight 1"] = {"invariance": 0.9, "inv/invariance": 0.55}
    records = [
        record(name, s, **{f: v + 0.01 * s for f, v in of.items()}) for name, of in figures.items() for s in (0, 1)
    ]
    table = Table(records)
    assert table.best("inv/invariance") == table.better_control("inv/invariance") == "base"
    assert table.means("inv/invariance")["base"].estimate == pytest.approx(0.605)
    assert table.behind("inv/invariance")["weight 1"].estimate == pytest.approx(-0.05)
    assert table.best("invariance") == "weight 1"


@pytest.mark.parametrize("figure", ["geodesic_deg", "inv/3die/mlp_geodesic_deg", "recon/error", "loss"])
def test_the_better_error_is_the_smaller_one(figure):
    records = [record(n, s, **{figure: v + s}) for n, v in (("base", 50), ("split-0", 40)) for s in (0, 1)]
    assert Table(records).better_control(figure) == Table(records).best(figure) == "split-0"


def test_an_objective_has_the_direction_that_is_stated():
    figures = {"recon/use_target": "minimize", "geodesic_deg": "maximize"}
    records = [
        record(n, s, number, **dict.fromkeys(figures, value + 0.01 * s))
        for n, number, value in (("base", None, 0.5), ("split-0", None, 0.1), ("weight 1", 1, 0.3))
        for s in (0, 1)
    ]
    study = dataclasses.replace(STUDY, objectives=figures)
    summary = summarise(study, records, ABOUT)
    assert summary["best"] == summary["better_control"] == {"recon/use_target": "split-0", "geodesic_deg": "base"}


def test_one_seed_gives_estimates_without_bounds():
    summary = summarise(STUDY, rows({"base": (0.8, 0.3), "weight 1": (0.75, 0.5)}, seeds=1), ABOUT)
    knn = {c["name"]: c["metrics"]["knn"] for c in summary["configurations"]}
    assert knn["weight 1"] == {"estimate": 0.75, "low": None, "high": None}
    assert summary["minimum_detectable_difference"]["knn"] is None


def test_rows_without_encoder_have_no_interval_and_lend_none():
    with_pixels = Table([*rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.5)}), record("pixels", 0, knn=0.9)])
    assert math.isnan(with_pixels.means("knn")["pixels"].low)
    assert (
        with_pixels.means("knn")["base"]
        == Table(rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.5)})).means("knn")["base"]
    )


def test_failed_trials_are_in_the_summary_and_in_no_mean():
    records = [*rows({"base": (0.8, 0.3), "weight 1": (0.75, 0.5)}), record("weight 1", 3, 1, status="FAILED")]
    summary = summarise(STUDY, records, ABOUT)
    assert len(summary["trials"]) == 7
    assert {"params", "seed", "status", "epochs", "metrics", "wall_s"} <= summary["trials"][0].keys()
    assert next(c for c in summary["configurations"] if c["name"] == "weight 1")["seeds"] == [0, 1, 2]
    assert summary["overhead_s"] == {"median_warm": pytest.approx(0.2), "warm_trials": 7}


def test_parquet_has_a_row_for_every_trial_and_metric(tmp_path):
    write_parquet(rows({"base": (0.8, 0.3), "weight 1": (0.75, 0.5)}, seeds=2), tmp_path / "trials.parquet")
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert len(table) == 2 * 2 * 3
    picked = [r["value"] for r in table if (r["configuration"], r["seed"], r["metric"]) == ("weight 1", 1, "knn")]
    assert picked == [pytest.approx(0.76)]
    assert {r["recon.weight"] for r in table} == {0.0, 1.0}


@pytest.mark.parametrize("first", ["knn", "inv/knn", "geodesic_deg", "r2_mean"])
@pytest.mark.parametrize(("accuracy", "holds"), [(0.8, True), (0.75, False), (None, None)])
def test_the_verdict_wants_more_equivariance_and_no_loss_of_accuracy(accuracy, holds, first):
    def made(name, number, knn, gain, part):
        noise = (0.0, 0.001, -0.001)
        shared = {"r2_mean": 0.3 + gain, "equivariance": 0.2 + gain, "invariance": 0.7, "geodesic_deg": 9 + 9 * gain}
        metrics = shared | ({"inv/invariance": 0.7} if part else {})
        if accuracy is not None:
            metrics |= {"knn": knn} | ({"inv/knn": 0.8} if part else {})
        return [
            record(name, s, number, **{k: v + noise[s] * (1 + len(k) % 3) for k, v in metrics.items()})
            for s in range(3)
        ]

    records = [
        *made("base", None, 0.8, 0.0, False),
        *made("split-0", None, 0.79, 0.01, True),
        *made("weight 1", 1, accuracy, 0.1, True),
    ]
    study = dataclasses.replace(STUDY, objectives={first: "maximize"})
    configurations = {c["name"]: c for c in summarise(study, records, ABOUT)["configurations"]}
    assert configurations["weight 1"]["equivariant_without_loss"] is holds
    assert configurations["base"]["equivariant_without_loss"] is None


def test_options_that_are_tables_are_written_as_text(tmp_path):
    made = dataclasses.replace(record("supervised", 0, knn=0.5), params={"method.options": {}})
    write_parquet([made], tmp_path / "trials.parquet")
    assert pq.read_table(tmp_path / "trials.parquet").column("method.options").to_pylist() == ["{}", "{}"]


def test_the_front_heeds_directions_and_needs_seeds():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.5), "weight 2": (0.6, 0.4)})
    records = [
        dataclasses.replace(r, metrics=r.metrics | {"knn": r.metrics["knn"] + 1e-3 * r.seed**2}) for r in records
    ]
    table = Table([*records, record("pixels", 0, knn=0.9, r2_mean=0.9)])
    assert table.front_probability({"knn": "maximize", "r2_mean": "maximize"}) == {
        "base": 1, "weight 1": 1, "weight 2": 0,
    }  # fmt: skip
    assert table.front_probability({"knn": "minimize", "r2_mean": "maximize"})["base"] == 0
    assert Table(rows({"base": (0.8, 0.3)}, seeds=1)).front_probability({"knn": "maximize"}) == {}


def test_a_changed_checkout_is_told_from_its_commit(tmp_path):
    def git(*arguments):
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *named, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert commit(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    assert commit(tmp_path) is None
    git("add", "file")
    git("commit", "-m", "first")
    assert len(commit(tmp_path)) == 40
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path).endswith("-dirty")
