import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from eqssl.config import RunConfig, TrainConfig, replace
from eqssl.study import Study, StudyOptions, choice, log_uniform, main
from eqssl.study.options import default_options, parse, settle

SCRIPT = Path(__file__).parents[2] / "studies" / "loss_weight.py"
STUDY = Study(name="toy", question="Is it so?", space={"recon.weight": log_uniform(0.1, 10.0)})


def test_giving_a_varied_option_fixes_it():
    study, options = parse(STUDY, ["--recon.weight", "2"])
    assert study.space == {}
    assert options.run.recon.weight == 2.0
    assert parse(STUDY, ["--train.epochs=3"])[0].space == STUDY.space
    study, options = parse(STUDY, ["--output", "smoke", "--data.source", "recon.weight"])  # values are no options
    assert study.space == STUDY.space and options.run.data.objects == RunConfig().data.objects


def test_smoke_is_small_and_other_options_still_hold():
    study, options = parse(STUDY, ["--smoke", "--train.epochs", "7"])
    assert study.name == f"{STUDY.name}_smoke" and parse(STUDY, [])[0].name == STUDY.name  # a folder of its own
    assert options.run.train.epochs == 7
    assert options.run.data.objects == STUDY.smoke["data.objects"]
    assert parse(STUDY, [])[1].run == RunConfig()


@pytest.mark.parametrize(("name", "near"), [("sampler", "grid"), ("seed_schedule", "halving"), ("pruner", "halving")])
def test_a_value_that_no_option_has_is_refused_from_code_too(name, near):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is '{near}s'; allowed: .*; did you mean {near}"):
        StudyOptions(**{name: f"{near}s"})


def test_what_is_settled_stays():
    parsed = parse(STUDY, ["--smoke", "--train.epochs", str(STUDY.base.train.epochs)])
    assert settle(*parsed) == parsed and parsed[1].run.train.epochs == STUDY.base.train.epochs
    run = replace(STUDY.base, {"train.epochs": 7})
    study, options = settle(STUDY, StudyOptions(run=run, smoke=True, objectives=("knn", "pose_deg")))
    assert study.name == "toy_smoke" and study.objectives == {"knn": "maximize", "pose_deg": "minimize"}
    assert (options.run.train.epochs, options.run.data.objects) == (7, STUDY.smoke["data.objects"])
    assert settle(study, options) == (study, options)
    own = dataclasses.replace(default_options(STUDY), configs=None, objectives=None)
    assert settle(STUDY, StudyOptions()) == (STUDY, own)


def test_options_that_are_not_set_are_the_studys_own():
    base = RunConfig(train=TrainConfig(epochs=3))
    own = {"seeds": 5, "sampler": "random", "seed_schedule": "halving", "pruner": "halving", "final_test": 4}
    study = dataclasses.replace(STUDY, base=base, **own)
    options = settle(study, StudyOptions(output="x"))[1]
    assert options.run == base and {name: getattr(options, name) for name in own} == own
    other = RunConfig(train=TrainConfig(epochs=4))
    options = settle(study, StudyOptions(run=other, seeds=2, sampler="tpe", final_test=0))[1]
    assert (options.run, options.seeds, options.sampler, options.final_test) == (other, 2, "tpe", 0)
    assert options.pruner == "halving"
    assert settle(STUDY, StudyOptions(smoke=True))[1].run.train.epochs == STUDY.smoke["train.epochs"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": "2"}, r"--seeds is '2'; allowed: an integer, 1 or more"),
        ({"max_hours": float("inf")}, r"--max-hours is inf; allowed: "),
        ({"gpus_per_trial": float("nan")}, r"--gpus-per-trial is nan; allowed: a finite number"),
        (
            {"resources_per_worker": {"disk": float("inf")}},
            r"--resources-per-worker has disk inf; allowed: fin",
        ),
        ({"objectives": "linear"}, r"--objectives is 'linear'; allowed: a tuple"),
        ({"run": None, "resume": "yes"}, r"--resume is 'yes'; allowed: True or False"),
    ],
)
def test_values_of_another_type_or_without_end_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        StudyOptions(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({"name": name}, f"name of a study is {name!r}; allowed") for name in ("", "..", "../x", "a/b")),
        ({"space": {"recon.weight": [1, 2]}}, r"has \[1, 2\] for recon.weight; allowed: choice\(...\)"),
        ({"objectives": ["linear"]}, r"objectives of study toy is \['linear'\]; allowed: a dictionary"),
        ({"seeds": "2"}, r"--seeds is '2'; allowed: an integer"),
    ],
)
def test_a_study_that_cannot_work_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDY, **values)


