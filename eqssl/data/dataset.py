"""What every source of images gives: three splits of images with labels, objects and known factors.

N images, C channels, H and W, k components of a factor.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from eqssl.devices import to_device


class ImageStore(Protocol):
    """Images by index, wherever they lie."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor:
        """Return uint8 (B, C, H, W) for int64 indices (B,), in whatever thread asks."""
        ...


@dataclass(frozen=True)
class MemoryImages:
    """Images that fit in memory.

    Args:
        pixels: uint8 (N, C, H, W).
    """

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Tensor) -> Tensor:
        return self.pixels[to_device(indices, self.pixels.device)]


@dataclass(frozen=True)
class Split:
    """One of train, val and test.

    Args:
        images: the store of N images.
        ids: int64 (N,), an image's identity: all draws for it are made from this number.
        labels: int64 (N,) class, or None.
        objects: int64 (N,), equal for views of one object; None where every image is its own.
        factors: name -> float32 (N, k), what is known of every image, such as `quaternion` or `floor_hue`.
    """

    images: ImageStore
    ids: Tensor
    labels: Tensor | None = None
    objects: Tensor | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A source's images, the same in every process for the same configuration.

    Args:
        name: the source's name.
        train, val, test: disjoint splits (by object where there are objects).
        paired: whether a pair is two views of one object.
        channels: 1 or 3.
        image_size: height and width, px.
        num_classes: number of classes, 0 without labels.
        mean, std: per channel, of the training pixels in [0, 1].
        digest: 16 hexadecimal digits of the content.
        altered_by: augmentation family -> the known factor that it would alter; refused for pairs of one object.
    """

    name: str
    train: Split
    val: Split
    test: Split
    paired: bool
    channels: int
    image_size: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    altered_by: dict[str, str] = field(default_factory=dict)


Source = Callable[..., Dataset]


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]."""
    return pixels.to(torch.float32).div_(255)
