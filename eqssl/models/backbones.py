"""Backbones by name: our small ResNet, timm's, torchvision's and the user's own, returning a map or sequence of tokens.

timm and torchvision take 10 s to import, so each is imported only for its own names.
"""

import contextlib
import dataclasses
import inspect
import posixpath
import urllib.request
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eqssl.config import EncoderConfig, replace
from eqssl.files import first_answer
from eqssl.models.pretrained import find_weights, load_weights
from eqssl.names import ENCODERS, check_encoder

SMALL_IMAGE, USUAL_IMAGE = 64, 224
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # a model on the hub has one of them
WITHOUT_PUBLISHED = (
    "no weights (eqssl evaluate MODEL --no-pretrained; no --encoder.pretrained), "
    "weights on a disk (eqssl evaluate FOLDER; --encoder.pretrained FOLDER)"
)
IMAGENET_MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of all torchvision weights


def register_encoder(name: str, make: Callable[[int, int], nn.Module]) -> None:
    """Make an encoder of your own available as `--encoder.name NAME`.

    Args:
        name: the name; it takes precedence over timm's.
        make: takes C and S of the images and returns a module from standardised images, float (B, C, S, S), to a map
            (B, D, H, W) or tokens (B, T, D), row by row.
    """
    ENCODERS[name] = make


