"""Backbones by name: our small ResNet, timm's, torchvision's and the user's own, each as a map or a row of tokens.

timm and torchvision take 10 s to import, so each is imported only for a name of its own.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import EncoderConfig, replace

SMALL_IMAGE, USUAL_IMAGE = 64, 224
ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {}  # of the user


def register_encoder(name: str, make: Callable[[int, int], nn.Module]) -> None:
    """Make an encoder of one's own available as `--encoder.name NAME`.

    Args:
        name: the name; it goes before timm's.
        make: takes C and S of the images and returns a module from standardised images, float (B, C, S, S), to a map
            (B, D, H, W) or tokens (B, T, D), row by row.
    """
    ENCODERS[name] = make


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv 1512.03385)."""

    def __init__(self, dim_in: int, dim: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.shortcut = nn.Identity()
        if stride > 1 or dim_in != dim:
            self.shortcut = nn.Sequential(nn.Conv2d(dim_in, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class TinyResNet(nn.Module):
    """A ResNet for small images on a CPU: a patch stem of stride 4 and three blocks, output stride 8.

    Args:
        channels: of the image.
        widths: of the three blocks; 23 million multiply-adds at 64 px as they stand.
    """

    stem = "standard"
    mean_std = None
    width = 0  # of the tokens inside; no transformer

    def __init__(self, channels: int, widths: tuple[int, int, int] = (32, 64, 128)):
        super().__init__()
        a, b, c = widths
        self.patches = nn.Sequential(nn.Conv2d(channels, a, 4, 4, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.blocks = nn.Sequential(BasicBlock(a, a, 1), BasicBlock(a, b, 2), BasicBlock(b, c, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.patches(images))


class TimmBackbone(nn.Module):
    """A timm model without its head; `arguments` are those that `timm.create_model` needs to make it again."""

    def __init__(self, config: EncoderConfig, channels: int, image_size: int):
        super().__init__()
        import timm

        if not timm.is_model(config.name):
            near = ", ".join(timm.list_models(f"*{config.name.split('_')[0]}*")[:8])
            raise ValueError(
                f"--encoder.name is {config.name!r}; allowed: {', '.join(['resnet_tiny', *ENCODERS])}, "
                "torchvision/NAME or a timm model" + (f", such as {near}" if near else "")
            )
        kind = _class_of(timm, config.name)
        accepted = inspect.signature(kind).parameters
        self.arguments: dict[str, object] = {"in_chans": channels}
        if "img_size" in accepted:
            self.arguments["img_size"] = image_size
        if config.output_stride is not None:
            stride = "patch_size" if "patch_size" in accepted else "output_stride"
            self.arguments[stride] = config.output_stride
            if kind.__name__ == "ResNet" and _small_stem(config, image_size):
                self.arguments[stride] *= 4  # which the standard stem, replaced below, would have had of it
        try:
            self.model = timm.create_model(config.name, pretrained=config.pretrained, num_classes=0, **self.arguments)
        except (TypeError, AssertionError, RuntimeError) as error:  # the last where there are no published weights
            raise ValueError(f"--encoder.name {config.name} cannot be made with {self.arguments}: {error}") from error
        self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        # Patches can be masked in a plain vision transformer, which keeps one token of each; Swin, say, merges them.
        plain = isinstance(getattr(self.model, "patch_embed", None), timm.layers.PatchEmbed)
        self.width = self.model.embed_dim if plain and hasattr(self.model, "num_prefix_tokens") else 0
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        self.stem = _set_stem(config, self.model, channels, image_size)
        published = self.model.pretrained_cfg
        self.mean_std = (published["mean"], published["std"]) if config.pretrained and channels == 3 else None

    def forward(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        with _masked(self.model, mask, mask_token):
            features = self.model.forward_features(images)
        return _channels_first(features, self.channels_last, self.prefix)


def _channels_first(features: Tensor, channels_last: bool, prefix: int) -> Tensor:
    """Return a map (B, D, H, W), or tokens without those that show no patch; the encoder refuses what is neither."""
    if not isinstance(features, Tensor):
        return features
    if features.ndim == 4 and channels_last:
        features = features.permute(0, 3, 1, 2)
    return features[:, prefix:] if features.ndim == 3 else features


@contextlib.contextmanager
def _masked(model: nn.Module, mask: Tensor | None, mask_token: Tensor | None) -> Iterator[None]:
    """Have the patch embedding of a vision transformer give the mask token where the mask is set."""
    if mask is None:
        yield
        return

    def hide(module: nn.Module, inputs: tuple, patches: Tensor) -> Tensor:
        # Models for images of any size have not flattened rows and columns yet: (B, H, W, width).
        return torch.where(mask.view(*patches.shape[:-1], 1), mask_token.to(patches.dtype), patches)

    handle = model.patch_embed.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()


class TorchvisionBackbone(nn.Module):
    """A torchvision classification model up to its last map."""

    width = 0

    def __init__(self, config: EncoderConfig, channels: int, image_size: int):
        super().__init__()
        import torchvision.models as models
        from torchvision.models.feature_extraction import create_feature_extractor

        name = config.name.removeprefix("torchvision/")
        if name not in models.list_models(module=models):
            raise ValueError(f"--encoder.name is {config.name!r}; allowed: torchvision/ and one of "
                             + ", ".join(models.list_models(module=models)))  # fmt: skip
        if channels != 3:
            raise ValueError(f"--encoder.name {config.name} takes colour images; for {channels} channel take timm's")
        if config.output_stride is not None:
            raise ValueError("--encoder.output-stride works for timm's models, not for torchvision's")
        sized = {"image_size": image_size} if name.startswith("vit") else {}
        model = models.get_model(name, weights="DEFAULT" if config.pretrained else None, **sized)
        self.stem = _set_stem(config, model, channels, image_size)
        self.prefix = 1 if name.startswith("vit") else 0
        self.channels_last = name.startswith("swin")
        node = next((n for n in ("encoder", "layer4", "features") if hasattr(model, n)), None)
        if node is None:
            raise ValueError(f"--encoder.name {config.name}: this model has no token map; take a ResNet, ViT, ConvNeXt")
        # Every torchvision weight was trained on pixels standardised by ImageNet's figures.
        self.mean_std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if config.pretrained else None
        self.model = create_feature_extractor(model, {node: "tokens"})

    def forward(self, images: Tensor) -> Tensor:
        return _channels_first(self.model(images)["tokens"], self.channels_last, self.prefix)


class OwnBackbone(nn.Module):
    """What the user registered."""

    stem = "standard"
    mean_std = None
    width = 0

    def __init__(self, config: EncoderConfig, channels: int, image_size: int):
        super().__init__()
        if config.pretrained or config.output_stride is not None or config.stem == "small":
            raise ValueError(
                f"--encoder.name {config.name} is your own: its weights, stride and stem are what it makes"
            )
        self.model = ENCODERS[config.name](channels, image_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def build_backbone(config: EncoderConfig, channels: int, image_size: int) -> nn.Module:
    """Return a module from images (B, C, S, S) to a map (B, D, H, W) or tokens (B, T, D).

    Raises:
        ValueError: for an unknown name, or an option that the backbone does not have.
    """
    if config.name in ENCODERS:
        return OwnBackbone(config, channels, image_size)
    if config.name == "resnet_tiny":
        if config.pretrained or config.output_stride not in (None, 8) or config.stem == "small":
            raise ValueError("--encoder.name resnet_tiny has no published weights, output stride 8 and one stem")
        return TinyResNet(channels)
    if config.name.startswith("torchvision/"):
        return TorchvisionBackbone(config, channels, image_size)
    return TimmBackbone(config, channels, image_size)


def masks_patches(config: EncoderConfig) -> bool:
    """Return whether patches can be hidden from a backbone inside: whether it is a plain vision transformer.

    Raises:
        ValueError: for an unknown name, or an option that the backbone does not have.
    """
    if config.name in ENCODERS:
        return False
    config = replace(config, {"pretrained": False, "output_stride": None})  # which may fit another size alone
    with torch.device("meta"):  # of no weight the memory is needed
        return build_backbone(config, 3, USUAL_IMAGE).width > 0


def _class_of(timm, name: str) -> object:
    """The class that a timm entry point makes; its signature tells what can be asked for."""
    module = inspect.getmodule(timm.model_entrypoint(name))
    for candidate in ("VisionTransformer", "ResNet", "ConvNeXt"):
        if hasattr(module, candidate):
            return getattr(module, candidate)
    return timm.model_entrypoint(name)


def _small_stem(config: EncoderConfig, image_size: int) -> bool:
    """Return whether a ResNet gets the stem for small images."""
    return config.stem == "small" or (config.stem == "auto" and image_size <= SMALL_IMAGE and not config.pretrained)


def _set_stem(config: EncoderConfig, model: nn.Module, channels: int, image_size: int) -> str:
    """Give a ResNet the stem that was asked for and return its name."""
    is_resnet = all(hasattr(model, part) for part in ("conv1", "bn1", "maxpool"))
    if config.stem == "small" and not is_resnet:
        raise ValueError(f"--encoder.stem small is for ResNets; {config.name} has no such stem")
    if config.stem == "small" and config.pretrained:
        raise ValueError(
            "--encoder.stem small does not fit --encoder.pretrained: the published stem is the standard one"
        )
    if not (is_resnet and _small_stem(config, image_size)):
        return "standard"
    # 3x3 at stride 1 and no pooling, as solo-learn's and lightly's CIFAR runs have it.
    model.conv1 = nn.Conv2d(channels, model.bn1.num_features, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return "small"
