"""The whole protocol on encoders whose metrics are known."""

import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import MemoryImages
from eqssl.data.rotation import euler_to_quaternion
from eqssl.evaluation import augself, probes
from eqssl.evaluation.encoders import Constant, Pixels
from eqssl.evaluation.features import fixed_pairs, subset
from eqssl.evaluation.protocol import collapse_metrics, evaluate

COLLAPSE = collapse_metrics(torch.rand(4, 2)).keys()


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
        return (images[:, 0, 0, :5] * 255 - 128) / 127


class Oracle(Spell):
    """The true factors: products of the quaternion's components, cosine and sine of the hue."""

    def forward(self, images):
        pose, hue = super().forward(images).split([4, 1], dim=1)
        products = (pose[:, :, None] * pose[:, None, :]).flatten(1)
        return torch.cat([products, (2 * math.pi * hue).cos(), (2 * math.pi * hue).sin()], dim=1)


def test_what_is_in_the_feature_is_found_and_nothing_else(flat_images):
    metrics = evaluate(Level(), flat_images)
    assert metrics["r2/brightness"] > 0.98
    for name in ("dx", "dy", "log_scale", "angle_deg", "contrast", "saturation", "hue", "blur"):
        assert abs(metrics[f"r2/{name}"]) < 0.05
    assert metrics["r2_mean"] == pytest.approx(sum(v for k, v in metrics.items() if k.startswith("r2/")) / 9)
    assert metrics["knn"] > 0.99 and metrics["linear"] > 0.95
    # Grey images do not show whether they were made grey; 75 pairs leave a standard error of .07.
    assert metrics["auroc/grayscale"] == pytest.approx(0.5, abs=0.2)
    assert metrics["geodesic_deg"] == pytest.approx(22.5, abs=2)


SHARES = ("r2", "std", "spread", "rank", "auroc", "equivariance")


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_few_images_have_no_metric_without_meaning(flat_images, count, level, caplog):
    config = EvaluateConfig(level=level, images=count, train_images=100)
    metrics = evaluate(Level(), flat_images, config=config)
    assert {"knn", "linear"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert not any("auroc" in name for name in metrics)
    shares = [name for name in metrics if any(word in name for word in SHARES)]
    assert bool(shares) == (count >= 3)
    assert (f"accuracies are of {count} images of val" in caplog.text) == (count < 3)


def test_parts_are_metrics_of_their_channels_alone(flat_images):
    metrics = evaluate(Level(), flat_images)
    first = Level()
    first.forward = lambda images: Level.forward(first, images)[:, :1]
    alone = evaluate(first, flat_images)
    assert alone.keys() == {name for name in metrics if not name.startswith(("inv/", "equi/"))}
    assert alone == pytest.approx({name: metrics[f"inv/{name}"] for name in alone})
    assert metrics.keys() == alone.keys() | {f"{part}/{name}" for part in ("inv", "equi") for name in alone}


def test_grey_images_without_labels(textured_images):
    metrics = evaluate(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), textured_images)
    factors = {"dx", "dy", "log_scale", "angle_deg", "brightness", "contrast", "blur"}
    expected = {f"r2/{name}" for name in factors} | {"r2_mean", "geodesic_deg", "auroc/flip", "auroc/solarize"}
    assert metrics.keys() == expected | COLLAPSE
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())


def test_binary_factors(textured_images):
    metrics = evaluate(Lightest(), textured_images)
    assert metrics["auroc/solarize"] > 0.9
    assert metrics["auroc/flip"] == pytest.approx(0.5, abs=0.25)  # 50 pairs leave a standard error of .08


def test_two_views_of_one_object(objects):
    metrics = evaluate(Oracle(), objects)
    expected = {"r2/pose", "r2/floor_hue", "r2_mean", "pose_deg"}
    assert metrics.keys() == expected | COLLAPSE
    assert metrics["r2/pose"] > 0.99 and metrics["r2/floor_hue"] > 0.99 and metrics["pose_deg"] < 2
    assert metrics["r2_mean"] == pytest.approx((metrics["r2/pose"] + metrics["r2/floor_hue"]) / 2)
    # The matrix is quadratic in the quaternion, so that a linear probe reads a part of it.
    assert 0.2 < evaluate(Spell(), objects)["r2/pose"] < 0.9


