"""Names: refused within seconds, without torch, with the nearest; timm's and torchvision's are read from their code."""

import inspect
import os
import subprocess
import sys
from functools import partial

import pytest
import timm
import torchvision.models
from timm.models import _registry

import eqssl
from eqssl.config import MethodConfig, ReconConfig, RunConfig, replace
from eqssl.methods import find_method
from eqssl.metrics import Metric
from eqssl.names import METHODS, check_encoder, check_names, method_options, model_names
from eqssl.renames import did_you_mean
from eqssl.study import Study, StudyOptions, choice, run_study, uniform
from eqssl.study.execution.preflight import check_options
from eqssl.study.options import settle
from eqssl.study.search.space import check_space


def test_the_source_code_names_the_models_that_the_packages_register():
    assert model_names("timm") == set(_registry._model_entrypoints)
    assert set(torchvision.models.list_models(module=torchvision.models)) == model_names("torchvision")
    assert model_names("no_such_package") == set()


def test_source_code_is_read_in_any_locale():
    code = "from eqssl.names import METHODS, method_options, model_names\nmodel_names('timm')\n"
    code += "for name in METHODS: method_options(name)"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | ascii_only, check=True)


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet50", "resnet50.a1_in1k", "tv_resnet50", "torchvision/vit_b_16"])
def test_known_encoders_are_allowed(name):
    check_encoder(name)


