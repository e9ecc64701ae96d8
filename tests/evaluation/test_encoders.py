"""Encoders on other images than they were made for."""

import pytest
import torch

from eqssl.config import EncoderConfig
from eqssl.evaluation.encoders import Transferred
from eqssl.models.encoder import Encoder


def made_for(channels, image_size):
    torch.manual_seed(0)
    return Encoder(EncoderConfig(), channels, image_size, (0.5,) * channels, (0.25,) * channels).eval()


def test_a_grey_encoder_sees_the_luma():
    encoder, images = made_for(1, 32), torch.rand(4, 3, 32, 32)
    transferred = Transferred(encoder, 3, 32)
    red, green, blue = images.split(1, dim=1)
    torch.testing.assert_close(transferred(images), encoder(0.2989 * red + 0.587 * green + 0.114 * blue))
    assert transferred.changes == ["luma of colour images"] and transferred.dim_inv == encoder.dim_inv


def test_a_colour_encoder_sees_grey_three_times():
    encoder, images = made_for(3, 32), torch.rand(4, 1, 32, 32)
    transferred = Transferred(encoder, 1, 32)
    torch.testing.assert_close(transferred(images), encoder(torch.cat([images] * 3, dim=1)))
    assert transferred.changes == ["grey images as three equal channels"]


@pytest.mark.parametrize("size", [16, 64])
def test_images_are_resized(size):
    encoder = made_for(3, 32)
    transferred = Transferred(encoder, 3, size)
    # What is smooth looks the same at any size.
    there, here = (((torch.arange(side) + 0.5) / side).expand(1, 3, side, side) for side in (size, 32))
    features = encoder(here)
    assert torch.nn.functional.mse_loss(transferred(there), features) < 1e-3 * features.var()
    assert transferred.changes == [f"{size} px resized to 32 px"]


def test_nothing_is_done_where_nothing_is_needed():
    encoder, images = made_for(3, 32), torch.rand(4, 3, 32, 32)
    transferred = Transferred(encoder, 3, 32)
    assert transferred.changes == [] and torch.equal(transferred(images), encoder(images))
