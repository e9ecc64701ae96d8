import threading
import time

import pytest
import torch

from eqssl.data.dataset import MemoryImages, Split
from eqssl.data.prefetch import DEPTH, cache_on_device, is_on_device, prefetch
from eqssl.data.stores import ResizedImages, select

CPU = torch.device("cpu")


def test_prefetched_items_come_in_their_order_from_a_thread():
    threads = set()

    def read(item):
        threads.add(threading.current_thread())
        return item * 10

    assert list(prefetch(read, range(7))) == [0, 10, 20, 30, 40, 50, 60]
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_only_the_next_items_are_read_while_one_is_worked_on():
    begun = []

    def read(item):
        begun.append(item)
        return item

    items = prefetch(read, range(100))
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(begun) < DEPTH + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun == list(range(DEPTH + 1))
    items.close()


def test_an_error_comes_at_its_items_turn_and_later_items_are_not_read():
    begun, go_on = [], threading.Event()

    def read(item):
        begun.append(item)
        if item == 0:
            raise ValueError("image 0")
        go_on.wait(10)

    with pytest.raises(ValueError, match="image 0"):
        try:
            threading.Timer(1.0, go_on.set).start()
            next(prefetch(read, range(100)))
        finally:
            go_on.set()
    assert begun in ([0], [0, 1])  # not 2, which was waiting


def test_images_in_memory_stay_on_the_cpu():
    split = Split(MemoryImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), torch.arange(2))
    assert cache_on_device(split, CPU) is split and is_on_device(split.images, CPU)
    assert not is_on_device(split.images, torch.device("cuda"))
    assert not is_on_device(ResizedImages(split.images, 4), CPU)
    assert is_on_device(select(split, torch.tensor([1])).images, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_that_fit_are_moved_to_the_gpu():
    split = Split(MemoryImages(torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)), torch.arange(8))
    moved = cache_on_device(split, torch.device("cuda"))
    assert is_on_device(moved.images, torch.device("cuda")) and split.images.pixels.device == CPU
    assert moved.images.take(torch.tensor([5, 2])).flatten().tolist() == [5, 2]
    part = cache_on_device(select(split, torch.tensor([6, 3, 1])), torch.device("cuda"))
    assert is_on_device(part.images, torch.device("cuda")) and len(part.images.pixels) == 3
    assert part.images.take(torch.tensor([2, 0])).flatten().tolist() == [1, 6]
