"""kNN against scikit-learn, and the linear and MLP probes on what they can and cannot know."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from eqssl.evaluation.knn import knn_predict
from eqssl.evaluation.linear import linear_predict
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.r2 import r2
from eqssl.evaluation.ridge import fit, moments


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


def test_knn_takes_all_neighbours_where_there_are_fewer():
    assert knn_predict(torch.eye(2), torch.tensor([1, 1]), torch.eye(2)).tolist() == [1, 1]


def test_linear_probe_separates_classes_and_guesses_random_labels(clusters):
    x, labels = clusters

    def accuracy(labels):
        return (linear_predict(x[:1000], labels[:1000], x[1000:]) == labels[1000:]).double().mean()

    assert accuracy(labels) > 0.75
    assert accuracy(labels[torch.randperm(2500, generator=torch.Generator().manual_seed(1))]) < 0.35


def test_linear_probe_of_one_image_a_class():
    assert linear_predict(torch.eye(2), torch.tensor([3, 1]), torch.eye(2)).tolist() == [3, 1]


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
    assert r2(y[2000:], predicted).min() > 0.9
    assert r2(y[2000:], fit(moments(x[:2000], y[:2000])).predict(x[2000:])).max() < 0.05
