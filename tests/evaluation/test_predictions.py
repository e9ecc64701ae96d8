"""What probes said: written, read again, and scored to the same figures."""

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import r2_score

from eqssl.config import EvaluateConfig
from eqssl.evaluation.augself import augself_figures
from eqssl.evaluation.finetune import finetune_figures
from eqssl.evaluation.predictions import ALL, LABEL, Prediction, figures_of, load_predictions, save_predictions
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
    target, predicted = torch.tensor([[0.0, 4.0], [2.0, 8.0]]), torch.tensor([[0.0, 6.0], [1.0, 6.0]])
    classes = torch.tensor([[1.0], [2.0]])
    said = [
        Prediction("r2", "place", ids, target, predicted, "augself", "inv"),
        Prediction("knn", LABEL, ids, classes, torch.tensor([[1.0], [1.0]])),
    ]
    save_predictions(said, tmp_path / "predictions.parquet")
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert len(rows) == 6 and rows[3] == {
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
        "knn", "linear", "r2", "mlp_r2", "extrapolation_r2", "auroc", "equivariance", "invariance", "hit1"
    }  # fmt: skip
    check(figures, said, tmp_path / "full.parquet")


def test_figures_of_objects(objects, tmp_path):
    said = []
    figures = evaluate(Halves(), objects, config=CONFIG, predictions=said)
    assert {"r2_pooled", "geodesic_deg", "extrapolation_geodesic_deg"} <= figures_of(said).keys()
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
