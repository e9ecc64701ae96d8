"""How images reach a training that does not wait for them: they lie on its device, or are read ahead."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from eqssl.data.dataset import ImageStore, MemoryImages, Split

RESIDENT_SHARE = 0.1  # of a GPU's free memory is for images; the training needs the rest
AHEAD = 2  # while one is copied to the device, the next is read

T, U = TypeVar("T"), TypeVar("U")


def resident(split: Split, device: torch.device) -> Split:
    """Return a split with its images on the GPU, as uint8, if they are in memory and take a tenth of what it has free.

    Args:
        split: of the training; returned as it is where it is not moved.
        device: of the training.
    """
    images = split.images
    if device.type == "cpu" or not isinstance(images, MemoryImages):
        return split
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, of an earlier trial
    if images.pixels.nbytes > RESIDENT_SHARE * (torch.cuda.mem_get_info(device)[0] + kept):
        return split
    return dataclasses.replace(split, images=dataclasses.replace(images, pixels=images.pixels.to(device)))


def lie_on(images: ImageStore, device: torch.device) -> bool:
    """Return whether taking images is a copy within the device's memory, which needs no reading ahead."""
    return isinstance(images, MemoryImages) and images.pixels.device.type == device.type


def read_ahead(read: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield read(item) of every item in turn, the next ones read by a thread meanwhile.

    Args:
        read: raises what it raises when its item's turn comes.
        items: taken up to two before their turn.
    """
    thread, pending = ThreadPoolExecutor(1, "read-ahead"), deque[Future[U]]()
    try:
        for item in items:
            pending.append(thread.submit(read, item))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