def test_a_model_that_the_user_registered_with_timm_is_allowed(monkeypatch):
    with pytest.raises(ValueError, match=r"--encoder.name is 'mine_at_timm'"):
        check_encoder("mine_at_timm")
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "mine_at_timm", timm.models.resnet18)
    check_encoder("mine_at_timm")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("encoder.name", "resnet5", r"--encoder.name is 'resnet5'; allowed: .* a timm model; did you mean resnet50,"),
        ("encoder.name", "torchvision/resnet5", "did you mean torchvision/resnet50"),
        ("encoder.name", "url", r"--encoder.name is 'url'"),
        ("method.name", "vicregg", r"--method.name is 'vicregg'; allowed: simclr, .*; did you mean vicreg\?"),
        (
            "method.options.sim_coef",
            2.0,
            r"--method.options sim_coef is not an option of vicreg; .*; did you mean sim_coeff",
        ),
        ("data.source", "solid", r"--data.source is 'solid'; allowed: .*; did you mean solids\?"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(option, value, message):
    with pytest.raises(ValueError, match=message):
        check_names(replace(RunConfig(), {option: value}))


@pytest.mark.parametrize("name", METHODS)
def test_the_source_code_names_the_options_of_the_methods(name):
    parameters = inspect.signature(find_method(name)).parameters
    assert method_options(name) == {option: p.default for option, p in parameters.items() if option != "sizes"}


def test_a_preset_that_is_only_named_is_refused():
    run = RunConfig(method=MethodConfig(name="byol", preset="cifar"))
    for start in (eqssl.train, lambda run: run_study(Study(name="toy", question="?", space={}), StudyOptions(run=run))):
        with pytest.raises(
            ValueError, match=r"method.preset is 'cifar', and its values are not applied; .*with_preset"
        ):
            start(run)
    with pytest.raises(ValueError, match=r"method.preset is 'cifar'"):
        check_space({"method.preset": choice(None, "cifar")}, RunConfig())
    check_names(eqssl.with_preset(run))


def test_nothing_near_nothing_suggested():
    assert did_you_mean("xyz", ["linear", "knn"]) == ""
    assert did_you_mean("linaer", ["linear", "knn"]) == "; did you mean linear?"


STUDY = "from eqssl.study import Study, main; code = main(Study(name='toy', question='?', space={{}}), {arguments})"
COMMAND = "from eqssl.cli import main; code = main({arguments})"
TRAIN = "from eqssl.cli import main; code = main(['train', *{arguments}])"
EVALUATE = "from eqssl.cli import main; code = main(['evaluate', *{arguments}])"


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (STUDY, ["--encoder.name", "resnet5"], "did you mean resnet50"),
        (STUDY, ["--method.name", "vicregg"], "did you mean vicreg?"),
        (STUDY, ["--objectives", "linaer"], "did you mean linear?"),
        (STUDY, ["--objectives", "mlp_r2_mean"], "--evaluate.level quick leaves out"),
        (STUDY, ["--objectives", "epoch"], "--objectives has epoch; allowed"),
        (STUDY, ["--train.epoch", "3"], "--train.epochs"),
        (STUDY, ["--seed", "3"], "--seeds"),
        (STUDY, ["--race"], "--race is now --seed-schedule"),
        (STUDY, ["--method.options", "sim_coef", "2"], "did you mean sim_coeff or std_coeff?"),
        (
            TRAIN,
            ["--method.name", "byol", "--method.options", "tau", "2"],
            "tau is not an option of byol; allowed: width",
        ),
        (TRAIN, ["--recon.roles", "residual"], "--recon.roles is now --recon.attention"),
        (STUDY, ["--data.source", "sollids"], "did you mean solids?"),
        (STUDY, ["--objectives", "linear:maximise"], "METRIC:maximize or METRIC:minimize"),
        (STUDY, ["--sampler", "grdi"], "'one-at-a-time'"),
        (STUDY, ["--data.source", "parquet"], "--data.path is not given; allowed with --data.source parquet"),
        (
            STUDY,
            ["--tracking-uri", "sqllite:///x.db"],
            "is 'sqllite:///x.db'; allowed: sqlite:///FILE, http(s)://SERVER; did you mean sqlite?",
        ),
        (COMMAND, ["trian"], "did you mean train?"),
        (TRAIN, ["--method.name", "vicregg"], "did you mean vicreg?"),
        (TRAIN, ["--encoder.pretrained", "nowhere"], "nowhere is not an exported encoder"),
        (TRAIN, ["--method.options", "sim_coef", "3"], "did you mean sim_coeff"),
        (TRAIN, ["--recon.wieght", "3"], "--recon.weight"),
        (EVALUATE, ["resnet5"], "MODEL is 'resnet5', which is not a folder; allowed: the folder of an encoder, "),
        (EVALUATE, ["pixel"], "did you mean pixels"),
    ],
)
def test_a_mistyped_command_ends_before_torch_is_imported(tmp_path, program, arguments, message):
    code = (
        "import sys, time, eqssl.study\nstart = time.process_time()\ntry:\n    "
        + program.format(arguments=arguments)
        + "\nexcept SystemExit as end:\n    code = end.code\n"
        + "print(code, sorted({'torch', 'ray', 'timm'} & sys.modules.keys()), time.process_time() - start < 2)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.strip().endswith("2 [] True") and message in " ".join((run.stderr + run.stdout).split())


def toy(space=None, **values) -> Study:
    return Study(name="toy", question="?", space=space or {}, **values)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: RunConfig(recon=ReconConfig(view="secnod")), r"--recon.view is 'secnod'; .*; did you mean second\?"),
        (lambda: replace(RunConfig(), {"recon.wieght": 3}), "'wieght' is not an option of ReconConfig; .* mean weight"),
        (lambda: Metric(name="x", label="x", direction="maximise"), "direction is 'maximise'; .* mean maximize"),
        (lambda: Metric(name="x", label="x", level="ful"), r"metric x: level is 'ful'; .*; did you mean full\?"),
        (lambda: StudyOptions(sampler="grdi"), r"--sampler is 'grdi'; allowed: .*; did you mean grid\?"),
        (lambda: StudyOptions(pruner="halvign"), r"--pruner is 'halvign'; .*; did you mean halving\?"),
        (lambda: StudyOptions(seed_schedule="halvign"), r"--seed-schedule is 'halvign'; .*; did you mean halving\?"),
        (lambda: toy(sampler="grdi"), r"--sampler is 'grdi'; .*; did you mean grid\?"),
        (partial(run_study, toy(objectives={"linaer": "maximize"})), r"has linaer; .*; did you mean linear\?"),
        (partial(run_study, toy(objectives={"linaer": "maximize"}), StudyOptions()), "did you mean linear"),
        (partial(run_study, toy(objectives={"linear": "maximise"})), "--objectives has linear:maximise"),
        (partial(run_study, toy({"recon.wieght": uniform(0, 1)})), "did you mean weight"),
        (partial(run_study, toy({"recon.view": choice("secnod", "first")})), "did you mean second"),
        (partial(run_study, toy({"method.name": choice("vicregg", "simclr")})), "did you mean vicreg"),
        (
            partial(run_study, toy({"method.options.sim_coef": uniform(0, 1)})),
            "sim_coef is not an option of vicreg; .* sim_",
        ),
        (partial(run_study, toy(rows={"base": {"method.options": {"x": 1.0}}})), "x is not an option of vicreg"),
        (partial(run_study, toy(subject="bsae")), r"subject of study toy has 'bsae'; .*; did you mean base\?"),
        (partial(run_study, toy(controls={"bsae": ("base",)})), "controls of study toy has 'bsae'"),
        (partial(run_study, toy(controls={"base": ("no-recn",)})), r"controls\['base'\] of .* 'no-recn'; .* no-recon"),
        (partial(run_study, toy(smoke={"train.epoch": 0}), StudyOptions(smoke=True)), "did you mean epochs"),
    ],
)
def test_a_mistake_in_python_is_refused_before_ray_starts(mistake, message, tmp_path, monkeypatch):
    def start(*arguments):
        raise AssertionError("Ray starts")

    monkeypatch.setattr("eqssl.study.execution.cluster.ray_running", start)
    monkeypatch.setenv("EQSSL_OUTPUT", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        mistake()


def test_a_study_may_lack_one_of_the_usual_controls(tmp_path):
    study = toy(rows={"base": {}, "mine": {}}, controls={"mine": ("base", "no-recon")})
    check_options(*settle(study, StudyOptions(output=str(tmp_path))))


def test_options_of_a_method_of_your_own_are_those_of_its_class(monkeypatch):
    class Align:
        def __init__(self, sizes, power=2.0): ...

    monkeypatch.setitem(METHODS, "align", Align)
    check_names(RunConfig(method=MethodConfig(name="align", options={"power": 1.0})))
    with pytest.raises(
        ValueError, match=r"pwer is not an option of align; allowed: power \(default 2.0\); did you mean po"
    ):
        check_names(RunConfig(method=MethodConfig(name="align", options={"pwer": 1.0})))
