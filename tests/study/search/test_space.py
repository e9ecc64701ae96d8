import math

import pytest

from eqssl.config import RunConfig, replace
from eqssl.study.search.space import Configuration, Trial, check_space, choice, fix, log_uniform, uniform


def test_grid_is_even_on_its_scale_and_has_both_ends():
    assert log_uniform(0.1, 10.0).grid(5) == [0.1, 0.3162, 1.0, 3.162, 10.0]
    assert uniform(0.0, 1.0).grid(3) == [0.0, 0.5, 1.0]
    assert choice("first", "second").grid(7) == ["first", "second"]


def test_values_of_a_grid_lie_in_the_range():
    values = log_uniform(0.37, 7.3).grid(9)
    assert values == sorted(values) and (values[0], values[-1]) == (0.37, 7.3)


VIEW = {"recon.view": choice("first", "second"), "recon.width": choice(8, 16).when("recon.view", "first")}


def test_what_is_fixed_decides_what_exists():
    assert fix(VIEW, {"recon.view": "second"}) == {}
    assert fix(VIEW, {"recon.view": "first"}) == {"recon.width": choice(8, 16)}
    assert fix(VIEW, {"recon.width": 8}) == {"recon.view": VIEW["recon.view"]}


def test_a_condition_must_come_first():
    with pytest.raises(ValueError, match=r"recon\.view, which must come before"):
        check_space(dict(reversed(VIEW.items())), RunConfig())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, 1.0)])
def test_empty_or_inverted_range_is_refused(low, high):
    with pytest.raises(ValueError, match="range"):
        log_uniform(low, high)


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("recon.wieght", uniform(0, 1), "wieght"),
        ("recon.weight", uniform(-1, 1), "recon.weight"),
        ("recon.view", choice("first", "third"), "recon.view"),
    ],
)
def test_space_that_the_options_cannot_take_is_refused(option, values, message):
    with pytest.raises(ValueError, match=message):
        check_space({option: values}, RunConfig())


def test_trial_id_depends_on_configuration_and_seed_alone():
    first = Trial(Configuration.suggested({"recon.weight": 1.0}, 0), 0)
    again = Trial(Configuration.suggested({"recon.weight": 1.0}, 7), 0)
    assert first.id == again.id
    assert len({first.id, Trial(first.configuration, 1).id, Trial(Configuration("base", {}), 0).id}) == 3


def test_a_name_has_as_many_digits_as_tell_it_from_others():
    taken = ["weight 3.162"]
    assert Configuration.suggested({"recon.weight": 3.1620001}, 0).name == "weight 3.162"
    assert Configuration.suggested({"recon.weight": 3.1620001}, 1, taken).name == "weight 3.1620001"
    assert Configuration.suggested({"recon.weight": 3.162}, 1, taken).name == "no. 1"
    long = {f"augment.{family}": 0.5 for family in ("crop", "flip", "hue", "blur")}
    assert Configuration.suggested(long, 7).name == "no. 7"


@pytest.mark.parametrize("sampled", [0.99995, 0.99999, 0.123456, 1e-05, 3.0])
def test_a_name_is_exact_where_six_digits_suffice(sampled):
    name = Configuration.suggested({"method.options.momentum": sampled}, 0).name
    assert float(name.removeprefix("momentum ")) == sampled


@pytest.mark.parametrize("values", [(0.5, 0.5), (1, True), ("a", "b", "a")])
def test_equal_values_of_a_choice_are_refused(values):
    with pytest.raises(ValueError, match="twice"):
        choice(*values)


def test_seeds_are_paired_and_overrides_apply():
    base = RunConfig()
    run = Trial(Configuration.suggested({"recon.weight": 3.0}, 0), 4).run_config(base)
    assert (run.recon.weight, run.train.seed) == (3.0, base.train.seed + 4)


def test_work_counts_epochs_and_one_evaluation():
    base = RunConfig()
    assert Trial(Configuration("random", {"train.epochs": 0}), 0).work(base) == 1
    assert Trial(Configuration("pixels", None), 0).work(base) == 1
    assert Trial(Configuration("base", {}), 0).work(base) == base.train.epochs + 1


def test_a_value_is_checked_beside_what_it_exists_for():
    only = choice("map", "vector").when("recon.attention", "concat")  # pooled-query, the default, has no vector
    check_space({"recon.attention": choice("pooled-query", "concat"), "recon.tokens": only}, RunConfig())
    with pytest.raises(ValueError, match=r"--recon\.tokens is 'vector'"):
        check_space({"recon.tokens": choice("map", "vector")}, RunConfig())


def test_a_varied_hyperparameter_is_one_of_every_method_it_exists_for():
    methods, share = choice("simclr", "moco_v3"), uniform(0.1, 1.0)
    check_space({"method.name": methods, "method.options.temperature": share}, RunConfig())
    check_space({"method.options.sim_coeff": share}, RunConfig())
    with pytest.raises(ValueError, match=r"--method.options temprature is not an option of vicreg; .*"):
        check_space({"method.options.temprature": share}, RunConfig())
    space = {"method.name": choice("simclr", "byol"), "method.options.temperature": share}
    with pytest.raises(ValueError, match=r"--method.options temperature is not an option of byol; allowed: width"):
        check_space(space, RunConfig())
    check_space(space | {"method.options.temperature": share.when("method.name", "simclr")}, RunConfig())


def test_a_varied_option_must_have_an_effect():
    space = {"recon.query_gradient": uniform(0.0, 1.0)}
    check_space(space, RunConfig())
    with pytest.raises(ValueError, match=r"--recon.query-gradient is 0; allowed with --recon.attention pooled-query"):
        check_space(space, replace(RunConfig(), {"recon.attention": "concat"}))
    check_space({"recon.weight": log_uniform(1.0, 100.0)}, RunConfig())
    with pytest.raises(ValueError, match=r"--recon.gradient-share is 0.2 and --recon.weight 1; allowed: one of them"):
        check_space({"recon.weight": log_uniform(1.0, 100.0)}, replace(RunConfig(), {"recon.gradient_share": 0.2}))
