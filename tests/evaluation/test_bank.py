"""Which views of an object are searched."""

import torch

from eqssl.data.dataset import MemoryImages, Split
from eqssl.evaluation.bank import IMAGES, TRANSFORMS, object_views


def views_of(counts: list[int]) -> list[list[int]]:
    """Return the objects that the chosen views show, object by object."""
    objects = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    objects = objects[torch.randperm(len(objects), generator=torch.Generator().manual_seed(0))]
    split = Split(MemoryImages(torch.zeros(len(objects), 1, 1, 1)), torch.arange(len(objects)), objects=objects)
    chosen = object_views(split)
    assert len(chosen.unique()) == chosen.numel()
    return objects[chosen].tolist()


def test_an_object_that_lacks_views_is_left_out_and_takes_none_from_the_others():
    found = views_of([5, 5, 2, 5, 7, 4])
    assert sorted(found) == [[0] * 5, [1] * 5, [3] * 5, [4] * 5]


def test_there_are_enough_objects_and_views_and_no_more():
    found = views_of([2] * 100 + [60] * (2 * IMAGES))
    assert len(found) == IMAGES and {len(views) for views in found} == {TRANSFORMS}
    assert all(len(set(views)) == 1 and views[0] >= 100 for views in found)
