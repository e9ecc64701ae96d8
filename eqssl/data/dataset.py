"""The common form of every source: three splits of images with labels, objects and known factors.

N images, C channels, height H and width W, k components of a factor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from eqssl.devices import to_device

# Augmentation family -> the factor that it would silently alter. A mirrored object is not a rotated one. Saturation,
# brightness and contrast leave every hue unchanged.
ALTERED_BY = {
    "rotation": "quaternion",
    "flip": "quaternion",
    "hue": "floor_hue",
    "grayscale": "floor_hue",
    "solarize": "light_hue",
}


class ImageStore(Protocol):
    """Images by index, in memory or elsewhere."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor:
        """Return uint8 (B, C, H, W) for int64 indices (B,); safe in any thread."""
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
        ids: int64 (N,), the identity of each image, from which all of its random numbers are drawn.
        labels: int64 (N,) class, or None.
        objects: int64 (N,), equal for views of one object; None if every image shows a different object.
        factors: name -> float32 (N, k), the known factors of every image, such as `quaternion` or `floor_hue`.
        masks: the store of N masks, uint8 or bool (1, H', W') of any size: 0 is background, any other value the object.
            A mask covers its image or the image's central square. None if they are not known.
    """

    images: ImageStore
    ids: Tensor
    labels: Tensor | None = None
    objects: Tensor | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)
    masks: ImageStore | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """Return the number of images and the names of their annotations, without pixels."""
        known = ["labels"] * (self.labels is not None) + ["objects"] * (self.objects is not None) + [*self.factors]
        known += ["masks"] * (self.masks is not None)
        return f"Split({len(self)} images" + (f" with {', '.join(known)})" if known else ")")

    @property
    def units(self) -> Tensor:
        """int64 (N,): the object of every image, or the image itself if there are no objects."""
        return torch.arange(len(self)) if self.objects is None else self.objects

    @cached_property
    def sorted_by_object(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four int64 (N,): the images sorted by object; and for each image its rank in that order, its object's first
        rank and its object's number of views, which is 2 or more (else ValueError).
        """
        order = self.units.argsort(stable=True)
        names, inverse, counts = self.units.unique(return_inverse=True, return_counts=True)
        if len(single := names[counts < 2]):
            raise ValueError(f"object {int(single[0])} has a single view; a pair of views needs two or more")
        return order, order.argsort(), (counts.cumsum(0) - counts)[inverse], counts[inverse]


@dataclass(frozen=True)
class Dataset:
    """A source's images, the same in every process for the same configuration.

    Args:
        name: the source's name.
        train, val, test: disjoint splits (by object if there are objects).
        paired: whether a pair is two views of one object.
        channels: 1 or 3.
        image_size: height and width, px.
        num_classes: number of classes, 0 without labels.
        mean, std: per channel, of the training pixels in [0, 1].
        digest: 16 hexadecimal digits of the content.
        class_names: the source's own names or values of the labels 0, 1, ...; empty if it has none.
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
    class_names: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by their names."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def map_splits(self, function: Callable[[Split], Split]) -> "Dataset":
        """Return the data set with a function applied to each split."""
        return replace(self, train=function(self.train), val=function(self.val), test=function(self.test))

    @property
    def altered_by(self) -> dict[str, str]:
        """Augmentation family -> the known factor that it would alter; refused for pairs of one object."""
        return {family: factor for family, factor in ALTERED_BY.items() if factor in self.train.factors}


Source = Callable[..., Dataset]


def few(names: Sequence[object] | None) -> str:
    """Return the first of some names or numbers, for messages."""
    return "(none)" if not names else ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1]."""
    return pixels.to(torch.float32).div_(255)


def to_uint8(images: Tensor) -> Tensor:
    """Return images from [0, 1], beyond which they are cut off, as uint8 on the CPU."""
    return (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
