"""Decoding of images, the stores for images outside memory, and operations on any store."""

import io
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from eqssl.data.dataset import ImageStore, MemoryImages, Split

STATISTICS_IMAGES = 4096
STATISTICS_PIXELS = 1 << 25  # per channel, as many as 4,096 images of 90 px have
STATISTICS_SIDE = 64  # px; in larger images rows and columns are skipped, since more images improve the estimate more
STATISTICS_CHUNK = 1 << 20  # pixels per channel at a time
DARK = 16  # levels; Pillow keeps the upper 8 bits of 16-bit colours: 0 to 15 if a camera fills only 12 bits
GREY_MODES = ("1", "L", "LA", "La")
GREY_BITS = (8, 10, 12, 14, 16)
IMAGES_AT_ONCE = 8  # in a thread, which for small images would otherwise only wait for the interpreter's lock

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """An image, and the facts that a data set collects from all of its images.

    Args:
        pixels: uint8 (C, S, S), C is 1 for a grey image, else 3.
        maximum: the largest value of a grey image of 16 bits, 0 for others.
        aspect: width / height of the encoded image.
        note: an alteration to be reported, else empty.
    """

    pixels: np.ndarray
    maximum: int
    aspect: float
    note: str


def decode(data: bytes, size: int | None, *, bits: int = 16, whole: bool = False) -> Decoded:
    """Decode an image, turn it upright by its EXIF, compose it over white and resize it.

    Args:
        data: PNG, JPEG or any other format of Pillow; only the first of several frames is read.
        size: S, px; None keeps the shorter side.
        bits: bits that 16-bit grey values use, see `bits_of`.
        whole: whether an oblong image is squeezed into the square, rather than cropped to its centre.

    Raises:
        Exception: of many types, from Pillow, for data that are not an image; ValueError for 32-bit pixels, whose range
            is unknown.
    """
    with Image.open(io.BytesIO(data)) as file:
        if size is not None:
            file.draft(None, (size, size))  # lets JPEG decode at a fraction of the resolution
        # The second image of an MPO, the photo format of many phones, is a thumbnail or a depth map.
        is_animated = getattr(file, "is_animated", False) and file.format != "MPO"
        note = "has several frames: the first is read" if is_animated else ""
        file.load()  # before EXIF is read: a PNG's may follow the pixels, and Pillow turns a TIFF upright itself
        with suppress(Exception):  # broken EXIF or XMP counts as none
            ImageOps.exif_transpose(file, in_place=True)
        side, aspect = size or min(file.size), file.width / file.height
        image, maximum = _to_eight_bits(file, bits)
        if image.has_transparency_data:
            image, transparent = _compose(image)
            note = "is transparent: composed over white" if transparent else note
        elif image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode in GREY_MODES else "RGB")
        if image.size != (side, side):
            bilinear = Image.Resampling.BILINEAR
            image = image.resize((side, side), bilinear) if whole else ImageOps.fit(image, (side, side), bilinear)
        pixels = np.asarray(image).reshape(side, side, -1).transpose(2, 0, 1)
        return Decoded(np.ascontiguousarray(pixels), maximum, aspect, note)


def bits_of(maximum: int) -> int:
    """Return how many bits a data set's 16-bit grey values use, 8, 10, 12, 14 or 16, judged by the largest one."""
    return next(bits for bits in GREY_BITS if maximum < 1 << bits)


def _to_eight_bits(image: Image.Image, bits: int) -> tuple[Image.Image, int]:
    """Return a 16-bit grey image, which Pillow would clip at 255, in 8 bits, and its largest value; others unchanged.

    Raises:
        ValueError: for 32-bit pixels.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is not known; allowed: 8 or 16 bits a channel")
    if not image.mode.startswith("I;16"):
        return image, 0
    levels, hidden = np.asarray(image), image.info.get("transparency")
    eight = Image.fromarray((levels >> (bits - 8)).clip(0, 255).astype(np.uint8))
    if isinstance(hidden, int):  # the value of transparent pixels
        shown = levels != hidden
        eight.putalpha(Image.fromarray(shown.astype(np.uint8) * 255))
        levels = levels * shown
    return eight, int(levels.max())


def _compose(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image with alpha or a transparent colour, composed over white, and whether any of it is transparent."""
    grey = image.mode in GREY_MODES
    alpha = image.convert("LA" if grey else "RGBA")
    opaque, mask = alpha.convert("L" if grey else "RGB"), alpha.getchannel("A")
    if mask.getextrema()[0] == 255:
        return opaque, False
    return Image.composite(opaque, Image.new(opaque.mode, opaque.size, "white"), mask), True


