import io
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from eqssl.metrics import METRICS, label_of
from eqssl.report.render import Number
from eqssl.report.selection import in_order
from eqssl.report.tables import (
    beyond_table,
    caption,
    configurations_table,
    cost_table,
    factors_table,
    gains_table,
    report_tables,
    result_table,
    results_table,
    separation_table,
    winners_table,
)
from eqssl.study.results import summarise
from tests.report import made_up
from tests.report.conftest import STUDY, weight_records


def head(table):
    return tuple(table.frame.columns)


def rows(table):
    """Return first cell -> the other cells."""
    return {first: tuple(cells) for first, *cells in table.frame.to_numpy()}


def test_results_are_ordered_by_the_values_of_the_options(summary):
    names = [c["name"] for c in in_order(summary["configurations"])]
    assert names == ["base", "no-recon", "weight 0.1", "weight 1", "weight 10"]
    table = results_table(summary)
    assert head(table) == ("configuration", "seeds", "kNN", "linear", "R² mean", "on the front")
    assert list(rows(table)) == names
    probability = {c["name"]: c["front_probability"] for c in summary["configurations"]}
    assert {name: row[-1] for name, row in rows(table).items()} == {name: f"{p:.2f}" for name, p in probability.items()}


def test_one_seed_leaves_no_column_for_the_front():
    table = results_table(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert "on the front" not in head(table)


def test_gains_have_a_column_for_every_factor_and_say_how_large_one_must_be(summary):
    table = factors_table(summary, "r2")
    assert head(table) == ("gain", *made_up.FACTORS)
    assert table.title == "R² per factor, paired difference from the best control"
    gain = next(c for c in summary["configurations"] if c["name"] == "weight 10")["gains"]["r2/dx"]
    place = made_up.FACTORS.index("dx")
    assert rows(table)["weight 10"][place] == Number(**gain, signed=True)
    detectable = summary["minimum_detectable_difference"]["r2/dx"]
    assert list(rows(table))[-1] == "minimum detectable"
    assert rows(table)["minimum detectable"][place] == Number(detectable)


def test_gains_stand_beside_what_is_beyond_auto_encoding(twin_summary):
    table = gains_table(twin_summary)
    assert head(table) == ("configuration", "Δ linear", "Δ R² mean", "R² mean beyond autoencode")
    gains = rows(table)
    of = next(c for c in twin_summary["configurations"] if c["name"] == "weight 10")
    assert of["autoencode"] == "weight 10, autoencode"
    assert gains["weight 10"][2] == Number(**of["beyond_autoencode"]["r2_mean"], signed=True)
    assert gains["weight 10"][2].estimate == pytest.approx(0.1, abs=0.03)
    assert gains["weight 10, autoencode"][2] == "" and "base" not in gains
    beyond = beyond_table(twin_summary)
    assert list(rows(beyond)) == ["weight 0.1", "weight 1", "weight 10"]
    assert head(beyond) == ("configuration", "kNN", "linear", "R² mean", *made_up.FACTORS)


def test_every_configuration_is_followed_by_its_twin(twin_summary):
    names = [c["name"] for c in in_order(twin_summary["configurations"])]
    assert names[3:] == [f"weight {w}{of}" for w in ("0.1", "1", "10") for of in ("", ", autoencode")]


def test_the_separation_has_a_row_a_part(twin_summary):
    table = separation_table(twin_summary)
    assert head(table) == ("configuration", "part", "accuracy", "R² mean", *made_up.FACTORS)
    metrics = next(c for c in twin_summary["configurations"] if c["name"] == "weight 10")["metrics"]
    inv, equi = [tuple(row) for row in table.frame.to_numpy() if row[0] == "weight 10"]
    assert (inv[1], equi[1]) == ("inv", "equi")
    assert inv[2] == Number(metrics["inv/linear"]["estimate"])
    assert equi[-1] == Number(metrics["equi/r2/log_scale"]["estimate"])


def test_the_separation_of_many_has_the_controls_and_the_choice(joint_summary):
    names = set(rows(separation_table(joint_summary)))
    assert names == {"base", "no-recon", "autoencode", joint_summary["chosen"]["configuration"]}


@pytest.mark.parametrize("which", ["summary", "twin_summary"])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_terminal_of_100_columns_has_room(which, level, request):
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
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(result_table(summary))
    text = console.export_text()
    tables, _, below = text.rpartition("± 95 %")
    results = tables.partition("Separation")[0].splitlines()
    assert max(map(len, text.splitlines())) <= 100
    names = list(rows(results_table(summary)))
    assert all(sum(line.startswith(f" {name} ") for line in results) == 1 for name in names)  # in one block
    assert "…" not in text
    assert ("inconclusive" in tables) is (level == "full")
    assert "Δ" not in text and "report.html" in below


@pytest.mark.parametrize("width", [100, 120, 140])
def test_names_of_two_options_take_few_lines_and_no_cell_is_cut(width, summary):
    named = [c | {"name": f"{c['name']}, equi_fraction 0.3125"} for c in summary["configurations"]]
    answer = summary["answer"] | {"configuration": named[-1]["name"]}
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result_table(summary | {"configurations": named, "answer": answer}))
    tables = console.export_text().rpartition("± 95 %")[0]
    assert "…" not in tables and max(map(len, tables.splitlines())) <= width
    frame = results_table(summary | {"configurations": named, "answer": answer}).frame
    linear = list(frame).index("linear")
    for row in frame.to_numpy():
        line = next(line for line in tables.splitlines() if line.startswith(f" {row[0]} "))
        assert line.split()[-1] and str(row[linear]).replace("0.", ".") in line


