"""Ridge regression against scikit-learn and against the definition of generalised cross-validation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from eqssl.evaluation.probes import PENALTIES, fit_ridge, moments


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator) * torch.logspace(-2, 3, 12) + 5
    y = (x / torch.logspace(-2, 3, 12)) @ torch.randn(12, 3, generator=generator)
    return x, y + torch.tensor([0.0, 3.0, 100.0]) * torch.randn(200, 3, generator=generator)


def test_prediction_equals_sklearn_at_the_chosen_penalty(data):
    x, y = data
    ridge = fit_ridge(x, y)
    scaler = StandardScaler().fit(x.numpy().astype(float))
    for output in range(3):
        alpha = len(x) * float(ridge.penalty[output])
        theirs = Ridge(alpha=alpha).fit(scaler.transform(x.numpy()), y[:, output].numpy())
        expected = theirs.predict(scaler.transform(x.numpy()))
        np.testing.assert_allclose(ridge.predict(x)[:, output], expected, rtol=1e-6, atol=1e-6)


def test_penalty_has_the_least_generalised_cross_validation_error(data):
    x, y = (part.double() for part in data)
    n = len(x)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    errors = []
    for penalty in PENALTIES:
        hat = z @ torch.linalg.solve(z.T @ z + n * penalty * torch.eye(12), z.T) + 1 / n
        errors.append(((y - hat @ y) ** 2).mean(0) / (1 - hat.trace() / n) ** 2)
    chosen = fit_ridge(x, y).penalty
    assert torch.equal(chosen, PENALTIES[torch.stack(errors).argmin(0)])
    assert chosen[0] < chosen[2]


def test_one_penalty_for_all_outputs_has_the_least_sum_of_their_errors(data):
    x, y = data
    z = StandardScaler().fit_transform(x.numpy().astype(float))
    theirs = RidgeCV(alphas=(len(x) * PENALTIES).numpy(), store_cv_results=True).fit(z, y.numpy())
    # scikit-learn sums leave-one-out errors, of which generalised cross-validation is the rotation-invariant form.
    shared = fit_ridge(x, y, shared_penalty=True)
    assert len(shared.penalty.unique()) == 1
    assert float(shared.penalty[0]) * len(x) == pytest.approx(theirs.alpha_)
    torch.testing.assert_close(shared.predict(x), torch.tensor(theirs.predict(z)))


def test_moments_of_blocks_are_those_of_all(data, monkeypatch):
    x, y = data
    whole = moments(x, y)
    monkeypatch.setattr("eqssl.evaluation.probes.BLOCK", 7)
    torch.testing.assert_close(moments(x, y), whole)
    assert fit_ridge(x, y).predict(x).shape == y.shape


def test_an_input_that_does_not_vary_is_left_out(data):
    x, y = data
    constant = torch.full((200, 1), 0.1)
    ridge = fit_ridge(torch.cat([x, constant], 1), y)
    assert torch.equal(ridge.weight[12], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(ridge.weight[:12], fit_ridge(x, y).weight)
    assert torch.equal(fit_ridge(constant, y).predict(constant)[0], y.double().mean(0))


def test_more_inputs_than_samples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100, 5, generator=generator) @ torch.randn(5, 150, generator=generator)
    y = x[:, :2] + x[:, 2:4]
    ridge = fit_ridge(x[:50], y[:50])
    assert (ridge.predict(x[50:]) - y[50:]).abs().max() < 0.02
    noise = torch.randn(100, 2, generator=generator)
    assert fit_ridge(torch.randn(100, 150, generator=generator), noise).predict(x).isfinite().all()
