"""Encoder + method + reconstruction -> one loss:

ssl(inv_1, inv_2) + weight * mse(decoder(attend(equi_1, equi_2)), target view).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset
from eqssl.encoder import Encoder
from eqssl.methods import build_method
from eqssl.reconstruction import Reconstruction


class Batch(NamedTuple):
    """Two augmented views, float (B, C, S, S) in [0, 1], and what belongs to them."""

    first: Tensor
    second: Tensor
    clean: Tensor  # the unaugmented image of the first view
    pick_second: Tensor  # bool (B,): the target where `recon.view` is `random`
    labels: Tensor | None  # int64 (B,), for the supervised reference alone


class Losses(NamedTuple):
    """The loss and its two terms, scalars; `representation` (2 B, D) is detached, for the collapse metrics."""

    total: Tensor
    ssl: Tensor
    recon: Tensor
    representation: Tensor


class Model(nn.Module):
    """What is trained; see the loss at the top of this file.

    Args:
        config: the run.
        dataset: its data, for the sizes.

    Raises:
        ValueError: for a method, an encoder or an option that cannot be had.
    """

    def __init__(self, config: RunConfig, dataset: Dataset):
        super().__init__()
        size = (dataset.channels, dataset.image_size)
        self.encoder = Encoder(config.encoder, *size, dataset.mean, dataset.std)
        self.method = build_method(config.method, self.encoder.dim_inv, dataset.num_classes)
        self.weight = config.recon.weight
        self.reconstruction = None
        if self.weight > 0:
            dim_equi = self.encoder.dim - self.encoder.dim_inv
            self.reconstruction = Reconstruction(config.recon, dim_equi, self.encoder.grid, *size)

    def forward(self, batch: Batch, autocast: bool = False) -> Losses:
        # Both views in one pass: batch normalisation sees them together, in every method alike.
        with torch.autocast(batch.first.device.type, torch.bfloat16, enabled=autocast):
            tokens = self.encoder.tokens(torch.cat([batch.first, batch.second]))
        tokens = tokens.float() if autocast else tokens
        representation = tokens.mean(1)
        inv_1, inv_2 = representation[:, : self.encoder.dim_inv].chunk(2)
        ssl = self.method(inv_1, inv_2, batch.labels)
        if self.reconstruction is None:
            return Losses(ssl, ssl.detach(), ssl.new_zeros(()), representation.detach())
        image, target = self.reconstruction(*self.reconstruction_inputs(tokens, batch))
        recon = F.mse_loss(image, target)
        return Losses(ssl + self.weight * recon, ssl.detach(), recon.detach(), representation.detach())

    def reconstruction_inputs(self, tokens: Tensor, batch: Batch) -> tuple:
        """Return the arguments of the reconstruction branch for tokens (2 B, T, D) of both views."""
        equi = tokens[..., self.encoder.dim_inv :].chunk(2)
        views = (self.encoder.standardise(batch.first), self.encoder.standardise(batch.second))
        return equi, views, self.encoder.standardise(batch.clean), batch.pick_second