def test_brackets_in_names_are_no_markup_of_the_terminal(summary):
    first, *others = summary["configurations"]
    named = summary | {"question": "a [red] or b?", "configurations": [first | {"name": "crop [b]"}, *others]}
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(result_table(named))
    text = console.export_text()
    assert "a [red] or b?" in text and " crop [b] " in text


def test_winners_name_those_that_are_not_significantly_different(summary):
    winners = rows(winners_table(summary))
    best = summary["best"]["knn"]
    close = {
        c["name"]
        for c in summary["configurations"]
        if "knn" in c["behind"] and c["behind"]["knn"]["low"] <= 0 <= c["behind"]["knn"]["high"]
    }
    assert winners["kNN"][0] == best and set(winners["kNN"][2].split("; ")) == (close or {"none"})
    alone = winners_table(summarise(STUDY, weight_records(seeds=1), made_up.ABOUT))
    assert rows(alone)["kNN"][2] == "too few seeds to judge by"


def test_the_costs_of_all_configurations_take_one_pass_over_the_trials():
    class Counted(list):
        passes = 0

        def __iter__(self):
            Counted.passes += 1
            return super().__iter__()

    summary = summarise(STUDY, made_up.records(60), made_up.ABOUT)
    summary["trials"] = Counted(summary["trials"])
    assert len(cost_table(summary).frame) == len(summary["configurations"]) and Counted.passes == 1


def test_cost_marks_methods_that_are_conditioned_on_the_transform():
    told = {"train_s": 30.0, "parameters": 2e6, "requires_transform": 1.0, "knn": 0.5}
    records = [*weight_records(), made_up.record("sie", {}, 0, None, metrics=told, wall_s=100.0)]
    records.append(made_up.record("sie", {}, 1, None, metrics=told | {"train_s": 10.0}, wall_s=20.0))
    costs = rows(cost_table(summarise(STUDY, records, made_up.ABOUT)))
    assert costs["sie"] == ("2", "2000000", "20.0", "120", "0.2", "yes")
    assert costs["base"][1] == "1000000" and costs["base"][-1] == ""


