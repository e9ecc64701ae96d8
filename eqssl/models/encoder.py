"""The encoder: images -> token map -> pooled representation, its channels split into [invariant | equivariant].

B batch, C channels, S side in pixels, T tokens, D width.
"""

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from eqssl.config import EncoderConfig, Stem
from eqssl.models.backbones import Backbone, build_backbone
from eqssl.models.pretrained import find_weights

LOCAL_SIDE = 96 / 224  # side of a local crop over that of its image (arXiv 2104.14294, section 3.1)
MIN_CHANNELS = 3  # minimum of a part: with fewer, features that collapsed to a line look almost the same


def _build(
    config: EncoderConfig, channels: int, image_size: int, other_sizes: bool = False
) -> tuple[Backbone, tuple[int, int], int]:
    """Return a backbone, rows and columns of its token map, and D, by one pass that no table of names can replace.

    Parameters without effect are frozen. The arguments are those of `build_backbone`.
    """
    backbone = build_backbone(config, channels, image_size, other_sizes)
    name, stride = config.name, config.output_stride
    training = backbone.training
    try:
        features = backbone.eval()(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"--encoder.name {name} does not take images of {image_size} px ({error}); choose another --data.image-size"
        ) from error
    backbone.train(training)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError(f"--encoder.name {name} gives no single map of tokens; take a ResNet, ViT, Swin")
    # A parameter that the map does not depend on (such as an unused head) would wait for a gradient that never comes.
    features.sum().backward()
    for parameter in backbone.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    if features.ndim == 4:
        dim, rows, columns = features.shape[1:]
    else:
        tokens, dim = features.shape[1:]
        rows = round(tokens**0.5)
        columns = tokens // rows
        if rows * columns != tokens:
            raise ValueError(f"--encoder.name {name} gives {tokens} tokens, no map of rows and columns")
    if stride is not None and rows not in (image_size // stride, -(-image_size // stride)):
        stem = backbone.stem
        raise ValueError(f"with the {stem} stem, a token covers {image_size / rows:g} of {image_size} px")
    return backbone, (rows, columns), dim


def _untrained(config: EncoderConfig) -> EncoderConfig:
    """Return the options of the same encoder without published weights."""
    stem: Stem = "standard" if config.pretrained else config.stem
    if isinstance(config.pretrained, str):
        stem = find_weights(config).stem
    return dataclasses.replace(config, pretrained=False, stem=stem)


def token_grid(config: EncoderConfig, channels: int, image_size: int) -> tuple[int, int]:
    """Return rows and columns of an encoder's token map for images (B, channels, image_size, image_size)."""
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():  # no memory for weights
        return _build(_untrained(config), channels, image_size)[1]


def _stride_error(config: EncoderConfig, channels: int, image_size: int, cause: ValueError) -> ValueError:
    """Return the error for an output stride with the possible ones, found by trying; the cause if that is another.

    Args:
        config: with an output stride.
        channels, image_size: of the images.
        cause: why the encoder with that stride cannot be built.
    """
    untrained = _untrained(config)
    powers = [2**i for i in range(image_size.bit_length())]
    possible: list[int | None] = []
    for stride in (None, *sorted({*powers, *(i for i in range(1, image_size + 1) if image_size % i == 0)})):
        with contextlib.suppress(ValueError), torch.device("meta"):  # no memory for weights
            _build(dataclasses.replace(untrained, output_stride=stride), channels, image_size)
            possible.append(stride)
    if not possible or config.output_stride in possible:
        return cause
    allowed = ", ".join(str(stride) for stride in possible if stride) or "none"
    return ValueError(
        f"--encoder.output-stride is {config.output_stride}; allowed with --encoder.name {config.name} and images of "
        f"{image_size} px: {allowed} ({cause})"
    )


class Encoder(nn.Module):
    """A backbone that standardises its images; the only part of a run that is used at inference.

    Args:
        config: name, fraction of equivariant channels and stem.
        channels, image_size: of the images, C and S.
        mean, std: per channel, of pixels in [0, 1]; published weights bring their own.
        local_crops: number per image in training; 0 for a training without them.

    Attributes:
        dim: D; `dim_inv`: the first channels, which the method makes invariant; the others are equivariant.
        grid: rows and columns of the token map.
        local_size: side of the local crops in pixels, the published size rounded to whole tokens; 0 without.
        provenance: options, data and versions of the training; empty for an encoder that `train` did not return.

    Raises:
        ValueError: for a name, a stem, a stride or local crops that are not possible at this image size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: EncoderConfig, channels: int, image_size: int, mean: tuple[float, ...], std: tuple[float, ...],
        local_crops: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.config, self.channels, self.image_size = config, channels, image_size
        self.provenance: dict[str, Any] = {}
        with torch.inference_mode(False), torch.enable_grad():  # the caller may have disabled gradients
            try:
                self.backbone, self.grid, self.dim = _build(config, channels, image_size, other_sizes=local_crops > 0)
            except ValueError as error:
                if config.output_stride is None:
                    raise
                raise _stride_error(config, channels, image_size, error) from error
        self.local_size = self._probe_local_crops(local_crops) if local_crops else 0
        self.mean_std = self.backbone.mean_std or (tuple(mean), tuple(std))
        self.register_buffer("mean", torch.tensor(self.mean_std[0]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.mean_std[1]).view(1, -1, 1, 1), persistent=False)
        dim_equi = round(self.dim * config.equi_fraction)
        self.dim_inv = self.dim - dim_equi
        if config.equi_fraction > 0 and min(self.dim_inv, dim_equi) < MIN_CHANNELS:
            raise ValueError(
                f"--encoder.equi-fraction is {config.equi_fraction}; allowed: 0, or a fraction that leaves both parts "
                f"{MIN_CHANNELS} or more channels of {self.dim}"
            )

    @torch.no_grad()
    def _probe_local_crops(self, count: int) -> int:
        """Return the side of local crops, after one pass that shows whether the backbone takes them."""
        name, training = self.config.name, self.training
        token = -(-self.image_size // self.grid[0])
        side = max(1, round(LOCAL_SIDE * self.image_size / token)) * token
        if side >= self.image_size:
            raise ValueError(
                f"--augment.local-crops is {count}; allowed with --encoder.name {name}, one of whose tokens covers all "
                f"{self.image_size} px of an image: 0, or a larger --data.image-size"
            )
        try:
            self.eval().backbone(torch.zeros(1, self.channels, side, side))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"--augment.local-crops is {count}; allowed with --encoder.name {name}, which does not take their "
                f"{side} px beside {self.image_size} px ({error}): 0; ResNets, ConvNeXts and timm's plain vision "
                "transformers take both"
            ) from error
        self.train(training)
        return side

    def standardise(self, images: Tensor) -> Tensor:
        """Return pixels with mean 0 and deviation 1 over the training images, or as published weights expect them.

        Args:
            images: float (B, C, S, S) in [0, 1].

        Returns:
            float (B, C, S, S).

        Raises:
            ValueError: for integers, or another number of channels.
        """
        if not images.is_floating_point() or images.shape[1] != self.channels:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; allowed: float in [0, 1] of shape "
                f"(B, {self.channels}, S, S)"
            )
        return (images - self.mean) / self.std

    def tokens(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return tokens (B, T, D) from images float (B, C, S, S) in [0, 1].

        Args:
            images: the views.
            mask: bool (B, T), patches whose embedding is replaced by a mask token; vision transformers only.
            mask_token: (width of the backbone,).
        """
        features = self.backbone(self.standardise(images), mask, mask_token)
        return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features

    def forward(self, images: Tensor) -> Tensor:
        """Return the representation (B, D), the mean over tokens, from images float (B, C, S, S) in [0, 1]."""
        return self.tokens(images).mean(1)

    def extra_repr(self) -> str:
        return f"{self.config.name}, {self.grid[0]}x{self.grid[1]} tokens, dim={self.dim}, dim_inv={self.dim_inv}"
