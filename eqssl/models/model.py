"""Encoder + method + reconstruction -> one loss:

ssl(inv_1, inv_2) + weight * mse(decoder(attend(equi_1, equi_2)), target view).

Local crops go to the method's student alone: a teacher and the reconstruction see the two views.
"""

import math
from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset
from eqssl.distributed import all_reduce_mean
from eqssl.methods import build_method, count_local_crops
from eqssl.methods.base import Pair, Sizes
from eqssl.models.encoder import Encoder
from eqssl.models.reconstruction import Reconstruction, own_and_other
from eqssl.models.teacher import Teacher
from eqssl.views import Batch, Views


class Losses(NamedTuple):
    """The loss and its two terms, of all workers together, scalars with gradients; `representation` (2 B, D) is this
    worker's, detached, to watch for collapse."""

    total: Tensor
    ssl: Tensor
    recon: Tensor
    representation: Tensor


@cache
def compiled_tokens(*kind: Hashable) -> Callable[..., Tensor]:
    """Return `Encoder.tokens`, compiled once per process for all encoders of a kind, such as those of a study's trials.

    Args:
        kind: configuration and sizes of the encoder; each has its own compiled code.
    """
    compiled: Callable[..., Tensor] = partial(torch.compile, isolate_recompiles=True)(Encoder.tokens)
    return compiled


class Model(nn.Module):
    """The encoder in training, with its method and reconstruction; see the loss at the top of this file.

    Args:
        config: the run.
        dataset: its data, for the sizes.

    Raises:
        ValueError: for a method, an encoder or an option that does not exist or does not fit.
    """

    def __init__(self, config: RunConfig, dataset: Dataset):
        super().__init__()
        size = (dataset.channels, dataset.image_size)
        self.encoder = Encoder(config.encoder, *size, dataset.mean, dataset.std, count_local_crops(config))
        self.encode: Callable[..., Tensor] = Encoder.tokens
        if config.train.compile:
            self.encode = compiled_tokens(config.encoder, *size)
        views = Views(config, dataset)
        sizes = Sizes(
            inv=self.encoder.dim_inv,
            equi=self.encoder.dim - self.encoder.dim_inv,
            width=self.encoder.backbone.width,
            tokens=math.prod(self.encoder.grid),
            num_classes=dataset.num_classes,
            theta=views.theta_sizes(),
            factors=views.factor_sizes(),
        )
        self.method = build_method(config.method, sizes)
        self.teacher = None if self.method.momentum is None else Teacher(self.encoder)
        self.weight = config.recon.weight  # the training adapts it under --recon.gradient-share
        self.reconstruction = None
        if self.weight > 0:
            self.reconstruction = Reconstruction(config.recon, sizes.equi, self.encoder.grid, *size)

    def forward(self, batch: Batch, autocast: bool = False, compiled: bool = True) -> Losses:
        """Return the loss of a batch and its terms.

        Args:
            batch: this worker's share of it, views float (B, C, S, S) in [0, 1].
            autocast: whether the encoder computes in bfloat16; heads and losses never do.
            compiled: use the compiled code if the run has any; it supports only one backward pass.
        """
        encode: Callable[..., Tensor] = self.encode if compiled else Encoder.tokens

        def tokens_of(encoder: nn.Module, images: Tensor, **masked: Tensor) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                tokens = encode(encoder, images, **masked)
            return tokens.float() if autocast else tokens  # so that losses are computed in float32 or higher

        # Both views in one pass: batch normalisation sees them together, in every method alike.
        images, dim_inv = torch.cat([batch.first, batch.second]), self.encoder.dim_inv
        masked: dict[str, Any] = {}
        if batch.mask is not None:
            masked = {"mask": batch.mask, "mask_token": self.method.mask_token}
        tokens = tokens_of(self.encoder, images, **masked)
        representation = tokens.mean(1)
        required: dict[str, Any] = {name: getattr(batch, name) for name in ("theta", "mask", "labels", "factors")}
        if self.teacher is not None:
            with torch.no_grad():
                required["teacher"] = tokens_of(self.teacher.average, images)[..., :dim_inv]
        if batch.local is not None:  # in a pass of their own, since they are smaller
            required["local"] = tokens_of(self.encoder, batch.local).mean(1)[:, :dim_inv]
        inv, equi = representation.tensor_split([dim_inv], dim=1)
        ssl = self.method(Pair(inv, equi, tokens[..., :dim_inv], **required))
        if self.reconstruction is None:
            return Losses(ssl, ssl, ssl.new_zeros(()), representation.detach())
        if batch.mask is not None:
            # The target must not depend on a method's masks; encoding the views without a mask again would be wasted.
            views = batch.mask.any(1)
            views[0] = True  # not every backbone takes an empty batch
            tokens = tokens.index_put((views,), tokens_of(self.encoder, images[views]))
        own, other, target = self.reconstruction_inputs(tokens, batch)
        recon = all_reduce_mean(F.mse_loss(self.reconstruction(own, other), target))
        return Losses(ssl + self.weight * recon, ssl, recon, representation.detach())

    def reconstruction_inputs(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of the reconstruction branch and its target, see `view_ablation`.

        Args:
            tokens: (2 B, T, D), of both views.
            batch: the same views.
        """
        assert self.reconstruction is not None
        view, (first, second) = self.reconstruction.config.view, tokens[..., self.encoder.dim_inv :].chunk(2)
        target, _ = own_and_other(view, batch.first, batch.second, batch.pick_second)
        if view in ("clean", "intermediate"):
            target = getattr(batch, view)
        return *own_and_other(view, first, second, batch.pick_second), self.encoder.standardise(target)

    def update_teachers(self) -> None:
        """Move every teacher towards its student, after a step of the optimizer."""
        if self.method.momentum is not None:
            for module in self.modules():
                if isinstance(module, Teacher):
                    module.update(self.method.momentum_now())
