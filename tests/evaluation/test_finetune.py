"""Fine-tuning: which labels are kept, what is learned from them, and what is left as it was."""

import dataclasses

import pytest
import torch
from torch import nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import MemoryImages, Split
from eqssl.evaluation import finetune
from eqssl.evaluation.encoders import Constant
from eqssl.evaluation.finetune import few_labels, finetune_predictions
from eqssl.evaluation.predictions import LABEL, metrics_of

LABELS = torch.randint(10, (5000,), generator=torch.Generator().manual_seed(0))


def test_labels_are_balanced_and_fixed():
    few, more = few_labels(LABELS, 0.01), few_labels(LABELS, 0.1)
    assert LABELS[few].bincount().tolist() == [5] * 10 and LABELS[more].bincount().tolist() == [50] * 10
    assert torch.equal(few, more[:50]) and len(more.unique()) == 500
    assert few[:10].tolist() == few_labels(LABELS, 0.0001).tolist()
    assert sorted(LABELS[few[:10]].tolist()) == list(range(10))
    assert few.max() > 4000 and few.min() < 1000  # from anywhere


def test_a_rare_class_gives_what_it_has():
    labels = torch.cat([torch.full((300,), 4), torch.full((3,), 2), torch.full((297,), 9)])
    kept = labels[few_labels(labels, 0.1)]
    assert [int((kept == c).sum()) for c in (2, 4, 9)] == [3, 20, 20]


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    monkeypatch.setattr(finetune, "MIN_STEPS", 100)


@pytest.fixture
def two_kinds(flat_images):
    """Stripes across or along, which differ in no mean, and in nothing that a random linear read-out is sure to see."""

    def split(start, count):
        ids = torch.arange(start, start + count)
        labels = ids % 2
        stripes = (torch.arange(16) % 4 < 2).float().expand(16, 16)
        images = torch.stack([stripes, stripes.T])[labels]
        noise = torch.rand(count, 16, 16, generator=torch.Generator().manual_seed(start))
        pixels = ((0.3 * images + 0.7 * noise) * 255).to(torch.uint8)[:, None]
        return Split(MemoryImages(pixels), ids, labels)

    splits = {"train": split(0, 600), "val": split(600, 300)}
    return dataclasses.replace(flat_images, channels=1, image_size=16, **splits)


class Small(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers)


def test_more_is_learned_than_is_in_the_features_and_the_encoder_is_left(two_kinds):
    torch.manual_seed(0)
    encoder = Small()
    with torch.no_grad():
        encoder[0].weight.zero_()[0].fill_(0.01)  # features that tell the kinds apart by nothing
        encoder[0].weight += 1e-4 * torch.randn_like(encoder[0].weight)
    encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    predictions = finetune_predictions(encoder, two_kinds, EvaluateConfig())
    metrics = metrics_of(predictions)
    assert metrics["finetune_10pct/accuracy"] > 0.95
    assert metrics.keys() == {f"finetune_{share}pct/{name}" for share in (1, 10) for name in ("accuracy", "linear")}
    assert torch.equal(state, torch.get_rng_state()) and encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert metrics == metrics_of(finetune_predictions(encoder, two_kinds, EvaluateConfig()))
    assert len(predictions) == 4 and all(one.factor == LABEL and len(one.examples) == 300 for one in predictions)


def test_a_constant_learns_nothing(two_kinds):
    metrics = metrics_of(finetune_predictions(Constant(), two_kinds, EvaluateConfig()))
    assert all(value == pytest.approx(0.5, abs=0.01) for value in metrics.values())


def test_an_oracle_needs_no_more_than_one_percent(flat_images):
    class Mean(nn.Module):
        def forward(self, images):
            return 10 * (images.mean((1, 2, 3)) - 0.45)[:, None].expand(-1, 16)

    metrics = metrics_of(finetune_predictions(Mean(), flat_images, EvaluateConfig()))
    assert all(value == 1 for value in metrics.values())