def test_full_adds_its_metrics_and_alters_none(flat_images):
    images = EvaluateConfig(images=120, train_images=200)
    quick = evaluate(Level(), flat_images, config=images)
    full = evaluate(Level(), flat_images, config=dataclasses.replace(images, level="full"))
    assert quick == {name: full[name] for name in quick}
    added = {name for name in full.keys() - quick.keys() if not name.startswith(("inv/", "equi/"))}
    factors = [name.removeprefix("r2/") for name in quick if name.startswith("r2/")]
    named = {f"{metric}/{name}" for metric in ("mlp_r2", "extrapolation_r2", "equivariance") for name in factors}
    named |= {f"{probe}_{name}" for probe in ("mlp", "extrapolation") for name in ("r2_mean", "geodesic_deg")}
    assert added == named | {"invariance", "equivariance", "equivariance_raw", "hit1"}
    assert all(type(value) is float and math.isfinite(value) for value in full.values())
    assert full["mlp_r2/brightness"] > 0.9
    # All that moves the level is the brightness, and knowing it predicts the level.
    assert full["equivariance/brightness"] > 0.3 and abs(full["equivariance/angle_deg"]) < 0.05
    assert full["hit1"] > 0.2


def test_full_on_objects(objects):
    metrics = evaluate(Spell(), objects, config=EvaluateConfig(level="full"))
    assert metrics["mlp_r2/pose"] > metrics["r2/pose"] + 0.1 and metrics["mlp_r2/floor_hue"] > 0.95
    # Pose and hue of the second view are bilinear in those of the first and the transform.
    metrics = evaluate(Oracle(), objects, config=EvaluateConfig(level="full"))
    assert metrics["equivariance/floor_hue"] > 0.1 and metrics["equivariance/pose"] > 0.5
    assert metrics["equivariance"] > 0.9 and metrics["hit1"] > 0.9 and "linear" not in metrics


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
    metrics = evaluate(Constant(), flat_images, config=EvaluateConfig(level="full"))
    majority = float((flat_images.val.labels == 0).double().mean())
    assert metrics["knn"] == metrics["linear"] == pytest.approx(majority)
    assert all(abs(value) < 0.05 for name, value in metrics.items() if "r2" in name or "equivariance" in name)
    assert all(metrics[name] == 0.5 for name in metrics if name.startswith("auroc"))
    assert metrics["rank"] == metrics["std"] == 0 and metrics["invariance"] == 1 and metrics["hit1"] == 0.02


def test_constant_on_objects_predicts_no_turn(objects):
    metrics = evaluate(Constant(), objects)
    assert metrics["r2/pose"] == pytest.approx(0, abs=0.02) and not {"knn", "linear"} & metrics.keys()
    # The same pose for both views is no turn between them, so that what is missed is the whole turn.
    one, two = (objects.val.factors["quaternion"][i].double() for i in fixed_pairs(objects.val, torch.arange(300)))
    turn = 2 * torch.rad2deg((one * two).sum(1).abs().clamp(max=1).acos())
    assert metrics["pose_deg"] == pytest.approx(float(turn.mean()), rel=1e-4)


@pytest.mark.parametrize(("shape", "dim"), [((1, 28, 28), 784), ((1, 64, 64), 1024), ((3, 64, 64), 768)])
def test_pixels_are_averaged_to_at_most_1024_values(shape, dim):
    images = torch.rand(2, *shape)
    features = Pixels()(images)
    assert features.shape == (2, dim)
    torch.testing.assert_close(features.mean(1), images.mean((1, 2, 3)))


def test_constant_has_one_feature():
    assert Constant()(torch.rand(4, 3, 8, 8)).shape == (4, 1)


def on_turntables(objects, split, tilt):
    """Return a split's objects, tilted all alike, turned about the vertical alone; the pixels spell pose and hue."""
    images = getattr(objects, split)
    euler = torch.tensor([*tilt, 0.0]).repeat(len(images), 1)
    euler[:, 2] = (torch.rand(len(images), generator=torch.Generator().manual_seed(len(images))) - 0.5) * 3
    factors = images.factors | {"quaternion": euler_to_quaternion(euler)}
    pixels = images.images.pixels.clone()
    pixels[:, 0, 0, :5] = (torch.cat([factors["quaternion"], factors["floor_hue"]], 1) * 127 + 128).to(torch.uint8)
    return dataclasses.replace(images, images=MemoryImages(pixels), factors=factors)


