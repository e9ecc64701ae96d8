import numpy as np
import pytest
import torch
from scipy import stats

from eqssl.random import _splitmix, counter_uniform, permutation

IDS = torch.arange(20_000)


def test_splitmix64_gives_the_published_sequence() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    bits = _splitmix(torch.tensor(0), torch.arange(4))
    assert [b % 2**64 for b in bits.tolist()] == published


def test_stored_values() -> None:
    drawn = counter_uniform(seed=7, epoch=3, ids=torch.tensor([0, 1, 123_456_789]), stream=2, n=2)
    assert drawn.mul(2**24).tolist() == [[2153228, 5541542], [7589394, 12792908], [16305110, 4086353]]
    assert permutation(seed=7, epoch=3, n=8).tolist() == [6, 7, 3, 2, 1, 4, 0, 5]


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (0, 1, 0), (12, 300, 21), (2**62, 5, 1)])
def test_numbers_are_uniform(seed: int, epoch: int, stream: int) -> None:
    drawn = counter_uniform(seed, epoch, IDS, stream, 3)
    assert drawn.dtype == torch.float32 and drawn.shape == (len(IDS), 3)
    assert drawn.min() >= 0 and drawn.max() < 1
    for column in drawn.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-3
        assert stats.chisquare(np.histogram(column, bins=256, range=(0, 1))[0]).pvalue > 1e-3


def test_neighbours_are_uncorrelated() -> None:
    drawn = counter_uniform(0, 0, IDS, 0, 2)[:, 0]
    neighbours = {
        "id": counter_uniform(0, 0, IDS + 1, 0, 1)[:, 0],
        "column": counter_uniform(0, 0, IDS, 0, 2)[:, 1],
        "stream": counter_uniform(0, 0, IDS, 1, 1)[:, 0],
        "epoch": counter_uniform(0, 1, IDS, 0, 1)[:, 0],
        "seed": counter_uniform(1, 0, IDS, 0, 1)[:, 0],
    }
    for name, other in neighbours.items():
        joint = np.histogram2d(drawn.numpy(), other.numpy(), bins=16, range=[(0, 1), (0, 1)])[0]
        assert abs(stats.pearsonr(drawn, other).statistic) < 4 / len(IDS) ** 0.5, name
        assert stats.chisquare(joint.ravel()).pvalue > 1e-3, name


def test_a_row_depends_on_its_own_id_alone() -> None:
    whole = counter_uniform(1, 2, IDS, 3, 4)
    order = permutation(0, 0, len(IDS))[:100]
    assert torch.equal(counter_uniform(1, 2, IDS[order], 3, 4), whole[order])
    assert torch.equal(counter_uniform(1, 2, IDS[:1], 3, 4), whole[:1])
    assert torch.equal(counter_uniform(1, 2, IDS, 3, 1), whole[:, :1])


def test_the_largest_number_is_below_one() -> None:
    id_with_all_bits_set = torch.tensor([15_238_145])
    assert counter_uniform(0, 0, id_with_all_bits_set, 0, 1).item() == 1 - 2**-24


def test_permutation_is_a_fair_shuffle() -> None:
    orders = torch.stack([permutation(seed, 4, 6) for seed in range(3000)])
    assert torch.equal(orders.sort(dim=1).values, torch.arange(6).expand(3000, 6))
    counts = torch.stack([(orders == image).sum(0) for image in range(6)])
    assert stats.chisquare(counts.ravel(), ddof=10).pvalue > 1e-3, "25 of the 36 counts are free"
    assert not torch.equal(permutation(0, 0, 1000), permutation(0, 1, 1000))
    assert torch.equal(permutation(0, 0, 1000), permutation(0, 0, 1000))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_gives_the_same_bits() -> None:
    assert torch.equal(counter_uniform(1, 2, IDS.cuda(), 3, 4).cpu(), counter_uniform(1, 2, IDS, 3, 4))
