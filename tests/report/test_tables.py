import io
from dataclasses import replace

import pytest
from rich.console import Console

from eqssl.report.tables import (
    Number,
    beyond_table,
    caption,
    configurations_table,
    cost_table,
    factors_table,
    gains_table,
    in_order,
    report_tables,
    result_table,
    results_table,
    separation_table,
    winners_table,
)
from eqssl.study.results import summarise
from tests.report import made_up
from tests.report.conftest import STUDY, weight_records


def test_results_are_ordered_by_the_values_of_the_options(summary):
    names = [c["name"] for c in in_order(summary["configurations"])]
    assert names == ["base", "no-recon", "weight 0.1", "weight 1", "weight 10"]
    table = results_table(summary)
    assert table.head[:5] == ("configuration", "seeds", "kNN", "linear", "R² mean") and table.head[-1] == "on the front"
    assert [row[0] for row in table.rows] == names
    probability = {c["name"]: c["front_probability"] for c in summary["configurations"]}
    assert {row[0]: row[-1] for row in table.rows} == {name: f"{p:.2f}" for name, p in probability.items()}


def test_one_seed_leaves_no_column_for_the_front():
    table = results_table(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert "on the front" not in table.head


def test_gains_have_a_column_for_every_factor_and_say_how_large_one_must_be(summary):
    table = factors_table(summary, "r2/", "R²")
    assert table.head == ("gain", *made_up.FACTORS)
    gain = next(c for c in summary["configurations"] if c["name"] == "weight 10")["gains"]["r2/dx"]
    place = 1 + made_up.FACTORS.index("dx")
    rows = {row[0]: row for row in table.rows}
    assert rows["weight 10"][place] == Number(**gain, signed=True)
    detectable = summary["minimum_detectable_difference"]["r2/dx"]
    assert table.rows[-1][0] == "minimum detectable" and table.rows[-1][place] == Number(detectable)


def test_gains_stand_beside_what_is_beyond_auto_encoding(twin_summary):
    table = gains_table(twin_summary)
    assert table.head == ("configuration", "Δ linear", "Δ R² mean", "R² mean beyond autoencode")
    rows = {row[0]: row[1:] for row in table.rows}
    of = next(c for c in twin_summary["configurations"] if c["name"] == "weight 10")
    assert of["autoencode"] == "weight 10, autoencode"
    assert rows["weight 10"][2] == Number(**of["beyond_autoencode"]["r2_mean"], signed=True)
    assert rows["weight 10"][2].estimate == pytest.approx(0.1, abs=0.03)
    assert rows["weight 10, autoencode"][2] == "" and "base" not in rows
    beyond = beyond_table(twin_summary)
    assert [row[0] for row in beyond.rows] == ["weight 0.1", "weight 1", "weight 10"]
    assert beyond.head[1:4] == ("kNN", "linear", "R² mean") and set(made_up.FACTORS) < set(beyond.head)


def test_every_configuration_is_followed_by_its_twin(twin_summary):
    names = [c["name"] for c in in_order(twin_summary["configurations"])]
    assert names[3:] == [f"weight {w}{of}" for w in ("0.1", "1", "10") for of in ("", ", autoencode")]


def test_the_separation_has_a_row_a_part(twin_summary):
    table = separation_table(twin_summary)
    assert table.head == ("configuration", "part", "accuracy", "R² mean", *made_up.FACTORS)
    metrics = next(c for c in twin_summary["configurations"] if c["name"] == "weight 10")["metrics"]
    (inv, equi) = [row for row in table.rows if row[0] == "weight 10"]
    assert (inv[1], equi[1]) == ("inv", "equi")
    assert inv[2] == Number(metrics["inv/linear"]["estimate"])
    assert equi[-1] == Number(metrics["equi/r2/log_scale"]["estimate"])


def test_the_separation_of_many_has_the_controls_and_the_choice(joint_summary):
    names = {row[0] for row in separation_table(joint_summary).rows}
    assert names == {"base", "no-recon", "autoencode", joint_summary["chosen"]["configuration"]}


@pytest.mark.parametrize("which", ["summary", "twin_summary"])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_terminal_of_140_columns_has_room(which, level, request):
    summary = request.getfixturevalue(which)
    if level == "full":
        extra = ("mlp_r2_mean", "equivariance", "inv/invariance")
        wide = {"estimate": 0.123, "low": 0.1, "high": 0.146}
        summary = summary | {
            "configurations": [
                c
                | {
                    "metrics": c["metrics"] | dict.fromkeys(extra, wide),
                    "gains": c["gains"] | dict.fromkeys(extra, wide | {"significant": True}),
                    "equivariant_without_loss": {"answer": "inconclusive", "power": 0.2},
                }
                for c in summary["configurations"]
            ]
        }
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(result_table(summary))
    text = console.export_text()
    tables = text.rpartition("± 95 %")[0].splitlines()
    assert max(map(len, text.splitlines())) <= 140
    names = [row[0] for row in results_table(summary).rows]
    assert all(any(line.startswith(f" {name} ") for line in tables) for name in names)
    assert "…" not in text
    assert ("inconclusive (power .20)" in text) is (level == "full")


def test_winners_name_those_that_are_not_significantly_different(summary):
    rows = {row[0]: row for row in winners_table(summary).rows}
    best = summary["best"]["knn"]
    close = {
        c["name"]
        for c in summary["configurations"]
        if "knn" in c["behind"] and c["behind"]["knn"]["low"] <= 0 <= c["behind"]["knn"]["high"]
    }
    assert rows["kNN"][1] == best and set(rows["kNN"][3].split("; ")) == (close or {"none"})
    alone = winners_table(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert alone.rows[0][3] == "too few seeds to judge by"


def test_cost_marks_methods_that_are_conditioned_on_the_transform():
    told = {"train_s": 30.0, "parameters": 2e6, "requires_transform": 1.0, "knn": 0.5}
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
    errors = {"weight 1": 10.0, "base": 12.0, "no-recon": 11.0}
    records = [
        made_up.record(
            name, {}, seed, 0 if name == "weight 1" else None, metrics={"knn": 0.5, "geodesic_deg": e + seed}
        )
        for name, e in errors.items()
        for seed in (0, 1, 2)
    ]
    study = replace(STUDY, objectives={"knn": "maximize", "geodesic_deg": "minimize"})
    summary = summarise(study, records, made_up.ABOUT)
    assert "geodesic_deg" in results_table(summary).head and "Δ geodesic_deg" in gains_table(summary).head
    assert {row[0]: row[1] for row in winners_table(summary).rows}["geodesic_deg"] == "weight 1"
    assert "better in kNN and geodesic_deg at once" in caption(summary)


def test_the_caption_speaks_of_the_columns_that_are_there(summary, twin_summary):
    words = "± 95 %", "Δ: paired", "On the front:", "Minimum detectable difference (power .8): linear"
    assert all(word in caption(summary) for word in words)
    assert "Without loss" not in caption(summary) and "Beyond autoencode" not in caption(summary)
    assert "Beyond autoencode" in caption(twin_summary)
    alone = caption(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert alone.startswith("Minimum detectable difference (power .8): unknown, too few seeds. Chosen: weight 0.1 ")


def test_the_caption_says_where_a_yes_could_not_be_found_and_a_base_is_not_trained(summary):
    judged = [c | {"equivariant_without_loss": {"answer": "inconclusive", "power": p}}
              for c, p in zip(summary["configurations"], (0.1, 0.2, 0.3, 0.4, 0.3), strict=True)]  # fmt: skip
    said = caption(summary | {"configurations": judged, "untrained": {"base": ["pixels", "random"]}})
    assert "and the gains were as estimated: 0.10 to 0.40: a yes could hardly" in said
    assert "in accuracy base does not beat pixels and random beyond the noise" in said


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
        (Number(0.5, 0.4, 0.6), "0.500 ± 0.100"),
        (Number(0.5, signed=True), "+0.500"),
        (Number(0.5, 0.1, 0.6), "0.500 (0.100 to 0.600)"),
        (Number(0.5, 0.4, 0.6, signed=True, significant=True), "+0.500 ± 0.100*"),
    ],
)
def test_estimates_as_text(value, text):
    assert str(value) == text