@cache
def workers() -> ThreadPoolExecutor:
    """Return this process's threads for work that releases the interpreter's lock."""
    return ThreadPoolExecutor(os.cpu_count())


def in_threads(function: Callable[[Any], T], images: Sequence[Any]) -> list[T]:
    """Return function(image) for every image, some at a time in each thread."""
    parts = [images[start : start + IMAGES_AT_ONCE] for start in range(0, len(images), IMAGES_AT_ONCE)]
    return list(chain.from_iterable(workers().map(lambda part: list(map(function, part)), parts)))


@dataclass(frozen=True)
class EncodedImages:
    """Images that do not fit in memory: encoded, in a memory-mapped file, decoded when taken.

    Args:
        column: (large) binary, N encoded images.
        size: height and width to decode to, px.
        channels: 1 or 3.
        bits, whole: see `decode`.
    """

    column: pa.ChunkedArray
    size: int
    channels: int
    bits: int = 16
    whole: bool = False

    def __len__(self) -> int:
        return len(self.column)

    def take(self, indices: Tensor) -> Tensor:
        def pixels(data: bytes) -> np.ndarray:
            return decode(data, self.size, bits=self.bits, whole=self.whole).pixels

        encoded = [self.column[i].as_buffer() for i in indices.tolist()]
        images = in_threads(pixels, encoded)
        shape = self.channels, self.size, self.size  # a grey image is repeated over the channels
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


def central_square(pixels: Tensor) -> Tensor:
    """Return the central squares (..., S, S) of images (..., H, W), S the shorter side."""
    height, width = pixels.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[..., top : top + side, left : left + side]


def _resize(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    resized = F.interpolate(pixels.float(), size=shape, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class ResizedImages:
    """The images of a store, centre-cropped and resized to `size` px when taken."""

    images: ImageStore
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> Tensor:
        return _resize(central_square(self.images.take(indices)), (self.size, self.size))


@dataclass(frozen=True)
class FramedImages:
    """Whole images, stored squeezed into squares; `take` returns their central squares, resized.

    Args:
        whole: images of R x R px, from which crops are cut.
        aspects: float64 (N,), width / height before squeezing.
        size: S, of the central square, px.
    """

    whole: ImageStore
    aspects: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, indices: Tensor) -> Tensor:
        pixels, aspects = self.whole.take(indices), self.aspects[indices]
        framed = torch.empty(*pixels.shape[:2], self.size, self.size, dtype=torch.uint8)
        for aspect in aspects.unique().tolist():
            of_aspect = aspects == aspect
            shape = round(self.size * max(1, 1 / aspect)), round(self.size * max(1, aspect))
            framed[of_aspect] = central_square(_resize(pixels[of_aspect], shape))
        return framed


def select(split: Split, indices: Tensor | slice) -> Split:
    """Return some images of a split with their labels, objects, factors and masks.

    Args:
        split: the split.
        indices: int64 (n,), or a slice. No pixel is copied.
    """
    return replace(
        split,
        images=_subset(split.images, indices),
        ids=split.ids[indices],
        labels=None if split.labels is None else split.labels[indices],
        objects=None if split.objects is None else split.objects[indices],
        factors={name: values[indices] for name, values in split.factors.items()},
        masks=None if split.masks is None else _subset(split.masks, indices),
    )


def _subset(images: ImageStore, indices: Tensor | slice) -> ImageStore:
    if isinstance(images, FramedImages):
        return replace(images, whole=_subset(images.whole, indices), aspects=images.aspects[indices])
    if isinstance(images, MemoryImages) and isinstance(indices, slice):
        return MemoryImages(images.pixels[indices])
    if isinstance(images, ImageSubset):
        return ImageSubset(images.images, images.indices[indices])
    return ImageSubset(images, torch.arange(len(images))[indices])


def channel_statistics(images: ImageStore) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels in [0, 1], over evenly spaced images.

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
    if (brightest := int(counts.sum(0).nonzero().max())) < DARK:
        logger.warning(
            "the levels of %d images are 0 to %d of 255, almost black: are they masks, or in another range?",
            n, brightest,
        )  # fmt: skip
    share = counts / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp(min=1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
