"""What probes said: written, read again, and scored to the same figures."""

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import r2_score

from eqssl.config import EvaluateConfig
from eqssl.evaluation.augself import augself_figures
from eqssl.evaluation.finetune import finetune_figures
from eqssl.evaluation.predictions import (
    ALL,
    LABEL,
    Prediction,
    figures_of,
    load_contributions,
    load_predictions,
    save_contributions,
    save_predictions,
    unit_contributions,
)
from eqssl.evaluation.protocol import evaluate
from eqssl.evaluation.rows import Pixels, constant_figures

CONFIG = EvaluateConfig(level="full", train_images=150, images=150)
NOT_OF_PROBES = ("std", "spread", "rank")


class Halves(torch.nn.Module):
    """The first pixels, in two parts."""

    dim_inv = 3

    def forward(self, images):
        return images[:, 0, 0, :6] + images.mean((1, 2, 3))[:, None]


def check(figures, said, path):
    save_predictions(said, path)
    again = figures_of(load_predictions(path))
    assert again == pytest.approx({name: figures[name] for name in again}, abs=1e-6)
    missing = figures.keys() - again.keys()
    assert all(name.removeprefix("inv/").removeprefix("equi/").startswith(NOT_OF_PROBES) for name in missing)


def test_a_known_score(tmp_path):
    ids = torch.tensor([7, 2**40])
    target = torch.tensor([[0.0, 4.0], [2.0, 8.0], [0.0, 4.0], [2.0, 8.0]])
    predicted = torch.tensor([[0.0, 6.0], [1.0, 6.0], [0.0, 6.0], [1.0, 6.0]])
    classes = torch.tensor([[1.0], [2.0]])
    said = [
        Prediction("r2", "place", torch.tensor([7, 2**40, 8, 9]), target, predicted, "augself", "inv"),
        Prediction("knn", LABEL, ids, classes, torch.tensor([[1.0], [1.0]])),
    ]
    save_predictions(said, tmp_path / "predictions.parquet")
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert len(rows) == 10 and rows[3] == {
        "protocol": "augself", "part": "inv", "figure": "r2", "factor": "place",
        "component": 1, "example": 2**40, "target": 8.0, "predicted": 6.0,
    }  # fmt: skip
    figures = figures_of(load_predictions(tmp_path / "predictions.parquet"))
    assert figures["knn"] == 0.5 and figures["inv/augself/r2/place"] == pytest.approx((0.5 + 0) / 2)
    assert figures["inv/augself/r2_pooled/place"] == pytest.approx(1 - 9 / 35)


