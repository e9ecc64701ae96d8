"""kNN against scikit-learn, and the linear and MLP probes on what they can and cannot know."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from eqssl.evaluation.knn import knn_predict
from eqssl.evaluation.linear import STRENGTHS, linear_predict
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.r2 import r2
from eqssl.evaluation.ridge import fit, moments
from eqssl.evaluation.selection import hold_back


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
    held = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    assert knn_predict(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), labels, held, 1).tolist() == [2**40, 7]


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


def test_an_object_is_fitted_or_chooses_and_never_both():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    objects = torch.arange(60) % 20 * 7
    chosen, fitted = hold_back(order, 5, objects)
    assert torch.equal(torch.cat([chosen, fitted]).sort().values, torch.arange(60))
    assert len(objects[chosen].unique()) == 4 and not torch.isin(objects[fitted], objects[chosen]).any()
    assert torch.equal(objects[chosen].unique(), objects[order[:4]].unique())  # those that come first
    for few, one_in, least in ((7, 5, 0), (3, 5, 0), (3, 10, 1)):  # where every sample is its own, the first of them
        order = torch.arange(few).flip(0)
        expected = order.tensor_split([max(least, few // one_in)])
        for objects in (None, torch.arange(few) * 3, torch.zeros(few)):
            assert all(map(torch.equal, hold_back(order, one_in, objects, least), expected))


@pytest.fixture
def views_of_objects():
    """Features whose first column names the object, of five views each, in some order; classes of the objects."""
    objects = torch.arange(40).repeat_interleave(5)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    x[:, 0] = objects
    return x, objects % 3, objects


def test_the_penalty_of_the_linear_probe_is_chosen_on_other_objects(views_of_objects, monkeypatch):
    fitted, scored = [], []
    fit, score = Pipeline.fit, Pipeline.score
    monkeypatch.setattr(Pipeline, "fit", lambda model, x, y: fitted.append(set(x[:, 0])) or fit(model, x, y))
    monkeypatch.setattr(Pipeline, "score", lambda model, x, y: scored.append(set(x[:, 0])) or score(model, x, y))
    x, labels, objects = views_of_objects
    linear_predict(x, labels, x[:3], objects)
    assert [len(seen) for seen in scored] == [8] * len(STRENGTHS) and len(fitted[-1]) == 40
    assert all(seen.isdisjoint(asked) for seen, asked in zip(fitted, scored, strict=False))


def test_the_epoch_of_the_mlp_is_chosen_on_other_objects(views_of_objects, monkeypatch):
    fitted, scored = set(), set()

    def mse_loss(predicted, target):
        (fitted if torch.is_grad_enabled() else scored).update(target[:, 0].tolist())
        return (predicted - target).square().mean()

    monkeypatch.setattr("eqssl.evaluation.mlp.F.mse_loss", mse_loss)
    x, _, objects = views_of_objects
    mlp_predict(x, x[:, :1], x[:3], objects=objects)
    assert len(scored) == 4 and len(fitted) == 36 and scored.isdisjoint(fitted)


def test_images_of_one_class_are_refused_with_the_split():
    with pytest.raises(
        ValueError, match=r"the 8 images of the train split .* all of class 3; .*--evaluate.train-images"
    ):
        linear_predict(torch.randn(8, 2), torch.full((8,), 3), torch.randn(2, 2))


def test_a_probe_that_could_choose_on_one_class_alone_takes_the_least_penalty():
    x = torch.tensor([[1.0], [-1.0], [-1.1], [-0.9], [-1.0]])
    assert linear_predict(x, torch.tensor([1, 0, 0, 0, 0]), torch.tensor([[3.0], [-1.0]])).tolist() == [1, 0]
