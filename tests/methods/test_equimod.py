"""EquiMod: its loss against NumPy, and a displacement that it learns."""

import numpy as np
import pytest
import torch

from eqssl.methods.base import Pair, Sizes
from eqssl.methods.equimod import EquiMod
from tests.methods.test_conditioned import losses_after_training

SIZES = Sizes(inv=8, equi=4, theta={"rotation": 4, "dx": 1})


def build(**options) -> EquiMod:
    torch.manual_seed(0)
    return EquiMod(SIZES, **{"width": 16, "embedding": 6, **options})


def make_pair(batch: int = 32) -> Pair:
    """Features that all pairs share but for theta, so that nothing else tells the second views apart."""
    theta = {"rotation": torch.randn(batch, 4), "dx": torch.randn(batch, 1)}
    first = torch.randn(12).expand(batch, 12) + 0.01 * torch.randn(batch, 12)
    second = first + torch.cat([theta["rotation"], theta["dx"]], dim=1) @ torch.randn(5, 12)
    features = torch.cat([first, second])
    return Pair(features[:, :8].requires_grad_(), features[:, 8:].requires_grad_(), theta=theta)


def test_the_loss_equals_numpy():
    method, pair = build(base="none").double(), make_pair(5)
    weights = {name: values.detach().numpy() for name, values in method.named_parameters()}

    def normalise(x, scale=1.0, shift=0.0):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * scale + shift

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T

    z = np.concatenate([pair.inv.detach(), pair.equi.detach()], axis=1).astype(float)
    for layer in (0, 3):  # both views are normalised together
        z = np.maximum(normalise(dense(z, f"projector.{layer}")), 0)
    z1, z2 = np.split(normalise(dense(z, "projector.6")), 2)
    theta = np.concatenate([pair.theta["rotation"], pair.theta["dx"]], axis=1).astype(float)
    told = normalise(dense(theta, "theta_projector.0"))
    prediction = normalise(dense(np.concatenate([z1, told], axis=1), "predictor.0"))

    both = np.concatenate([prediction, z2])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    scores = np.exp(both @ both.T / 0.2)
    np.fill_diagonal(scores, 0)
    expected = -np.log(scores[np.arange(10), np.arange(10) - 5] / scores.sum(1)).mean()
    exact = Pair(pair.inv.double(), pair.equi.double(), theta={name: x.double() for name, x in pair.theta.items()})
    assert method(exact).item() == pytest.approx(expected, rel=1e-10)


def test_it_learns_a_displacement_by_theta_and_not_by_another_pairs():
    method, pair = build(base="none"), make_pair()
    told, of_others = losses_after_training(method, pair, steps=200)
    assert of_others > told + 1
