"""Image transfer that training does not wait for: a cache on the device, or a thread that reads ahead."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from eqssl.data.dataset import ImageStore, MemoryImages, Split
from eqssl.data.stores import ImageSubset

CACHE_SHARE = 0.1  # of a GPU's free memory; the training needs the rest
DEPTH = 2  # batches: while one is copied to the device, the next is read

T = TypeVar("T")
U = TypeVar("U")


def cache_on_device(split: Split, device: torch.device) -> Split:
    """Return the split with its images on the GPU, as uint8, if they are in memory and fit in a tenth of the GPU's free
    memory.

    Args:
        split: for training; returned unchanged if its images are not moved.
        device: of the training.
    """
    images = split.images
    whole = _whole(images)
    if device.type == "cpu" or not isinstance(whole, MemoryImages):
        return split
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, from earlier trials
    if len(split) * whole.pixels[0].nbytes > CACHE_SHARE * (torch.cuda.mem_get_info(device)[0] + reserved):
        return split
    pixels = whole.pixels[images.indices] if isinstance(images, ImageSubset) else whole.pixels
    return dataclasses.replace(split, images=MemoryImages(pixels.to(device)))


def is_on_device(images: ImageStore, device: torch.device) -> bool:
    """Return whether taking images is a copy within the device's memory, which needs no prefetching."""
    whole = _whole(images)
    return isinstance(whole, MemoryImages) and whole.pixels.device.type == device.type


def _whole(images: ImageStore) -> ImageStore:
    """Return the store that a subset is of, or the store itself."""
    return images.images if isinstance(images, ImageSubset) else images


def prefetch(read: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield read(item) for every item in turn, while a thread reads the next ones.

    Args:
        read: an exception that it raises is raised here at its item's turn.
        items: consumed up to two ahead of their turn.
    """
    thread, pending = ThreadPoolExecutor(1, "prefetch"), deque[Future[U]]()
    try:
        for item in items:
            pending.append(thread.submit(read, item))
            if len(pending) > DEPTH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
