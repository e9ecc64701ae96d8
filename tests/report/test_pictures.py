"""What the figures draw, from summaries whose numbers are known."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eqssl.report.figures import forest_picture, heatmap_picture
from eqssl.report.front import front_picture
from eqssl.report.progress import learning_picture
from eqssl.report.report import study_pictures
from eqssl.report.responses import group_means, response_figure
from eqssl.report.selection import front_candidates, front_members, searched
from tests.report import made_up
from tests.report.conftest import TWINS


def toy(objectives, means):
    configurations = [
        {
            "name": name,
            "number": number if name.startswith("c") else None,
            "params": {},
            "autoencode": None,
            "controls": ["base"] if "base" in means and name != "base" else [],
            "front_probability": 0.05,
            "metrics": {
                f: {"estimate": v, "low": v - 1, "high": v + 1} for f, v in zip(objectives, values, strict=True)
            },
        }
        for number, (name, values) in enumerate(means.items())
    ]
    rest = {"best": {}, "trials": [], "space": {}, "options": {}, "answer": {"configuration": None}, "chosen": None}
    return {"objectives": objectives, "configurations": configurations, **rest}


def test_the_front_heeds_directions_and_leaves_out_what_has_no_encoder():
    summary = toy(
        {"knn": "maximize", "error": "minimize"}, {"pixels": (9, 0), "c1": (1, 1), "c2": (2, 2), "c3": (1, 3)}
    )
    assert [c["name"] for c in front_candidates(summary)] == ["c1", "c2", "c3"]
    assert front_members(summary) == {"c1", "c2"}


def test_each_further_objective_has_a_panel_and_front_members_are_named():
    objectives = dict.fromkeys(("knn", "r2_mean", "equivariance"), "maximize")
    summary = toy(objectives, {"base": (1, 1, 1), "c1": (0, 0, 0), "c2": (3, 2, 1)})
    panels = front_picture(summary).figure.axes
    assert [axes.get_ylabel() for axes in panels] == ["R² mean", "equivariance"]
    assert all({text.get_text() for text in axes.texts} == {"base", "c2"} for axes in panels)
    summary["configurations"][1]["front_probability"] = 0.2
    assert "c1" in {text.get_text() for text in front_picture(summary).figure.axes[0].texts}


def test_the_front_joins_every_twin_to_its_configuration_and_names_the_latter(twin_summary):
    axes = front_picture(twin_summary).figure.axes[0]
    means = {c["name"]: [c["metrics"][m]["estimate"] for m in ("linear", "r2_mean")]
             for c in twin_summary["configurations"] if c["name"] != "pixels"}  # fmt: skip
    joined = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert all([means[twin], means[name]] in joined for name, twin in TWINS.items())
    assert not {text.get_text() for text in axes.texts} & set(TWINS.values())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["autoencode", "chosen"]


def arrows(axes):
    """Return start and end of every arrow."""
    return [[list(map(float, point)) for point in patch._posA_posB] for patch in axes.patches]


def test_an_arrow_leads_from_the_control_to_every_configuration_and_the_choice_is_ringed(twin_summary):
    axes = front_picture(twin_summary).figure.axes[0]
    means = {c["name"]: [c["metrics"][m]["estimate"] for m in ("linear", "r2_mean")] for c in searched(twin_summary)}
    base = next(c for c in twin_summary["configurations"] if c["name"] == "base")
    start = [base["metrics"][m]["estimate"] for m in ("linear", "r2_mean")]
    assert sorted(arrows(axes)) == sorted([start, end] for end in means.values())
    (ring,) = [line for line in axes.lines if line.get_markersize() == 15]
    assert ring.get_xydata().tolist() == [means[twin_summary["chosen"]["configuration"]]]


def test_the_front_of_many_is_coloured_by_the_dose_and_has_few_arrows(joint_summary):
    axes, bar = front_picture(joint_summary).figure.axes
    assert bar.get_ylabel() == "recon.weight"
    colours = {line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"} - {"none"}
    assert len(colours) > 20 and len(searched(joint_summary)) == 29
    shown = {joint_summary["chosen"]["configuration"], *front_members(joint_summary)} - {"base", "no-recon", "random"}
    assert 0 < len(arrows(axes)) <= len(shown)


def test_methods_have_a_colour_each_in_the_legend():
    summary = toy(dict.fromkeys(("knn", "r2_mean"), "maximize"), {"base": (1, 1), "c1": (2, 0), "c2": (0, 2)})
    for c in summary["configurations"][1:]:
        c["params"] = {"recon.weight": c["number"], "method.name": f"method-{c['number']}"}
    axes = front_picture(summary).figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["name method-1", "name method-2"]


def test_the_forest_has_every_gain_with_its_interval_and_fills_the_significant(twin_summary):
    figure = forest_picture(twin_summary).figure
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [f"weight {w}{of}" for w in ("0.1", "1", "10") for of in ("", ", autoencode")]
    by_name = {c["name"]: c["gains"] for c in twin_summary["configurations"]}
    for axes, metric in zip(figure.axes, ("linear", "r2_mean"), strict=True):
        for place, (name, bars) in enumerate(zip(names, axes.containers, strict=True)):
            gain, (points, _, (bar,)) = by_name[name][metric], bars
            assert points.get_xydata().tolist() == [[gain["estimate"], place]]
            assert bar.get_segments()[0][:, 0].tolist() == pytest.approx([gain["low"], gain["high"]])
            assert (points.get_markerfacecolor() != "white") is gain["significant"]
            assert axes.get_xlim()[0] < gain["low"] and gain["high"] < axes.get_xlim()[1]


def test_learning_curves_are_those_of_the_trials_folders_else_of_the_summary(twin_summary, tmp_path):
    assert learning_picture(twin_summary, tmp_path) is None
    name = twin_summary["answer"]["configuration"]
    history = {"1": {"linear": 0.2}, "2": {"linear": 0.4}}
    trials = [t | {"history": history if t["configuration"] == name else {}} for t in twin_summary["trials"]]
    summary = twin_summary | {"trials": trials}
    mean = np.mean([t["metrics"]["linear"] for t in trials if t["configuration"] == name])
    (axes,) = learning_picture(summary, tmp_path).figure.axes
    assert axes.lines[0].get_xydata().ravel().tolist() == pytest.approx([1, 0.2, 2, 0.4, 3, mean])
    for trial in trials:
        losses = [{"epoch": float(e), "ssl": trial["seed"] + 10.0 / e, "recon": 0.0} for e in (1, 2)]
        (tmp_path / "trials" / trial["trial_id"]).mkdir(parents=True)
        (tmp_path / "trials" / trial["trial_id"] / "epochs.json").write_text(json.dumps(losses))
    picture = learning_picture(summary, tmp_path)
    (axes,) = picture.figure.axes
    assert axes.get_title() == "SSL loss, training"
    shown = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert shown[0] == name and {"base", "no-recon", f"{name}, autoencode"} <= set(shown)
    assert all(line.get_xydata().tolist() == [[1, 11], [2, 6]] for line in axes.lines)


def test_panels_of_one_kind_share_a_scale_that_holds_every_interval(twin_summary):
    factors = [f"r2/{factor}" for factor in made_up.FACTORS]
    figure = response_figure(twin_summary, ["knn", "linear", *factors], 4, (3, 3))
    limits = [axes.get_ylim() for axes in figure.axes]
    assert len(set(limits[:2])) == len(set(limits[2:])) == 1 and limits[0] != limits[2]
    for axes, metric in zip(figure.axes, ["knn", "linear", *factors], strict=True):
        (low, high), bounds = axes.get_ylim(), [c["metrics"][metric] for c in searched(twin_summary)]
        assert low <= min(of["low"] for of in bounds) and max(of["high"] for of in bounds) <= high


def test_the_response_has_a_second_curve_of_the_twins(twin_summary, tmp_path):
    pictures = {p.name: p.figure for p in study_pictures(twin_summary, tmp_path, pd.DataFrame())}
    figure = pictures["response_recon_weight"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["cross-attention", "autoencode"]
    (axes,) = [axes for axes in figure.axes if axes.get_title() == "R² mean"]
    curves = [container.lines[0].get_xydata() for container in axes.containers]
    assert [curve[:, 0].tolist() for curve in curves] == [[0.1, 1.0, 10.0]] * 2
    by_name = {c["name"]: c["metrics"]["r2_mean"]["estimate"] for c in twin_summary["configurations"]
               if "r2_mean" in c["metrics"]}  # fmt: skip
    assert curves[1][-1, 1] == by_name["weight 10, autoencode"] < curves[0][-1, 1] == by_name["weight 10"]


def names_of(picture):
    return [text.get_text() for text in picture.figure.axes[0].get_yticklabels()]


def test_a_large_heat_map_shows_the_front_and_says_so(summary, joint_summary, monkeypatch):
    monkeypatch.setattr("eqssl.report.figures.MAX_ROWS", 20)
    picture = heatmap_picture(summary)
    assert len(names_of(picture)) == len(summary["configurations"]) and "all 5" in picture.caption
    picture = heatmap_picture(joint_summary)
    shown = set(names_of(picture))
    assert len(shown) <= 20 < len(joint_summary["configurations"])
    assert front_members(joint_summary) <= shown and "base" in shown
    assert f"of {len(joint_summary['configurations'])} configurations" in picture.caption


def test_a_heat_map_has_room_for_all_methods_of_a_comparison(summary):
    methods = [{**summary["configurations"][0], "name": f"method {n}"} for n in range(33)]
    picture = heatmap_picture({**summary, "configurations": summary["configurations"] + methods})
    assert len(names_of(picture)) == 38 and "all 38 configurations" in picture.caption


def test_a_heat_map_is_drawn_where_nothing_is_retained():
    summary = toy({"r2/dx": "maximize"}, {"c1": (-0.1,), "c2": (-0.2,)})
    assert heatmap_picture(summary).figure.axes[0].images[0].get_clim() == (0, 0.01)
    assert heatmap_picture(toy({"knn": "maximize"}, {"c1": (1,)})) is None


def test_a_heat_map_shows_large_losses_whole():
    summary = toy({"r2/dx": "maximize"}, {"c1": (-10.25,), "c2": (0.051,), "c3": (-0.5,)})
    shown = {text.get_text() for text in heatmap_picture(summary).figure.axes[0].texts}
    assert shown == {"-10.25", ".05", "-.50"}


def test_what_collapsed_is_not_on_the_front():
    summary = toy({"knn": "maximize", "inv/invariance": "maximize"}, {"c1": (1, 1), "c2": (0, 2)})
    summary["trials"] = [{"configuration": "c2", "collapsed": ["inv"]}, {"configuration": "c1", "collapsed": []}]
    assert front_members(summary) == {"c1"}


def test_the_heat_map_holds_every_part_and_factor(summary):
    picture = heatmap_picture(summary)
    panels = picture.figure.axes[:-1]
    assert [axes.get_title() for axes in panels] == ["all features", "invariant part", "equivariant part"]
    by_name = {c["name"]: c["metrics"] for c in summary["configurations"]}
    values = panels[1].images[0].get_array()
    assert values[-1, 3] == by_name[names_of(picture)[-1]]["inv/r2/dx"]["estimate"]


def test_means_of_neighbours_have_t_intervals_over_configurations():
    doses = np.arange(16.0)[::-1]
    means = group_means(pd.DataFrame({"dose": doses, "value": doses**2}), pd.Series(doses >= 8))
    assert means["dose"].tolist() == [3.5, 11.5]
    first = np.arange(8.0) ** 2
    half = stats.t.ppf(0.975, 7) * stats.sem(first)
    assert means.iloc[0, 1:].tolist() == pytest.approx([first.mean(), half])


def test_every_option_and_objective_has_a_panel_with_those_that_have_the_option(joint_summary):
    searched = [c for c in joint_summary["configurations"] if c["number"] is not None]
    lacking = [{**c, "params": {o: v for o, v in c["params"].items() if o != "augment.hue"}} for c in searched[:5]]
    summary = joint_summary | {"configurations": lacking + searched[5:]}
    space = joint_summary["space"]
    panels = response_figure(summary, ["knn", "r2_mean"], 4, (3, 3)).axes
    assert [axes.get_xlabel() for axes in panels] == list(space) * 2
    assert [axes.get_title() for axes in panels] == ["kNN"] * 4 + ["R² mean"] * 4
    counts = dict(zip(space, (len(axes.lines[0].get_xdata()) for axes in panels), strict=False))
    assert counts == {option: len(searched) - 5 * (option == "augment.hue") for option in space}
    assert [text.get_text() for text in panels[1].get_xticklabels()] == ["second", "other", "intermediate"]
    (means,) = panels[0].containers
    assert len(means.lines[0].get_xdata()) == len(searched) // 8


def test_one_option_at_a_time_is_a_dose_with_the_interval_of_its_mean_on_one_scale():
    def of(option, dose, mean):
        interval = {"estimate": mean, "low": mean - 0.01, "high": mean + 0.02}
        common = {"name": f"{option} {dose}", "number": 0, "seeds": [0], "autoencode": None}
        return {**common, "params": {f"augment.{option}": dose}, "metrics": {"knn": interval}}

    searched = [of("crop", 1.0, 0.5), of("crop", 0.0, 0.7), of("flip", 0.0, 0.6), of("flip", 1.0, 0.6)]
    space = {f"augment.{option}": {"low": 0.0, "high": 1.0, "log": False} for option in ("crop", "flip")}
    base = {"name": "base", "number": None, "params": {}, "autoencode": None, "metrics": searched[0]["metrics"]}
    summary = {"space": space, "configurations": [base, *searched], "answer": {"configuration": None}}
    figure = response_figure(summary, ["knn"], 2, (3, 3))
    crop, flip = figure.axes
    assert crop.lines[0].get_xydata().tolist() == [[0.0, 0.7], [1.0, 0.5]]
    (bars,) = crop.containers[0].lines[2]
    assert bars.get_segments()[0].tolist() == pytest.approx(np.array([[0.0, 0.69], [0.0, 0.72]]))
    assert crop.get_ylim() == flip.get_ylim() == pytest.approx((0.48, 0.72))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["with reconstruction", "base"]
