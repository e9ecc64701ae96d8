"""Configurations: refused values, dotted options, round trips, digests."""

import dataclasses
from typing import get_args

import pytest

from eqssl.config import (
    AUTOENCODE,
    WITH_QUERY_GRADIENT,
    DataConfig,
    EncoderConfig,
    EvaluateConfig,
    MethodConfig,
    ReconAttention,
    ReconConfig,
    RunConfig,
    TrainConfig,
    changed_options,
    check_effect,
    digest,
    flatten,
    get,
    identity,
    options_in,
    replace,
)
from eqssl.renames import RENAMED
from eqssl.study import Candidate, Study, StudyOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recon.weight": -1.0}, r"--recon.weight is -1.0; allowed: 0 or more, finite"),
        ({"recon.weight": float("inf")}, r"--recon.weight is inf"),
        ({"recon.view": "third"}, r"--recon.view is 'third'; allowed: first, second, both, random, clean"),
        ({"data.pose": "tumbling"}, r"--data.pose is 'tumbling'; allowed: turntable, free"),
        ({"data.pose": "free", "data.source": "parquet"}, r"--data.pose is 'free'; allowed with --data.source solids"),
        ({"data.classes": "fine", "data.source": "parquet"}, r"--data.classes is 'fine'; allowed with"),
        ({"recon.query_gradient": 1.5}, r"--recon.query-gradient is 1.5; allowed: 0 to 1"),
        ({"recon.gradient_share": 1.0}, r"--recon.gradient-share is 1.0; allowed: above 0 and below 1"),
        ({"recon.gradient_share": 0.2, "train.fsdp": True}, r"--recon.gradient-share .* excludes --train.fsdp"),
        ({"recon.tokens": "vector"}, r"--recon.tokens is 'vector'.*pooled-query: map"),
        ({"recon.attention": "all"}, r"--recon.attention is 'all'; allowed: pooled-query, target-queries"),
        ({"recon.tokens": "vectors"}, r"--recon.tokens is 'vectors'; allowed: map, vector"),
        ({"method.scale": "large"}, r"--method.scale is 'large'; allowed: tiny, small, imagenet"),
        ({"train.precision": "fp16"}, r"--train.precision is 'fp16'; allowed: auto, fp32, bf16"),
        ({"augment.crop": 1.5}, r"--augment.crop is 1.5; allowed: 0 to 1"),
        ({"train.batch_size": 1}, r"--train.batch-size is 1; allowed: 2 or more"),
        ({"train.compile": True, "train.fsdp": True}, r"--train.compile needs a copy .* excludes --train.fsdp"),
        ({"train.lr": 0.0}, r"--train.lr is 0.0; allowed: above 0"),
        ({"data.views_per_object": 1}, r"--data.views-per-object is 1; allowed: 2 or more"),
        ({"encoder.equi_fraction": 0.0}, r"--encoder.equi-fraction is 0, so there is no equivariant part"),
        ({"method.name": "none", "recon.weight": 0.0}, r"leaves no loss"),
        ({"recon.wait": 1.0}, r"'wait' is not an option of ReconConfig; there are: weight, .*view, "),
        ({"train.seed": -1}, r"--train.seed is -1; allowed: 0 to 4294967295"),
        ({"train.seed": 2**63}, r"--train.seed is 9223372036854775808; allowed: 0 to 4294967295"),
        ({"augment.crop_ratio": 0.75}, r"--augment.crop-ratio is 0.75; allowed: 1 or more, finite"),
        ({"train.epochs": -1}, r"--train.epochs is -1; allowed: 0 or more"),
        ({"augment.local_crops": 2}, r"--augment.local-crops is 2; allowed .* vicreg: 0, since only dino and ibot use"),
        ({"augment.local_crops": 2, "method.name": "sie"}, r"--augment.local-crops is 2; allowed .* sie: 0"),
        ({"augment.local_crops": 101, "method.name": "dino"}, r"--augment.local-crops is 101; allowed: 0 to 100"),
        ({"augment.local_crop_area": 0.01}, r"--augment.local-crop-area is 0.01; allowed: .05 to 1"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        replace(RunConfig(), values)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DataConfig, {"pairs": "objekt"}, r"--data.pairs is 'objekt'; allowed: auto, object, image; did you mean obj"),
        (DataConfig, {"pose": "turntabel"}, r"--data.pose is 'turntabel'; allowed: turntable, free"),
        (DataConfig, {"classes": "fien"}, r"--data.classes is 'fien'; .*did you mean fine"),
        (DataConfig, {"image_size": 0}, r"--data.image-size is 0; allowed: 1 or more"),
        (DataConfig, {"source": "parquet", "image_size": 32, "stored_size": 8}, r"--data.stored-size is 8; allowed"),
        (EvaluateConfig, {"level": "ful"}, r"--evaluate.level is 'ful'; allowed: quick, full; did you mean full"),
        (EncoderConfig, {"pretrained": 3}, r"--encoder.pretrained is 3; allowed: True or False or a text"),
        (ReconConfig, {"gradient_share": "x"}, r"--recon.gradient-share is 'x'; allowed: a finite number, above 0 and"),
        (TrainConfig, {"lr": "0.1"}, r"--train.lr is '0.1'; allowed: a finite number, above 0"),
        (TrainConfig, {"lr": float("nan")}, r"--train.lr is nan; allowed: a finite number"),
        (TrainConfig, {"epochs": 1.5}, r"--train.epochs is 1.5; allowed: an integer, 0 or more"),
        (TrainConfig, {"epochs": 2.0}, r"--train.epochs is 2.0; allowed: an integer, 0 or more"),
        (TrainConfig, {"fsdp": 1}, r"--train.fsdp is 1; allowed: True or False"),
        (
            MethodConfig,
            {"options": {"temperature": None}},
            r"--method.options is .*None.*; allowed: a dict",
        ),
        (RunConfig, {"train": None}, r"--train is None; allowed: TrainConfig"),
    ],
)
def test_a_section_alone_is_checked_like_a_run(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


def test_values_of_other_types_that_fit_are_taken():
    assert TrainConfig(lr=1).lr == 1 and EncoderConfig(pretrained="folder").pretrained == "folder"
    assert DataConfig(source="of the user", path="photos", pose="free").path == "photos"  # may read any option
    sizes = replace(RunConfig(), {"data.source": "parquet", "data.stored_size": 64, "data.image_size": 32})
    assert (sizes.data.stored_size, sizes.data.image_size) == (64, 32)


@pytest.mark.parametrize(
    ("source", "option", "sources"),
    [
        ("parquet", "objects", "solids"),
        ("imagefolder", "views_per_object", "solids"),
        ("imagefolder", "label_column", "parquet"),
        ("solids", "image_column", "parquet"),
        ("solids", "path", "parquet, 3diebench, imagefolder, "),
        ("solids", "max_bad_images", "parquet, 3diebench, imagefolder, "),
    ],
)
def test_an_option_that_the_source_does_not_read_is_refused_where_it_was_set(source, option, sources):
    config = RunConfig(data=DataConfig(source=source))
    check_effect(config, {"data.source"})
    with pytest.raises(
        ValueError, match=rf"--data.{option.replace('_', '-')} is .*; allowed with --data.source {sources}"
    ):
        check_effect(config, {"data.source", f"data.{option}"})
    check_effect(RunConfig(data=DataConfig(source="of the user")), {f"data.{option}"})


def test_replace_reaches_into_every_level_and_leaves_the_rest():
    config = replace(RunConfig(), {"recon.weight": 2.0, "method.options.temperature": 0.5, "train.seed": 3})
    assert (config.recon.weight, config.method.options, config.train.seed) == (2.0, {"temperature": 0.5}, 3)
    assert config.data == DataConfig() and get(config, "method.options.temperature") == 0.5
    assert RunConfig().method.options == {}


def test_options_are_flattened_to_plain_values():
    config = replace(RunConfig(), {"recon.view": "clean", "augment.hue": 0.5, "method.options.width": 64.0})
    assert flatten(dataclasses.asdict(config)) == flatten(config)
    assert flatten(config)["method.options.width"] == 64.0 and flatten(config)["recon.view"] == "clean"


def test_digest_changes_with_any_value():
    plain = digest(RunConfig())
    assert plain == digest(RunConfig()) and len(plain) == 16
    changed = [{"train.seed": 1}, {"augment.blur": 0.1}, {"method.options.width": 8.0}, {"data.objects": 7}]
    assert len({plain, *(digest(replace(RunConfig(), c)) for c in changed)}) == 5


def test_an_option_of_one_version_alone_counts_as_its_default():
    now = identity(replace(RunConfig(), {"train.epochs": 3}))
    assert changed_options(now, now, {}) == []
    before = {option: value for option, value in now.items() if option != "recon.query_gradient"}
    assert changed_options(before, now, {}) == []  # as of an earlier version, without the option
    assert changed_options(before, now | {"recon.query_gradient": 0.5}, {}) == ["recon.query_gradient"]
    before = now | {"recon.gone": 2.0}
    assert changed_options(before, now, {"recon.gone": 2.0, "train.epochs": 10}) == []
    assert changed_options(before, now, {"recon.gone": 1.0}) == ["recon.gone"]
    assert changed_options(before, now, {}) == ["recon.gone"]
    assert changed_options(now | {"method.options.width": 8.0}, now, {}) == ["method.options.width"]
    assert changed_options(now, identity(RunConfig()), identity(RunConfig())) == ["train.epochs"]


@pytest.mark.parametrize(
    ("kind", "argument", "message"),
    [
        (Study, "configurations", "Study has no argument 'configurations'; there are: name, .*; it is now configs$"),
        (Study, "race", "it is now seed_schedule"),
        (Study, "confirm", "it is now final_test"),
        (Study, "stopping", "it is now pruner"),
        (StudyOptions, "trials", "StudyOptions has no argument 'trials'; there are: run, .*; it is now configs"),
        (StudyOptions, "sampeler", "did you mean sampler"),
        (Candidate, "knob", "it is now hyperparameter"),
        (ReconConfig, "roles", "it is now attention"),
        (EncoderConfig, "split", "it is now equi_fraction"),
        (EvaluateConfig, "splitt", "did you mean split"),
        (RunConfig, "reco", "did you mean recon"),
    ],
)
def test_an_unknown_or_renamed_argument_is_refused_with_its_name_now_or_the_nearest(kind, argument, message):
    with pytest.raises(TypeError, match=message):
        kind(**{argument: 1})


def test_a_renamed_option_is_refused_with_its_name_now():
    with pytest.raises(ValueError, match=r"'roles' is not an option of ReconConfig; .*; it is now attention"):
        replace(RunConfig(), {"recon.roles": "residual"})
    with pytest.raises(ValueError, match=r"--seed-schedule"):
        options_in(["--train.epochs", "3", "--race"])
    with pytest.raises(ValueError, match=r"--train.accumulate is now --train.grad-accum-steps"):
        options_in(["--train.accumulate=3"])
    names = {f.name for kind in (Study, StudyOptions, Candidate) for f in dataclasses.fields(kind)}
    assert set(RENAMED.values()) <= names | flatten(RunConfig()).keys()


def test_an_option_without_effect_is_refused_only_where_it_was_set():
    config = replace(RunConfig(), {"recon.attention": "concat", "recon.query_gradient": 0.5})
    check_effect(config, {"recon.attention"})
    with pytest.raises(ValueError, match=r"--recon.query-gradient is 0.5; allowed with .* pooled-query alone"):
        check_effect(config, options_in(["--recon.attention", "concat", "--recon.query-gradient=0.5"]))


def test_the_area_of_local_crops_is_refused_without_local_crops():
    config = replace(RunConfig(), {"method.name": "dino", "augment.local_crop_area": 0.25})
    with pytest.raises(
        ValueError, match=r"--augment.local-crop-area is 0.25; allowed with --augment.local-crops above"
    ):
        check_effect(config, {"augment.local_crop_area"})
    check_effect(replace(config, {"augment.local_crops": 2}), {"augment.local_crop_area", "augment.local_crops"})


def test_a_share_of_the_gradient_is_refused_beside_a_weight_and_without_a_loss():
    config = replace(RunConfig(), {"recon.gradient_share": 0.2, "recon.weight": 3.0})
    check_effect(config, {"recon.gradient_share"})
    with pytest.raises(ValueError, match=r"--recon.gradient-share is 0.2 and --recon.weight 3; allowed: one"):
        check_effect(config, {"recon.gradient_share", "recon.weight"})
    with pytest.raises(
        ValueError, match=r"--recon.gradient-share is 0.2; allowed with a --method.name that has a loss"
    ):
        check_effect(replace(config, {"method.name": "none"}), {"recon.gradient_share"})


def test_the_facts_of_attentions_are_about_attentions():
    assert {AUTOENCODE, *WITH_QUERY_GRADIENT} <= set(get_args(ReconAttention))
