"""Small sets of images whose figures are known beforehand."""

import os

import pytest
import torch

from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.data.rotation import euler_to_quaternion
from eqssl.files import as_path
from tests.storage import Proxy, s3_at, s3_server

SIDE = 32
MAX_PROCESSES = 4  # each imports torch


def pytest_xdist_auto_num_workers(config):
    """Run the fast suite in a process per core; named files and slow tests, which share a Ray, run in one."""
    if config.option.markexpr != "not slow" or config.args != config.getini("testpaths"):
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread per process, not per core
    return min(MAX_PROCESSES, os.cpu_count() or 1)


def as_dataset(name, splits, channels, paired=False, classes=0):
    return Dataset(
        name, *splits, paired=paired, channels=channels, image_size=SIDE, num_classes=classes,
        mean=(0.5,) * channels, std=(0.25,) * channels, digest="0" * 16,
    )  # fmt: skip


@pytest.fixture(scope="session")
def flat_images():
    """Colour images of one grey each; the class is whether it is light, and 0 for two in three."""

    def split(start, count):
        ids = torch.arange(start, start + count)
        labels = (torch.rand(count, generator=torch.Generator().manual_seed(start)) < 1 / 3).long()
        level = 80 + 60 * labels + ids % 10
        pixels = level[:, None, None, None].expand(-1, 3, SIDE, SIDE).to(torch.uint8)
        return Split(MemoryImages(pixels), ids, labels)

    return as_dataset("flat", [split(0, 600), split(600, 300), split(900, 300)], channels=3, classes=2)


@pytest.fixture(scope="session")
def textured_images():
    """Grey images of smooth noise, without labels."""

    def split(start, count):
        noise = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(start))
        pixels = torch.nn.functional.interpolate(noise, SIDE, mode="bilinear") * 255
        return Split(MemoryImages(pixels.to(torch.uint8)), torch.arange(start, start + count))

    return as_dataset("textured", [split(0, 300), split(300, 200), split(500, 200)], channels=1)


@pytest.fixture(scope="session")
def objects():
    """Three views each of objects; the first pixels spell pose and hue, and the light never changes."""

    def split(start, count):
        generator = torch.Generator().manual_seed(start)
        euler = (torch.rand(3 * count, 3, generator=generator) - 0.5) * torch.pi
        factors = {
            "quaternion": euler_to_quaternion(euler),
            "floor_hue": torch.rand(3 * count, 1, generator=generator),
            "light_hue": torch.zeros(3 * count, 1),
        }
        pixels = torch.zeros(3 * count, 3, SIDE, SIDE, dtype=torch.uint8)
        pixels[:, 0, 0, :5] = (torch.cat([factors["quaternion"], factors["floor_hue"]], 1) * 127 + 128).to(torch.uint8)
        ids = torch.arange(start, start + 3 * count)
        return Split(MemoryImages(pixels), ids, objects=ids // 3, factors=factors)

    return as_dataset("objects", [split(0, 300), split(900, 100), split(1200, 100)], channels=3, paired=True)


@pytest.fixture(scope="module")
def s3():
    """Return a way to a real S3 server with a bucket `studies`, that the environment names."""
    with s3_server() as port:
        proxy = Proxy(port)
        with s3_at(proxy.port):
            as_path("s3://studies").fs.mkdir("studies")
            yield proxy
        proxy.away()
