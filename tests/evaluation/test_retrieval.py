"""Ranks and PRE against loops that follow SIE's definitions word by word, and what chance gives."""

import numpy as np
import pytest
import torch

from eqssl.data.solids import draw_factors
from eqssl.evaluation.retrieval import pose_error, rank_figures


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def poses(count: int, split: int = 0) -> torch.Tensor:
    """Return quaternions of the poses of 3DIEBench, three angles in ± 90 degrees."""
    return draw_factors(split, torch.arange(count), 1)["quaternion"]


def test_ranks_equal_a_loop_over_views():
    views = features(12, 7, 4)
    predicted = views + 0.7 * features(12, 7, 4, seed=1)
    ranks = []
    for guesses, candidates in zip(predicted.numpy(), views.numpy(), strict=True):
        candidates = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
        for target, guess in enumerate(guesses):
            order = np.argsort(-candidates @ (guess / np.linalg.norm(guess)))
            ranks.append(1 + order.tolist().index(target))
    ranks = np.array(ranks)
    expected = {"mrr": np.mean(1 / ranks)} | {f"h{k}": np.mean(ranks <= k) for k in (1, 2, 5, 10)}
    assert rank_figures(predicted, views) == pytest.approx(expected)
    assert 0.2 < expected["h1"] < 0.9 and expected["h10"] == 1
    assert rank_figures(3 * predicted, views / 5) == pytest.approx(expected)


def test_pose_error_equals_a_loop_over_predictions():
    stored, predicted = features(60, 4), features(40, 4, seed=1)
    pose, stored_pose = poses(40), poses(60, split=1)
    errors = []
    for guess, true in zip(predicted.numpy(), pose.numpy(), strict=True):
        cosines = [guess @ item / np.linalg.norm(item) for item in stored.numpy()]
        errors.append(1 - (true @ stored_pose[int(np.argmax(cosines))].numpy()) ** 2)
    error = pose_error(predicted, pose, stored, stored_pose)
    assert error == pytest.approx(np.mean(errors), abs=1e-6)
    # Either sign of a quaternion is the same rotation.
    assert pose_error(predicted, -pose, stored, stored_pose) == error


def test_perfect_predictions():
    views, pose = features(6, 50, 4), poses(300)
    assert set(rank_figures(views, views).values()) == {1.0}
    assert pose_error(views.flatten(0, 1), pose, views.flatten(0, 1), pose) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("views", [features(400, 50, 6), torch.ones(3, 50, 6)])
def test_chance_among_50_views(views: torch.Tensor):
    """Whatever is predicted, where features tell nothing or are all the same."""
    figures = rank_figures(features(len(views), 50, 6, seed=1), views)
    expected = {"mrr": 0.090, "h1": 0.02, "h2": 0.04, "h5": 0.10, "h10": 0.20}
    assert figures == pytest.approx(expected, abs=0.008)


def test_chance_of_a_pose():
    pose, other = poses(20_000), poses(20_000, split=1)
    expected = float(1 - (pose * other).sum(1).square().mean())
    assert expected == pytest.approx(0.627, abs=0.005)
    error = pose_error(features(2_000, 8), pose[:2_000], features(3_000, 8, seed=1), other[:3_000])
    assert error == pytest.approx(0.627, abs=0.025)
