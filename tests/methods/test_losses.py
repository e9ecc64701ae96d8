"""Every loss against an independent NumPy formula in float64, and against lightly's where it has one."""

import numpy as np
import pytest
import torch

from eqssl.methods.barlow_twins import barlow_twins_loss
from eqssl.methods.byol import byol_loss
from eqssl.methods.moco_v3 import moco_v3_loss
from eqssl.methods.simclr import nt_xent
from eqssl.methods.simsiam import simsiam_loss
from eqssl.methods.vicreg import vicreg_loss

B, D = 12, 5
rng = np.random.default_rng(0)
Z1, Z2 = rng.normal(size=(2, B, D))
Z2 = Z1 + 0.3 * Z2
T1, T2 = torch.tensor(Z1), torch.tensor(Z2)

LOSSES = {
    "simclr": lambda a, b: nt_xent(a, b, 0.2),
    "vicreg": lambda a, b: vicreg_loss(a, b, 25, 25, 1),
    "barlow_twins": lambda a, b: barlow_twins_loss(a, b, 0.005),
    "byol": byol_loss,
    "simsiam": simsiam_loss,
    "moco_v3": lambda a, b: moco_v3_loss(a, b, 0.2),
}


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def simclr():
    z = unit(np.concatenate([Z1, Z2]))
    total = 0.0
    for i in range(2 * B):
        scores = [np.exp(z[i] @ z[j] / 0.2) for j in range(2 * B) if j != i]
        total -= np.log(np.exp(z[i] @ z[(i + B) % (2 * B)] / 0.2) / sum(scores))
    return total / (2 * B)


def vicreg():
    def variance(z):
        return np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()

    def covariance(z):
        cov = np.cov(z.T)
        return (cov[~np.eye(D, dtype=bool)] ** 2).sum() / D

    similarity = 25 * ((Z1 - Z2) ** 2).mean()
    return similarity + 25 * (variance(Z1) + variance(Z2)) / 2 + covariance(Z1) + covariance(Z2)


def barlow_twins():
    total = 0.0
    for i in range(D):
        for j in range(D):
            a, b = Z1[:, i], Z2[:, j]
            c = ((a - a.mean()) * (b - b.mean())).mean() / np.sqrt((a.var() + 1e-5) * (b.var() + 1e-5))
            total += (1 - c) ** 2 if i == j else 0.005 * c**2
    return total


def byol():
    return ((unit(Z1) - unit(Z2)) ** 2).sum(1).mean()


def simsiam():
    return -np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(Z1, Z2, strict=True)])


def moco_v3():
    q, k = unit(Z1), unit(Z2)
    scores = [[np.exp(q[i] @ k[j] / 0.2) for j in range(B)] for i in range(B)]
    return 2 * 0.2 * np.mean([-np.log(scores[i][i] / sum(scores[i])) for i in range(B)])


@pytest.mark.parametrize("formula", [simclr, vicreg, barlow_twins, byol, simsiam, moco_v3])
def test_loss_is_that_of_the_formula(formula):
    assert LOSSES[formula.__name__](T1, T2).item() == pytest.approx(formula(), rel=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_knows_who_belongs_to_whom_and_no_order(name):
    loss, order = LOSSES[name], torch.randperm(B, generator=torch.Generator().manual_seed(0))
    assert loss(T1[order], T2[order]).item() == pytest.approx(loss(T1, T2).item(), rel=1e-10)
    assert loss(T1, T2[order]) > loss(T1, T2) + 0.1


@pytest.mark.parametrize("formula", [vicreg, barlow_twins])
def test_loss_is_that_of_the_formula_where_the_width_exceeds_the_batch(formula, monkeypatch):
    wide = np.random.default_rng(1).normal(size=(2, 7, 30))
    for name, value in {"Z1": wide[0], "Z2": wide[0] + 0.3 * wide[1], "B": 7, "D": 30}.items():
        monkeypatch.setitem(globals(), name, value)
    loss = LOSSES[formula.__name__](torch.tensor(Z1), torch.tensor(Z2))
    assert loss.item() == pytest.approx(formula(), rel=1e-10)


@pytest.fixture(scope="module")
def lightly():
    from lightly import loss  # 10 s, since it imports torchvision and timm

    return loss


def test_lightly_has_the_same_nt_xent(lightly):
    assert nt_xent(T1, T2, 0.2).item() == pytest.approx(lightly.NTXentLoss(0.2)(T1, T2).item(), rel=1e-10)


def test_lightly_has_the_same_vicreg_with_the_variance_halved(lightly):
    # So have the authors' code and SIE's; Eq. 6 of the paper and solo-learn do not halve it.
    expected = lightly.VICRegLoss(25, 25, 1)(T1, T2).item()
    assert vicreg_loss(T1, T2, 25, 25, 1).item() == pytest.approx(expected, rel=1e-10)


def test_lightly_has_the_same_barlow_twins_before_our_loss_scale(lightly):
    expected = lightly.BarlowTwinsLoss(0.005)(T1, T2).item()
    assert barlow_twins_loss(T1, T2, 0.005).item() == pytest.approx(expected, rel=1e-10)


def test_lightly_has_the_same_simsiam_and_byol_is_two_more_than_twice_it(lightly):
    expected = lightly.NegativeCosineSimilarity()(T1, T2).item()
    assert simsiam_loss(T1, T2).item() == pytest.approx(expected, rel=1e-10)
    assert byol_loss(T1, T2).item() == pytest.approx(2 + 2 * expected, rel=1e-10)


def test_lightly_has_the_same_moco_v3_with_the_other_images_keys_in_its_queue_and_without_two_tau(lightly):
    keys, total = torch.nn.functional.normalize(T2, dim=1), 0.0
    for i in range(B):
        info_nce = lightly.NTXentLoss(0.2, memory_bank_size=(B - 1, D))
        info_nce.memory_bank.bank = torch.cat([keys[:i], keys[i + 1 :]])
        total += info_nce(T1[i : i + 1], T2[i : i + 1]).item()
    assert moco_v3_loss(T1, T2, 0.2).item() == pytest.approx(2 * 0.2 * total / B, rel=1e-10)
