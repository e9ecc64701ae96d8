"""The answer of a study in one sentence, from tables whose numbers are known."""

import dataclasses
import re

import numpy as np
import pytest

from eqssl.study import Study, log_uniform
from eqssl.study.results import summarise
from eqssl.study.sentence import sentence
from eqssl.study.store.records import TrialRecord
from eqssl.study.summary import Answer, Interval

STUDY = Study(name="toy", question="?", space={"recon.weight": log_uniform(0.1, 10.0)})
ABOUT = {"data": {}, "concurrency": "", "wall_s": 1.0, "options": {}, "status": "complete", "study_id": "0"}
BASE = {"linear": 0.8, "r2_mean": 0.3}


def records(rows: dict[str, dict[str, float]], seeds: int = 4, std: float = 0.005) -> list[TrialRecord]:
    """Return trials of these means; the noise of every row is the same but for its order, and sums to 0."""
    rng, noise = np.random.default_rng(0), np.linspace(-1, 1, seeds) * std if seeds > 1 else np.zeros(1)
    found = []
    for name, metrics in rows.items():
        number = int(name[-1]) if name.startswith("weight") and name[-1].isdigit() else None
        shifts = {metric: rng.permutation(noise) for metric in metrics}
        for seed in range(seeds):
            values = {metric: float(mean + shifts[metric][seed]) for metric, mean in metrics.items()}
            found.append(
                TrialRecord(
                    trial_id=f"{name}-{seed}", configuration=name, number=number, params={}, seed=seed,
                    status="COMPLETE", epochs=3, metrics=values,
                )
            )  # fmt: skip
    return found


def said(rows: dict[str, dict[str, float]], study: Study = STUDY, **kwargs) -> str:
    return summarise(study, records(rows, **kwargs), ABOUT)["sentence"]


def near(**values: float) -> dict[str, float]:
    return BASE | values


def test_a_gain_without_a_loss_beyond_auto_encoding():
    found = said({"base": BASE, "autoencode": near(r2_mean=0.4), "weight 1": near(r2_mean=0.5, linear=0.803)})
    assert re.fullmatch(
        r"weight 1: R² mean \+\.200 ± \.00\d, accuracy \+\.003 ± \.00\d against base: R² mean gained, accuracy "
        r"kept within \.01; \+\.100 ± \.00\d of the R² mean is cross-attention's beyond auto-encoding "
        r"\(accuracy \+\.003 ± \.00\d\)\.",
        found,
    )


def test_a_gain_that_costs_accuracy():
    found = said({"base": BASE, "weight 1": near(r2_mean=0.5, linear=0.7)})
    assert ", accuracy -.10 ± .01" in found and found.endswith("against base: R² mean gained, accuracy lost.")


def test_no_gain():
    found = said({"base": BASE, "autoencode": near(r2_mean=0.302), "weight 1": near(r2_mean=0.301)}, std=0.02)
    assert ": R² mean and accuracy not significantly different; beyond auto-encoding at the same weight: " in found
    assert re.search(r": R² mean [+-]\.00 ± \.\d\d, accuracy [+-]\.00 ± \.\d\d\.$", found), found


def test_auto_encoding_explains_the_gain_or_gains_more():
    found = said({"base": BASE, "autoencode": near(r2_mean=0.499), "weight 1": near(r2_mean=0.5)})
    assert "R² mean gained" in found and found.endswith("; auto-encoding explains most of the gain in R² mean.")
    assert "; beyond auto-encoding at the same weight: R² mean +.001 ± " in found
    more = said({"base": BASE, "autoencode": near(r2_mean=0.6, linear=0.7), "weight 1": near(r2_mean=0.5)})
    assert re.search(r"at the same weight: R² mean -\.100? ± \.\d+, accuracy \+\.100? ± \.\d+; auto", more), more


def test_pose_is_named_where_it_is_known():
    rows = {name: {**BASE, "r2/pose": pose} for name, pose in (("base", 0.4), ("autoencode", 0.3), ("weight 1", 0.5))}
    found = said(rows)
    assert ", pose R² +.100 ± " in found and ", pose R² +.200 ± " in found


def test_auto_encoding_is_called_by_its_name():
    itself = records({"base": BASE, "weight 1": near(r2_mean=0.5)})
    itself = [dataclasses.replace(r, params={"recon.attention": "autoencode"}) if r.number else r for r in itself]
    assert summarise(STUDY, itself, ABOUT)["sentence"].endswith("; this is auto-encoding, without cross-attention.")


def test_too_few_seeds():
    found = said({"base": BASE, "weight 1": near(r2_mean=0.5, linear=0.79)}, seeds=1)
    assert found == "weight 1: R² mean +.20, accuracy -.01 against base; too few seeds to judge by."


