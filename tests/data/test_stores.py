"""What all stores share."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from eqssl.data.dataset import MemoryImages
from eqssl.data.stores import APART_SIDE, channel_statistics, decode


@pytest.mark.parametrize(("side", "skip"), [(64, 1), (65, 2), (200, 4)])
def test_statistics_are_of_all_images_and_of_large_ones_in_part(side, skip):
    images = torch.randint(0, 256, (70, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 2
    expected = images[..., ::skip, ::skip].double() / 255
    mean, std = channel_statistics(MemoryImages(images))
    assert mean == pytest.approx(expected.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(expected.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize("side", [APART_SIDE - 1, APART_SIDE])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 3), ("LA", 1), ("P", 3)])
def test_channels_come_first_and_in_their_order(side, mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels).convert(mode), io.BytesIO()
    image.save(file, "PNG")
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(side, side, channels)
    assert np.array_equal(decode(file.getvalue(), None), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_range(form):
    levels, file = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64), io.BytesIO()
    Image.fromarray(levels).save(file, form)
    assert np.array_equal(decode(file.getvalue(), None), (levels >> 8)[None])


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(kind):
    file = io.BytesIO()
    Image.fromarray(np.ones((8, 8), kind)).save(file, "TIFF")
    with pytest.raises(ValueError, match=r"mode [IF], whose range is not known"):
        decode(file.getvalue(), None)
