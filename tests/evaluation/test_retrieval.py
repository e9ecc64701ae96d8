"""Ranks and PRE against loops that follow SIE's definitions word by word, and what chance gives."""

import numpy as np
import pytest
import torch

from eqssl.data.synthetic.solids import draw_factors
from eqssl.evaluation.predictions import pose_error, rank_metrics
from eqssl.evaluation.threediebench import found_pose, ranks


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def poses(count: int, split: int = 0) -> torch.Tensor:
    """Return quaternions of the poses of 3DIEBench, three angles in ± 90 degrees."""
    return draw_factors(split, torch.arange(count), 1)["quaternion"]


def test_ranks_equal_a_loop_over_views():
    views = features(12, 7, 4)
    predicted = views + 0.7 * features(12, 7, 4, seed=1)
    looped = []
    for guesses, candidates in zip(predicted.numpy(), views.numpy(), strict=True):
        candidates = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
        for target, guess in enumerate(guesses):
            order = np.argsort(-candidates @ (guess / np.linalg.norm(guess)))
            looped.append(1 + order.tolist().index(target))
    looped = np.array(looped)
    assert ranks(predicted, views).flatten().tolist() == looped.tolist()
    assert torch.equal(ranks(3 * predicted, views / 5), ranks(predicted, views))
    expected = {"mrr": np.mean(1 / looped), "views": 7} | {f"h{k}": np.mean(looped <= k) for k in (1, 2, 5)}
    assert 0.2 < expected["h1"] < 0.9
    assert rank_metrics(ranks(predicted, views)) == pytest.approx(expected)  # the tenth of seven has no meaning


def test_pose_error_equals_a_loop_over_predictions():
    stored, predicted = features(60, 4), features(40, 4, seed=1)
    pose, stored_pose = poses(40), poses(60, split=1)
    errors = []
    for guess, true in zip(predicted.numpy(), pose.numpy(), strict=True):
        cosines = [guess @ item / np.linalg.norm(item) for item in stored.numpy()]
        errors.append(1 - (true @ stored_pose[int(np.argmax(cosines))].numpy()) ** 2)
    found = found_pose(predicted, stored, stored_pose)
    assert pose_error(pose, found) == pytest.approx(np.mean(errors), abs=1e-6)
    # Either sign of a quaternion is the same rotation.
    assert pose_error(-pose, found) == pose_error(pose, found)


def test_perfect_predictions():
    views, pose = features(6, 50, 4), poses(300)
    assert (ranks(views, views) == 1).all()
    assert rank_metrics(ranks(views, views)) == dict.fromkeys(("mrr", "h1", "h2", "h5", "h10"), 1) | {"views": 50}
    assert torch.equal(found_pose(views.flatten(0, 1), views.flatten(0, 1), pose), pose)
    assert pose_error(pose, pose) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("views", [features(400, 50, 6), torch.ones(3, 50, 6)])
def test_chance_among_50_views(views: torch.Tensor):
    """Whatever is predicted, where features tell nothing or are all the same."""
    metrics = rank_metrics(ranks(features(len(views), 50, 6, seed=1), views))
    expected = {"mrr": 0.090, "h1": 0.02, "h2": 0.04, "h5": 0.10, "h10": 0.20, "views": 50}
    assert metrics == pytest.approx(expected, abs=0.008)


def test_chance_of_a_pose():
    pose, other = poses(20_000), poses(20_000, split=1)
    expected = float(1 - (pose * other).sum(1).square().mean())
    assert expected == pytest.approx(0.627, abs=0.005)
    found = found_pose(features(2_000, 8), features(3_000, 8, seed=1), other[:3_000])
    assert pose_error(pose[:2_000], found) == pytest.approx(0.627, abs=0.025)