def test_no_labels():
    study = STUDY.for_data(labelled=False)
    found = said({"base": {"r2_mean": 0.3}, "weight 1": {"r2_mean": 0.5}}, study)
    assert found.endswith("against base: R² mean gained; no accuracy, since there are no labels.")


def test_no_base():
    found = said({"weight 1": near(r2_mean=0.5)})
    assert found.startswith("weight 1: R² mean .500 ± .00") and found.endswith("; no base method to compare it with.")


def test_no_chosen_configuration():
    rows = dataclasses.replace(STUDY, space={})
    found = said({"base": BASE, "supervised": near(linear=0.9)}, rows)
    assert found.startswith("Nothing is chosen, since nothing is searched; best accuracy: base, .800 ± .00")
    failed = [dataclasses.replace(r, status="FAILED", metrics={}, error="?") for r in records({"weight 1": BASE})]
    searched = summarise(STUDY, [*records({"base": BASE}), *failed], ABOUT)["sentence"]
    assert searched.startswith("No searched configuration completed, so none is chosen; best accuracy: base")
    assert summarise(STUDY, failed, ABOUT)["sentence"] == "No trial completed."


def test_a_confirmed_configuration_is_the_subject_though_nothing_is_searched():
    study = dataclasses.replace(
        STUDY,
        space={},
        subject="crop .5, weight 3",
        controls={"crop .5, weight 3": ("crop .5, weight 3, base", "no-recon", "crop .5, weight 3, autoencode")},
    )
    rows = {"base": near(r2_mean=0.1), "crop .5, weight 3, base": BASE, "crop .5, weight 3": near(r2_mean=0.5)}
    rows["crop .5, weight 3, autoencode"] = near(r2_mean=0.45)
    summary = summarise(study, records(rows), ABOUT)
    assert summary["sentence"].startswith("crop .5, weight 3: R² mean +.200 ± .00")
    assert " against base: R² mean gained" in summary["sentence"] and "; +.050 ± .00" in summary["sentence"]
    assert summary["chosen"] is None and summary["answer"]["level"] == pytest.approx(0.95)


def test_the_interval_of_the_best_of_many_is_wider():
    few = {"base": BASE, "weight 1": near(r2_mean=0.5)}
    many = few | {f"weight {n}": near(r2_mean=0.4) for n in range(2, 10)}
    levels = [summarise(STUDY, records(rows), ABOUT)["answer"] for rows in (few, many)]
    assert [(a["candidates"], a["level"]) for a in levels] == [(1, 0.95), (9, pytest.approx(1 - 0.05 / 9))]
    bounds = levels[1]["differences"]["r2_mean"]
    shown = summarise(STUDY, records(many), ABOUT)["configurations"]
    alone = next(c for c in shown if c["name"] == "weight 1")["gains"]["r2_mean"]
    assert bounds["high"] - bounds["low"] > alone["high"] - alone["low"]


def test_invariance_that_was_measured_is_said_too():
    rows = {"base": BASE | {"invariance": 0.7}, "weight 1": near(r2_mean=0.5) | {"inv/invariance": 0.6}}
    found = said(rows, std=0.002)
    assert ", invariance -.100 ± .00" in found
    assert found.endswith("R² mean gained, accuracy kept within .01, invariance lost.")


def test_a_metric_in_degrees_that_should_be_small():
    answer = Answer(
        configuration="weight 1",
        base="base",
        goal="pose_deg",
        level=0.95,
        candidates=1,
        differences={"pose_deg": Interval(-12.3, -14.0, -10.6)},
        signs={"pose_deg": -1},
        labelled=True,
        missing=[],
        autoencodes=False,
        autoencode=None,
        beyond_autoencode={},
    )
    assert sentence(answer) == (
        "weight 1: pose error (degrees) -12.30 ± 1.70 against base: pose error (degrees) gained."
    )


def test_a_control_that_failed_is_named():
    failed = [dataclasses.replace(r, status="FAILED", metrics={}, error="?") for r in records({"autoencode": BASE})]
    found = summarise(STUDY, [*records({"base": BASE, "weight 1": near(r2_mean=0.5)}), *failed], ABOUT)
    assert found["sentence"].endswith("no trial of autoencode completed, which it should be compared with.")
    assert {c["equivariant_without_loss"] for c in found["configurations"]} == {None}
    failed = [dataclasses.replace(r, status="FAILED", metrics={}, error="?") for r in records({"base": BASE})]
    found = summarise(STUDY, [*records({"weight 1": near(r2_mean=0.5)}), *failed], ABOUT)
    assert found["chosen"]["reason"].startswith("no trial of base completed, so the accuracy is not guarded")


