"""The typed summary: to plain values and back, from a folder, as tables, and its encoder."""

import dataclasses
import json
from pathlib import Path

import pytest

import eqssl
from eqssl.config import EncoderConfig
from eqssl.files import write_json
from eqssl.study import Study, choice, load_study, uniform
from eqssl.study.results import summarise
from eqssl.study.summary import Answer, Interval, NoAnswer, StudySummary
from tests.report import made_up

MEASURED = Path(__file__).parents[2] / "studies" / "measured"
RECORDS = made_up.records(60)


def typed(study: Study, records: list) -> StudySummary:
    """Return the summary of a study as it comes back from JSON."""
    plain = json.dumps(summarise(study, records, made_up.ABOUT), allow_nan=False)
    return StudySummary.from_dict(json.loads(plain))


@pytest.fixture(scope="module")
def summary() -> StudySummary:
    return typed(made_up.STUDY, RECORDS)


@pytest.fixture
def folder(summary, tmp_path) -> Path:
    """Return the folder of a study that has ended."""
    write_json(tmp_path / "summary.json", summary.to_dict())
    return tmp_path


def test_summarise_returns_the_plain_values(summary):
    plain = summarise(made_up.STUDY, RECORDS, made_up.ABOUT)
    assert plain == summary.to_dict()
    assert plain.keys() == made_up.ABOUT.keys() | {
        "study", "question", "sentence", "space", "objectives", "chosen", "answer", "rule", "images_sampled",
        "untrained", "overhead_s", "minimum_detectable_difference", "best_control", "best", "configurations", "trials",
        "environment", "metrics",
    }  # fmt: skip
    row = next(c for c in plain["configurations"] if c["gains"])
    assert row.keys() == {
        "name", "number", "params", "seeds", "controls", "autoencode", "metrics", "front_probability",
        "equivariant_without_loss", "gains", "beyond_autoencode", "behind",
    }  # fmt: skip
    assert row["metrics"]["linear"].keys() == {"estimate", "low", "high"}
    assert row["gains"]["linear"].keys() == {"estimate", "low", "high", "significant"}
    assert plain["trials"] == [record.to_dict() for record in summary.records]


@pytest.mark.parametrize("study", [path.parent for path in MEASURED.glob("*/summary.json")], ids=lambda path: path.name)
def test_a_stored_summary_is_typed_and_plain_again(study):
    loaded, stored = load_study(study), json.loads((study / "summary.json").read_text())
    assert loaded.to_dict() == stored
    assert isinstance(loaded.answer, NoAnswer if "reason" in stored["answer"] else Answer)
    assert loaded.records[0].status == "COMPLETE"


def test_a_made_up_summary_comes_back_from_its_folder(summary, folder):
    loaded = load_study(folder / "summary.json")
    assert loaded.folder == folder and loaded.space == summary.space and loaded.chosen == summary.chosen
    assert loaded.to_dict() == json.loads(json.dumps(summary.to_dict()))
    assert eqssl.load_study is load_study


def test_a_conditional_space_comes_back():
    space = {
        "recon.attention": choice("pooled-query", "autoencode"),
        "recon.query_gradient": uniform(0.0, 1.0).when("recon.attention", "pooled-query"),
        "recon.view": choice("second", "other").when("recon.attention", "pooled-query"),
    }
    assert typed(dataclasses.replace(made_up.STUDY, space=space), RECORDS).space == space


def test_unknown_bounds_are_none_in_json_and_nan_in_memory():
    few = typed(made_up.STUDY, [r for r in RECORDS if r.seed == 0])
    (base,) = (of for of in few.configurations if of.name == "base")
    assert not base.metrics["linear"].has_bounds
    assert Interval(0.5).to_dict() == {"estimate": 0.5, "low": None, "high": None}


def test_a_study_without_an_answer_comes_back():
    study = dataclasses.replace(made_up.STUDY, space={})
    plain, found = summarise(study, RECORDS[:20], made_up.ABOUT), typed(study, RECORDS[:20])
    assert isinstance(found.answer, NoAnswer) and found.to_dict()["answer"] == plain["answer"]
    assert found.sentence == plain["sentence"]


def test_tables_have_a_row_per_trial_and_per_configuration(summary):
    trials, configs = summary.trials, summary.configs
    assert len(trials) == len(RECORDS) and len(configs) == len({record.configuration for record in RECORDS})
    some = RECORDS[-1]
    row = trials[trials.trial_id == some.trial_id].iloc[0]
    assert (row["recon.weight"], row["linear"]) == (some.params["recon.weight"], some.metrics["linear"])
    result = next(of for of in summary.configurations if of.name == some.configuration)
    assert configs.loc[some.configuration, "metrics.linear.estimate"] == result.metrics["linear"].estimate
    assert configs.loc[some.configuration, "gains.r2_mean.low"] == result.gains["r2_mean"].low
    assert configs.loc[some.configuration, "params.recon.weight"] == some.params["recon.weight"]


def test_the_encoder_is_that_of_the_folder(folder):
    from eqssl.models.encoder import Encoder
    from eqssl.models.export import export_encoder

    with pytest.raises(ValueError, match="best_encoder is not an exported encoder"):
        load_study(folder).encoder()
    encoder = Encoder(EncoderConfig(), 3, 32, (0.5,) * 3, (0.25,) * 3)
    export_encoder(encoder, folder / "best_encoder")
    assert load_study(folder).encoder().dim == encoder.dim
    nothing = dataclasses.replace(load_study(folder), chosen=None)
    with pytest.raises(ValueError, match="nothing was chosen"):
        nothing.encoder()


def test_figures_are_those_of_the_report(folder):
    study = load_study(folder)
    assert study.figure("tradeoff").axes[0].get_xlabel() and study.figure("heatmap").axes
    with pytest.raises(ValueError, match=r"figure is 'heatmaps'; allowed for study .*: front, .*; did you mean heat"):
        study.figure("heatmaps")
    assert load_study(MEASURED / "loss_weight").figure("tradeoff").axes  # of its summary alone


@pytest.mark.parametrize("text", ["{", '{"study": "x"}', '{"study": "x", "chosen": null, "answer": null}'])
def test_a_summary_that_is_cut_or_of_another_version_is_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"holds no summary\.json"):
        load_study(tmp_path)
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json is cut or of another version"):
        load_study(tmp_path)
