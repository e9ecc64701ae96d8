"""AugSelf: its loss against NumPy, and what it learns and from what."""

import numpy as np
import pytest
import torch

from eqssl.methods.augself import AugSelf, augself_loss
from eqssl.methods.base import Pair, Sizes
from tests.methods.test_conditioned import losses_after_training

SIZES = Sizes(inv=8, equi=4, theta={"rotation": 4, "dx": 1, "flip": 1})


def build(**options) -> AugSelf:
    torch.manual_seed(0)
    return AugSelf(SIZES, **{"width": 64, **options})


def make_pair(batch: int = 64) -> Pair:
    """Features whose two views differ by theta."""
    flip = (torch.rand(batch, 1) < 0.5).float()
    theta = {"rotation": torch.randn(batch, 4), "dx": torch.randn(batch, 1), "flip": flip}
    first = torch.randn(batch, 12)
    features = torch.cat([first, first + torch.cat([*theta.values()] * 2, dim=1)])
    return Pair(features[:, :8].requires_grad_(), features[:, 8:].requires_grad_(), theta=theta)


def test_the_loss_equals_numpy():
    told, theta = np.random.default_rng(0).normal(size=(2, 6, 4))
    is_binary = np.array([False, True, False, True])
    theta[:, is_binary] = theta[:, is_binary] > 0
    probability = 1 / (1 + np.exp(-told))
    entropy = -(theta * np.log(probability) + (1 - theta) * np.log(1 - probability))
    expected = np.where(is_binary, entropy, (told - theta) ** 2).mean()
    found = augself_loss(torch.tensor(told), torch.tensor(theta), torch.tensor(is_binary))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_only_flips_are_binary_here_and_only_what_was_chosen_is_told():
    assert build().is_binary.tolist() == [False] * 5 + [True]
    assert build(factors="flip, dx").is_binary.tolist() == [True, False]


def test_it_learns_theta_from_features_that_hold_it_and_not_another_pairs():
    method, pair = build(base="none"), make_pair()
    told, of_others = losses_after_training(method, pair, steps=100)
    assert told < 0.05 and of_others > 1
