"""Auto-encoding controls of searched configurations."""

import dataclasses

import pytest

from eqssl.config import RunConfig, replace
from eqssl.study import REFERENCE_ROWS, Study, StudyOptions, choice, log_uniform, uniform
from eqssl.study.confirm import confirm
from eqssl.study.twins import with_twins

STUDY = Study(name="toy", question="?", space={"recon.weight": log_uniform(1.0, 100.0)}, configurations=3, twins=True)
RUN = replace(RunConfig(), {"recon.attention": "target-queries"})
PLAIN = ("base", "no-recon")


def twins(study: Study) -> dict:
    return {name: overrides for name, overrides in study.rows.items() if name not in REFERENCE_ROWS}


def test_every_searched_configuration_gets_a_twin_that_auto_encodes():
    study = with_twins(STUDY, StudyOptions(run=RUN))
    assert twins(study) == {
        f"weight {w:g}, autoencode": {"recon.weight": w, "recon.attention": "autoencode"} for w in (1.0, 10.0, 100.0)
    }
    assert study.controls["weight 10"] == (*PLAIN, "weight 10, autoencode")
    assert study.controls["weight 10, autoencode"] == PLAIN
    assert "autoencode" not in study.rows and REFERENCE_ROWS.keys() - {"autoencode"} <= study.rows.keys()


def test_those_for_which_no_trials_are_left_have_none():
    study = with_twins(STUDY, StudyOptions(run=RUN, trials=4, seeds=2))
    assert len(twins(study)) == 2


@pytest.mark.parametrize(
    "changed", [{"sampler": "tpe"}, {"sampler": "random"}, {"race": True, "seeds": 5}], ids=lambda of: next(iter(of))
)
def test_where_configurations_or_seeds_are_open_the_general_row_stays(changed):
    assert with_twins(STUDY, StudyOptions(run=RUN, **changed)) is STUDY
    assert with_twins(dataclasses.replace(STUDY, twins=False), StudyOptions(run=RUN)).rows == REFERENCE_ROWS


def test_configurations_that_differ_in_the_attention_share_a_twin_and_one_that_auto_encodes_has_none():
    space = {
        "recon.attention": choice("target-queries", "pooled-query"),
        "recon.weight": choice(0.0, 1.0),
    }
    study = with_twins(dataclasses.replace(STUDY, space=space, configurations=4), StudyOptions(run=RUN))
    assert twins(study).keys() == {"weight 1, autoencode"}
    both = [study.controls[f"attention {a}, weight 1"] for a in ("target-queries", "pooled-query")]
    assert both == [(*PLAIN, "weight 1, autoencode")] * 2
    assert study.controls["attention pooled-query, weight 0"] == PLAIN
    space["recon.attention"] = choice("target-queries", "autoencode")
    study = with_twins(dataclasses.replace(STUDY, space=space, configurations=4), StudyOptions(run=RUN))
    assert not twins(study)
    assert study.controls["attention target-queries, weight 1"] == (*PLAIN, "attention autoencode, weight 1")
    assert study.controls["attention autoencode, weight 1"] == PLAIN


def test_of_many_options_the_twin_has_the_number():
    space = {f"augment.{family}": uniform(0.0, 1.0) for family in ("crop", "rotation", "colour", "blur")}
    space = {name: values for name, values in space.items() if hasattr(RUN.augment, name.partition(".")[2])}
    space |= {"recon.weight": log_uniform(1.0, 2.0), "train.lr": log_uniform(1e-4, 1e-3)}
    space |= {"train.weight_decay": uniform(0.0, 1e-3), "recon.view": choice("second", "other")}
    study = with_twins(dataclasses.replace(STUDY, space=space), StudyOptions(run=RUN, sampler="qmc"))
    assert {"no. 0, autoencode", "no. 1, autoencode", "no. 2, autoencode"} == twins(study).keys()
    assert study.controls["no. 1"][-1] == "no. 1, autoencode"


def confirmed(monkeypatch, study: Study, params: dict) -> Study:
    """Return the study by which a choice of these options is confirmed."""
    asked = []
    monkeypatch.setattr("eqssl.study.confirm.run_study", lambda study, options: asked.append(study) or {})
    confirm(study, StudyOptions(run=RUN, confirm=3), {"configuration": "the choice", "params": params})
    return asked[0]


def test_a_confirmed_configuration_has_its_own_twin_and_is_what_the_sentence_is_about(monkeypatch):
    params = {"recon.weight": 3.0}
    last = confirmed(monkeypatch, STUDY, params)
    assert list(last.rows) == ["constant", "pixels", "random", *PLAIN, "the choice, autoencode", "the choice"]
    assert last.rows["the choice, autoencode"] == params | {"recon.attention": "autoencode"}
    assert last.controls == {"the choice": (*PLAIN, "the choice, autoencode"), "the choice, autoencode": PLAIN}
    assert last.subject == "the choice" and not last.twins


def test_the_controls_of_a_confirmed_configuration_share_all_but_the_reconstruction(monkeypatch):
    params = {"recon.weight": 3.0, "train.weight_decay": 1e-4}
    last = confirmed(monkeypatch, STUDY, params)
    own = ("the choice, base", "the choice, no-recon", "the choice, autoencode")
    assert last.controls["the choice"] == own
    assert last.rows[own[1]] == {"train.weight_decay": 1e-4, "recon.weight": 0.0}
    assert last.rows[own[2]] == params | {"recon.attention": "autoencode"}


def test_a_confirmed_auto_encoder_has_no_twin(monkeypatch):
    last = confirmed(monkeypatch, STUDY, {"recon.weight": 3.0, "recon.attention": "autoencode"})
    assert "the choice, autoencode" not in last.rows and last.controls["the choice"] == PLAIN
