"""Pairs whose transformation is known, and banks of views."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn

from eqssl.augment import PARAMETERS, apply
from eqssl.data.dataset import MemoryImages, Split
from eqssl.data.pairs import absolute_factors, relative_quaternion, relative_transform
from eqssl.data.rotation import euler_to_quaternion
from eqssl.evaluation.features import (
    BANK_IMAGES,
    BANK_VIEWS,
    encode,
    encode_bank,
    encode_pairs,
    fixed_pairs,
    frozen,
    object_views,
    subset,
)
from eqssl.evaluation.transforms import BANK_STREAM, draw, draw_binary

SPELT = 5  # pixels that spell quaternion and floor hue


class Spell(nn.Module):
    def forward(self, images):
        return images[:, 0, 0, :SPELT]


def complete(params):
    """Return transforms with every parameter, the missing ones at 0, the identity."""
    return {name: params.get(name, torch.zeros_like(params["dx"])) for name in PARAMETERS}


def test_relative_quaternion_equals_scipy_sign_included():
    angles = np.random.default_rng(0).uniform(-np.pi / 2, np.pi / 2, (2, 500, 3))
    first, second = (Rotation.from_euler("xyz", view) for view in angles)
    ours = relative_quaternion(*(euler_to_quaternion(torch.tensor(view)) for view in angles))
    theirs = (first.inv() * second).as_quat()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert (theirs[:, 3] < 0).any()


def test_a_pair_is_the_clean_image_and_its_transform(flat_images):
    indices = subset(flat_images.train, 3)
    pairs = encode_pairs(nn.Flatten(), flat_images, flat_images.train, 3)
    clean = flat_images.train.images.take(indices).float() / 255
    params = draw(flat_images.train.ids[indices], 3, 32)
    torch.testing.assert_close(pairs.first, clean.flatten(1))
    torch.testing.assert_close(pairs.second, apply(clean, complete(params)).flatten(1))
    assert torch.equal(pairs.theta[:, 0], params["dx"]) and pairs.theta.shape == (3, 9)
    assert torch.equal(pairs.labels, flat_images.train.labels[indices])


def test_binary_factors_come_on_top_of_the_transform(textured_images):
    pairs = encode_pairs(nn.Flatten(), textured_images, textured_images.train, 240)
    binary = pairs.binary
    assert torch.equal(binary.ids, pairs.ids[:60]) and torch.equal(binary.first, pairs.first[:60])
    drawn = draw_binary(binary.ids, channels=1)
    assert binary.targets.keys() == drawn.keys() and torch.equal(binary.theta, torch.stack([*drawn.values()], 1))
    untouched = binary.theta.sum(1) == 0
    assert 0 < untouched.sum() < 60
    torch.testing.assert_close(binary.second[untouched], pairs.second[:60][untouched])
    assert (binary.second[~untouched] != pairs.second[:60][~untouched]).any(1).all()


def test_two_views_of_one_object(objects):
    split = objects.train
    indices = subset(split, 200)
    pairs = encode_pairs(Spell(), objects, split, 200)
    assert {name: value.shape[1] for name, value in pairs.targets.items()} == {"pose": 9, "floor_hue": 2}
    one, two = fixed_pairs(split, indices)
    assert torch.equal(one, indices) and torch.equal(split.objects[one], split.objects[two])
    for features, shown in ((pairs.first, one), (pairs.second, two)):
        known = torch.cat([split.factors["quaternion"], split.factors["floor_hue"]], dim=1)[shown]
        torch.testing.assert_close((features * 255 - 128) / 127, known, atol=0.01, rtol=0)
    targets, between = absolute_factors(split, one), relative_transform(split, one, two)
    for name in ("pose", "floor_hue"):
        assert torch.equal(pairs.targets[name], targets[name]) and torch.equal(pairs.transform[name], between[name])
    assert pairs.theta.shape == (200, 11) and torch.equal(pairs.inputs, pairs.first)


def test_no_image_is_encoded_twice(objects):
    seen = []

    def count(images):
        seen.append(len(images))
        return images[:, 0, 0, :SPELT]

    encoder = nn.Identity()
    encoder.forward = count
    encode_pairs(encoder, objects, objects.val, 300)
    assert sum(seen) == 300  # every second view is the first of another pair


def test_subset_is_fixed_and_without_repetition(objects):
    few = subset(objects.train, 50)
    assert torch.equal(few, subset(objects.train, 60)[:50]) and len(few.unique()) == 50
    assert len(subset(objects.train, 10**6)) == 900


def test_bank_of_transforms(textured_images):
    split = textured_images.val
    bank = encode_bank(nn.Flatten(), textured_images, split, ["angle_deg", "dx"])
    assert bank.second.shape == (200 * 50, 1024) and bank.theta.shape == (200 * 50, 2)
    params = draw(torch.arange(50), 1, 32, BANK_STREAM)
    assert torch.equal(bank.theta[:50], torch.stack([params["angle_deg"], params["dx"]], 1))
    clean = split.images.take(subset(split, 1)).float().div(255).expand(50, -1, -1, -1)
    torch.testing.assert_close(bank.first[:50], clean.flatten(1))
    torch.testing.assert_close(bank.second[:50], apply(clean, complete(params)).flatten(1))
    assert torch.equal(bank.ids.view(200, 50)[:, 49], split.ids[subset(split, 200)])


def test_bank_of_objects_has_all_their_views(objects):
    bank = encode_bank(Spell(), objects, objects.val, ["pose", "floor_hue"])
    assert bank.second.shape == (100 * 3, SPELT) and bank.theta.shape == (100 * 3, 11)
    assert torch.equal(bank.first, bank.second[::3].repeat_interleave(3, 0))
    still = torch.cat([torch.eye(3).flatten(), torch.tensor([1.0, 0.0])])
    torch.testing.assert_close(bank.theta[::3], still.expand(100, 11))
    hue = (bank.second[:, 4] - bank.first[:, 4]) * 255 / 127 * 2 * torch.pi
    torch.testing.assert_close(bank.theta[:, 9], hue.cos(), atol=0.1, rtol=0)
    torch.testing.assert_close(bank.theta[:, 10], hue.sin(), atol=0.1, rtol=0)


def test_a_factor_that_never_changes_is_no_target(objects):
    assert "light_hue" in absolute_factors(objects.train, torch.arange(10))
    pairs = encode_pairs(Spell(), objects, objects.train, 10)
    assert pairs.targets.keys() == pairs.transform.keys() == {"pose", "floor_hue"}


def test_frozen_uses_running_statistics_and_restores_every_mode(textured_images):
    encoder = nn.Sequential(nn.BatchNorm2d(1), nn.Sequential(nn.Dropout(0.5), nn.Flatten()))
    encoder.train()
    encoder[1].eval()
    with frozen(encoder):
        assert not any(module.training for module in encoder.modules())
        features = encode(encoder, textured_images.val, torch.arange(20))[0]
    assert [module.training for module in encoder.modules()] == [True, True, False, False, False]
    assert encoder[0].num_batches_tracked == 0 and not features.requires_grad
    with pytest.raises(RuntimeError), frozen(encoder):
        raise RuntimeError
    assert encoder.training


def test_features_that_are_not_finite_are_refused(textured_images):
    class Diverged(nn.Module):
        def forward(self, images):
            return images.flatten(1) / (images.flatten(1).mean(dim=1, keepdim=True) > 2)

    with pytest.raises(ValueError, match="the encoder's features of 20 of 20 images are not finite"):
        encode(Diverged(), textured_images.val, torch.arange(20))


def views_of(counts: list[int]) -> list[list[int]]:
    """Return the objects that the chosen views show, object by object."""
    objects = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    objects = objects[torch.randperm(len(objects), generator=torch.Generator().manual_seed(0))]
    split = Split(MemoryImages(torch.zeros(len(objects), 1, 1, 1)), torch.arange(len(objects)), objects=objects)
    chosen = object_views(split)
    assert len(chosen.unique()) == chosen.numel()
    return objects[chosen].tolist()


def test_an_object_that_lacks_views_is_left_out_and_takes_none_from_the_others():
    found = views_of([5, 5, 2, 5, 7, 4])
    assert sorted(found) == [[0] * 5, [1] * 5, [3] * 5, [4] * 5]


def test_there_are_enough_objects_and_views_and_no_more():
    found = views_of([2] * 100 + [60] * (2 * BANK_IMAGES))
    assert len(found) == BANK_IMAGES and {len(views) for views in found} == {BANK_VIEWS}
    assert all(len(set(views)) == 1 and views[0] >= 100 for views in found)
