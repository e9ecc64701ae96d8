"""What all stores share."""

import pytest
import torch

from eqssl.data.dataset import MemoryImages
from eqssl.data.stores import channel_statistics


@pytest.mark.parametrize(("side", "skip"), [(64, 1), (65, 2), (200, 4)])
def test_statistics_are_of_all_images_and_of_large_ones_in_part(side, skip):
    images = torch.randint(0, 256, (70, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 2
    expected = images[..., ::skip, ::skip].double() / 255
    mean, std = channel_statistics(MemoryImages(images))
    assert mean == pytest.approx(expected.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(expected.std((0, 2, 3), correction=0).tolist())
