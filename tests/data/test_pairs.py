import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eqssl.data.dataset import MemoryImages, Split
from eqssl.data.pairs import absolute_factors, pair_indices, relative_transform


def split(objects: list[int]) -> Split:
    n = len(objects)
    return Split(MemoryImages(torch.zeros(n, 1, 1, 1, dtype=torch.uint8)), torch.arange(100, 100 + n),
                 objects=torch.tensor(objects))  # fmt: skip


def test_image_pairs_are_one_image_twice():
    indices = torch.tensor([3, 1])
    first, second = pair_indices(split([0, 1, 2, 3]), indices, epoch=0, seed=0, paired=False)
    assert torch.equal(first, indices) and torch.equal(second, indices)


def test_second_is_another_view_of_the_same_object():
    data = split([*torch.arange(50).repeat(5)[torch.randperm(250)].tolist(), 77, 77])
    indices = torch.arange(len(data))
    for epoch in range(20):
        first, second = pair_indices(data, indices, epoch=epoch, seed=1, paired=True)
        assert torch.equal(first, indices) and (second != first).all()
        assert torch.equal(data.objects[first], data.objects[second])


def test_every_other_view_is_drawn_alike():
    data = split([0] * 5 + [1] * 2)
    draws = torch.stack([pair_indices(data, torch.tensor([2]), e, 0, True)[1] for e in range(4000)])
    counts = draws.flatten().bincount(minlength=7)
    assert counts[2] == 0 and counts[5:].sum() == 0
    assert ((counts[[0, 1, 3, 4]] - 1000).abs() < 120).all()  # over four standard deviations


def test_a_draw_belongs_to_the_image_not_to_its_batch():
    data = split([i // 4 for i in range(80)])
    everything = pair_indices(data, torch.arange(80), epoch=3, seed=5, paired=True)[1]
    some = torch.tensor([70, 2, 33])
    assert torch.equal(pair_indices(data, some, epoch=3, seed=5, paired=True)[1], everything[some])
    assert not torch.equal(pair_indices(data, torch.arange(80), epoch=4, seed=5, paired=True)[1], everything)
    assert not torch.equal(pair_indices(data, torch.arange(80), epoch=3, seed=6, paired=True)[1], everything)


def test_an_object_with_a_single_view_is_named():
    with pytest.raises(ValueError, match="object 42 has a single view"):
        pair_indices(split([1, 1, 42, 3, 3]), torch.tensor([0]), epoch=0, seed=0, paired=True)


def with_factors() -> Split:
    quaternion = torch.tensor(Rotation.random(40, random_state=0).as_quat(), dtype=torch.float32)
    hue = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(split([0] * 40), factors={"quaternion": quaternion, "floor_hue": hue})


def test_absolute_factors_are_those_of_one_view():
    data, indices = with_factors(), torch.tensor([[3, 1, 39], [0, 0, 7]])
    factors = absolute_factors(data, indices)
    assert {name: value.shape for name, value in factors.items()} == {"pose": (2, 3, 9), "floor_hue": (2, 3, 2)}
    expected = Rotation.from_quat(data.factors["quaternion"][indices].view(6, 4).numpy()).as_matrix()
    np.testing.assert_allclose(factors["pose"].view(6, 3, 3), expected, atol=1e-6)
    angle = 2 * np.pi * data.factors["floor_hue"][indices, 0].numpy()
    np.testing.assert_allclose(factors["floor_hue"], np.stack([np.cos(angle), np.sin(angle)], -1), atol=1e-6)
    assert absolute_factors(split([0, 0]), torch.tensor([0])) == {}


def test_the_transform_between_views_leads_from_one_to_the_other():
    data, one, two = with_factors(), torch.arange(20), torch.arange(20, 40)
    between, (first, second) = relative_transform(data, one, two), (absolute_factors(data, i) for i in (one, two))
    matrices = (p["pose"].view(-1, 3, 3) for p in (first, between, second))
    start, turn, end = matrices
    torch.testing.assert_close(start @ turn, end)
    cosine, sine = first["floor_hue"].unbind(1)
    turned = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2) @ between["floor_hue"][..., None]
    torch.testing.assert_close(turned[..., 0], second["floor_hue"])
    still = relative_transform(data, one, one)
    torch.testing.assert_close(still["pose"].view(-1, 3, 3), torch.eye(3).expand(20, 3, 3))