@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.3, -0.7)])
def test_turns_about_one_axis_have_all_metrics(objects, tilt):
    turned = dataclasses.replace(objects, **{name: on_turntables(objects, name, tilt) for name in ("train", "val")})
    metrics = evaluate(Oracle(), turned, config=EvaluateConfig(level="full"))
    expected = evaluate(Oracle(), objects, config=EvaluateConfig(level="full"))
    assert metrics.keys() == expected.keys() and all(math.isfinite(value) for value in metrics.values())
    assert metrics["r2_mean"] == pytest.approx((metrics["r2/pose"] + metrics["r2/floor_hue"]) / 2)
    assert metrics["r2/pose"] > 0.99 and metrics["pose_deg"] < 2
    assert metrics["mlp_r2/pose"] > 0.98 and metrics["equivariance/pose"] > 0.2 and metrics["hit1"] > 0.6


def with_one_hue(objects, split):
    images = getattr(objects, split)
    return dataclasses.replace(objects, **{split: dataclasses.replace(
        images, factors=images.factors | {"floor_hue": torch.full((len(images), 1), 0.5)}
    )})  # fmt: skip


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_factor_that_is_constant_in_one_split_is_left_out_and_nothing_else(objects, split, level):
    config = EvaluateConfig(level=level, train_images=300, images=150)
    metrics = evaluate(Spell(), with_one_hue(objects, split), config=config)
    assert all(math.isfinite(value) for value in metrics.values())
    assert not any(name.endswith("r2/floor_hue") for name in metrics)
    assert metrics["r2_mean"] == metrics["r2/pose"]
    if split == "val":  # the probes are those of a val that has all hues
        whole = evaluate(Spell(), objects, config=config)
        assert {name: metrics[name] for name in metrics if "r2/" in name} == {
            name: whole[name] for name in metrics if "r2/" in name
        }


def test_probes_choose_by_object(objects, flat_images, monkeypatch):
    given = []

    def recorded(probe):
        signature = inspect.signature(probe)

        def call(*arguments, **named):
            given.append(signature.bind(*arguments, **named).arguments.get("objects"))
            return probe(*arguments, **named)

        return call

    for module in (probes, augself):
        monkeypatch.setattr(module, "mlp_predict", recorded(module.mlp_predict))
    config = EvaluateConfig(level="full", train_images=90, images=30)
    images, eval_pairs = objects.train, objects.val
    data = dataclasses.replace(
        objects,
        train=dataclasses.replace(images, labels=images.objects % 2),
        val=dataclasses.replace(eval_pairs, labels=eval_pairs.objects % 2),
    )
    evaluate(Spell(), data, config=config)
    factors = len(given)
    augself.augself_predictions(Spell(), data, config)
    shown = images.objects[subset(images, 90)]
    assert factors == 2 and len(given) == 6 and all(torch.equal(known, shown) for known in given)
    given.clear()
    evaluate(Level(), flat_images, config=config)
    assert len(given) == 3 * 9 and not any(known is not None for known in given)


def test_images_of_one_class_are_refused_with_the_split(flat_images):
    train = dataclasses.replace(flat_images.train, labels=torch.full((600,), 3))
    data = dataclasses.replace(flat_images, train=train)
    with pytest.raises(
        ValueError, match=r"the 8 images of the train split .* all of class 3; .*--evaluate.train-images"
    ):
        evaluate(Level(), data, config=EvaluateConfig(train_images=8))


@pytest.mark.parametrize("dim_inv", [1, 2])
def test_parts_share_moments_with_all_features(objects, dim_inv):
    """The linear probe and the R2 of a part are those of an encoder that has this part alone."""
    data = {}
    for name in ("train", "val"):
        split = getattr(objects, name)
        data[name] = dataclasses.replace(split, labels=(split.factors["floor_hue"][:, 0] * 4).long())
    data = dataclasses.replace(objects, num_classes=4, **data)
    whole, alone = Oracle(), Oracle()
    whole.dim_inv = dim_inv
    alone.forward = lambda images: Oracle.forward(alone, images)[:, dim_inv:]
    found, expected = evaluate(whole, data), evaluate(alone, data)
    assert expected["linear"] > 0.7
    assert {name: found[f"equi/{name}"] for name in expected} == pytest.approx(expected)
