"""The whole protocol on encoders whose figures are known."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from eqssl.config import EvaluateConfig
from eqssl.evaluation.protocol import evaluate
from eqssl.evaluation.rows import Constant, Pixels, constant_figures

COLLAPSE = {"std", "std_min", "spread", "rank"}


class Level(nn.Module):
    """The logarithm of the mean pixel, which moves by that of the brightness factor; and the image's first pixel."""

    dim_inv = 1

    def forward(self, images):
        return torch.stack([images.mean((1, 2, 3)).log(), images.mean((1, 2, 3))], 1)


class Lightest(nn.Module):
    """The lightest pixel, which solarizing makes .5 or darker and no flip alters."""

    def forward(self, images):
        return images.amax((1, 2, 3))[:, None]


class Spell(nn.Module):
    """The quaternion and the floor hue, as the first pixels spell them."""

    def forward(self, images):
        return images[:, 0, 0, :5]


def test_what_is_in_the_feature_is_found_and_nothing_else(flat_images):
    figures = evaluate(Level(), flat_images)
    assert figures["r2/brightness"] > 0.98
    for name in ("dx", "dy", "log_scale", "angle_deg", "contrast", "saturation", "hue", "blur"):
        assert abs(figures[f"r2/{name}"]) < 0.05
    assert figures["r2_mean"] == pytest.approx(sum(v for k, v in figures.items() if k.startswith("r2/")) / 9)
    assert figures["knn"] > 0.99
    # Grey images do not show whether they were made grey; 75 pairs leave a standard error of .07.
    assert figures["auroc/grayscale"] == pytest.approx(0.5, abs=0.2)
    assert figures["geodesic_deg"] == pytest.approx(22.5, abs=2)


def test_parts_are_figures_of_their_channels_alone(flat_images):
    figures = evaluate(Level(), flat_images)
    first = Level()
    first.forward = lambda images: Level.forward(first, images)[:, :1]
    alone = evaluate(first, flat_images)
    assert alone.keys() == {name for name in figures if not name.startswith(("inv/", "equi/"))}
    assert alone == pytest.approx({name: figures[f"inv/{name}"] for name in alone})
    assert figures.keys() == alone.keys() | {f"{part}/{name}" for part in ("inv", "equi") for name in alone}


def test_grey_images_without_labels(textured_images):
    figures = evaluate(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), textured_images)
    factors = {"dx", "dy", "log_scale", "angle_deg", "brightness", "contrast", "blur"}
    expected = {f"r2/{name}" for name in factors} | {"r2_mean", "geodesic_deg", "auroc/flip", "auroc/solarize"}
    assert figures.keys() == expected | COLLAPSE
    assert all(type(value) is float and math.isfinite(value) for value in figures.values())


def test_binary_factors(textured_images):
    figures = evaluate(Lightest(), textured_images)
    assert figures["auroc/solarize"] > 0.9
    assert figures["auroc/flip"] == pytest.approx(0.5, abs=0.25)  # 50 pairs leave a standard error of .08


def test_two_views_of_one_object(objects):
    figures = evaluate(Spell(), objects)
    expected = {"r2/rotation", "r2/floor_hue", "r2_mean", "r2_pooled", "geodesic_deg"}
    assert figures.keys() == expected | COLLAPSE
    assert figures["r2/floor_hue"] > 0.99
    # The relative quaternion is bilinear in the two, so that a linear probe reads a part of it.
    assert figures["r2/rotation"] < 0.9
    assert figures["r2_mean"] == pytest.approx((figures["r2/rotation"] + figures["r2/floor_hue"]) / 2)


def test_full_adds_its_figures_and_alters_none(flat_images):
    images = EvaluateConfig(images=120, train_images=200)
    quick = evaluate(Level(), flat_images, config=images)
    full = evaluate(Level(), flat_images, config=dataclasses.replace(images, level="full"))
    assert quick == {name: full[name] for name in quick}
    added = {name for name in full.keys() - quick.keys() if not name.startswith(("inv/", "equi/"))}
    factors = [name.removeprefix("r2/") for name in quick if name.startswith("r2/")]
    named = {f"{figure}/{name}" for figure in ("mlp_r2", "extrapolation_r2", "equivariance") for name in factors}
    named |= {f"{probe}_{name}" for probe in ("mlp", "extrapolation") for name in ("r2_mean", "geodesic_deg")}
    assert added == named | {"linear", "invariance", "equivariance", "hit1"}
    assert all(type(value) is float and math.isfinite(value) for value in full.values())
    assert full["linear"] > 0.95 and full["mlp_r2/brightness"] > 0.9
    # All that moves the level is the brightness, and knowing it predicts the level.
    assert full["equivariance/brightness"] > 0.3 and abs(full["equivariance/angle_deg"]) < 0.05
    assert full["hit1"] > 0.2


def test_full_on_objects(objects):
    figures = evaluate(Spell(), objects, config=EvaluateConfig(level="full"))
    assert figures["mlp_r2/rotation"] > figures["r2/rotation"] + 0.2
    assert figures["equivariance/floor_hue"] > 0.1 and figures["equivariance/rotation"] > 0.2
    assert figures["hit1"] > 0.6 and "linear" not in figures


def test_splits_and_repetition(flat_images):
    val, test = (evaluate(Level(), flat_images, config=EvaluateConfig(split=split)) for split in ("val", "test"))
    assert val != test and val == evaluate(Level(), flat_images)


def test_evaluation_leaves_encoder_and_random_state(flat_images):
    encoder = nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.Flatten()).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(encoder, flat_images, config=EvaluateConfig(images=64, train_images=64, level="full"))
    assert torch.equal(state, torch.get_rng_state())
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_constant_is_the_floor(flat_images):
    figures = constant_figures(flat_images, EvaluateConfig(level="full"))
    majority = float((flat_images.val.labels == 0).double().mean())
    assert figures["knn"] == figures["linear"] == pytest.approx(majority)
    assert all(abs(value) < 0.05 for name, value in figures.items() if "r2" in name or "equivariance" in name)
    assert all(figures[name] == 0.5 for name in figures if name.startswith("auroc"))
    assert figures["rank"] == figures["std"] == 0 and figures["invariance"] == 1 and figures["hit1"] == 0.02


def test_constant_scores_above_0_only_where_r2_is_pooled(objects):
    figures = constant_figures(objects)
    assert figures["r2_pooled"] == pytest.approx(0.229, abs=0.06)
    assert figures["r2/rotation"] == pytest.approx(0, abs=0.02) and "knn" not in figures
    assert figures["geodesic_deg"] > 60


@pytest.mark.parametrize(("shape", "dim"), [((1, 28, 28), 784), ((1, 64, 64), 1024), ((3, 64, 64), 768)])
def test_pixels_are_averaged_to_at_most_1024_values(shape, dim):
    images = torch.rand(2, *shape)
    features = Pixels()(images)
    assert features.shape == (2, dim)
    torch.testing.assert_close(features.mean(1), images.mean((1, 2, 3)))


def test_constant_has_one_feature():
    assert Constant()(torch.rand(4, 3, 8, 8)).shape == (4, 1)