class Backbone(nn.Module):
    """A model up to its features, without a head.

    Args:
        model: from standardised images, float (B, C, S, S), to a map or tokens.
        stem: of a ResNet, standard or small.
        prefix_tokens: tokens before those of the patches, such as a class token.
        channels_last: maps are (B, H, W, D).
        width: of the tokens inside a plain vision transformer, whose patches can be masked; 0 for other models.
        mean_std: per channel, of the pixels that published weights expect; None without such weights.
        timm_args: arguments of `timm.create_model` that rebuild it, with the mean over patches as its features;
            None for models that are not timm's.
    """

    def __init__(
        self, model: nn.Module, *, stem: str = "standard", prefix_tokens: int = 0, channels_last: bool = False,
        width: int = 0, mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        timm_args: dict[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.model: Any = model
        self.stem, self.prefix_tokens, self.channels_last = stem, prefix_tokens, channels_last
        self.width, self.mean_std, self.timm_args = width, mean_std, timm_args

    @property
    def weights_owner(self) -> Any:
        """The module whose state is stored: the model itself if it is timm's, so that timm can load it, or our small
        ResNet; otherwise this module.
        """
        is_bare = self.timm_args is not None or isinstance(self.model, TinyResNet)
        return self.model if is_bare else self

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Return a map (B, D, H, W) or tokens (B, T, D); `Encoder` refuses a model that gives neither."""
        with contextlib.nullcontext() if mask is None or mask_token is None else self._hide(mask, mask_token):
            features = self.model(images) if self.timm_args is None else self.model.forward_features(images)
        if isinstance(features, dict):
            features = features["tokens"]  # of torchvision's feature extractor
        if isinstance(features, Tensor) and features.ndim == 4 and self.channels_last:
            return features.permute(0, 3, 1, 2)
        return features[:, self.prefix_tokens :] if isinstance(features, Tensor) and features.ndim == 3 else features

    def _hide(self, mask: Tensor, mask_token: Tensor) -> RemovableHandle:
        """Make the patch embedding of a vision transformer return the mask token where the mask is set."""

        def hide(module: nn.Module, inputs: tuple, patches: Tensor) -> Tensor:
            # Models that take images of any size have not flattened rows and columns yet: (B, H, W, width).
            return torch.where(mask.view(*patches.shape[:-1], 1), mask_token.to(patches.dtype), patches)

        return self.model.patch_embed.register_forward_hook(hide)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv 1512.03385)."""

    def __init__(self, dim_in: int, dim: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or dim_in != dim:
            self.shortcut = nn.Sequential(nn.Conv2d(dim_in, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class TinyResNet(nn.Module):
    """A ResNet for small images on a CPU: a patch stem of stride 4 and three blocks, output stride 8.

    It takes 23 million multiply-adds at 64 px.

    Args:
        channels: of the image.
    """

    def __init__(self, channels: int):
        super().__init__()
        a, b, c = 32, 64, 128  # widths of the blocks
        self.patches = nn.Sequential(nn.Conv2d(channels, a, 4, 4, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.blocks = nn.Sequential(BasicBlock(a, a, 1), BasicBlock(a, b, 2), BasicBlock(b, c, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.patches(images))


@cache
def check_published(name: str) -> None:
    """Refuse published weights that are neither in the cache nor on a server that answers.

    Args:
        name: of the model.

    Raises:
        ValueError: with the cause and the alternatives.
    """
    import huggingface_hub as hub

    kind, _, model = name.rpartition("/")
    if kind:
        import torchvision.models as models

        repository, url = None, models.get_model_weights(model).DEFAULT.url
    else:
        import timm

        try:
            published = timm.models.get_pretrained_cfg(model)
        except RuntimeError as error:  # no such tag
            raise ValueError(f"{name}: {error}") from error
        if published and (published.file or published.state_dict):  # for a model that the user registered
            return
        repository, url = (published.hf_hub_id, published.url) if published else (None, None)
    if not repository and not url:
        raise ValueError(f"{name} has no published weights; allowed: {WITHOUT_PUBLISHED}")
    if repository:
        found = [hub.try_to_load_from_cache(repository, file) for file in HUB_FILES]
        cached, ask = any(isinstance(file, str) for file in found), partial(_ask_hub, repository)
    else:
        cached = (Path(torch.hub.get_dir()) / "checkpoints" / posixpath.basename(url)).is_file()
        ask = partial(urllib.request.urlopen, urllib.request.Request(url, method="HEAD"))
    try:
        if not cached:
            first_answer(ask)
    except Exception as error:  # of any type, from the connection's library
        raise unavailable(name, error) from error


def _ask_hub(repository: str) -> None:
    """Wait for any answer from the hub, even that a file is missing."""
    import huggingface_hub as hub

    with contextlib.suppress(hub.errors.HfHubHTTPError):
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, "config.json"))


def unavailable(name: str, cause: Exception) -> ValueError:
    """Return the error for published weights that cannot be obtained."""
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return ValueError(
        f"the published weights of {name} are not in the cache and cannot be downloaded ({lines[0]}); "
        f"allowed: {WITHOUT_PUBLISHED}, or a copy in the cache (HF_HOME or TORCH_HOME; then HF_HUB_OFFLINE=1)"
    )


def build_backbone(config: EncoderConfig, channels: int, image_size: int, other_sizes: bool = False) -> Backbone:
    """Return a backbone for images (B, C, S, S).

    Args:
        config: its name, weights, stem and stride.
        channels, image_size: C and S.
        other_sizes: let a timm vision transformer take other sizes too, if it can.

    Raises:
        ValueError: for an unknown name, an option that the backbone does not have, or weights that do not fit it.
    """
    check_encoder(config.name)
    if isinstance(config.pretrained, str):
        weights = find_weights(config)
        untrained = dataclasses.replace(config, pretrained=False, stem=weights.stem)
        backbone = build_backbone(untrained, channels, image_size, other_sizes)
        load_weights(backbone, weights, config)
        if weights.mean_std and len(weights.mean_std[0]) == channels:
            backbone.mean_std = weights.mean_std
        return backbone
    if config.name in ENCODERS:
        if config.pretrained or config.output_stride is not None or config.stem == "small":
            raise ValueError(f"--encoder.name {config.name} is your own, which alone sets its weights, stride and stem")
        return Backbone(ENCODERS[config.name](channels, image_size))
    if config.name == "resnet_tiny":
        if config.pretrained or config.output_stride not in (None, 8) or config.stem == "small":
            raise ValueError("--encoder.name resnet_tiny has no published weights, output stride 8 and one stem")
        return Backbone(TinyResNet(channels))
    if config.pretrained:
        check_published(config.name)
    try:
        if config.name.startswith("torchvision/"):
            return _torchvision_backbone(config, channels, image_size)
        return _timm_backbone(config, channels, image_size, other_sizes)
    except OSError as error:
        raise unavailable(config.name, error) from error


def masks_patches(config: EncoderConfig) -> bool:
    """Return whether patches can be masked inside a backbone: whether it is a plain vision transformer.

    Raises:
        ValueError: for an unknown name, or an option that the backbone does not have.
    """
    if config.name in ENCODERS:
        return False
    config = replace(config, {"pretrained": False, "output_stride": None})  # they may fit only another size
    with torch.device("meta"):  # no memory for weights
        return build_backbone(config, 3, USUAL_IMAGE).width > 0


def _timm_backbone(config: EncoderConfig, channels: int, image_size: int, other_sizes: bool) -> Backbone:
    import timm

    # The class has named arguments; an entry point has only **kwargs.
    module = inspect.getmodule(timm.model_entrypoint(config.name))
    classes = [getattr(module, kind) for kind in ("VisionTransformer", "ResNet", "ConvNeXt") if hasattr(module, kind)]
    accepted = inspect.signature(classes[0]).parameters if classes else {}
    args: dict[str, Any] = {"in_chans": channels}
    if "img_size" in accepted:
        args["img_size"] = image_size
    if other_sizes and "dynamic_img_size" in accepted:
        args["dynamic_img_size"] = True  # position embeddings are resampled to the map of another size
    if config.output_stride is not None:
        loses_stride = bool(classes) and classes[0].__name__ == "ResNet" and _wants_small_stem(config, image_size)
        stride = config.output_stride * (4 if loses_stride else 1)  # that of the standard stem, replaced below
        is_patch = "patch_size" in accepted and "output_stride" not in accepted  # ConvNeXt has both
        args["patch_size" if is_patch else "output_stride"] = stride
    try:
        model: Any = timm.create_model(config.name, pretrained=bool(config.pretrained), num_classes=0, **args)
    except (TypeError, AssertionError, RuntimeError) as error:  # the last if there are no published weights
        text = f"--encoder.name {config.name} cannot be made with {args}: {error}"
        raise ValueError(text.rstrip(": ")) from error  # timm's assertions have no text
    if getattr(model, "global_pool", None) == "token" and {"global_pool", "fc_norm"} <= accepted.keys():
        model.global_pool = "avg"  # of the patches, after the normalisation that precedes the class token's use
        args |= {"global_pool": "avg", "fc_norm": False}
    # Patches can be masked in a plain vision transformer, which keeps one token per patch; Swin, for one, merges them.
    is_plain = isinstance(getattr(model, "patch_embed", None), timm.layers.PatchEmbed)
    if is_plain:
        _check_size(config, image_size, int(model.patch_embed.patch_size[0]))
    published = model.pretrained_cfg
    return Backbone(
        model,
        stem=_set_stem(config, model, channels, image_size),
        prefix_tokens=getattr(model, "num_prefix_tokens", 0),
        channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
        width=model.embed_dim if is_plain and hasattr(model, "num_prefix_tokens") else 0,
        mean_std=(published["mean"], published["std"]) if config.pretrained and channels == 3 else None,
        timm_args=args,
    )


def _torchvision_backbone(config: EncoderConfig, channels: int, image_size: int) -> Backbone:
    import torchvision.models as models
    from torchvision.models.feature_extraction import create_feature_extractor

    name = config.name.removeprefix("torchvision/")
    if channels != 3:
        raise ValueError(f"--encoder.name {config.name} takes colour images; for {channels} channel take timm's")
    if config.output_stride is not None:
        raise ValueError("an output stride works for timm's models, not for torchvision's")
    is_vit = name.startswith("vit")
    if is_vit:
        _check_size(config, image_size, int(name.rsplit("_", 1)[1]))
    sized = {"image_size": image_size} if is_vit else {}
    model = models.get_model(name, weights="DEFAULT" if config.pretrained else None, **sized)
    stem = _set_stem(config, model, channels, image_size)
    node = next((n for n in ("encoder", "layer4", "features") if hasattr(model, n)), None)
    if node is None:
        raise ValueError(f"--encoder.name {config.name}: this model has no token map; take a ResNet, ViT, ConvNeXt")
    return Backbone(
        create_feature_extractor(model, {node: "tokens"}),
        stem=stem,
        prefix_tokens=1 if is_vit else 0,
        channels_last=name.startswith("swin"),
        mean_std=IMAGENET_MEAN_STD if config.pretrained else None,
    )


def _check_size(config: EncoderConfig, image_size: int, patch: int) -> None:
    """Refuse images whose last pixels would be in no patch."""
    if below := image_size % patch:
        near = f"{image_size - below} or {image_size - below + patch}"
        raise ValueError(
            f"--data.image-size is {image_size}; allowed with --encoder.name {config.name}, whose patches have {patch} "
            f"px: multiples of {patch}, such as {near}"
        )


def _wants_small_stem(config: EncoderConfig, image_size: int) -> bool:
    return config.stem == "small" or (config.stem == "auto" and image_size <= SMALL_IMAGE and not config.pretrained)


def _set_stem(config: EncoderConfig, model: Any, channels: int, image_size: int) -> str:
    """Give a ResNet its stem and return the stem's name."""
    is_resnet = all(hasattr(model, part) for part in ("conv1", "bn1", "maxpool"))
    if config.stem == "small" and not is_resnet:
        raise ValueError(f"--encoder.stem small is for ResNets; {config.name} has no such stem")
    if config.stem == "small" and config.pretrained:
        raise ValueError(
            "--encoder.stem small does not fit --encoder.pretrained: the published stem is the standard one"
        )
    if not (is_resnet and _wants_small_stem(config, image_size)):
        return "standard"
    # 3x3 at stride 1 and no pooling, as in the CIFAR runs of solo-learn and lightly.
    model.conv1 = nn.Conv2d(channels, model.bn1.num_features, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return "small"
