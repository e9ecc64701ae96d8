"""SIE: its loss against NumPy, a linear action that it learns exactly, and where its gradient goes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eqssl.methods.base import Pair, Sizes
from eqssl.methods.sie import SIE, Predictor, sie_loss

SIZES = Sizes(inv=8, equi=4, theta={"rotation": 4, "floor_hue": 1})


def build(**options) -> SIE:
    torch.manual_seed(0)
    return SIE(SIZES, **{"width": 8, **options})


def test_the_loss_equals_numpy():
    inv1, inv2, equi1, equi2, prediction = np.random.default_rng(0).normal(size=(5, 12, 4)) * 0.8

    def variance(z):
        return np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()

    def covariance(z):
        cov = np.cov(z.T)
        return (cov[~np.eye(8, dtype=bool)] ** 2).sum() / 8

    first, second = np.hstack([inv1, equi1]), np.hstack([inv2, equi2])
    expected = 10 * ((inv1 - inv2) ** 2).mean() + 4.5 * ((prediction - equi2) ** 2).mean()
    expected += 10 * (variance(first) / 2 + variance(second) / 2 + variance(prediction) / 2)
    expected += covariance(first) + covariance(second)
    found = sie_loss(*map(torch.tensor, (inv1, inv2, equi1, equi2, prediction)), 10, 4.5, 10, 1)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_predictor_is_a_matrix_that_is_linear_in_theta_without_bias():
    predictor, z, theta = Predictor(3, 5).double(), torch.randn(6, 5).double(), torch.randn(6, 3).double()
    matrices = predictor.matrices.weight.detach().numpy().reshape(3, 5, 5)
    expected = [
        sum(t * m for t, m in zip(ts, matrices, strict=True)) @ x for ts, x in zip(theta, z.numpy(), strict=True)
    ]
    np.testing.assert_allclose(predictor(z, theta).detach().numpy(), expected, rtol=1e-10)
    assert not predictor(z, torch.zeros_like(theta)).any()


@pytest.mark.parametrize(("factors", "still"), [("all", True), ("rotation", True), ("floor_hue", False)])
def test_only_a_quaternion_needs_no_constant_to_say_that_nothing_changes(factors, still):
    method = build(factors=factors)
    theta = {"rotation": torch.zeros(3, 4), "floor_hue": torch.zeros(3, 1)}
    answers = []
    method.predictor.register_forward_hook(lambda module, inputs, output: answers.append(output))
    method(Pair(torch.randn(6, 8), torch.randn(6, 4), theta=theta))
    assert (not answers[0].any()) == still


def multiply(q: Tensor, p: Tensor) -> Tensor:
    """Products of quaternions (x, y, z, w): a rotation of four-dimensional space, linear in q."""
    vector = q[:, 3:] * p[:, :3] + p[:, 3:] * q[:, :3] + torch.linalg.cross(q[:, :3], p[:, :3])
    return torch.cat([vector, q[:, 3:] * p[:, 3:] - (q[:, :3] * p[:, :3]).sum(1, keepdim=True)], dim=1)


@pytest.mark.parametrize("true", [True, False])
def test_a_linear_action_is_learnt_exactly_and_not_from_another_pairs_theta(true):
    torch.manual_seed(0)
    predictor = Predictor(4, 4)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.05)
    for _ in range(300):
        theta = torch.nn.functional.normalize(torch.randn(64, 4), dim=1)
        z1 = torch.randn(64, 4)
        z2 = multiply(theta, z1)
        loss = (predictor(z1, theta if true else theta.roll(1, 0)) - z2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-6 if true else loss > 0.5


@pytest.mark.parametrize(
    ("left", "reached"),
    [({"sim_coeff": 1.0}, {"inv"}), ({"equi_coeff": 1.0}, {"equi"}), ({"cov_coeff": 1.0}, {"inv", "equi"})],
)
def test_each_term_reaches_the_parts_it_is_about(left, reached):
    method = build(**(dict.fromkeys(("sim_coeff", "equi_coeff", "std_coeff", "cov_coeff"), 0.0) | left))
    pair = Pair(
        torch.randn(32, 8, requires_grad=True), torch.randn(32, 4, requires_grad=True),
        theta={"rotation": torch.randn(16, 4), "floor_hue": torch.randn(16, 1)},
    )  # fmt: skip
    method(pair).backward()
    assert {name for name in ("inv", "equi") if getattr(pair, name).grad.any()} == reached


def test_without_an_equivariant_part_it_is_refused():
    with pytest.raises(ValueError, match=r"--encoder.equi-fraction is 0; allowed for sie: above 0"):
        SIE(Sizes(inv=8, theta={"dx": 1}))