def test_an_encoder_that_was_not_trained_has_no_trained_parameters():
    records = [made_up.record(name, {}, 0, None, epochs=epochs) for name, epochs in (("random", 0), ("base", 3))]
    costs = cost_table(summarise(STUDY, records, made_up.ABOUT)).frame.set_index("configuration")
    assert costs["trained parameters"].to_dict() == {"random": "", "base": "1000000"}


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
    label = "angle error (degrees)"
    assert label in head(results_table(summary)) and f"Δ {label}" in head(gains_table(summary))
    assert rows(winners_table(summary))[label][0] == "weight 1"
    assert f"better in kNN and {label} at once" in caption(summary)


def test_metrics_of_a_part_and_of_a_family_have_columns_of_their_own():
    objectives = ("linear", "inv/linear", "r2/pose", "inv/r2/pose", "mlp_r2/pose")
    records = [
        made_up.record(name, {}, seed, number, metrics={o: 0.1 * place for place, o in enumerate(objectives)})
        for name, number in (("weight 1", 0), ("base", None))
        for seed in (0, 1)
    ]
    study = replace(STUDY, objectives=dict.fromkeys(objectives, "maximize"))
    table = results_table(summarise(study, records, made_up.ABOUT))
    shown = dict(zip(head(table)[1:], rows(table)["weight 1"], strict=True))
    titles = ("linear", "linear (inv)", "r2/pose", "inv/r2/pose", "mlp_r2/pose")
    assert [shown[title].estimate for title in titles] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert len({label_of(name) for name in METRICS}) == len(METRICS)


def test_the_caption_names_trials_whose_reconstruction_no_longer_trains_the_encoder():
    shares = {"weight 1": (0.2, 3e-9, 5e-5), "weight 10": (0.01, 0.5, 0.9)}
    records = [
        made_up.record(name, {}, seed, 0, metrics={"knn": 0.5, "recon_share/gradient": share})
        for name, of in shares.items()
        for seed, share in enumerate(of)
    ]
    said = caption(summarise(STUDY, records, made_up.ABOUT))
    assert "no longer trains the encoder (share of the gradient below .001): weight 1 (seed 1, 2)." in said
    without = [record for record in records if record.configuration == "weight 10"]
    assert "no longer trains" not in caption(summarise(STUDY, without, made_up.ABOUT))


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
    assert "and the gains were as estimated: 0.10 to 0.40, so a yes was hardly possible" in said
    assert "in accuracy base does not beat pixels and random beyond the noise" in said


def test_configurations_of_many_options_are_called_by_number_and_listed(summary, joint_summary):
    assert configurations_table(summary).frame.empty
    table = configurations_table(joint_summary)
    name, values = list(rows(table).items())[-1]
    last = next(c for c in joint_summary["configurations"] if c["name"] == name)
    assert head(table) == ("configuration", *last["params"]) and name == f"no. {last['number']}"
    assert values == tuple(v if isinstance(v, str) else f"{v:.4g}" for v in last["params"].values())


def test_tables_of_a_study_without_results_are_left_out():
    failed = made_up.record("weight 1", {}, 0, 0, status="FAILED", metrics={}, error="?")
    names = [table.name for table in report_tables(summarise(STUDY, [failed], made_up.ABOUT), pd.DataFrame())]
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


def test_the_main_table_has_the_pose_of_the_sentence_and_the_use_of_the_other_view():
    metrics = {"linear": 0.8, "r2_mean": 0.3, "r2/pose": 0.5, "recon/use_other": 0.15}
    records = [made_up.record("weight 1", {}, seed, 0, metrics=metrics) for seed in (0, 1)]
    table = results_table(summarise(STUDY, records, made_up.ABOUT))
    shown = dict(zip(head(table)[1:], rows(table)["weight 1"], strict=True))
    assert (shown["pose R²"].estimate, shown["use of the other view"].estimate) == (0.5, 0.15)