def test_equivariance_is_the_difference_of_two_r2_as_sklearn_has_them():
    target, blind, seeing = torch.randn(3, 200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, seeing = target * torch.tensor([1, 5, 0.1, 2]), target + 0.3 * seeing
    total = (target - target.mean(0)).square().sum(1, keepdim=True)
    left = torch.stack([(target - predicted).square().sum(1) for predicted in (blind, seeing)], dim=1)
    found = figures_of([Prediction("equivariance", ALL, torch.arange(200), total.expand(-1, 2), left)])
    scores = [r2_score(target, predicted, multioutput="variance_weighted") for predicted in (seeing, blind)]
    assert found["equivariance"] == pytest.approx(scores[0] - scores[1])


def test_figures_of_images(flat_images, tmp_path):
    said = []
    figures = evaluate(Halves(), flat_images, config=CONFIG, predictions=said)
    assert figures == evaluate(Halves(), flat_images, config=CONFIG)
    assert {one.figure for one in said} == {
        "knn", "linear", "r2", "mlp_r2", "extrapolation_r2", "auroc", "equivariance", "equivariance_raw", "invariance",
        "hit1",
    }  # fmt: skip
    check(figures, said, tmp_path / "full.parquet")


def test_figures_of_objects(objects, tmp_path):
    said = []
    figures = evaluate(Halves(), objects, config=CONFIG, predictions=said)
    assert {"pose_deg", "mlp_r2/pose", "extrapolation_r2/pose"} <= figures_of(said).keys()
    check(figures, said, tmp_path / "full.parquet")


def test_figures_of_the_floor(flat_images, tmp_path):
    said = []
    figures = constant_figures(flat_images, CONFIG, said)
    check(figures, said, tmp_path / "constant.parquet")


@pytest.mark.parametrize("protocol", [augself_figures, finetune_figures])
def test_figures_of_other_protocols(flat_images, tmp_path, protocol):
    said = []
    figures = protocol(Pixels(), flat_images, CONFIG, said)
    save_predictions(said, tmp_path / "other.parquet")
    assert figures_of(load_predictions(tmp_path / "other.parquet")) == pytest.approx(figures, abs=1e-6)


def test_a_row_belongs_to_a_held_out_image(flat_images):
    said = []
    evaluate(Halves(), flat_images, config=CONFIG, predictions=said)
    labels = dict(zip(flat_images.val.ids.tolist(), flat_images.val.labels.tolist(), strict=True))
    knn = next(one for one in said if one.figure == "knn")
    assert len(set(knn.examples.tolist())) == 150
    assert [labels[example] for example in knn.examples.tolist()] == knn.target[:, 0].tolist()
    assert all(set(one.examples.tolist()) <= labels.keys() for one in said)


METRICS = {"knn", "linear", "r2_mean", "mlp_r2_mean", "equivariance", "invariance", "inv/invariance"}


def contributions_of_full(data, objects=None):
    predictions = []
    figures = evaluate(Halves(), data, config=CONFIG, predictions=predictions)
    return figures, unit_contributions(predictions, objects)


def test_the_weighted_mean_of_the_contributions_is_the_metric(flat_images, objects):
    for data in (flat_images, objects):
        figures, contributions = contributions_of_full(data)
        factors = {name for name in figures if name.startswith(("r2/", "mlp_r2/", "equivariance/"))}
        assert contributions.keys() == (METRICS | factors) & figures.keys() and factors
        for metric, (units, values, weights) in contributions.items():
            assert float((values * weights).sum() / weights.sum()) == pytest.approx(figures[metric], abs=1e-5)
            assert units.dtype == torch.int64 and values.dtype == weights.dtype == torch.float32
            assert (units.diff() > 0).all() and (weights == 1).all()


def test_units_may_be_objects_with_all_their_views(objects):
    of_object = dict(zip(objects.val.ids.tolist(), objects.val.objects.tolist(), strict=True))
    figures, contributions = contributions_of_full(objects, of_object)
    for metric, (units, values, weights) in contributions.items():
        assert torch.isin(units, objects.val.objects).all()
        assert float((values * weights).sum() / weights.sum()) == pytest.approx(figures[metric], abs=1e-5)
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
        scores.append(figures_of([one])["r2/dx"])
        expected.append(float(unit_contributions([one])["r2/dx"][1].var() / 300))
    assert float(torch.tensor(expected).mean()) == pytest.approx(float(torch.tensor(scores).var()), rel=0.2)


def test_contributions_are_read_as_they_were_written(flat_images, tmp_path):
    predictions = []
    evaluate(Halves(), flat_images, config=CONFIG, predictions=predictions)
    save_contributions(predictions, tmp_path / "contributions.parquet")
    read, expected = load_contributions(tmp_path / "contributions.parquet"), unit_contributions(predictions)
    assert list(read) == list(expected)
    assert all(torch.equal(a, b) for name in expected for a, b in zip(read[name], expected[name], strict=True))
    save_contributions([], tmp_path / "none.parquet")
    assert load_contributions(tmp_path / "none.parquet") == {}


def test_few_images_and_other_protocols_have_no_contributions(flat_images):
    predictions = []
    augself_figures(Pixels(), flat_images, CONFIG, predictions)
    assert unit_contributions(predictions) == {}
    predictions = []
    evaluate(Halves(), flat_images, config=EvaluateConfig(images=2, train_images=100), predictions=predictions)
    assert unit_contributions(predictions) == {}


def test_constant_features_contribute_the_floor(flat_images):
    predictions = []
    figures = constant_figures(flat_images, CONFIG, predictions)
    contributions = unit_contributions(predictions)
    assert (contributions["equivariance"][1] == 0).all() and (contributions["invariance"][1] == 1).all()
    assert float(contributions["linear"][1].mean()) == pytest.approx(figures["linear"])