def test_an_undecided_comparison_explains_nothing():
    rows = {"base": BASE, "autoencode": near(r2_mean=0.4), "weight 1": near(r2_mean=0.5)}
    found = said(rows, std=0.1)
    assert "beyond auto-encoding" not in found or "explains" not in found


def test_auto_encoding_at_another_weight_is_no_control_of_cross_attention():
    weight = [dataclasses.replace(r, params={"recon.weight": 3.0}) for r in records({"weight 1": near(r2_mean=0.5)})]
    other = records({"base": BASE, "autoencode": near(r2_mean=0.4)})
    found = summarise(STUDY, [*other, *weight], ABOUT)
    assert "auto-encoding" not in found["sentence"]


def test_a_gain_that_the_split_has_too_is_not_the_reconstructions():
    def metrics(**values: float) -> dict[str, float]:
        return near(**values) | {"inv/invariance": values.get("invariance", 0.7)}

    rows = {"base": BASE | {"invariance": 0.7}, "weight 1": metrics(r2_mean=0.5, invariance=0.8)}
    for of_split, text in ((0.8, r"[+-]\.000 ± \.00\d"), (0.9, r"-\.100 ± \.00\d"), (0.7, None)):
        found = said(rows | {"no-recon": metrics(invariance=of_split)}, std=0.002)
        assert "against base: R² mean and invariance gained, accuracy " in found
        beyond = re.search(r"; beyond the split alone: invariance (.*?)[;.] ?(?!\d)", found)
        assert bool(beyond) is bool(text), found
        assert text is None or re.search(f"; beyond the split alone: invariance {text}", found), found


def of_intervals(**more: dict[str, Interval]) -> str:
    """Return the sentence of an answer with these differences."""
    metrics = more["differences"]
    known = {"signs": dict.fromkeys(metrics, 1), "labelled": True, "missing": [], "autoencodes": False}
    return sentence(
        Answer("weight 1", "base", "r2_mean", 0.95, 1, **known, **{"autoencode": None, "beyond_autoencode": {}} | more)
    )


def test_a_split_without_bounds_says_nothing():
    gain = {"r2_mean": Interval(0.1, 0.02, 0.18, True)}
    assert "split" not in of_intervals(differences=gain, beyond_split={"r2_mean": Interval(0.1)})
    found = of_intervals(differences=gain, beyond_split={"r2_mean": Interval(0.09, -0.01, 0.19, False)})
    assert found.endswith("against base: R² mean gained; beyond the split alone: R² mean +.09 ± .10.")


def test_a_significant_loss_within_the_margin_is_kept():
    differences = {"r2_mean": Interval(0.2, 0.1, 0.3, True), "linear": Interval(-0.006, -0.009, -0.003, True)}
    assert of_intervals(differences=differences).endswith(": R² mean gained, accuracy kept within .01.")


def borderline(significant: bool | None) -> str:
    """Return the sentence of a gain in pose whose interval excludes 0 by little."""
    pose = Interval(0.033, 0.001, 0.065, significant)
    return of_intervals(differences={"r2_mean": Interval(0.2, 0.1, 0.3, True), "r2/pose": pose})


def test_what_does_not_survive_the_number_of_metrics_is_no_gain():
    assert borderline(True).endswith(": R² mean and pose R² gained.")
    assert borderline(False).endswith(": R² mean gained, pose R² not significantly different.")
    assert borderline(None) == borderline(True)  # of a summary of an earlier version


def test_a_bound_near_0_is_shown_on_its_side_of_0():
    assert "pose R² +.033 ± .032 " in borderline(True)


@pytest.mark.parametrize("autoencode", [0.5, 0.0])
def test_the_metrics_of_a_sentence_are_tested_together(autoencode):
    """By chance alone, one of four metrics often has an interval that excludes 0, however large other differences."""
    rng, excluded, gained = np.random.default_rng(0), 0, 0
    metrics = ("linear", "r2_mean", "r2/pose", "invariance")
    for _ in range(40):
        rows = {name: dict.fromkeys(metrics, 0.5) for name in ("base", "weight 1")}
        rows["autoencode"] = dict.fromkeys(metrics, autoencode)
        trials = [
            dataclasses.replace(r, metrics={m: v + float(rng.normal(0, 0.01)) for m, v in r.metrics.items()})
            for r in records(rows, std=0.0)
        ]
        answer = summarise(STUDY, trials, ABOUT)["answer"]["differences"].values()
        excluded += any(not of["low"] < 0 < of["high"] for of in answer)
        gained += any(of["significant"] for of in answer)
    assert gained <= 7 and gained < excluded  # 40 of 5 %: at most 7 in 999 of 1,000 cases
