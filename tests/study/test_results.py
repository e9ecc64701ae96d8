import dataclasses
import json
import math
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eqssl.environment import commit
from eqssl.report.tables import caption
from eqssl.stats import difference_estimates
from eqssl.study import Study, log_uniform, results
from eqssl.study.definition import REFERENCES
from eqssl.study.results import _write_summary, summarise, write_parquet
from eqssl.study.store.records import CONTRIBUTIONS, TrialRecord
from eqssl.study.table import Table

STUDY = Study(
    name="toy",
    question="?",
    space={"recon.weight": log_uniform(0.1, 10.0)},
    objectives={"knn": "maximize", "r2_mean": "maximize"},
)
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


def noisy(means: dict[str, tuple[float, float]], std: float, seeds: int = 3) -> list[TrialRecord]:
    """Return records with these (knn, r2_mean) and noise of one standard deviation."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, std, (len(means), 2, seeds))
    noise -= noise.mean(2, keepdims=True)  # the means are the stated ones
    numbers = {name: int(name[-1]) if name.startswith("weight") else None for name in means}
    return [
        record(name, seed, numbers[name], knn=knn + noise[row, 0, seed], r2_mean=r2 + noise[row, 1, seed])
        for row, (name, (knn, r2)) in enumerate(means.items())
        for seed in range(seeds)
    ]


def choose(study, records):
    return results.choose(study, Table(records, study.controls, study.objectives))


def choice_of(records, study=STUDY) -> str | None:
    chosen = choose(study, records)
    return chosen and chosen.configuration


def test_choice_is_the_best_r2_among_those_no_less_accurate_than_base():
    records = rows({"base": (0.8, 0.3), "no-recon": (0.9, 0.4), "weight 1": (0.795, 0.5), "weight 2": (0.6, 0.9)})
    assert choice_of(records) == "weight 1"
    chosen = choose(STUDY, records)
    assert chosen.trial_id == "weight 1-0" and chosen.params == {"recon.weight": 1.0}
    assert summarise(STUDY, records, ABOUT)["answer"]["candidates"] == 2
    assert chosen.reason == "weight 1 alone keeps the accuracy within .01 of base"


def test_an_auto_encoder_that_is_more_accurate_is_no_guard():
    records = rows({"base": (0.8, 0.3), "autoencode": (0.9, 0.4), "weight 1": (0.795, 0.5), "weight 2": (0.89, 0.4)})
    assert choice_of(records) == "weight 1"


def test_where_none_keeps_the_accuracy_the_best_r2_of_the_most_accurate_is_chosen():
    means = {"base": (0.8, 0.3), "weight 1": (0.5, 0.95), "weight 2": (0.6, 0.5), "weight 3": (0.595, 0.9)}
    chosen = choose(STUDY, noisy(means, 0.01))
    assert chosen.configuration == "weight 3"
    assert chosen.reason == (
        "no weight kept the accuracy within .01 of base; weight 3 has the best R² mean of those whose accuracy is not "
        "significantly below the best, weight 2's"
    )
    assert choice_of(noisy(means, 0.0001)) == "weight 2"


def test_a_reason_names_what_is_not_significantly_different():
    means = {"base": (0.8, 0.3), "weight 1": (0.8, 0.5), "weight 2": (0.8, 0.51), "weight 3": (0.8, 0.4)}
    reason = choose(STUDY, noisy(means, 0.01)).reason
    assert reason.startswith("weight 2 has the best") and reason.endswith("; not significantly different from weight 1")


def test_there_is_no_choice_without_a_configuration_that_was_searched():
    assert choose(STUDY, rows({"base": (0.8, 0.3)})) is None
    assert choose(STUDY, [record("weight 1", 0, 1, status="FAILED")]) is None


def test_choice_passes_over_what_collapsed():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.9), "weight 2": (0.8, 0.5)})
    records = [dataclasses.replace(r, collapsed=["equi"]) if r.configuration == "weight 1" else r for r in records]
    assert choice_of(records) == "weight 2"
    assert "weight 1" in caption(summarise(STUDY, records, ABOUT)).rpartition("Collapsed")[2]


def test_choice_counts_the_seeds_that_were_trained_to_their_end():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.9), "weight 2": (0.8, 0.5)}, seeds=3)
    records = [
        dataclasses.replace(r, status="STOPPED" if r.seed == 1 else "FAILED")
        if r.configuration == "weight 1" and r.seed > 0 else r
        for r in records
    ]  # fmt: skip
    assert choice_of(records) == "weight 2"


def test_choice_is_open_to_those_that_were_suggested_once_where_another_was_twice():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.9)}) + rows({"weight 2": (0.8, 0.5)}, seeds=6)
    assert choice_of(records, dataclasses.replace(STUDY, seeds=3)) == "weight 1"


def test_choice_without_labels_goes_by_what_there_is():
    records = [record(f"weight {n}", seed, n, r2_mean=0.1 * n) for n in (1, 2) for seed in (0, 1)]
    assert choice_of(records) == "weight 2"
    assert choose(STUDY, records).reason.startswith("weight 2 has the best R² mean of the 2 searched")


def test_gains_are_paired_differences_from_the_best_control():
    values = np.array([[0.8, 0.81, 0.83], [0.7, 0.71, 0.72], [0.75, 0.77, 0.77]])
    records = [
        record(name, s, int(name[-1]) if name[-1].isdigit() else None, knn=float(knn), r2_mean=r2)
        for name, of, r2 in zip(("base", "no-recon", "weight 1"), values, (0.3, 0.4, 0.5), strict=True)
        for s, knn in enumerate(of)
    ]
    table = Table(records)
    assert (table.best_control("knn"), table.best_control("r2_mean")) == ("base", "no-recon")
    (expected,) = difference_estimates(values, [(2, 0)])
    found = table.gains("knn")["weight 1"]
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected), abs=1e-12)
    assert table.gains("r2_mean")["weight 1"].value == pytest.approx(0.1)
    assert "base" not in table.gains("r2_mean")
    assert table.gains("r2_mean")["no-recon"].value == pytest.approx(0.1)  # a control is compared with base


def test_a_gain_is_over_the_auto_encoder_too_where_that_is_best():
    records = rows({"base": (0.8, 0.3), "no-recon": (0.7, 0.4), "autoencode": (0.75, 0.48), "weight 1": (0.75, 0.5)})
    table = Table(records)
    assert table.best_control("r2_mean") == "autoencode"
    assert table.gains("r2_mean")["weight 1"].value == pytest.approx(0.02)
    assert table.gains("r2_mean")["autoencode"].value == pytest.approx(0.18)
    assert table.beyond_autoencode("r2_mean").keys() == set()  # of another weight
    same = [dataclasses.replace(r, params={}) for r in records]
    assert Table(same).beyond_autoencode("r2_mean").keys() == {"weight 1"}


def test_beyond_autoencode_is_the_difference_from_ones_own_twin():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.8, 0.5), "weight 2": (0.8, 0.6)})
    records += [dataclasses.replace(r, configuration=f"{r.configuration}, autoencode", number=None,
                                    metrics=r.metrics | {"r2_mean": r.metrics["r2_mean"] - 0.1 * r.number})
                for r in records if r.number is not None]  # fmt: skip
    controls = {f"weight {n}": ("base", "no-recon", f"weight {n}, autoencode") for n in (1, 2)}
    summary = summarise(dataclasses.replace(STUDY, controls=controls), records, ABOUT)
    found = {c["name"]: c for c in summary["configurations"]}
    for n in (1, 2):
        assert found[f"weight {n}"]["autoencode"] == f"weight {n}, autoencode"
        assert found[f"weight {n}"]["beyond_autoencode"]["r2_mean"]["estimate"] == pytest.approx(0.1 * n)
    assert not found["weight 1, autoencode"]["beyond_autoencode"] and not found["base"]["beyond_autoencode"]
    gains = {name: c["gains"]["r2_mean"]["estimate"] for name, c in found.items() if "r2_mean" in c["gains"]}
    assert gains == pytest.approx(
        {"weight 1": 0.1, "weight 2": 0.2, "weight 1, autoencode": 0.1, "weight 2, autoencode": 0.1}
    )


def test_what_is_significant_survives_the_comparisons_of_its_table():
    rng = np.random.default_rng(0)
    factors = [f"r2/f{i}" for i in range(10)]
    records = []
    for n in range(12):
        name = "base" if n == 0 else f"weight {n}"
        for seed in range(5):
            metrics = {f: 0.5 + rng.normal(0, 0.01) for f in factors}
            metrics["knn"] = 0.8 + 0.2 * (n == 3) + rng.normal(0, 0.01)
            records.append(record(name, seed, n or None, **metrics))
    found = {c["name"]: c["gains"] for c in summarise(STUDY, records, ABOUT)["configurations"] if c["number"]}
    bounds = [g[f] for g in found.values() for f in factors]
    outside = sum(b["low"] > 0 or b["high"] < 0 for b in bounds)
    assert sum(b["significant"] for b in bounds) <= outside < len(bounds) / 4
    assert [name for name, g in found.items() if g["knn"]["significant"]] == ["weight 3"]


def test_a_base_that_does_not_beat_pixels_or_an_untrained_network_is_named():
    means = {"random": (0.5, 0.3), "base": (0.8, 0.3), "weight 1": (0.8, 0.5)}
    records = [*noisy(means, 0.01), record("pixels", 0, knn=0.6, r2_mean=0.1)]
    assert summarise(STUDY, records, ABOUT)["untrained"] == {}
    records[-1] = record("pixels", 0, knn=0.799, r2_mean=0.1)
    summary = summarise(STUDY, records, ABOUT)
    assert summary["untrained"] == {"base": ["pixels"]} and "base does not beat pixels" in caption(summary)
    records = [*noisy(means | {"random": (0.81, 0.3)}, 0.01), records[-1]]
    assert summarise(STUDY, records, ABOUT)["untrained"] == {"base": ["pixels", "random"]}
    expected = "; base is not trained enough to beat pixels and random in accuracy: train longer."
    assert summarise(STUDY, records, ABOUT)["sentence"].endswith(expected)
    means = {"pixels": (0.9, 0.1), "random": (0.85, 0.1), "base": (0.8, 0.3), "weight 1": (0.8, 0.5)}
    single = rows(means, seeds=1)
    assert summarise(STUDY, single, ABOUT)["sentence"].endswith(f"too few seeds to judge by{expected}")


def test_a_row_is_compared_with_the_controls_it_names_and_with_the_best():
    records = rows({"base": (0.8, 0.3), "a": (0.5, 0.2), "a plain": (0.6, 0.1), "a split": (0.4, 0.15)})
    table = Table(records, {"a": ("a plain", "a split")})
    assert table.gains("knn")["a"].value == pytest.approx(-0.1)
    assert table.gains("r2_mean")["a"].value == pytest.approx(0.05)
    assert table.gains("knn")["a plain"].value == pytest.approx(-0.2)  # of base, having no controls of its own
    assert table.best("knn") == "base" and "base" not in table.behind("knn")
    assert table.behind("knn")["a split"].value == pytest.approx(-0.4)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_wins_nothing(reference):
    table = Table(rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.4), reference: (0.9, 0.5)}))
    assert (table.best("knn"), table.best("r2_mean")) == ("base", "weight 1")
    assert table.behind("knn").keys() == {"weight 1"}


def test_what_collapsed_wins_nothing_and_is_not_on_the_front():
    good = [record("weight 2", seed, 2, knn=0.9, r2_mean=0.9) for seed in (0, 1, 2)]
    collapsed = [dataclasses.replace(good[0], collapsed=["inv"]), *good[1:]]
    records = [*rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.4)}), *collapsed]
    table = Table(records, objectives={"knn": "maximize", "r2_mean": "maximize"})
    assert (table.best("knn"), table.best("r2_mean")) == ("base", "weight 1")
    assert table.front_probability().keys() == {"base", "weight 1"}


def test_without_a_split_all_features_stand_where_others_have_their_invariant_part():
    figures = {"base": {"invariance": 0.6}, "no-recon": {"invariance": 0.3, "inv/invariance": 0.5}}
    figures["weight 1"] = {"invariance": 0.9, "inv/invariance": 0.55}
    records = [
        record(name, s, **{f: v + 0.01 * s for f, v in of.items()}) for name, of in figures.items() for s in (0, 1)
    ]
    table = Table(records)
    assert table.best("inv/invariance") == table.best_control("inv/invariance") == "base"
    assert table.means("inv/invariance")["base"].estimate == pytest.approx(0.605)
    assert table.behind("inv/invariance")["weight 1"].value == pytest.approx(-0.05)
    assert table.best("invariance") == "weight 1"


@pytest.mark.parametrize("figure", ["geodesic_deg", "pose_deg", "inv/mlp_geodesic_deg", "recon/error", "loss"])
def test_the_better_error_is_the_smaller_one(figure):
    records = [record(n, s, **{figure: v + s}) for n, v in (("base", 50), ("no-recon", 40)) for s in (0, 1)]
    assert Table(records).best_control(figure) == Table(records).best(figure) == "no-recon"


def test_an_objective_has_the_direction_that_is_stated():
    figures = {"recon/use_target": "minimize", "geodesic_deg": "maximize"}
    records = [
        record(n, s, number, **dict.fromkeys(figures, value + 0.01 * s))
        for n, number, value in (("base", None, 0.5), ("no-recon", None, 0.1), ("weight 1", 1, 0.3))
        for s in (0, 1)
    ]
    study = dataclasses.replace(STUDY, objectives=figures)
    summary = summarise(study, records, ABOUT)
    assert summary["best"] == summary["best_control"] == {"recon/use_target": "no-recon", "geodesic_deg": "base"}


def test_a_metric_that_is_not_registered_is_better_when_larger():
    records = [record(n, s, my_metric=v + s) for n, v in (("base", 50), ("no-recon", 40)) for s in (0, 1)]
    assert Table(records).best("my_metric") == "base"
    assert Table(records, objectives={"my_metric": "minimize"}).best("my_metric") == "no-recon"
    assert "my_metric" not in summarise(STUDY, records, ABOUT)["minimum_detectable_difference"]
    study = dataclasses.replace(STUDY, objectives={"knn": "maximize", "my_metric": "minimize"})
    assert "my_metric" in summarise(study, records, ABOUT)["minimum_detectable_difference"]


def test_a_configuration_without_a_complete_trial_costs_no_summary_where_its_control_has_one():
    records = [record("weight 1", seed, 1, status="FAILED") for seed in (0, 1)]
    control = [record("weight 1, autoencode", seed, knn=0.8, r2_mean=0.4) for seed in (0, 1)]
    records += [dataclasses.replace(r, params=records[0].params) for r in control]
    controls = {"weight 1": ("base", "no-recon", "weight 1, autoencode")}
    found = summarise(dataclasses.replace(STUDY, controls=controls), records, ABOUT)["configurations"]
    assert [(c["name"], c["seeds"]) for c in found if not c["seeds"]] == [("weight 1", [])]


def test_one_seed_gives_estimates_without_bounds():
    summary = summarise(STUDY, rows({"base": (0.8, 0.3), "weight 1": (0.75, 0.5)}, seeds=1), ABOUT)
    knn = {c["name"]: c["metrics"]["knn"] for c in summary["configurations"]}
    assert knn["weight 1"] == {"estimate": 0.75, "low": None, "high": None}
    assert summary["minimum_detectable_difference"]["knn"] is None


def test_rows_without_encoder_have_no_interval_and_lend_none():
    with_pixels = Table([*rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.5)}), record("pixels", 0, knn=0.9)])
    assert math.isnan(with_pixels.means("knn")["pixels"].low) and not with_pixels.means("knn")["pixels"].has_bounds
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


def test_a_study_that_is_stopped_before_any_trial_has_ended_has_an_empty_table(tmp_path):
    write_parquet([], tmp_path / "trials.parquet")
    assert pq.read_table(tmp_path / "trials.parquet").num_rows == 0


def test_parquet_has_a_row_for_every_trial_and_metric(tmp_path):
    write_parquet(rows({"base": (0.8, 0.3), "weight 1": (0.75, 0.5)}, seeds=2), tmp_path / "trials.parquet")
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert len(table) == 2 * 2 * 3
    picked = [r["value"] for r in table if (r["configuration"], r["seed"], r["metric"]) == ("weight 1", 1, "knn")]
    assert picked == [pytest.approx(0.76)]
    assert {r["recon.weight"] for r in table} == {0.0, 1.0}


@pytest.mark.parametrize("first", ["knn", "linear", "inv/knn", "geodesic_deg", "r2_mean"])
@pytest.mark.parametrize(("accuracy", "answer"), [(0.8, "yes"), (0.75, "no"), (None, None)])
def test_the_verdict_wants_more_equivariance_and_no_loss_of_accuracy(accuracy, answer, first):
    def made(name, number, knn, gain, part):
        noise = (0.0, 0.001, -0.001)
        shared = {"r2_mean": 0.3 + gain, "equivariance": 0.2 + gain, "invariance": 0.7, "geodesic_deg": 9 + 9 * gain}
        metrics = shared | ({"inv/invariance": 0.7} if part else {})
        if accuracy is not None:
            metrics |= {"knn": knn, "linear": knn} | ({"inv/knn": 0.8} if part else {})
        return [
            record(name, s, number, **{k: v + noise[s] * (1 + len(k) % 3) for k, v in metrics.items()})
            for s in range(3)
        ]

    records = [
        *made("base", None, 0.8, 0.0, False),
        *made("no-recon", None, 0.79, 0.01, True),
        *made("weight 1", 1, accuracy, 0.1, True),
    ]
    study = dataclasses.replace(STUDY, objectives={first: "maximize"})
    configurations = {c["name"]: c for c in summarise(study, records, ABOUT)["configurations"]}
    found = configurations["weight 1"]["equivariant_without_loss"]
    assert (found and found["answer"]) == answer
    assert found is None or 0 <= found["power"] <= 1
    assert configurations["base"]["equivariant_without_loss"] is None
    assert configurations["no-recon"]["equivariant_without_loss"] is None


def test_options_that_are_tables_are_written_as_text(tmp_path):
    made = dataclasses.replace(record("supervised", 0, knn=0.5), params={"method.options": {}})
    write_parquet([made], tmp_path / "trials.parquet")
    assert pq.read_table(tmp_path / "trials.parquet").column("method.options").to_pylist() == ["{}", "{}"]


def test_the_front_heeds_directions_and_needs_seeds():
    records = rows({"base": (0.8, 0.3), "weight 1": (0.7, 0.5), "weight 2": (0.6, 0.4)})
    records = [
        dataclasses.replace(r, metrics=r.metrics | {"knn": r.metrics["knn"] + 1e-3 * r.seed**2}) for r in records
    ]
    records.append(record("pixels", 0, knn=0.9, r2_mean=0.9))
    front = Table(records, objectives={"knn": "maximize", "r2_mean": "maximize"}).front_probability()
    assert front == {"base": 1, "weight 1": 1, "weight 2": 0}
    assert Table(records, objectives={"knn": "minimize", "r2_mean": "maximize"}).front_probability()["base"] == 0
    assert Table(rows({"base": (0.8, 0.3)}, seeds=1), objectives={"knn": "maximize"}).front_probability() == {}


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


def test_the_sampling_of_images_widens_what_the_seeds_alone_would_say(tmp_path):
    rng = np.random.default_rng(0)
    records = noisy({"base": (0.8, 0.3), "weight 1": (0.8, 0.5)}, 1e-4)
    correct = {}
    for of in records:  # the two are right about different images, whatever the seed
        name = of.configuration
        correct.setdefault(name, (rng.uniform(size=400) < 0.8).astype(np.float32))
        offset = of.metrics["knn"] - correct[name].mean()
        save(tmp_path, of.trial_id, {"knn": correct[name] + np.float32(offset)})
    summaries = [summarise(STUDY, records, ABOUT, folder) for folder in (None, tmp_path)]
    widths = []
    for summary in summaries:
        bounds = summary["configurations"][1]["gains"]["knn"]
        widths.append((bounds["high"] - bounds["low"]) / 2)
    expected = 1.96 * np.std(correct["weight 1"] - correct["base"]) / np.sqrt(400)
    assert widths[0] < 0.001 and widths[1] == pytest.approx(expected, rel=0.05)
    r2 = [summary["configurations"][1]["gains"]["r2_mean"] for summary in summaries]
    assert r2[0] == r2[1]  # of which no contributions were saved
    assert [summary["images_sampled"] for summary in summaries] == [False, True]


def test_a_contribution_file_that_was_cut_costs_no_summary(tmp_path, caplog):
    records = noisy({"base": (0.8, 0.3), "weight 1": (0.8, 0.5)}, 0.01)
    for of in records:
        save(tmp_path, of.trial_id, {"knn": np.linspace(0, 1, 50)})
    (tmp_path / "trials" / records[0].trial_id / CONTRIBUTIONS).write_bytes(b"PAR1 cut")
    assert summarise(STUDY, records, ABOUT, tmp_path)["images_sampled"]
    assert f"of trial {records[0].trial_id} cannot be read" in caplog.text


def save(folder, trial_id, contributions):
    path = folder / "trials" / trial_id / CONTRIBUTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(m, unit, float(v), 1.0) for m, values in contributions.items() for unit, v in enumerate(values)]
    table = pa.table(dict(zip(("metric", "unit", "value", "weight"), zip(*rows, strict=True), strict=True)))
    schema = [("metric", pa.string()), ("unit", pa.int64()), ("value", pa.float32()), ("weight", pa.float32())]
    pq.write_table(table.cast(pa.schema(schema)), path)


def test_the_summary_is_json_with_a_line_for_every_configuration_and_trial(tmp_path):
    summary = {
        "study": "x\n",
        "configurations": [{"name": "a"}, {"name": "b"}],
        "trials": [],
        "space": {"w": [1, None]},
    }
    _write_summary(summary, tmp_path / "summary.json")
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == summary and '    {"name": "a"},\n    {"name": "b"}\n  ],\n  "trials": [],' in text
    assert text.startswith('{\n  "study": ') and text.endswith("      null\n    ]\n  }\n}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        _write_summary({"wall_s": float("nan")}, tmp_path / "summary.json")


def test_the_use_of_the_other_view_by_auto_encoding_has_no_interval():
    use = {"weight 1": (0.1, 0.12), "autoencode": (0.0, 0.0)}
    records = [
        record(name, seed, **{"recon/use_other": of}) for name, both in use.items() for seed, of in enumerate(both)
    ]
    found = Table(records).means("recon/use_other")
    assert found["weight 1"].has_bounds and not found["autoencode"].has_bounds and found["autoencode"].estimate == 0
