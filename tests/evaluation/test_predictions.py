"""What probes predictions: written, read again, and scored to the same metrics."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import r2_score

from eqssl.config import EvaluateConfig
from eqssl.evaluation.augself import augself_predictions
from eqssl.evaluation.encoders import Constant, Pixels
from eqssl.evaluation.finetune import finetune_predictions
from eqssl.evaluation.predictions import (
    ALL,
    LABEL,
    Prediction,
    load_predictions,
    metrics_of,
    save_contributions,
    save_predictions,
    unit_contributions,
)
from eqssl.evaluation.protocol import collapse_metrics, evaluate

CONFIG = EvaluateConfig(level="full", train_images=150, images=150)
NOT_OF_PROBES = tuple(collapse_metrics(torch.rand(4, 2)))


class Halves(torch.nn.Module):
    """The first pixels, in two parts."""

    dim_inv = 3

    def forward(self, images):
        return images[:, 0, 0, :6] + images.mean((1, 2, 3))[:, None]


def check(metrics, predictions, path):
    save_predictions(predictions, path)
    again = metrics_of(load_predictions(path))
    assert again == pytest.approx({name: metrics[name] for name in again}, abs=1e-6)
    missing = metrics.keys() - again.keys()
    assert all(name.removeprefix("inv/").removeprefix("equi/").startswith(NOT_OF_PROBES) for name in missing)


def test_a_known_score(tmp_path):
    ids = torch.tensor([7, 2**40])
    target = torch.tensor([[0.0, 4.0], [2.0, 8.0], [0.0, 4.0], [2.0, 8.0]])
    predicted = torch.tensor([[0.0, 6.0], [1.0, 6.0], [0.0, 6.0], [1.0, 6.0]])
    classes = torch.tensor([[1.0], [2.0]])
    predictions = [
        Prediction("r2", "place", torch.tensor([7, 2**40, 8, 9]), target, predicted, "augself", "inv"),
        Prediction("knn", LABEL, ids, classes, torch.tensor([[1.0], [1.0]])),
    ]
    save_predictions(predictions, tmp_path / "predictions.parquet")
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert len(rows) == 10 and rows[3] == {
        "protocol": "augself", "part": "inv", "figure": "r2", "factor": "place",
        "component": 1, "example": 2**40, "target": 8.0, "predicted": 6.0,
    }  # fmt: skip
    metrics = metrics_of(load_predictions(tmp_path / "predictions.parquet"))
    assert metrics["knn"] == 0.5 and metrics["inv/augself/r2/place"] == pytest.approx((0.5 + 0) / 2)
    assert metrics["inv/augself/r2_pooled/place"] == pytest.approx(1 - 9 / 35)


def test_equivariance_is_the_difference_of_two_r2_as_sklearn_has_them():
    target, blind, seeing = torch.randn(3, 200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, seeing = target * torch.tensor([1, 5, 0.1, 2]), target + 0.3 * seeing
    total = (target - target.mean(0)).square().sum(1, keepdim=True)
    left = torch.stack([(target - predicted).square().sum(1) for predicted in (blind, seeing)], dim=1)
    found = metrics_of([Prediction("equivariance", ALL, torch.arange(200), total.expand(-1, 2), left)])
    scores = [r2_score(target, predicted, multioutput="variance_weighted") for predicted in (seeing, blind)]
    assert found["equivariance"] == pytest.approx(scores[0] - scores[1])


def test_metrics_of_images(flat_images, tmp_path):
    predictions = []
    metrics = evaluate(Halves(), flat_images, config=CONFIG, predictions=predictions)
    assert metrics == evaluate(Halves(), flat_images, config=CONFIG)
    assert {one.metric for one in predictions} == {
        "knn", "linear", "r2", "mlp_r2", "extrapolation_r2", "auroc", "equivariance", "equivariance_raw", "invariance",
        "hit1",
    }  # fmt: skip
    check(metrics, predictions, tmp_path / "full.parquet")


def test_metrics_of_objects(objects, tmp_path):
    predictions = []
    metrics = evaluate(Halves(), objects, config=CONFIG, predictions=predictions)
    assert {"pose_deg", "mlp_r2/pose", "extrapolation_r2/pose"} <= metrics_of(predictions).keys()
    check(metrics, predictions, tmp_path / "full.parquet")


def test_metrics_of_the_floor(flat_images, tmp_path):
    predictions = []
    metrics = evaluate(Constant(), flat_images, config=CONFIG, predictions=predictions)
    check(metrics, predictions, tmp_path / "constant.parquet")


@pytest.mark.parametrize("protocol", [augself_predictions, finetune_predictions])
def test_metrics_of_other_protocols(flat_images, tmp_path, protocol):
    predictions = protocol(Pixels(), flat_images, CONFIG)
    save_predictions(predictions, tmp_path / "other.parquet")
    assert metrics_of(load_predictions(tmp_path / "other.parquet")) == pytest.approx(metrics_of(predictions), abs=1e-6)


def test_a_row_belongs_to_a_held_out_image(flat_images):
    predictions = []
    evaluate(Halves(), flat_images, config=CONFIG, predictions=predictions)
    labels = dict(zip(flat_images.val.ids.tolist(), flat_images.val.labels.tolist(), strict=True))
    knn = next(one for one in predictions if one.metric == "knn")
    assert len(set(knn.examples.tolist())) == 150
    assert [labels[example] for example in knn.examples.tolist()] == knn.target[:, 0].tolist()
    assert all(set(one.examples.tolist()) <= labels.keys() for one in predictions)


METRICS = {"knn", "linear", "r2_mean", "mlp_r2_mean", "equivariance", "invariance", "inv/invariance"}


def contributions_of_full(data, objects=None):
    predictions = []
    metrics = evaluate(Halves(), data, config=CONFIG, predictions=predictions)
    return metrics, unit_contributions(predictions, objects)


def test_the_weighted_mean_of_the_contributions_is_the_metric(flat_images, objects):
    for data in (flat_images, objects):
        metrics, contributions = contributions_of_full(data)
        factors = {name for name in metrics if name.startswith(("r2/", "mlp_r2/", "equivariance/"))}
        assert contributions.keys() == (METRICS | factors) & metrics.keys() and factors
        for metric, (units, values, weights) in contributions.items():
            assert float((values * weights).sum() / weights.sum()) == pytest.approx(metrics[metric], abs=1e-5)
            assert units.dtype == np.int64 and values.dtype == weights.dtype == np.float32
            assert (np.diff(units) > 0).all() and (weights == 1).all()


def test_units_may_be_objects_with_all_their_views(objects):
    of_object = dict(zip(objects.val.ids.tolist(), objects.val.objects.tolist(), strict=True))
    metrics, contributions = contributions_of_full(objects, of_object)
    for metric, (units, values, weights) in contributions.items():
        assert np.isin(units, objects.val.objects).all()
        assert float((values * weights).sum() / weights.sum()) == pytest.approx(metrics[metric], abs=1e-5)
    units, _, weights = contributions["r2_mean"]
    assert len(units) < 100 and weights.sum() == 150 and weights.max() == 3


def test_contributions_vary_as_the_metric_does_over_samples_of_images():
    """The linearised ratio has the variance that R2 has over samples, which the sum of squares alone would not give."""
    generator = torch.Generator().manual_seed(0)
    scores, expected = [], []
    for _ in range(400):
        target = torch.rand(300, 1, generator=generator).square()
        predicted = 0.7 * target + 0.05 * torch.randn(300, 1, generator=generator)
        one = Prediction("r2", "dx", torch.arange(300), target, predicted)
        scores.append(metrics_of([one])["r2/dx"])
        expected.append(float(unit_contributions([one])["r2/dx"][1].var(ddof=1) / 300))
    assert float(torch.tensor(expected).mean()) == pytest.approx(float(torch.tensor(scores).var()), rel=0.2)


def test_contributions_are_read_as_they_were_written(flat_images, tmp_path):
    predictions = []
    evaluate(Halves(), flat_images, config=CONFIG, predictions=predictions)
    save_contributions(predictions, tmp_path / "contributions.parquet")
    table, expected = pd.read_parquet(tmp_path / "contributions.parquet"), unit_contributions(predictions)
    assert list(table["metric"].unique()) == list(expected)
    for metric, columns in expected.items():
        rows = table[table["metric"] == metric]
        read = (rows[name] for name in ("unit", "value", "weight"))
        assert all(np.array_equal(a, b) for a, b in zip(read, columns, strict=True))
    save_contributions([], tmp_path / "none.parquet")
    assert pd.read_parquet(tmp_path / "none.parquet").empty


def test_few_images_and_other_protocols_have_no_contributions(flat_images):
    assert unit_contributions(augself_predictions(Pixels(), flat_images, CONFIG)) == {}
    predictions = []
    evaluate(Halves(), flat_images, config=EvaluateConfig(images=2, train_images=100), predictions=predictions)
    assert unit_contributions(predictions) == {}


def test_constant_features_contribute_the_floor(flat_images):
    predictions = []
    metrics = evaluate(Constant(), flat_images, config=CONFIG, predictions=predictions)
    contributions = unit_contributions(predictions)
    assert (contributions["equivariance"][1] == 0).all() and (contributions["invariance"][1] == 1).all()
    assert float(contributions["linear"][1].mean()) == pytest.approx(metrics["linear"])
