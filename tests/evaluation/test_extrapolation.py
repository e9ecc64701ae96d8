"""Beyond the fitted range: a linear feature holds, a saturating one does not, and a constant is the floor."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eqssl.evaluation.features import Pairs
from eqssl.evaluation.predictions import metrics_of
from eqssl.evaluation.protocol import extrapolate


def pairs(count, feature, low=-1.0, high=1.0):
    generator = torch.Generator().manual_seed(count)
    theta = low + (high - low) * torch.rand(count, 1, generator=generator)
    first, targets = torch.zeros(count, 1), {"dx": theta}
    return Pairs(first=first, second=feature(theta), targets=targets, transform=targets, ids=torch.arange(count))


def scored(feature, **bounds):
    return metrics_of(extrapolate(pairs(1000, feature, **bounds), pairs(500, feature, **bounds)))["extrapolation_r2/dx"]


def test_a_linear_feature_holds_and_a_saturating_one_does_not():
    assert scored(lambda theta: 3 * theta + 1) > 0.999
    assert scored(lambda theta: theta.clamp(-0.5, 0.5)) == pytest.approx(1 - 0.0833 / 0.5833, abs=0.03)
    assert scored(torch.zeros_like) == pytest.approx(0, abs=0.05)


def test_the_inner_half_is_about_the_middle_of_the_range():
    eval_pairs = pairs(500, torch.clone, 2, 6)
    found = extrapolate(pairs(1000, torch.clone, 2, 6), eval_pairs)[0]
    outer = (eval_pairs.targets["dx"] - 4).abs()[:, 0] > 1
    assert (found.target[:, 0] - 4).abs().min() > 0.98 and 0.95 < len(found.examples) / int(outer.sum()) < 1.05
    assert torch.equal(found.target[:, 0], eval_pairs.targets["dx"][found.examples, 0])


def test_poses_are_split_by_their_angle_from_the_mean_and_hues_not_at_all():
    def turned(count):
        angles = np.random.default_rng(count).uniform(-np.pi / 2, np.pi / 2, (count, 3))
        pose = torch.tensor(Rotation.from_euler("xyz", angles).as_matrix(), dtype=torch.float32).flatten(1)
        targets = {"pose": pose, "floor_hue": draw_hue(count)}
        second, ids = torch.zeros(count, 9), torch.arange(count)
        return Pairs(first=pose, second=second, targets=targets, transform=targets, ids=ids, per_view=True)

    train, eval_pairs = turned(1000), turned(500)
    predictions = extrapolate(train, eval_pairs)
    middle = Rotation.from_matrix(train.targets["pose"].double().view(-1, 3, 3)).mean()
    angle = [
        (middle.inv() * Rotation.from_matrix(p.targets["pose"].view(-1, 3, 3))).magnitude() for p in (train, eval_pairs)
    ]
    assert [one.factor for one in predictions] == ["pose"]
    assert torch.equal(predictions[0].examples, torch.from_numpy(angle[1] > np.median(angle[0])).nonzero()[:, 0])
    assert metrics_of(predictions)["extrapolation_r2/pose"] > 0.99


def draw_hue(count):
    turns = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 2 * torch.pi
    return torch.stack([turns.cos(), turns.sin()], dim=1)
