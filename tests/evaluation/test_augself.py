"""AugSelf's questions: targets against windows worked out in NumPy, and encoders that know all, or nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from eqssl.augment import apply, draw
from eqssl.config import EvaluateConfig
from eqssl.data.dataset import MemoryImages, Split
from eqssl.evaluation.augself import EPOCH, STRENGTHS, augself_predictions, differences
from eqssl.evaluation.encoders import Constant
from eqssl.evaluation.predictions import metrics_of
from eqssl.evaluation.transforms import SEED


def views(ids, image_size):
    return [draw(STRENGTHS, ids, epoch=EPOCH, seed=SEED, view=view, image_size=image_size) for view in (0, 1)]


def window(params, i):
    """Return centre y, x, height, width in fractions, from the corners' positions under the affine map of a view."""
    dx, dy, log_scale = (float(params[name][i]) for name in ("dx", "dy", "log_scale"))
    flip = np.diag([-1.0 if params["flip"][i] else 1.0, 1, 1])
    forward = np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]]) @ np.diag([np.exp(log_scale)] * 2 + [1]) @ flip
    x, y, _ = 0.5 + np.linalg.inv(forward) @ np.array([[-0.5, 0.5], [-0.5, 0.5], [1, 1]])
    return np.array([y.mean(), x.mean(), abs(y[1] - y[0]), abs(x[1] - x[0])])


def test_crop_is_the_difference_of_the_windows_mirrored_with_the_first():
    first, second = views(torch.arange(200), 64)
    crop = differences(first, second, channels=3, image_size=64)["crop"].numpy()
    for i in range(200):
        one, two = window(first, i), window(second, i)
        assert (one[:2] - one[2:] / 2 > -1e-6).all() and (one[:2] + one[2:] / 2 < 1 + 1e-6).all()
        if first["flip"][i]:
            one[1], two[1] = 1 - one[1], 1 - two[1]
        np.testing.assert_allclose(crop[i], one - two, atol=1e-6)
    assert (crop[:, 2] == crop[:, 3]).all() and crop[:, 2].min() < -0.3


def test_the_window_is_where_the_pixels_come_from():
    """A ramp in x and one in y, blurred by nothing, tell the centre of what a view shows."""
    params, _ = views(torch.arange(50), 64)
    params |= {name: torch.zeros(50) for name in ("brightness", "contrast", "saturation", "hue", "blur")}
    ramp = ((torch.arange(64) + 0.5) / 64).expand(50, 1, 64, 64)
    x, y = (apply(image, params).mean((1, 2, 3)) for image in (ramp, ramp.mT))
    expected = np.array([window(params, i)[:2] for i in range(50)])
    np.testing.assert_allclose(torch.stack([y, x], 1), expected, atol=2e-3)


def test_colour_blur_and_flip():
    first, second = views(torch.arange(3000), 64)
    targets = differences(first, second, channels=3, image_size=64)
    assert {name: value.shape[1] for name, value in targets.items()} == {"crop": 4, "colour": 4, "blur": 1, "flip": 1}
    expected = [(first[n] - second[n]) / w for n, w in {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8}.items()]
    torch.testing.assert_close(targets["colour"], torch.stack([*expected, (first["hue"] - second["hue"]) / 0.2], 1))
    assert 0.9 < targets["colour"].abs().max() <= 1
    torch.testing.assert_close(targets["blur"][:, 0], first["blur"] - second["blur"])
    assert targets["blur"].abs().max() <= 2 * 64 / 224
    assert float(targets["flip"].mean()) == pytest.approx(0.5, abs=0.03)
    agree = first["flip"] == second["flip"]
    assert torch.equal(targets["flip"][:, 0] == 1, agree)


def test_what_has_no_effect_is_not_asked():
    first, second = views(torch.arange(10), 28)
    targets = differences(first, second, channels=1, image_size=28)
    assert {name: value.shape[1] for name, value in targets.items()} == {"crop": 4, "colour": 2, "flip": 1}


