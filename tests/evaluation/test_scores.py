"""R2 in its three definitions, angles and AUROC, against scikit-learn and values known by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from sklearn.metrics import r2_score

from eqssl.data.pairs import relative_quaternion
from eqssl.evaluation.predictions import (
    auroc,
    factor_predictions,
    geodesic_deg,
    metrics_of,
    pose_deg,
    r2_pooled,
    varying,
)


def factor_metrics(targets, predicted, pooled=False):
    """Return the metrics of factors -> (N, k), in the protocol of 3DIEBench where R2 is also pooled."""
    count = len(next(iter(targets.values())))
    predictions = factor_predictions("r2", torch.arange(count), targets, torch.cat([predicted[n] for n in targets], 1))
    if pooled:
        predictions = [dataclasses.replace(one, protocol="3die") for one in predictions]
    return {name.removeprefix("3die/"): value for name, value in metrics_of(predictions).items()}


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(500, 3)) * [1, 5, 0.1] + [0, 2, 3]
    return torch.tensor(target), torch.tensor(target + rng.normal(size=(500, 3)))


def test_r2_equals_sklearn(regression):
    target, predicted = regression
    components = {name: target[:, i : i + 1] for i, name in enumerate("abc")}
    metrics = factor_metrics(components, {name: predicted[:, i : i + 1] for i, name in enumerate("abc")})
    expected = r2_score(target, predicted, multioutput="raw_values")
    np.testing.assert_allclose([metrics[f"r2/{name}"] for name in "abc"], expected, rtol=1e-5)
    assert factor_metrics({"place": target}, {"place": predicted})["r2/place"] == pytest.approx(expected.mean())


def test_a_constant_scores_229_on_relative_quaternions_when_pooled_and_0_per_component():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi / 2, np.pi / 2, (2, 100_000, 3))
    first, second = (Rotation.from_euler("xyz", view) for view in angles)
    target = torch.tensor((first.inv() * second).as_quat())
    constant = target.mean(0).expand_as(target)
    assert r2_pooled(target, constant) == pytest.approx(0.229, abs=0.003)
    assert abs(factor_metrics({"rotation": target}, {"rotation": constant})["r2/rotation"]) < 1e-6


def test_pooled_is_one_mean_over_samples_and_components():
    target, predicted = torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert r2_pooled(target, predicted) == pytest.approx(1 - 2 / 6)


def test_a_vector_counts_once_in_the_mean():
    target = {"rotation": torch.eye(4), "floor_hue": torch.tensor([[0.0], [1.0], [0.0], [1.0]])}
    predicted = {"rotation": torch.eye(4), "floor_hue": torch.full((4, 1), 0.5)}
    metrics = factor_metrics(target, predicted, pooled=True)
    assert metrics["r2/rotation"] == 1 and metrics["r2/floor_hue"] == 0
    assert metrics["r2_mean"] == 0.5
    assert metrics["r2_pooled"] == 1 and metrics["geodesic_deg"] == pytest.approx(0, abs=1e-5)
    assert factor_metrics(target, predicted).keys() == metrics.keys() - {"r2_pooled"}


def test_geodesic_angle_ignores_sign_and_length():
    half = np.deg2rad(15)
    turned = torch.tensor([[0.0, 0.0, np.sin(half), np.cos(half)]])
    still = torch.tensor([[0.0, 0.0, 0.0, -3.0]])
    assert geodesic_deg(turned, still) == pytest.approx(30)


def test_angle_in_the_plane_is_missed_by_its_mean_distance():
    metrics = factor_metrics({"angle_deg": torch.tensor([[-10.0], [20.0], [15.0]])}, {"angle_deg": torch.zeros(3, 1)})
    assert metrics["geodesic_deg"] == 15


def test_pose_deg_is_the_mean_angle_between_matrices():
    turn = Rotation.from_euler("x", [[10], [50]], degrees=True).as_matrix()
    still = torch.eye(3).flatten().expand(2, 9)
    assert pose_deg(torch.tensor(turn).flatten(1), still) == pytest.approx(30)


def test_two_examples_have_no_r2():
    target = {"dx": torch.tensor([[0.0], [1.0]])}
    assert factor_metrics(target, target) == {}


def test_auroc_is_the_probability_that_a_positive_scores_above_a_negative_ties_counting_half():
    rng = np.random.default_rng(0)
    target = rng.random(300) < 0.3
    score = (rng.normal(size=300) + target).round(1)
    difference = score[target][:, None] - score[~target]
    expected = (np.sign(difference).mean() + 1) / 2
    assert auroc(torch.tensor(target)[:, None], torch.tensor(score)[:, None]) == pytest.approx(expected)
    assert auroc(torch.tensor([[0], [1]]), torch.tensor([[1.0], [1.0]])) == 0.5


def turned(count):
    """Return turns about one axis, from poses in float32: two components of the quaternions are 0 but for rounding."""
    angles = np.random.default_rng(0).uniform(-1.5, 1.5, (2, count, 1))
    base = Rotation.from_euler("xyz", [0.3, -0.7, 1.1])
    poses = (torch.tensor((base * Rotation.from_euler("z", view)).as_quat(), dtype=torch.float32) for view in angles)
    return relative_quaternion(*poses)


def test_components_that_do_not_vary_are_left_out():
    target = turned(200)
    assert (target[:, :2] != target[0, :2]).any(0).all()
    assert varying(target).tolist() == [False, False, True, True]
    assert varying(torch.tensor([[1e3, 0.0], [1e3, 1e-3]])).tolist() == [False, False]
    half = target.clone()
    half[:, 2] = target[:, 2].mean()
    metrics = factor_metrics({"rotation": target}, {"rotation": half}, pooled=True)
    assert metrics["r2/rotation"] == pytest.approx(0.5) == metrics["r2_mean"]
    assert metrics.keys() == {"r2/rotation", "r2_mean", "r2_pooled", "geodesic_deg"}


def test_a_factor_that_does_not_vary_has_no_figure_and_counts_in_no_mean():
    still, moves = torch.full((5, 1), 0.3), torch.arange(5.0)[:, None]
    metrics = factor_metrics({"floor_hue": still, "light_hue": moves}, {"floor_hue": still, "light_hue": moves})
    assert metrics == {"r2/light_hue": 1.0, "r2_mean": 1.0}
    assert factor_metrics({"floor_hue": still}, {"floor_hue": still}) == {}
    none = {"rotation": torch.zeros(0, 4)}
    assert factor_metrics(none, none) == {}