def test_a_metric_twice_is_refused_and_a_list_is_a_sequence_too():
    with pytest.raises(ValueError, match="--objectives has linear twice; allowed: each metric once"):
        settle(STUDY, StudyOptions(objectives=("linear", "linear:minimize")))
    assert [*settle(STUDY, StudyOptions(objectives=["knn", "r2_mean"]))[0].objectives] == ["knn", "r2_mean"]


def test_help_and_error_show_which_metrics_there_are(capsys):
    with pytest.raises(SystemExit):
        parse(STUDY, ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "r2/pose or equivariance; docs/evaluation.md" in text
    with pytest.raises(ValueError, match=r"mlp_r2/FACTOR.*, equivariance, equivariance/FACTOR, "):
        parse(STUDY, ["--objectives", "equivarianse"])


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["--data.path", "."], "data.path"), (["--data.source", "parquet", "--data.objects", "9"], "data.objects")],
)
def test_an_option_that_the_source_does_not_read_is_refused_in_a_study(arguments, option):
    with pytest.raises(ValueError, match=rf"--{option} is .*; allowed with --data.source "):
        parse(STUDY, arguments)
    if option == "data.objects":  # a smoke run's own objects are not the user's
        assert parse(STUDY, [*arguments[:2], "--smoke"])[1].run.data.source == "parquet"


def test_directions_are_those_of_the_metrics_unless_given():
    study, _ = parse(STUDY, ["--objectives", "linear", "pose_deg", "r2/pose:minimize"])
    assert study.objectives == {"linear": "maximize", "pose_deg": "minimize", "r2/pose": "minimize"}
    assert parse(study, [])[0].objectives == study.objectives
    assert default_options(study).objectives == ("linear", "pose_deg", "r2/pose:minimize")


@pytest.mark.parametrize(
    ("objective", "wrong"),
    [
        ("liner", "--objectives has liner; allowed, each also after inv/ and equi/: knn, linear, r2_mean, r2/FACTOR"),
        ("linear:up", "--objectives has linear:up; allowed: METRIC, METRIC:maximize or METRIC:minimize"),
    ],
)
def test_another_objective_is_refused_before_ray_starts(objective, wrong):
    with pytest.raises(ValueError, match=wrong):
        parse(STUDY, ["--objectives", objective])


def test_several_configurations_of_nothing_are_refused():
    with pytest.raises(ValueError, match="--configs is 5; allowed where no option varies: 1"):
        parse(STUDY, ["--configs", "5", "--recon.weight", "2"])
    assert parse(STUDY, ["--configs", "1", "--recon.weight", "2"])[1].configs == 1


