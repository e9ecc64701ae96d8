"""Encoders to evaluate: the reference rows pixels and constant, exported encoders on any images, models by name."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.augment import luma
from eqssl.config import EncoderConfig
from eqssl.data.dataset import Dataset
from eqssl.models.encoder import Encoder
from eqssl.models.export import load_encoder
from eqssl.models.pretrained import is_folder, model_of

MAX_VALUES = 1024
GRID = (4, 4)  # of the default encoder at the default size


class ReferenceRow(nn.Module):
    """An encoder without weights, whose tokens are the features of patches.

    Args:
        grid: rows and columns of the token map.
    """

    def __init__(self, grid: tuple[int, int] = GRID):
        super().__init__()
        self.grid = grid

    def tokens(self, images: Tensor) -> Tensor:
        """Return the features of each patch of a grid, (B, T, D), row by row; resampled to divide the image equally."""
        sides = [-(-side // count) for side, count in zip(images.shape[2:], self.grid, strict=True)]
        size = [side * count for side, count in zip(sides, self.grid, strict=True)]
        if list(images.shape[2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        patches = images.unfold(2, sides[0], sides[0]).unfold(3, sides[1], sides[1])  # (B, C, rows, columns, h, w)
        return self(patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)).unflatten(0, (len(images), -1))


class Pixels(ReferenceRow):
    """Pixels as features: averaged over 2x2 until at most 1024 values are left (32x32 grey, 16x16 in colour)."""

    def forward(self, images: Tensor) -> Tensor:
        while images[0].numel() > MAX_VALUES:
            images = F.avg_pool2d(images, 2)
        return images.flatten(1)


class Constant(ReferenceRow):
    """One feature that is the same for every image: the floor of every metric."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1, device=images.device)


class Transferred(nn.Module):
    """An encoder on images with other channels or another size: colour reduced to luma, grey repeated, and resized.

    Args:
        encoder: built for `encoder.channels` and `encoder.image_size`.
        channels, image_size: of the images.

    Attributes:
        changes: descriptions of the changes to the images; empty if they fit the encoder.
    """

    def __init__(self, encoder: Encoder, channels: int, image_size: int):
        super().__init__()
        self.encoder, self.dim_inv, self.grid = encoder, encoder.dim_inv, encoder.grid
        self.changes = []
        if channels != encoder.channels:
            self.changes.append("luma of colour images" if channels == 3 else "grey images as three equal channels")
        if image_size != encoder.image_size:
            self.changes.append(f"{image_size} px resized to {encoder.image_size} px")

    def convert(self, images: Tensor) -> Tensor:
        """Return images for the encoder from images float (B, C, S, S) in [0, 1]."""
        size = (self.encoder.image_size,) * 2
        if self.encoder.channels == 1:
            images = luma(images)
        images = images.expand(-1, self.encoder.channels, -1, -1)
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return images

    def tokens(self, images: Tensor) -> Tensor:
        """Return tokens (B, T, D) from images float (B, C, S, S) in [0, 1]."""
        return self.encoder.tokens(self.convert(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return the representation (B, D) from images float (B, C, S, S) in [0, 1]."""
        return self.encoder(self.convert(images))


ROWS: dict[str, type[ReferenceRow]] = {"pixels": Pixels, "constant": Constant}


def load_model(model: str, dataset: Dataset, pretrained: bool) -> nn.Module:
    """Return an encoder for the dataset's images: a reference row, an exported encoder, or a model by name.

    Images with other channels or another size are converted for an exported encoder (`Transferred`); a model by name,
    or in one of timm's folders, is built for the images, and its features are not split.

    Raises:
        ValueError: for a folder without an encoder, or an unknown name.
    """
    if model in ROWS:
        return ROWS[model]()
    config = EncoderConfig(name=model, equi_fraction=0, pretrained=pretrained)
    if is_folder(model) and (name := model_of(model)):
        config = EncoderConfig(name=name, equi_fraction=0, pretrained=model)
    elif is_folder(model):
        encoder = load_encoder(model)
        transferred = Transferred(encoder, dataset.channels, dataset.image_size)
        return transferred if transferred.changes else encoder
    return Encoder(config, dataset.channels, dataset.image_size, dataset.mean, dataset.std)
