"""Invariance, equivariance, retrieval and collapse of features that are so by construction."""

import dataclasses

import pytest
import torch

from eqssl.evaluation import equivariance
from eqssl.evaluation.equivariance import fit_equivariance, geometry_predictions, principal_components, variances
from eqssl.evaluation.features import EncodedViews, Pairs
from eqssl.evaluation.predictions import ALL, Prediction, metrics_of
from eqssl.evaluation.probes import fit_ridge
from eqssl.evaluation.protocol import collapse_metrics

FACTORS = ("angle_deg", "brightness")
SPREAD = torch.tensor([30.0, 0.3])


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def moved(first, theta):
    """Each half of the feature is multiplied by one of two factors: linear in z1 x theta, and of mean 0 without."""
    return first * (theta / SPREAD).repeat_interleave(first.shape[-1] // 2, -1)


def as_pairs(first, second, theta, ids):
    factors = {name: theta[:, i : i + 1] for i, name in enumerate(FACTORS)}
    return Pairs(first=first, second=second, targets=factors, transform=factors, ids=ids)


def pairs(count, move):
    first, theta = draw(count, 8), draw(count, 2) * SPREAD
    return as_pairs(first, move(first, theta), theta, torch.arange(count))


def bank(move):
    """Return 50 views of 40 images."""
    first, theta = draw(40, 8).repeat_interleave(50, 0), (draw(50, 2) * SPREAD).repeat(40, 1)
    return as_pairs(first, move(first, theta), theta, torch.arange(40).repeat_interleave(50))


def metrics_on(train, eval_pairs, views=None):
    views = EncodedViews(train=train, eval=eval_pairs, bank=views or bank(moved))
    return metrics_of(geometry_predictions(views))


def gains(metrics):
    return [value for name, value in metrics.items() if name.startswith("equivariance")]


def invariance(views):
    predictions = Prediction("invariance", ALL, torch.arange(len(views)), *variances(views))
    return metrics_of([predictions])["invariance"]


def test_equivariant_by_construction():
    metrics = metrics_on(pairs(1500, moved), pairs(700, moved))
    assert metrics["equivariance"] == pytest.approx(1, abs=0.02)
    assert metrics["equivariance/angle_deg"] == pytest.approx(0.5, abs=0.06)
    assert metrics["equivariance/brightness"] == pytest.approx(0.5, abs=0.06)
    assert metrics["hit1"] > 0.95


def test_only_the_factor_that_moves_the_feature_counts():
    def move(first, theta):
        return first + theta[..., 1:] * first.flip(-1)

    metrics = metrics_on(pairs(1500, move), pairs(700, move), bank(move))
    assert abs(metrics["equivariance/angle_deg"]) < 0.005
    assert metrics["equivariance/brightness"] == pytest.approx(0.09 / 1.09, abs=0.02)
    assert metrics["equivariance"] == pytest.approx(metrics["equivariance/brightness"], abs=0.005)


def test_invariant_features_are_predictable_but_not_equivariant():
    def move(first, theta):
        return first.clone()

    metrics = metrics_on(pairs(1500, move), pairs(700, move), bank(move))
    assert all(abs(value) < 1e-3 for value in gains(metrics))
    assert metrics["hit1"] == pytest.approx(1 / 50, abs=0.02)


def test_features_that_move_unpredictably_are_not_equivariant():
    def move(first, theta):
        return torch.randn(first.shape, generator=torch.Generator().manual_seed(9))

    metrics = metrics_on(pairs(1500, move), pairs(700, move), bank(move))
    assert all(abs(value) < 0.02 for value in gains(metrics))
    assert metrics["hit1"] < 0.06


def test_a_feature_that_only_held_out_pairs_move_does_no_harm():
    train, eval_pairs = pairs(1500, moved), pairs(700, moved)
    spare = torch.zeros(1500, 3), torch.where(torch.arange(700)[:, None] < 5, draw(700, 3), 0), torch.zeros(2000, 3)
    turn = torch.linalg.qr(draw(11, 11)).Q  # so that no single feature is constant
    wider = [
        dataclasses.replace(p, first=torch.cat([p.first, s], dim=1) @ turn)
        for p, s in zip((train, eval_pairs, bank(moved)), spare, strict=True)
    ]
    metrics = metrics_on(*wider)
    assert metrics["equivariance"] == pytest.approx(metrics_on(train, eval_pairs)["equivariance"], abs=1e-3)


@pytest.fixture
def inputs(monkeypatch):
    """Return a list of the inputs that ridge regressions are fitted with from now on."""
    fitted = []
    monkeypatch.setattr(equivariance, "fit_ridge", lambda x, y: fitted.append(x) or fit_ridge(x, y))
    return fitted


def test_z1_is_reduced_to_64_components(inputs):
    first, theta = draw(400, 100), draw(400, 2)
    assert fit_equivariance(first, theta, first)(first, theta).shape == (400, 100)
    assert inputs[0].shape == (400, 64 + 2 + 64 * 2)
    variance = inputs[0][:, :64].var(0)
    assert (variance.diff() < 0).all() and variance[0] > first.var(0).max()


def test_invariance_is_the_share_of_variance_between_images():
    image, transform = draw(2000, 1, 3), draw(2000, 16, 3)
    assert invariance(image.expand(-1, 16, -1)) == 1
    assert invariance(transform) == pytest.approx(0, abs=0.01)
    assert invariance(image + transform) == pytest.approx(0.5, abs=0.03)
    assert invariance(torch.ones(5, 16, 3)) == 1


@pytest.mark.parametrize("later", [draw(30, 34, 8), torch.zeros(30, 34, 8)])
def test_bank_takes_16_views_for_invariance(later):
    for first in (draw(30, 8), torch.zeros(30, 8)):  # the features of the second do not vary at all
        second = torch.cat([first[:, None].expand(-1, 16, -1), later], 1).flatten(0, 1)
        ids = torch.arange(30).repeat_interleave(50)
        views = as_pairs(first[ids], second, draw(1500, 2), ids)
        assert metrics_on(pairs(100, moved), pairs(50, moved), views)["invariance"] == 1


def test_effective_rank():
    x = draw(4000, 16)
    full = collapse_metrics(x)
    assert full["rank"] == pytest.approx(16, abs=0.1) and full["std"] == pytest.approx(1, abs=0.02)
    assert collapse_metrics(x[:, :1] * torch.ones(16))["rank"] == pytest.approx(1, abs=1e-5)
    # Singular values 3 : 1, by hand.
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    two = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert collapse_metrics(two)["rank"] == pytest.approx(float(entropy.exp()))
    assert collapse_metrics(two)["std_min"] == pytest.approx(0.5**0.5)


def test_collapse_to_a_point():
    metrics = collapse_metrics(torch.full((1000, 4), 0.1))
    assert [metrics[name] for name in ("std", "std_min", "spread", "rank")] == pytest.approx([0.0] * 4)


def test_a_component_of_theta_that_does_not_vary_is_no_input():
    first, theta = draw(300, 4), draw(300, 2)
    second = first * theta[:, :1]
    theta[:, 1] = 1 + 1e-8 * theta[:, 1]
    whole, alone = fit_equivariance(first, theta, second), fit_equivariance(first, theta[:, :1], second)
    torch.testing.assert_close(whole(first, theta), alone(first, theta[:, :1]))
    far = torch.cat([theta[:, :1], theta[:, 1:] + 5], 1)
    torch.testing.assert_close(whole(first, far), alone(first, theta[:, :1]))


def test_a_component_of_theta_that_repeats_others_is_no_input(inputs):
    first, theta = draw(300, 4), draw(300, 2)
    second = first * theta[:, :1] + theta[:, 1:]
    repeated = torch.cat([theta, -theta[:, :1], theta.sum(1, keepdim=True), torch.ones(300, 1)], dim=1)
    whole, alone = fit_equivariance(first, repeated, second), fit_equivariance(first, theta, second)
    assert torch.equal(*inputs) and inputs[0].shape == (300, 4 + 2 + 4 * 2)
    torch.testing.assert_close(whole(first, repeated), alone(first, theta))


def test_whitening_has_variance_1_and_holds_99_percent_in_at_most_64_components():
    x = draw(3000, 6) * torch.tensor([10.0, 5, 3, 1, 0.1, 0.01]) + 7
    whiten = principal_components(x @ torch.linalg.qr(draw(6, 6)).Q, whiten=True)
    white = whiten(x @ torch.linalg.qr(draw(6, 6)).Q)
    assert white.shape == (3000, 3)  # 134 of 135.01 are 99.25 %
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(3, dtype=torch.float64))
    assert principal_components(draw(400, 100), whiten=True)(draw(400, 100)).shape == (400, 64)
    assert principal_components(torch.ones(50, 4), whiten=True)(draw(10, 4)).shape == (10, 0)
    variance = principal_components(x)(x).var(0)
    assert float(variance.sum()) == pytest.approx(float(x.double().var(0).sum())) and (variance.diff() < 0).all()


