"""The encoder: images -> token map -> pooled representation, its channels split into [invariant | equivariant].

B batch, C channels, S side in pixels, T tokens, D width.
"""

import torch
from torch import Tensor, nn

from eqssl.config import EncoderConfig
from eqssl.models.backbones import build_backbone

LEAST_CHANNELS = 3  # of a part: fewer can hardly be told from features that have collapsed to a line


class Encoder(nn.Module):
    """A backbone with its normalisation inside; the one thing that is left at inference.

    Args:
        config: name, split and stem.
        channels, image_size: of the images, C and S.
        mean, std: per channel, of pixels in [0, 1]; published weights bring their own.

    Attributes:
        dim: D; `dim_inv`: the first channels, which the method makes invariant; the others are equivariant.
        grid: rows and columns of the token map; `stem`: standard or small.

    Raises:
        ValueError: for a name, a stem or a stride that cannot be had at this image size.
    """

    def __init__(
        self, config: EncoderConfig, channels: int, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        super().__init__()
        self.config, self.channels, self.image_size = config, channels, image_size
        with torch.inference_mode(False), torch.enable_grad():  # wherever a caller makes it
            self.backbone = build_backbone(config, channels, image_size)
            self.grid, self.dim = self._probe()
        self.stem = self.backbone.stem
        self.mean_std = self.backbone.mean_std or (tuple(mean), tuple(std))
        self.register_buffer("mean", torch.tensor(self.mean_std[0]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.mean_std[1]).view(1, -1, 1, 1), persistent=False)
        self.dim_inv = self.dim - round(self.dim * config.equi_fraction)
        if config.equi_fraction > 0 and min(self.dim_inv, self.dim - self.dim_inv) < LEAST_CHANNELS:
            raise ValueError(
                f"--encoder.equi-fraction is {config.equi_fraction}; allowed: 0, or what leaves both parts {LEAST_CHANNELS} channels "
                f"of {self.dim}"
            )

    def _probe(self) -> tuple[tuple[int, int], int]:
        """Ask the backbone for its map once: no table of names can know it."""
        training = self.training
        try:
            features = self.eval().backbone(torch.zeros(1, self.channels, self.image_size, self.image_size))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"--encoder.name {self.config.name} does not take images of {self.image_size} px ({error}); "
                "take another --data.image-size"
            ) from error
        self.train(training)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise ValueError(
                f"--encoder.name {self.config.name} gives no single map of tokens; take a ResNet, ViT, Swin"
            )
        # What the map does not depend on (an unused head, say) would wait for a gradient that never comes.
        features.sum().backward()
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        grid, dim = self._grid(features)
        stride, side = self.config.output_stride, self.image_size
        if stride is not None and grid[0] not in (side // stride, -(-side // stride)):
            raise ValueError(
                f"--encoder.output-stride is {stride}, and a token of {self.config.name} with the {self.backbone.stem} "
                f"stem covers {side / grid[0]:g} of {side} px"
            )
        return grid, dim

    def _grid(self, features: Tensor) -> tuple[tuple[int, int], int]:
        if features.ndim == 4:
            return (features.shape[2], features.shape[3]), features.shape[1]
        tokens, side = features.shape[1], round(features.shape[1] ** 0.5)
        if side * (tokens // side) != tokens:
            raise ValueError(f"--encoder.name {self.config.name} gives {tokens} tokens, no map of rows and columns")
        return (side, tokens // side), features.shape[2]

    def standardise(self, images: Tensor) -> Tensor:
        """Return pixels of mean 0 and deviation 1 over the training images, or as published weights have them.

        Args:
            images: float (B, C, S, S) in [0, 1].

        Returns:
            float (B, C, S, S).
        """
        return (images - self.mean) / self.std

    def tokens(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return tokens (B, T, D) from images float (B, C, S, S) in [0, 1].

        Args:
            images: the views.
            mask: bool (B, T), patches in whose place the backbone sees a mask token; vision transformers only.
            mask_token: (width of the backbone,).
        """
        masked = {} if mask is None else {"mask": mask, "mask_token": mask_token}
        features = self.backbone(self.standardise(images), **masked)
        return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features

    def forward(self, images: Tensor) -> Tensor:
        """Return the representation (B, D), the mean over tokens, from images float (B, C, S, S) in [0, 1]."""
        return self.tokens(images).mean(1)

    def extra_repr(self) -> str:
        return f"{self.config.name}, {self.grid[0]}x{self.grid[1]} tokens, dim={self.dim}, dim_inv={self.dim_inv}"