def test_an_option_without_effect_is_refused():
    given = ["--recon.query-gradient", "0.5"]
    assert parse(STUDY, given)[1].run.recon.query_gradient == 0.5
    with pytest.raises(ValueError, match=r"--recon.query-gradient is 0.5; allowed with .* pooled-query alone"):
        parse(STUDY, [*given, "--recon.attention", "concat"])
    space = {"recon.attention": choice("pooled-query", "concat")}
    assert parse(dataclasses.replace(STUDY, space=space), given)[0].space == space


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recon.wieght", "1"],
        ["--recon.view", "third"],
        ["--seeds", "many"],
        ["--recon.weight", "-1"],
        ["--recon.query-gradient", "0.5", "--recon.attention", "concat"],
        ["--seeds", "0"],
        ["--configs", "0"],
        ["--final-test", "-1"],
        ["--data.path", "/no/such/folder"],
        ["--output", "/dev/null/results"],
        ["--gpus-per-trial", "-1"],
    ],
)
def test_what_cannot_work_ends_with_2_and_names_the_option(arguments, capsys):
    try:
        code = main(STUDY, arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    shown = capsys.readouterr()
    assert arguments[0].removeprefix("--") in (shown.out + shown.err)


def test_help_is_quick_complete_and_imports_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # of the CPU: others may use it too
    for option in ("--recon.weight", "--recon.view", "--data.source", "--train.batch-size", "--workers-per-trial",
                   "--gpus-per-trial", "--tracking-uri", "--resume", "--smoke", "--configs", "--seeds", "--pruner",
                   "--seed-schedule", "--final-test"):  # fmt: skip
        assert option in text
    code = "import sys, eqssl.study; sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'mlflow', 'optuna')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parents[1]).returncode == 0


def test_fractions_of_gpus_are_for_single_workers():
    assert StudyOptions(gpus_per_trial=0.25).gpus_per_trial == 0.25
    with pytest.raises(ValueError, match="gpus-per-trial"):
        StudyOptions(gpus_per_trial=1.0, workers_per_trial=2)


@pytest.mark.parametrize(("text", "workers"), [("1", (1, 1)), ("4", (4, 4)), ("2:8", (2, 8))])
def test_workers_are_a_number_or_a_range(text, workers):
    assert parse(STUDY, ["--workers-per-trial", text])[1].workers == workers


@pytest.mark.parametrize("text", ["0", "8:2", "0:2", "2:", "few"])
def test_other_workers_are_refused(text, capsys):
    with pytest.raises((ValueError, SystemExit)) as refused:
        parse(STUDY, ["--workers-per-trial", text])
    shown = capsys.readouterr()
    assert "workers-per-trial" in str(refused.value) + shown.out + shown.err


def test_a_cluster_may_say_where_results_and_runs_go(monkeypatch):
    monkeypatch.delenv("EQSSL_OUTPUT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert (StudyOptions().output, StudyOptions().tracking_uri) == ("results", "sqlite:///mlflow.db")
    monkeypatch.setenv("EQSSL_OUTPUT", "s3://bucket/results")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert (StudyOptions().output, StudyOptions().tracking_uri) == ("s3://bucket/results", "http://127.0.0.1:5000")


def test_a_preset_keeps_what_the_command_line_the_space_and_smoke_set():
    arguments = ["--method.preset", "cifar", "--train.batch-size", "32"]
    run = parse(STUDY, arguments)[1].run
    assert (run.encoder.name, run.train.optimizer, run.train.epochs, run.train.batch_size) == (
        "resnet18",
        "sgd",
        200,
        32,
    )
    smoke = dataclasses.replace(STUDY, smoke={"train.epochs": 1})
    assert parse(smoke, [*arguments, "--smoke"])[1].run.train.epochs == 1
    varied = dataclasses.replace(STUDY, space={"train.lr": log_uniform(1e-3, 1e-1)})
    assert parse(varied, arguments)[1].run.train.lr == STUDY.base.train.lr
    with pytest.raises(ValueError, match=r"--method.preset is '3diebench'; allowed with --method.name vicreg: cifar"):
        parse(STUDY, ["--method.preset", "3diebench"])


def test_under_pretrained_weights_the_row_random_stays_untrained_and_a_row_shows_the_weights():
    study, options = parse(STUDY, ["--encoder.pretrained", "folder"])
    rows = {name: replace(options.run, row) for name, row in study.rows.items() if row is not None}
    assert (rows["random"].encoder.pretrained, rows["random"].train.epochs) == (False, 0)
    assert (rows["pretrained"].encoder.pretrained, rows["pretrained"].train.epochs) == ("folder", 0)
    assert rows["pretrained"].recon.weight == rows["pretrained"].encoder.equi_fraction == 0
    assert rows["base"].encoder.pretrained == "folder" and rows["base"].train.epochs > 0
    assert list(study.rows)[:4] == ["constant", "pixels", "random", "pretrained"]
    assert settle(study, options)[0].rows == study.rows  # once is enough
    assert "pretrained" not in parse(STUDY, [])[0].rows
    rowless = dataclasses.replace(STUDY, rows={})
    assert parse(rowless, ["--encoder.pretrained", "folder"])[0].rows == {}