def test_equivariance_does_not_depend_on_the_scale_of_channels_and_the_raw_one_does():
    """Half of the channels move with theta; where those are large, the raw share of variance is large."""

    def move(first, theta):
        return torch.cat([moved(first, theta)[:, :4], first[:, 4:]], dim=1)

    train, eval_pairs = pairs(3000, move), pairs(1500, move)
    found = {}
    for scale in (0.5, 2.0):
        channels = torch.cat([torch.full((4,), scale), torch.ones(4)])
        scaled = [
            dataclasses.replace(p, first=p.first * channels, second=p.second * channels) for p in (train, eval_pairs)
        ]
        found[scale] = metrics_on(*scaled)
    for name in ("equivariance", "equivariance/angle_deg", "equivariance/brightness"):
        assert found[0.5][name] == pytest.approx(found[2.0][name], abs=0.02)
    assert found[2.0]["equivariance"] == pytest.approx(0.5, abs=0.03)
    assert found[0.5]["equivariance_raw"] == pytest.approx(0.2, abs=0.02)
    assert found[2.0]["equivariance_raw"] == pytest.approx(0.8, abs=0.02)


def test_a_transform_is_told_from_the_factors_of_a_view():
    """For pairs of one object theta is what leads to the second view, not the first view's own factors."""
    train, eval_pairs = pairs(1500, moved), pairs(700, moved)
    of_views = [
        dataclasses.replace(p, targets={"pose": draw(len(p.first), 9)}, transform=p.targets, per_view=True)
        for p in (train, eval_pairs)
    ]
    metrics = metrics_on(*of_views)
    assert metrics == metrics_on(train, eval_pairs) and "equivariance/angle_deg" in metrics
