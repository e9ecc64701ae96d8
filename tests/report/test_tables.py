from dataclasses import replace

import pytest

from eqssl.report.tables import (
    Estimate,
    caption,
    configurations_table,
    cost_table,
    gains_table,
    in_order,
    report_tables,
    results_table,
    winners_table,
)
from eqssl.study.results import summarise
from tests.report import made_up
from tests.report.conftest import STUDY, weight_records


def test_results_are_ordered_by_the_values_of_the_options(summary):
    names = [c["name"] for c in in_order(summary["configurations"])]
    assert names == ["base", "split-0", "weight 0.1", "weight 1", "weight 10"]
    table = results_table(summary)
    assert table.head[:4] == ("configuration", "seeds", "kNN", "R² mean") and table.head[-1] == "on the front"
    assert [row[0] for row in table.rows] == names
    probability = {c["name"]: c["front_probability"] for c in summary["configurations"]}
    assert {row[0]: row[-1] for row in table.rows} == {name: f"{p:.2f}" for name, p in probability.items()}


def test_one_seed_leaves_no_column_for_the_front():
    table = results_table(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert "on the front" not in table.head


def test_gains_have_a_column_for_every_factor(summary):
    table = gains_table(summary, "r2/", "R²")
    assert table.head == ("gain", *made_up.FACTORS)
    gain = next(c for c in summary["configurations"] if c["name"] == "weight 10")["gains"]["r2/dx"]
    assert table.rows[-1][1 + made_up.FACTORS.index("dx")] == Estimate(**gain, signed=True)


def test_winners_name_those_that_are_not_distinguishable(summary):
    rows = {row[0]: row for row in winners_table(summary).rows}
    best = summary["best"]["knn"]
    close = {
        c["name"]
        for c in summary["configurations"]
        if "knn" in c["behind"] and c["behind"]["knn"]["low"] <= 0 <= c["behind"]["knn"]["high"]
    }
    assert rows["kNN"][1] == best and set(rows["kNN"][3].split("; ")) == (close or {"none"})
    alone = winners_table(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert alone.rows[0][3] == "too few seeds to tell"


def test_cost_marks_methods_that_are_told_the_transform():
    told = {"train_s": 30.0, "parameters": 2e6, "sees_theta": 1.0, "knn": 0.5}
    records = [*weight_records(), made_up.record("sie", {}, 0, None, metrics=told, wall_s=100.0)]
    records.append(made_up.record("sie", {}, 1, None, metrics=told | {"train_s": 10.0}, wall_s=20.0))
    rows = {row[0]: row[1:] for row in cost_table(summarise(STUDY, records, made_up.ABOUT)).rows}
    assert rows["sie"] == ("2", "2000000", "20.0", "120", "0.2", "yes")
    assert rows["base"][1] == "1000000" and rows["base"][-1] == ""


def test_an_encoder_that_was_not_trained_has_no_trained_parameters():
    records = [made_up.record("random", {}, seed, None, epochs=0) for seed in (0, 1)]
    (row,) = cost_table(summarise(STUDY, records, made_up.ABOUT)).rows
    assert row[0] == "random" and row[2] == ""


def test_an_objective_of_ones_own_has_its_columns_and_its_winner():
    errors = {"weight 1": 10.0, "base": 12.0, "split-0": 11.0}
    records = [
        made_up.record(
            name, {}, seed, 0 if name == "weight 1" else None, metrics={"knn": 0.5, "geodesic_deg": e + seed}
        )
        for name, e in errors.items()
        for seed in (0, 1, 2)
    ]
    study = replace(STUDY, objectives={"knn": "maximize", "geodesic_deg": "minimize"})
    summary = summarise(study, records, made_up.ABOUT)
    head = results_table(summary).head
    assert "geodesic_deg" in head and "Δ geodesic_deg" in head
    assert {row[0]: row[1] for row in winners_table(summary).rows}["geodesic_deg"] == "weight 1"
    assert "better in kNN and geodesic_deg at once" in caption(summary)


def test_the_caption_speaks_of_the_columns_that_are_there(summary):
    words = "± 95 %", "Δ: paired", "On the front:", "Minimum detectable difference: kNN"
    assert all(word in caption(summary) for word in words) and "Holds" not in caption(summary)
    alone = caption(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert alone.startswith("Minimum detectable difference: unknown, too few seeds. Chosen: ")


def test_configurations_of_many_options_are_called_by_number_and_listed(summary, joint_summary):
    assert not configurations_table(summary).rows
    table = configurations_table(joint_summary)
    last = next(c for c in joint_summary["configurations"] if c["name"] == table.rows[-1][0])
    assert table.head == ("configuration", *last["params"])
    assert table.rows[-1] == (
        f"no. {last['number']}",
        *(v if isinstance(v, str) else f"{v:.4g}" for v in last["params"].values()),
    )


def test_tables_of_a_study_without_results_are_left_out():
    failed = made_up.record("weight 1", {}, 0, 0, status="FAILED", metrics={}, error="?")
    names = [table.name for table in report_tables(summarise(STUDY, [failed], made_up.ABOUT))]
    assert names == ["results", "cost"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(0.5, 0.4, 0.6), "0.500 ± 0.100"),
        (Estimate(0.5, signed=True), "+0.500"),
        (Estimate(0.5, 0.1, 0.6), "0.500 (0.100 to 0.600)"),
    ],
)
def test_estimates_as_text(value, text):
    assert str(value) == text
