"""kNN against scikit-learn, and the linear and MLP probes on what they can and cannot know."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eqssl.data.pairs import relative_quaternion
from eqssl.data.rotation import euler_to_quaternion
from eqssl.evaluation.probes import fit_ridge, knn_predict, linear_predict, mlp_predict, split_by_object


@pytest.fixture(scope="module")
def clusters():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (2500,), generator=generator)
    return torch.randn(2500, 8, generator=generator) + torch.eye(4, 8)[labels] * 2, labels


def test_knn_equals_sklearn(clusters):
    x, labels = clusters
    theirs = KNeighborsClassifier(20, metric="cosine").fit(x[:1000], labels[:1000])
    ours = knn_predict(x[:1000], labels[:1000], x[1000:])
    np.testing.assert_array_equal(ours, theirs.predict(x[1000:]))


def test_knn_asks_for_classes_by_number_however_large():
    labels = torch.tensor([2**40, 7, 7])
    eval_pairs = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    assert knn_predict(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), labels, eval_pairs, 1).tolist() == [2**40, 7]


def test_knn_takes_all_neighbours_where_there_are_fewer():
    assert knn_predict(torch.eye(2), torch.tensor([1, 1]), torch.eye(2)).tolist() == [1, 1]


def test_linear_equals_sklearn_at_its_penalty(clusters):
    x, labels = clusters
    penalty = float(fit_ridge(x[:1000], torch.eye(4)[labels[:1000]], shared_penalty=True).penalty[0])
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000 * penalty)).fit(x[:1000], labels[:1000])
    np.testing.assert_array_equal(linear_predict(x[:1000], labels[:1000], x[1000:]), theirs.predict(x[1000:]))


def test_linear_probe_separates_classes_and_guesses_random_labels(clusters):
    x, labels = clusters

    def accuracy(labels):
        return (linear_predict(x[:1000], labels[:1000], x[1000:]) == labels[1000:]).double().mean()

    assert accuracy(labels) > 0.75
    assert accuracy(labels[torch.randperm(2500, generator=torch.Generator().manual_seed(1))]) < 0.35


def test_linear_probe_does_not_depend_on_the_scale_of_channels(clusters):
    x, labels = clusters
    scaled = x * torch.logspace(-3, 3, 8) + 5
    predicted = [linear_predict(z[:1000], labels[:1000], z[1000:]) for z in (x, scaled)]
    assert (predicted[0] == predicted[1]).double().mean() > 0.999


def test_linear_probe_of_one_image_a_class_and_large_numbers():
    eval_pairs = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert linear_predict(torch.eye(2), torch.tensor([2**40, 1]), eval_pairs).tolist() == [2**40, 1]


@pytest.mark.parametrize("count", [2, 9])
def test_mlp_of_few_samples_has_one_to_choose_its_epoch_by(count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    assert mlp_predict(x, x[:, :1], torch.zeros(3, 4)).isfinite().all()


def test_mlp_reads_what_no_linear_probe_can_and_leaves_the_random_state():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, generator=generator)
    y = torch.stack([x[:, 0] * x[:, 1], 100 + x[:, 2].abs()], 1)
    state = torch.get_rng_state()
    predicted = mlp_predict(x[:2000], y[:2000], x[2000:])
    assert torch.equal(state, torch.get_rng_state())
    assert r2_score(y[2000:], predicted, multioutput="raw_values").min() > 0.9
    assert r2_score(y[2000:], fit_ridge(x[:2000], y[:2000]).predict(x[2000:]), multioutput="raw_values").max() < 0.05


def test_an_object_is_fitted_or_chooses_and_never_both():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    objects = torch.arange(60) % 20 * 7
    chosen, fitted = split_by_object(order, objects)
    assert torch.equal(torch.cat([chosen, fitted]).sort().values, torch.arange(60))
    assert len(objects[chosen].unique()) == 2 and not torch.isin(objects[fitted], objects[chosen]).any()
    assert torch.equal(objects[chosen].unique(), objects[order[:2]].unique())  # those that come first
    for few in (3, 27):  # where every sample is its own, the first of them
        order = torch.arange(few).flip(0)
        expected = order.tensor_split([max(1, few // 10)])
        for objects in (None, torch.arange(few) * 3, torch.zeros(few)):
            assert all(map(torch.equal, split_by_object(order, objects), expected))


@pytest.fixture
def views_of_objects():
    """Features whose first column names the object, of five views each, in some order; classes of the objects."""
    objects = torch.arange(40).repeat_interleave(5)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    x[:, 0] = objects
    return x, objects % 3, objects


def test_the_epoch_of_the_mlp_is_chosen_on_other_objects(views_of_objects, monkeypatch):
    fitted, scored = set(), set()

    def mse_loss(predicted, target):
        (fitted if torch.is_grad_enabled() else scored).update(target[:, 0].tolist())
        return (predicted - target).square().mean()

    monkeypatch.setattr("eqssl.evaluation.probes.F.mse_loss", mse_loss)
    x, _, objects = views_of_objects
    mlp_predict(x, x[:, :1], x[:3], objects=objects)
    assert len(scored) == 4 and len(fitted) == 36 and scored.isdisjoint(fitted)


def test_an_mlp_of_two_true_poses_reads_the_relative_rotation():
    """It is bilinear in the two, so that a ridge reads little: .63 of quaternions, .47 of Euler angles."""
    angles = (torch.rand(2, 6000, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * torch.pi
    one, two = (euler_to_quaternion(view) for view in angles)
    x, y = torch.cat([one, two], dim=1), relative_quaternion(one, two)
    train, rest = slice(4096), slice(4096, None)
    assert r2_score(y[rest], mlp_predict(x[train], y[train], x[rest]), multioutput="raw_values").mean() > 0.98
    assert r2_score(y[rest], fit_ridge(x[train], y[train]).predict(x[rest]), multioutput="raw_values").mean() < 0.7


def test_mlp_leaves_what_does_not_vary_at_its_mean():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0.1
    y = torch.stack([x[:, 0], 0.7 + 1e-8 * x[:, 1]], 1)
    eval_pairs = x[:100] + torch.tensor([0, 0, 5.0])  # varies among held-out samples alone
    predicted = mlp_predict(x, y, eval_pairs)
    torch.testing.assert_close(predicted[:, 1], torch.full((100,), 0.7))
    assert r2_score(y[:100, :1], predicted[:, :1], multioutput="raw_values").min() > 0.9


def test_a_class_of_one_image_is_predicted():
    x = torch.tensor([[1.0], [-1.0], [-1.1], [-0.9], [-1.0]])
    assert linear_predict(x, torch.tensor([1, 0, 0, 0, 0]), torch.tensor([[3.0], [-1.0]])).tolist() == [1, 0]
