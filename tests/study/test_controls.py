"""Matched controls, of searched configurations and of a choice in its final test."""

import dataclasses

import pytest

from eqssl.config import RunConfig, replace
from eqssl.study import REFERENCE_ROWS, Study, StudyOptions, choice, log_uniform, uniform
from eqssl.study.controls import final_test, with_matched_controls
from eqssl.study.options import settle

SPACE = {"recon.weight": log_uniform(1.0, 100.0)}
STUDY = Study(name="toy", question="?", space=SPACE, configs=3, matched_controls=True)
RUN = replace(RunConfig(), {"recon.attention": "target-queries"})
PLAIN = ("base", "no-recon")


def controlled(study: Study, options: StudyOptions) -> Study:
    return with_matched_controls(study, settle(study, options)[1])


def matched(study: Study) -> dict:
    return {name: overrides for name, overrides in study.rows.items() if name not in REFERENCE_ROWS}


def test_every_searched_configuration_gets_a_control_that_auto_encodes():
    study = controlled(STUDY, StudyOptions(run=RUN))
    assert matched(study) == {
        f"weight {w:g}, autoencode": {"recon.weight": w, "recon.attention": "autoencode"} for w in (1.0, 10.0, 100.0)
    }
    assert study.controls["weight 10"] == (*PLAIN, "weight 10, autoencode")
    assert study.controls["weight 10, autoencode"] == PLAIN
    assert "autoencode" not in study.rows and REFERENCE_ROWS.keys() - {"autoencode"} <= study.rows.keys()


def test_configurations_that_are_left_out_have_none():
    study = controlled(STUDY, StudyOptions(run=RUN, configs=2, seeds=2))
    assert len(matched(study)) == 2


@pytest.mark.parametrize(
    "changed",
    [{"sampler": "tpe"}, {"sampler": "random"}, {"seed_schedule": "halving", "seeds": 5}],
)
def test_where_configurations_or_seeds_are_open_the_general_row_stays(changed):
    assert controlled(STUDY, StudyOptions(run=RUN, **changed)) is STUDY
    without = dataclasses.replace(STUDY, matched_controls=False)
    assert controlled(without, StudyOptions(run=RUN)).rows == REFERENCE_ROWS


def test_configurations_that_differ_in_the_attention_share_a_control_and_one_that_auto_encodes_has_none():
    space = {
        "recon.attention": choice("target-queries", "pooled-query"),
        "recon.weight": choice(0.0, 1.0),
    }
    study = controlled(dataclasses.replace(STUDY, space=space, configs=4), StudyOptions(run=RUN))
    assert matched(study).keys() == {"weight 1, autoencode"}
    both = [study.controls[f"attention {a}, weight 1"] for a in ("target-queries", "pooled-query")]
    assert both == [(*PLAIN, "weight 1, autoencode")] * 2
    assert study.controls["attention pooled-query, weight 0"] == PLAIN
    space["recon.attention"] = choice("target-queries", "autoencode")
    study = controlled(dataclasses.replace(STUDY, space=space, configs=4), StudyOptions(run=RUN))
    assert not matched(study)
    assert study.controls["attention target-queries, weight 1"] == (*PLAIN, "attention autoencode, weight 1")
    assert study.controls["attention autoencode, weight 1"] == PLAIN


def test_of_many_options_the_control_has_the_number():
    space = {f"augment.{family}": uniform(0.0, 1.0) for family in ("crop", "rotation", "colour", "blur")}
    space = {name: values for name, values in space.items() if hasattr(RUN.augment, name.partition(".")[2])}
    space |= {"recon.weight": log_uniform(1.0, 2.0), "train.lr": log_uniform(1e-4, 1e-3)}
    space |= {"train.weight_decay": uniform(0.0, 1e-3), "recon.view": choice("second", "both")}
    study = controlled(dataclasses.replace(STUDY, space=space), StudyOptions(run=RUN, sampler="qmc"))
    assert {"no. 0, autoencode", "no. 1, autoencode", "no. 2, autoencode"} == matched(study).keys()
    assert study.controls["no. 1"][-1] == "no. 1, autoencode"


def final(study: Study, params: dict) -> Study:
    """Return the final test of a choice of these options."""
    return final_test(*settle(study, StudyOptions(run=RUN)), "the choice", params)


def test_a_choice_has_its_own_auto_encoding_control_and_is_the_subject_of_the_sentence():
    params = {"recon.weight": 3.0}
    last = final(STUDY, params)
    assert list(last.rows) == ["constant", "pixels", "random", *PLAIN, "the choice, autoencode", "the choice"]
    assert last.rows["the choice, autoencode"] == params | {"recon.attention": "autoencode"}
    assert last.controls == {"the choice": (*PLAIN, "the choice, autoencode"), "the choice, autoencode": PLAIN}
    assert last.subject == "the choice" and not last.matched_controls


def test_the_controls_of_a_choice_share_all_but_the_reconstruction():
    params = {"recon.weight": 3.0, "train.weight_decay": 1e-4}
    last = final(STUDY, params)
    own = ("the choice, base", "the choice, no-recon", "the choice, autoencode")
    assert last.controls["the choice"] == own
    assert last.rows[own[1]] == {"train.weight_decay": 1e-4, "recon.weight": 0.0}
    assert last.rows[own[2]] == params | {"recon.attention": "autoencode"}


def test_an_auto_encoder_that_was_chosen_has_no_auto_encoding_control():
    last = final(STUDY, {"recon.weight": 3.0, "recon.attention": "autoencode"})
    assert "the choice, autoencode" not in last.rows and last.controls["the choice"] == PLAIN