@pytest.fixture
def dataset_of(flat_images):
    """Return data sets of one image (C, S, S) under many names."""

    def make(image):
        def split(start, count):
            pixels = (image * 255).round().to(torch.uint8).expand(count, -1, -1, -1)
            return Split(MemoryImages(pixels), torch.arange(start, start + count))

        shape = {"channels": len(image), "image_size": image.shape[-1]}
        return dataclasses.replace(flat_images, train=split(0, 1500), val=split(1500, 500), **shape)

    return make


class Place(nn.Module):
    """Centre and signed width of the window, as the ramps in red and green tell them, and whether it is mirrored."""

    def forward(self, images):
        red, green = images[:, 0], images[:, 1]
        width = red[:, :, -1].mean(1) - red[:, :, 0].mean(1)
        return torch.stack([red.mean((1, 2)), green.mean((1, 2)), width, width.abs(), width.sign()], 1)


class Tone(nn.Module):
    """The logarithms of the brightness and the contrast factor, up to constants."""

    def forward(self, images):
        std, mean = torch.std_mean(images, (1, 2, 3))
        return torch.stack([mean.log(), (std / mean).log()], 1)


def test_an_encoder_that_knows_the_window(monkeypatch, dataset_of):
    for name in ("brightness", "contrast", "saturation", "hue", "blur"):
        monkeypatch.setitem(STRENGTHS, name, 1e-6)  # not to be seen
    ramp = ((torch.arange(32) + 0.5) / 32).expand(32, 32)
    metrics = metrics_of(
        augself_predictions(Place(), dataset_of(torch.stack([ramp, ramp.T, ramp * 0])), EvaluateConfig())
    )
    # Mirroring one view's place where the other is flipped is a product, and so is whether two flips agree.
    assert metrics["augself/mlp_r2/crop"] > 0.97 and metrics["augself/mlp_accuracy/flip"] > 0.99
    assert 0.75 < metrics["augself/r2/crop"] < 0.95 and metrics["augself/accuracy/flip"] < 0.6
    assert abs(metrics["augself/r2/colour"]) < 0.05


def test_an_encoder_that_knows_the_tone(monkeypatch, dataset_of):
    for name in ("crop", "blur"):
        monkeypatch.setitem(STRENGTHS, name, 1e-6)
    stripes = torch.tensor([0.35, 0.45]).repeat(14).expand(1, 28, 28)
    metrics = metrics_of(augself_predictions(Tone(), dataset_of(stripes), EvaluateConfig()))
    assert metrics["augself/r2/colour"] > 0.97 and metrics["augself/mlp_r2/colour"] > 0.98
    assert metrics["augself/r2_pooled/colour"] == pytest.approx(metrics["augself/r2/colour"], abs=0.01)
    assert "augself/r2/blur" not in metrics


def test_a_constant_is_the_floor(flat_images):
    metrics = metrics_of(augself_predictions(Constant(), flat_images, EvaluateConfig()))
    assert all(abs(value) < 0.03 for name, value in metrics.items() if "r2" in name)
    assert all(abs(value - 0.5) < 0.12 for name, value in metrics.items() if "flip" in name)
    names = {name.removeprefix("augself/") for name in metrics}
    one = {"r2/crop", "r2/colour", "r2/blur", "r2_mean", "r2_pooled/crop", "r2_pooled/colour", "accuracy/flip"}
    assert names == {head + name for head in ("", "mlp_", "constant_") for name in one}


def test_parts_and_repetition(flat_images):
    class Halves(nn.Module):
        dim_inv = 1

        def forward(self, images):
            return images.mean(3)[:, 0, ::16]

    config = EvaluateConfig(train_images=300, images=100)
    metrics = metrics_of(augself_predictions(Halves(), flat_images, config))
    assert metrics == metrics_of(augself_predictions(Halves(), flat_images, config))
    alone = {name.removeprefix("inv/") for name in metrics if name.startswith("inv/")}
    assert {name for name in alone if "constant" not in name} == alone and "augself/r2/crop" in alone
