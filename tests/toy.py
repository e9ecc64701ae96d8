"""A model and a batch that every method can run, in float64 and small, for tests that go through all of them."""

import torch

from eqssl.config import AugmentConfig, EncoderConfig, MethodConfig, ReconAttention, ReconConfig, ReconView, RunConfig
from eqssl.data.dataset import Dataset, MemoryImages, Split
from eqssl.methods import find_method
from eqssl.models.model import Model
from eqssl.views import Batch, Views

BATCH = 8

_split = Split(
    MemoryImages(torch.zeros(BATCH, 1, 32, 32, dtype=torch.uint8)), torch.arange(BATCH), torch.arange(BATCH) % 4
)
DATASET = Dataset("toy", _split, _split, _split, False, 1, 32, 4, (0.5,), (0.3,), "0")


def make_config(
    method: str, view: ReconView = "second", attention: ReconAttention = "target-queries", local_crops: int = 0
) -> RunConfig:
    """Return a run of the method with reconstruction; one that masks patches gets a vision transformer."""
    encoder = EncoderConfig(name="resnet_tiny")
    if find_method(method).draw_masks is not None:
        encoder = EncoderConfig(name="test_vit", output_stride=4)
    recon = ReconConfig(weight=0.7, width=8, view=view, attention=attention)
    augment = AugmentConfig(local_crops=local_crops)
    return RunConfig(augment=augment, encoder=encoder, method=MethodConfig(name=method), recon=recon)


def make_model(
    method: str, view: ReconView = "second", attention: ReconAttention = "target-queries", local_crops: int = 0
) -> Model:
    """Return the same model at every call; float64 from the first draw on, since those in float32 differ by CPU."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        return Model(make_config(method, view, attention, local_crops), DATASET)
    finally:
        torch.set_default_dtype(torch.float32)


def make_batch(
    method: str, rank: int = 0, world_size: int = 1, view: ReconView = "second", local_crops: int = 0
) -> Batch:
    """Return a worker's share of a batch whose views resemble each other, with all that the method asks for."""
    share = torch.arange(BATCH).tensor_split(world_size)[rank]
    views = Views(make_config(method, view), DATASET, method=find_method(method), tokens=64)
    batch = views.batch(DATASET.train, share, epoch=0)
    generator = torch.Generator().manual_seed(1)
    clean, noise, more = torch.rand(3, BATCH, 1, 32, 32, generator=generator, dtype=torch.float64)[:, share]
    theta = batch.theta and {name: values.double() for name, values in batch.theta.items()}
    images = {"first": (clean + noise) / 2, "second": (clean + more) / 2, "clean": clean}
    if batch.intermediate is not None:
        images["intermediate"] = torch.cat([(3 * clean + more) / 4, (2 * clean + more) / 3])
    if local_crops:
        crops = torch.rand(local_crops, BATCH, 1, 16, 16, generator=generator, dtype=torch.float64)
        images["local"] = crops[:, share].flatten(0, 1)
    return batch._replace(theta=theta, **images)
