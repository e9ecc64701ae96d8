"""A metric of a user's: registered in one place, computed beside the protocol's, known in the processes of trials."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from eqssl import Metric, evaluate, register_metric
from eqssl.config import EvaluateConfig
from eqssl.metrics import METRICS, find_metric, label_of
from eqssl.study.execution.setup import StudySetup, registered


class Mean(nn.Module):
    """The mean pixel, in both parts."""

    dim_inv = 1

    def forward(self, images):
        return images.mean((1, 2, 3))[:, None].expand(-1, 2)


def margin(views):
    """Return the distance between the means of the two classes of eval images."""
    light = views.eval.labels == 1
    return float((views.eval.first[light].mean(0) - views.eval.first[~light].mean(0)).norm())


def correlation(views):
    """Return factor -> correlation of the first feature's change with the factor."""
    change = (views.eval.second - views.eval.first)[:, 0]
    return {name: float(torch.corrcoef(torch.stack([change, z[:, 0]]))[0, 1]) for name, z in views.eval.targets.items()}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    for name in list(METRICS):
        monkeypatch.setitem(METRICS, name, METRICS[name])
    before = dict(METRICS)
    yield
    for name in METRICS.keys() - before.keys():
        del METRICS[name]


CONFIG = EvaluateConfig(images=100, train_images=100)


def test_a_metric_is_a_column_with_its_properties(flat_images):
    without = evaluate(Mean(), flat_images, config=CONFIG)
    register_metric(Metric(name="margin", label="margin of classes", needs=("labels",), in_main_table=True, fn=margin))
    metrics = evaluate(Mean(), flat_images, config=CONFIG)
    assert metrics["inv/margin"] == metrics["equi/margin"] == pytest.approx(60 / 255, abs=0.01)
    assert metrics["margin"] == pytest.approx(2**0.5 * metrics["inv/margin"])
    assert {name: metrics[name] for name in without} == without
    assert metrics.keys() - without.keys() == {"margin", "inv/margin", "equi/margin"}
    assert label_of("margin") == "margin of classes" and label_of("inv/margin") == "margin of classes (inv)"
    assert find_metric("equi/margin").in_main_table


def test_a_family_has_a_member_for_each_factor(flat_images):
    register_metric(Metric(name="correlation", label="correlation", per_factor=True, level="full", fn=correlation))
    assert not any("correlation" in name for name in evaluate(Mean(), flat_images, config=CONFIG))
    metrics = evaluate(Mean(), flat_images, config=EvaluateConfig(level="full", images=100, train_images=100))
    assert metrics["correlation/brightness"] > 0.9 and abs(metrics["correlation/dx"]) < 0.3
    assert find_metric("inv/correlation/brightness").name == "correlation"


@pytest.mark.parametrize("need", ["labels", "pose", "split"])
def test_a_metric_is_absent_where_its_needs_are(textured_images, need):
    def refuse(views):
        raise AssertionError

    register_metric(Metric(name="needy", label="needy", needs=(need,), fn=refuse))
    encoder = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    assert "needy" not in evaluate(encoder, textured_images, config=CONFIG)


def test_wrong_metrics_are_refused(flat_images):
    with pytest.raises(ValueError, match="metric knn is computed without fn; allowed with fn: another name"):
        register_metric(Metric(name="knn", label="mine", fn=margin))
    with pytest.raises(ValueError, match="metric margin: level is 'cost'; allowed with fn: quick, full"):
        Metric(name="margin", label="margin", level="cost", fn=margin)
    register_metric(Metric(name="family", label="family", fn=correlation))
    with pytest.raises(
        ValueError, match=r"the function of metric family returns .*; allowed: a number, or factor -> n"
    ):
        evaluate(Mean(), flat_images, config=CONFIG)
    register_metric(Metric(name="family", label="family", fn=margin, per_factor=True))
    with pytest.raises(ValueError, match=r"the function of metric family returns .*; allowed: factor -> number"):
        evaluate(Mean(), flat_images, config=CONFIG)


def test_the_processes_of_trials_know_it():
    metric = Metric(name="margin", label="margin", direction="minimize", fn=margin)
    register_metric(metric)
    only = {"source": {}, "encoder": {}, "method": {}, "metric": registered()["metric"]}  # others left theirs
    setup = pickle.loads(pickle.dumps(StudySetup("folder", registered=only)))
    assert setup.registered["metric"] == {"margin": metric}
    del METRICS["margin"]
    setup.apply()
    setup.apply()  # a process that is used again
    assert find_metric("margin") == metric


def test_a_study_file_registers_without_torch():
    code = "import sys; from eqssl import Metric, register_metric; register_metric(Metric(name='m', label='m', fn=len))"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_the_registry_knows_every_metric_of_the_protocol(flat_images, objects):
    config = EvaluateConfig(level="full", images=100, train_images=100)
    for data in (flat_images, objects):
        for name in evaluate(Mean(), data, config=config):
            assert find_metric(name).level in ("quick", "full")
