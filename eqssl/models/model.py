"""Encoder + method + reconstruction -> one loss:

ssl(inv_1, inv_2) + weight * mse(decoder(attend(equi_1, equi_2)), target view).
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset
from eqssl.methods import build_method
from eqssl.methods.base import Pair, Sizes
from eqssl.models.encoder import Encoder
from eqssl.models.reconstruction import Reconstruction
from eqssl.models.teacher import Teacher
from eqssl.training.distributed import all_reduce_mean
from eqssl.views import Batch, Views


class Losses(NamedTuple):
    """The loss and its two terms, of all workers together, scalars with gradients; `representation` (2 B, D) is this
    worker's, detached, for the collapse."""

    total: Tensor
    ssl: Tensor
    recon: Tensor
    representation: Tensor


@cache
def compiled_tokens(*sizes: Hashable) -> Callable[..., Tensor]:
    """Return `Encoder.tokens`, compiled: once a process for all encoders of a kind, as those of a study's trials.

    Args:
        sizes: what tells one kind from another; each has its own compiled code.
    """
    return torch.compile(Encoder.tokens, isolate_recompiles=True)


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
        self.encode = compiled_tokens(config.encoder, *size) if config.train.compile else Encoder.tokens
        self.method = build_method(config.method, self._sizes(config, dataset))
        self.teacher = None if self.method.momentum is None else Teacher(self.encoder)
        self.weight = config.recon.weight
        self.reconstruction = None
        if self.weight > 0:
            dim_equi = self.encoder.dim - self.encoder.dim_inv
            self.reconstruction = Reconstruction(config.recon, dim_equi, self.encoder.grid, *size)

    def _sizes(self, config: RunConfig, dataset: Dataset) -> Sizes:
        encoder, views = self.encoder, Views(config, dataset)
        return Sizes(
            inv=encoder.dim_inv,
            equi=encoder.dim - encoder.dim_inv,
            width=encoder.backbone.width,
            tokens=encoder.grid[0] * encoder.grid[1],
            num_classes=dataset.num_classes,
            theta=views.theta_sizes(),
            factors=views.factor_sizes(),
        )

    def forward(self, batch: Batch, autocast: bool = False) -> Losses:
        """Return the loss of a batch and its terms.

        Args:
            batch: this worker's share of it, views float (B, C, S, S) in [0, 1].
            autocast: whether the encoder computes in bfloat16; heads and losses never do.
        """
        # Both views in one pass: batch normalisation sees them together, in every method alike.
        images = torch.cat([batch.first, batch.second])
        tokens = self._seen(images, batch.mask, autocast)
        representation = tokens.mean(1)
        ssl = self.method(self._pair(tokens, representation, images, batch, autocast))
        if self.reconstruction is None:
            return Losses(ssl, ssl, ssl.new_zeros(()), representation.detach())
        whole = self._whole(tokens, images, batch.mask, autocast)
        image, target = self.reconstruction(*self.reconstruction_inputs(whole, batch))
        recon = all_reduce_mean(F.mse_loss(image, target))
        return Losses(ssl + self.weight * recon, ssl, recon, representation.detach())

    def _seen(self, images: Tensor, mask: Tensor | None, autocast: bool) -> Tensor:
        """Return the student's tokens (2 B, T, D) of what a method lets it see of the views."""
        if mask is None:
            return self._tokens(images, autocast)
        return self._tokens(images, autocast, mask=mask, mask_token=self.method.mask_token)

    def _whole(self, tokens: Tensor, images: Tensor, mask: Tensor | None, autocast: bool) -> Tensor:
        """Return tokens (2 B, T, D) with those of whole views where the student saw masked ones.

        What is reconstructed must not depend on what a method hides; the other views would cost a pass for nothing.
        """
        if mask is None:
            return tokens
        views = mask.any(1)
        views[0] = True  # not every backbone takes an empty batch
        return tokens.index_put((views,), self._tokens(images[views], autocast))

    def _tokens(self, images: Tensor, autocast: bool, encoder: Encoder | None = None, **masked: Tensor) -> Tensor:
        """Return tokens (2 B, T, D), never narrower than the losses' float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            tokens = self.encode(encoder or self.encoder, images, **masked)
        return tokens.float() if autocast else tokens

    def _pair(self, tokens: Tensor, representation: Tensor, images: Tensor, batch: Batch, autocast: bool) -> Pair:
        """Return what the method sees: the invariant channels, of the teacher too, and what it asked the views for."""
        inv = slice(self.encoder.dim_inv)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self._tokens(images, autocast, self.teacher.average)[..., inv]
        return Pair(
            inv=representation[:, inv],
            equi=representation[:, self.encoder.dim_inv :],
            tokens=tokens[..., inv],
            teacher=teacher,
            theta=batch.theta,
            mask=batch.mask,
            labels=batch.labels,
            factors=batch.factors,
        )

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Run the encoder as it is written meanwhile: through what is compiled, backward goes only once."""
        encode, self.encode = self.encode, Encoder.tokens
        try:
            yield
        finally:
            self.encode = encode

    def update_teachers(self) -> None:
        """Move every teacher towards its student, after a step of the optimizer."""
        if self.method.momentum is not None:
            for module in self.modules():
                if isinstance(module, Teacher):
                    module.update(self.method.momentum_now())

    def reconstruction_inputs(
        self, tokens: Tensor, batch: Batch
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor], Tensor]:
        """Return the arguments of the reconstruction branch.

        Args:
            tokens: (2 B, T, D), of both views.
            batch: the same views.

        Returns:
            Equivariant tokens (B, T, D') of either view; name -> standardised pixels (B, C, S, S) of the images that
            the target is made of; bool (B,), which view it is where that is random.
        """
        equi = tokens[..., self.encoder.dim_inv :].chunk(2)
        pixels = {name: self.encoder.standardise(getattr(batch, name)) for name in self.reconstruction.images}
        return equi, pixels, batch.pick_second
