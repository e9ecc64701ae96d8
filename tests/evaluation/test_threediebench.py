"""The protocol of 3DIEBench on encoders that know exactly what they should be found to know."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.data.pairs import relative_quaternion
from eqssl.data.synthetic.solids import draw_factors
from eqssl.evaluation.encoders import Constant
from eqssl.evaluation.predictions import load_predictions, metrics_of, save_predictions
from eqssl.evaluation.threediebench import threediebench_predictions
from eqssl.methods.base import Predictive

VIEWS = 10
CHANCE = sum(1 / rank for rank in range(1, VIEWS + 1)) / VIEWS
DIGITS = torch.tensor([1, 256, 65536])


def renders(objects: tuple[int, int, int], views: int) -> Dataset:
    """Return poses and hues of the true distribution; an image is one pixel, its identity in three digits."""

    def split(i: int) -> Split:
        ids = torch.arange(objects[i] * views) + sum(objects[:i]) * views
        factors = draw_factors(i, torch.arange(objects[i]), views)
        pixels = (ids[:, None] // DIGITS % 256).to(torch.uint8)[..., None, None]
        labels = (factors["floor_hue"][:, 0] > 0.5).long()
        return Split(MemoryImages(pixels), ids, labels, ids // views, factors)

    return Dataset(
        "renders", split(0), split(1), split(2), paired=True, channels=3, image_size=1, num_classes=2,
        mean=(0.5,) * 3, std=(0.25,) * 3, digest="0" * 16,
    )  # fmt: skip


class Oracle(nn.Module):
    """The hues as invariant features, the quaternion as equivariant ones."""

    dim_inv = 2

    def __init__(self, dataset: Dataset):
        super().__init__()
        known = [
            torch.cat([split.factors[name] for name in ("floor_hue", "light_hue", "quaternion")], dim=1)
            for split in (dataset.train, dataset.val, dataset.test)
        ]
        self.known = torch.cat(known)

    def forward(self, images: Tensor) -> Tensor:
        return self.known[((images * 255).round().long().flatten(1) * DIGITS).sum(1)]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return renders((150, 60, 60), VIEWS)


@pytest.fixture(scope="module")
def metrics(dataset: Dataset) -> dict[str, float]:
    return metrics_of(threediebench_predictions(Oracle(dataset), dataset, EvaluateConfig(train_images=600, images=300)))


def test_hue_differences_are_linear_in_the_hues_and_rotations_are_not_in_the_poses(metrics: dict[str, float]):
    assert metrics["inv/3die/linear_r2/colour"] > 0.999 and metrics["inv/3die/linear_r2_pooled/colour"] > 0.999
    assert metrics["inv/3die/top1"] > 0.95
    # The relative quaternion is bilinear in the two poses.
    assert metrics["equi/3die/linear_r2/rotation"] < 0.9
    assert metrics["equi/3die/mlp_r2/rotation"] > metrics["equi/3die/linear_r2/rotation"] + 0.05
    assert metrics["equi/3die/mlp_geodesic_deg"] < metrics["equi/3die/linear_geodesic_deg"]
    assert metrics["3die/linear_r2/colour"] > 0.999 and metrics["3die/mlp_r2/colour"] > 0.9


def test_a_part_does_not_know_what_the_other_one_does(metrics: dict[str, float]):
    floor = metrics["3die/constant_r2_pooled"]
    for head in ("linear", "mlp"):
        assert metrics[f"inv/3die/{head}_r2/rotation"] < 0.05
        assert metrics[f"inv/3die/{head}_r2_pooled"] == pytest.approx(floor, abs=0.05)
        assert metrics[f"equi/3die/{head}_r2/colour"] < 0.05
    assert metrics["equi/3die/top1"] < 0.6
    assert metrics["inv/3die/posthoc_mrr"] == pytest.approx(CHANCE, abs=0.05)
    assert metrics["inv/3die/posthoc_pre_held_held"] > 0.5


def test_a_pose_moves_predictably_with_the_rotation(metrics: dict[str, float]):
    assert [metrics[f"equi/3die/posthoc_{name}"] for name in ("mrr", "h1", "h2", "h5")] == [1] * 4
    assert metrics["3die/posthoc_views"] == VIEWS and "3die/posthoc_h10" not in metrics
    for search in ("train_train", "held_held", "held_all"):
        assert metrics[f"equi/3die/posthoc_pre_{search}"] == pytest.approx(0, abs=1e-3)


class Turned(Predictive):
    """Knows the equivariant features for what they are, and turns them as the transformation says."""

    factors: ClassVar = {"brightness": 1, "rotation": 4}

    def embed(self, representation: Tensor) -> Tensor:
        return representation[:, -4:]

    def predict(self, embedding: Tensor, theta: Tensor) -> Tensor:
        assert (theta[:, 0] == 0).all()  # no view is augmented
        back = embedding * torch.tensor([-1, -1, -1, 1])
        return relative_quaternion(back, theta[:, 1:])


class Still(Turned):
    def predict(self, embedding: Tensor, theta: Tensor) -> Tensor:
        return embedding


def test_a_method_with_a_predictor_has_its_metrics_too(dataset: Dataset):
    encoder, config = Oracle(dataset), EvaluateConfig(train_images=50, images=40)
    by = {
        kind: metrics_of(threediebench_predictions(encoder, dataset, config, predictor=kind()))
        for kind in (Turned, Still)
    }
    assert [by[Turned][f"3die/own_{name}"] for name in ("mrr", "h1", "h2", "h5")] == [1] * 4
    for search in ("train_train", "held_held", "held_all"):
        assert by[Turned][f"3die/own_pre_{search}"] == pytest.approx(0, abs=1e-3)
        assert by[Still][f"3die/own_pre_{search}"] > 0.3
    assert by[Still]["3die/own_mrr"] == pytest.approx(CHANCE, abs=0.05)
    alone = metrics_of(threediebench_predictions(encoder, dataset, config))
    for found in by.values():
        assert {name: value for name, value in found.items() if "own" not in name} == alone


def test_floors_of_the_true_pose_distribution():
    dataset = renders((200, 2000, 1), 2)
    found = metrics_of(threediebench_predictions(Constant(), dataset, EvaluateConfig(train_images=300, images=4000)))
    for head in ("constant", "linear", "mlp"):
        assert found[f"3die/{head}_r2_pooled"] == pytest.approx(0.229, abs=0.015)
        assert found[f"3die/{head}_r2/rotation"] == pytest.approx(0, abs=0.02)
        assert found[f"3die/{head}_r2_pooled/colour"] == pytest.approx(0, abs=0.02)
        assert found[f"3die/{head}_geodesic_deg"] > 60
    # Two views, the first of which is always named.
    assert found["3die/posthoc_mrr"] == 0.75 and found["3die/posthoc_h1"] == 0.5
    assert found["3die/posthoc_pre_held_held"] == pytest.approx(0.627, abs=0.06)


def test_the_probes_predictions_make_their_metrics_again(dataset: Dataset, tmp_path):
    config = EvaluateConfig(train_images=50, images=40, split="test")
    kept = threediebench_predictions(Oracle(dataset), dataset, config, Turned())
    found = metrics_of(kept)
    save_predictions(kept, tmp_path / "kept.parquet")
    assert metrics_of(load_predictions(tmp_path / "kept.parquet")) == pytest.approx(found, abs=1e-6)
    assert {name.rpartition("_")[0] for name in found if name.endswith("mrr")} == {
        "3die/posthoc", "inv/3die/posthoc", "equi/3die/posthoc", "3die/own"
    }  # fmt: skip
    asked = [one for one in kept if "rank" not in one.metric and "pre" not in one.metric]
    assert all(one.protocol == "3die" and len(one.target) == 40 for one in asked)
    among = {one.metric.rpartition("pre_")[2]: torch.isin(one.examples, dataset.test.ids).all() for one in kept}
    assert not among.pop("train_train") and all(among.values())
    assert all(type(value) is float and math.isfinite(value) for value in found.values())


def test_the_encoder_is_frozen_and_pairs_are_fixed(dataset: Dataset):
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = EvaluateConfig(train_images=50, images=40)
    first, again = (metrics_of(threediebench_predictions(encoder, dataset, config)) for _ in range(2))
    assert first == again and encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_data_that_the_protocol_cannot_judge(flat_images: Dataset, objects: Dataset):
    with pytest.raises(ValueError, match="pairs of views of one object; flat has none"):
        threediebench_predictions(Constant(), flat_images, EvaluateConfig())
    with pytest.raises(ValueError, match="objects lacks: light_hue"):
        threediebench_predictions(Constant(), objects, EvaluateConfig())


def test_a_hue_that_is_the_same_in_all_held_out_images_leaves_the_other_metrics():
    dataset = renders((30, 20, 1), 4)
    hues = dataset.val.factors | {"light_hue": torch.full((80, 1), 0.5)}
    dataset = dataclasses.replace(dataset, val=dataclasses.replace(dataset.val, factors=hues))
    found = metrics_of(threediebench_predictions(Oracle(dataset), dataset, EvaluateConfig(train_images=120, images=80)))
    assert all(math.isfinite(value) for value in found.values())
    assert found["inv/3die/linear_r2/colour"] > 0.999
