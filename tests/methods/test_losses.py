"""Every loss against an independent NumPy formula in float64."""

import numpy as np
import pytest
import torch

from eqssl.config import MethodConfig
from eqssl.methods import METHODS, build_method, register_method
from eqssl.methods.simclr import nt_xent
from eqssl.methods.vicreg import vicreg_loss

rng = np.random.default_rng(0)
Z1, Z2 = rng.normal(size=(2, 12, 5))
Z2 = Z1 + 0.3 * Z2


def test_nt_xent():
    z = np.concatenate([Z1, Z2])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(24):
        scores = [np.exp(z[i] @ z[j] / 0.2) for j in range(24) if j != i]
        total -= np.log(np.exp(z[i] @ z[(i + 12) % 24] / 0.2) / sum(scores))
    assert nt_xent(torch.tensor(Z1), torch.tensor(Z2), 0.2).item() == pytest.approx(total / 24, rel=1e-10)


def test_vicreg():
    def variance(z):
        return np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()

    def covariance(z):
        cov = np.cov(z.T)
        return (cov[~np.eye(5, dtype=bool)] ** 2).sum() / 5

    expected = 25 * ((Z1 - Z2) ** 2).mean()
    expected += 25 * (variance(Z1) + variance(Z2)) / 2 + covariance(Z1) + covariance(Z2)
    assert vicreg_loss(torch.tensor(Z1), torch.tensor(Z2), 25, 25, 1).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["simclr", "vicreg", "supervised", "none"])
def test_every_method_trains_on_a_pair(name):
    torch.manual_seed(0)
    method = build_method(MethodConfig(name=name), 16, 4)
    first, second = torch.randn(2, 8, 16, requires_grad=True)
    loss = method(first, second, torch.arange(8) % 4)
    assert loss.ndim == 0 and loss.isfinite()


def test_options_reach_the_method_and_unknown_ones_are_refused():
    method = build_method(MethodConfig(name="simclr", options={"temperature": 0.5, "width": 32.0}), 16, 4)
    assert method.temperature == 0.5 and method.projector[0].out_features == 32
    with pytest.raises(ValueError, match=r"--method.options tau is no option of simclr; allowed: width .*temperature"):
        build_method(MethodConfig(name="simclr", options={"tau": 1.0}), 16, 4)
    with pytest.raises(ValueError, match=r"--method.name is 'simclear'; allowed: simclr"):
        build_method(MethodConfig(name="simclear"), 16, 4)
    with pytest.raises(ValueError, match="supervised needs labels"):
        build_method(MethodConfig(name="supervised"), 16, 0)


def test_a_method_of_ones_own_needs_no_fork(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", "")

    class Mine(torch.nn.Module):
        def __init__(self, dim, num_classes, *, scale: float = 1.0):
            super().__init__()
            self.scale = scale

        def forward(self, first, second, labels):
            return self.scale * (first - second).square().mean()

    register_method("mine", Mine)
    method = build_method(MethodConfig(name="mine", options={"scale": 3.0}), 16, 0)
    assert method(torch.ones(2, 16), torch.zeros(2, 16), None) == 3.0
