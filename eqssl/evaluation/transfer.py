"""Encoders on images that they were not made for: other channels, another size."""

import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.augment import luma
from eqssl.models.encoder import Encoder


class Transferred(nn.Module):
    """An encoder that is shown what it was made for: luma of colour images or a grey image three times, resized.

    Args:
        encoder: made for `encoder.channels` and `encoder.image_size`.
        channels, image_size: of the images that it will see.

    Attributes:
        changes: what is done to the images, in words; empty where they are what it was made for.
    """

    def __init__(self, encoder: Encoder, channels: int, image_size: int):
        super().__init__()
        self.encoder, self.dim_inv = encoder, encoder.dim_inv
        self.changes = []
        if channels != encoder.channels:
            self.changes.append("luma of colour images" if channels == 3 else "grey images as three equal channels")
        if image_size != encoder.image_size:
            self.changes.append(f"{image_size} px resized to {encoder.image_size} px")

    def forward(self, images: Tensor) -> Tensor:
        """Return the representation (B, D) from images float (B, C, S, S) in [0, 1]."""
        size = (self.encoder.image_size,) * 2
        if self.encoder.channels == 1:
            images = luma(images)
        images = images.expand(-1, self.encoder.channels, -1, -1)
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.encoder(images)
