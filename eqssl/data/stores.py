"""Decoding of images, the stores for images outside memory, and operations on any store."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from torch import Tensor

from eqssl.data.dataset import ImageStore, MemoryImages, Split

STATISTICS_IMAGES = 4096
STATISTICS_PIXELS = 1 << 25  # of a channel, as 4,096 images of 90 px
STATISTICS_SIDE = 64  # px; of a larger image, rows and columns are skipped: more images improve the estimate more
STATISTICS_CHUNK = 1 << 20  # pixels of a channel, at a time
GREY_MODES = ("1", "L", "LA")
APART_SIDE = 96  # px; measured: above, Pillow takes the channels apart in half of NumPy's time
THREADS_PAY_BYTES = 8192  # measured: below, threads only wait for the interpreter's lock

T = TypeVar("T")


def decode(data: bytes, size: int | None) -> np.ndarray:
    """Return an encoded image as uint8 (C, S, S), cut to the centre and resized; C is 1 for a grey image, else 3.

    Args:
        data: PNG, JPEG or any other format of Pillow.
        size: S, px; None keeps the shorter side.

    Raises:
        Exception: of many kinds, from Pillow, for no image; ValueError for pixels of 32 bits, whose range is unknown.
    """
    with Image.open(io.BytesIO(data)) as file:
        if size is not None:
            file.draft(None, (size, size))  # lets JPEG decode at a fraction of the resolution
        image: Image.Image = file
        side = size or min(image.size)
        if image.mode.startswith("I;16"):  # which Pillow would cut off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode}, whose range is not known; allowed: 8 or 16 bits a channel")
        if image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in GREY_MODES else "RGB")
        if image.size != (side, side):
            image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
        channels = image.getbands()
        if side < APART_SIDE:
            return np.frombuffer(image.tobytes(), np.uint8).reshape(side, side, len(channels)).transpose(2, 0, 1)
        apart = b"".join(image.tobytes("raw", channel) for channel in channels)
        return np.frombuffer(apart, np.uint8).reshape(len(channels), side, side)


@cache
def workers() -> ThreadPoolExecutor:
    """Return this process's threads for work that releases the interpreter's lock."""
    return ThreadPoolExecutor(os.cpu_count())


def in_threads(function: Callable[..., T], *images: Sequence[Any], size: float) -> list[T]:
    """Return function(image) of every image, in threads if the images are large enough for that to pay.

    Args:
        function: takes one of each sequence.
        images: sequences of one length.
        size: bytes of all images.
    """
    small = size < THREADS_PAY_BYTES * len(images[0])
    return list(map(function, *images) if small else workers().map(function, *images))


@dataclass(frozen=True)
class EncodedImages:
    """Images that do not fit in memory: encoded, in a memory-mapped file, decoded when taken.

    Args:
        column: (large) binary, N encoded images.
        size: height and width to decode to, px.
        channels: 1 or 3.
    """

    column: pa.ChunkedArray
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.column)

    def take(self, indices: Tensor) -> Tensor:
        encoded = [self.column[i].as_buffer() for i in indices.tolist()]
        images = in_threads(lambda data: decode(data, self.size), encoded, size=sum(map(len, encoded)))
        shape = self.channels, self.size, self.size  # a grey image is spread over the channels
        return torch.from_numpy(np.stack([np.broadcast_to(image, shape) for image in images]))


@dataclass(frozen=True)
class ImageSubset:
    """The images of a store at indices, int64 (N,)."""

    images: ImageStore
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> Tensor:
        return self.images.take(self.indices[indices])


@dataclass(frozen=True)
class ResizedImages:
    """The images of a store, cut to the centre and resized to `size` px when taken."""

    images: ImageStore
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> Tensor:
        pixels = self.images.take(indices)
        height, width = pixels.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[..., top : top + side, left : left + side].float()
        resized = torch.nn.functional.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)


def select(split: Split, indices: Tensor | slice) -> Split:
    """Return some images of a split with their labels, objects and factors.

    Args:
        split: the split.
        indices: int64 (n,), or a slice, for which no pixel is copied.
    """
    images = split.images
    if isinstance(images, MemoryImages):
        images = MemoryImages(images.pixels[indices])
    elif isinstance(images, ImageSubset):
        images = ImageSubset(images.images, images.indices[indices])
    else:
        images = ImageSubset(images, torch.arange(len(images))[indices])
    return replace(
        split,
        images=images,
        ids=split.ids[indices],
        labels=None if split.labels is None else split.labels[indices],
        objects=None if split.objects is None else split.objects[indices],
        factors={name: values[indices] for name, values in split.factors.items()},
    )


def channel_statistics(images: ImageStore) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels in [0, 1], over images that are evenly spaced.

    Args:
        images: at most 4,096 are read, fewer above 90 px, and at most 64 x 64 pixels of each.
    """
    height, width = images.take(torch.tensor([0])).shape[-2:]
    skip = -(-max(height, width) // STATISTICS_SIDE)
    n = min(len(images), STATISTICS_IMAGES, max(1, STATISTICS_PIXELS // (height * width)))
    counts = torch.zeros(1, 256, dtype=torch.float64)  # of each channel's levels, exact in any order of the images
    for indices in torch.linspace(0, len(images) - 1, n).long().split(max(1, STATISTICS_CHUNK // (height * width))):
        levels = images.take(indices)[..., ::skip, ::skip].transpose(0, 1).flatten(1)
        counts = counts + torch.stack([channel.bincount(minlength=256) for channel in levels])
    share = counts / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp(min=1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
