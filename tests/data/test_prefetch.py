import threading
import time

import pytest
import torch

from eqssl.data.dataset import MemoryImages, Split
from eqssl.data.prefetch import AHEAD, lie_on, read_ahead, resident
from eqssl.data.stores import ResizedImages

CPU = torch.device("cpu")


def test_what_is_read_ahead_comes_in_its_order_from_a_thread():
    threads = set()

    def read(item):
        threads.add(threading.current_thread())
        return item * 10

    assert list(read_ahead(read, range(7))) == [0, 10, 20, 30, 40, 50, 60]
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_the_next_items_are_read_while_one_is_worked_on_and_no_more_than_these():
    begun = []

    def read(item):
        begun.append(item)
        return item

    items = read_ahead(read, range(100))
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(begun) < AHEAD + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun == list(range(AHEAD + 1))
    items.close()


def test_an_error_comes_when_its_item_does_and_what_is_left_is_not_read():
    begun, go_on = [], threading.Event()

    def read(item):
        begun.append(item)
        if item == 0:
            raise ValueError("image 0")
        go_on.wait(10)

    with pytest.raises(ValueError, match="image 0"):
        try:
            threading.Timer(1.0, go_on.set).start()
            next(read_ahead(read, range(100)))
        finally:
            go_on.set()
    assert begun in ([0], [0, 1])  # not 2, which was waiting


def test_images_in_memory_lie_on_the_cpu_and_stay_there():
    split = Split(MemoryImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), torch.arange(2))
    assert resident(split, CPU) is split and lie_on(split.images, CPU)
    assert not lie_on(split.images, torch.device("cuda"))
    assert not lie_on(ResizedImages(split.images, 4), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_that_fit_are_moved_to_the_gpu():
    split = Split(MemoryImages(torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)), torch.arange(8))
    moved = resident(split, torch.device("cuda"))
    assert lie_on(moved.images, torch.device("cuda")) and split.images.pixels.device == CPU
    assert moved.images.take(torch.tensor([5, 2])).flatten().tolist() == [5, 2]
