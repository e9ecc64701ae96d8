"""Features of a frozen encoder, taken once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eqssl.augment import Params, apply
from eqssl.data.dataset import Split, to_float
from eqssl.evaluation.transforms import complete

BATCH = 256


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Hold every module in inference mode without gradients, and restore each one's own mode afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(encoder: nn.Module) -> torch.device:
    """Return where an encoder lies; the CPU for one without parameters."""
    return next(encoder.parameters(), torch.empty(0)).device


def parts(encoder: nn.Module, dim: int) -> dict[str, slice]:
    """Return the channels of `all` features, and of `inv` and `equi` where the encoder's `dim_inv` is below `dim`."""
    dim_inv = getattr(encoder, "dim_inv", dim)
    split = {"inv": slice(dim_inv), "equi": slice(dim_inv, dim)} if dim_inv < dim else {}
    return {"all": slice(dim)} | split


def encode(encoder: nn.Module, split: Split, indices: Tensor, transforms: Sequence[Params | None] = (None,)) -> Tensor:
    """Return the features of images under one or more transforms, each image read once.

    Args:
        encoder: images float32 (B, C, H, W) in [0, 1] -> features (B, D); to be held by `frozen`.
        split: where the images come from.
        indices: int64 (N,), which.
        transforms: each a factor -> (N,), or None for the clean images.

    Returns:
        float32 (len(transforms), N, D) on the CPU.
    """
    device = device_of(encoder)
    batches = []
    for rows in torch.arange(len(indices)).split(BATCH):
        clean = to_float(split.images.take(indices[rows]).to(device))
        views = (clean if params is None else _transformed(clean, params, rows) for params in transforms)
        batches.append(torch.stack([encoder(view).float().cpu() for view in views]))
    return torch.cat(batches, dim=1)


def _transformed(images: Tensor, params: Params, rows: Tensor) -> Tensor:
    return apply(images, {name: value[rows] for name, value in complete(params).items()})
