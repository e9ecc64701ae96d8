"""What one training run is: frozen dataclasses, their checks and their digest.

Every option of every command is made from these fields by tyro, under the same names. Nothing here imports torch,
so that `--help` and a refused option cost no time.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

from typing_extensions import Doc

AUGMENTATIONS = (
    "crop", "translation", "rotation", "flip",
    "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize",
)  # fmt: skip
# Methods that stand alone: name -> where the class is, imported at its first use.
BASE_METHODS = {
    "simclr": "eqssl.methods.simclr:SimCLR",
    "vicreg": "eqssl.methods.vicreg:VICReg",
    "barlow_twins": "eqssl.methods.barlow_twins:BarlowTwins",
    "byol": "eqssl.methods.byol:BYOL",
    "simsiam": "eqssl.methods.simsiam:SimSiam",
    "moco_v3": "eqssl.methods.moco_v3:MoCoV3",
    "dino": "eqssl.methods.dino:DINO",
    "ibot": "eqssl.methods.ibot:IBOT",
}
ReconView = Literal["first", "second", "both", "random", "clean", "intermediate"]
ReconAttention = Literal["pooled-query", "target-queries", "other-queries", "residual", "concat", "autoencode"]
# The facts of attentions that studies and tables need; `eqssl.models.reconstruction.blend` says what each computes.
AUTOENCODE = "autoencode"  # the attention that does not read the other view
WITH_QUERY_GRADIENT = ("pooled-query",)  # attentions that --recon.query-gradient has an effect on
CROSS_ATTENTION_OPTIONS = ("recon.attention", "recon.query_gradient")  # have no effect on auto-encoding
Pose = Literal["turntable", "free"]
Classes = Literal["coarse", "fine"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images, labels and known factors come from."""

    source: str = "solids"
    """Registered source: solids, parquet, 3diebench, imagefolder, cifar10, cifar100, stl10, fashion_mnist, imagenet."""
    path: str | None = None
    """File, folder or URI (s3://, gs://, ...) of the source; solids needs none."""
    cache: str = "~/.cache/eqssl"
    """Folder for what is rendered, converted or downloaded once."""
    image_size: int | None = None
    """Height and width in pixels that the encoder sees; default: the source's own, 32 for solids."""
    pairs: Literal["auto", "object", "image"] = "auto"
    """A pair is two views of one object (a paired source's default) or two augmentations of one image."""
    train_images: int | None = None
    """Use only this many training images, drawn once by a fixed seed; default: all."""
    max_bad_images: int = 10
    """Unreadable images that are skipped, each named; one more is an error."""
    image_column: str = "image"
    """Parquet column with the encoded image: struct<bytes, path> or binary."""
    label_column: str = "label"
    """Parquet column with the class as an integer; may be absent."""
    objects: int = 1250
    """Training objects that solids renders; val and test have half as many each."""
    views_per_object: int = 4
    """Views that solids renders of one object."""
    pose: Pose | None = None
    """Rotations of the objects of solids: turntable (one angle, +-90 degrees) or free (three angles, as in 3DIEBench,
    which takes some 8,000 objects to learn). Default: turntable."""
    classes: Classes | None = None
    """Classes of solids: coarse (12 families) or fine (24: each family in two proportions). Default: fine."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """One strength in [0, 1] an augmentation family; .5 is the range of arXiv 2503.18753 where it has one.

    The default depends on the source: 0 for pairs of one object; for pairs of one image .5, but 0 for grayscale and
    solarize, and for the colour families on grey images.
    """

    crop: float | None = None
    """Random resized crop: smallest area kept is 1 - .92 x strength (SimCLR: 1)."""
    translation: float | None = None
    """Shift in both directions, up to ± 20/224 of the side x strength."""
    rotation: float | None = None
    """Rotation, up to ± 90 degrees x strength."""
    flip: float | None = None
    """Horizontal flip, with probability strength / 2."""
    brightness: float | None = None
    """Brightness factor 1 ± .8 x strength."""
    contrast: float | None = None
    """Contrast factor 1 ± .8 x strength."""
    saturation: float | None = None
    """Saturation factor 1 ± .8 x strength; colour images only."""
    hue: float | None = None
    """Hue shift, up to ± .2 of the colour circle x strength; colour images only."""
    grayscale: float | None = None
    """Grayscale, with probability .4 x strength; colour images only."""
    blur: float | None = None
    """Gaussian blur, sigma from 0 up to 4 px at 224 px (in proportion at other sizes) x strength."""
    solarize: float | None = None
    """Solarize above .5, with probability .4 x strength."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The backbone, its token map and its split into an invariant and an equivariant part."""

    name: str = "resnet_tiny"
    """resnet_tiny (ours, 23 million multiply-adds at 64 px), any timm name, torchvision/NAME, or a registered one."""
    equi_fraction: float = 0.5
    """Share of the channels that is equivariant; 0: no split, every channel goes to the method."""
    stem: Literal["auto", "standard", "small"] = "auto"
    """Stem of a ResNet: small (3x3, stride 1, no pooling) or standard; auto: small up to 64 px."""
    output_stride: int | None = None
    """Pixels a token covers along one side, where the backbone can be asked for it; default: its own."""
    pretrained: bool = False
    """Start from the weights that timm or torchvision publish for this name."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The self-supervised method that makes the invariant part invariant."""

    name: Annotated[
        str,
        Doc(
            f"Registered method: {', '.join(BASE_METHODS)}; augself, equimod and sie, which are told the "
            "transformation; supervised, supervised_factors and none are the references of the tables."
        ),
    ] = "vicreg"
    scale: Literal["tiny", "small", "imagenet"] = "tiny"
    """Widths of the heads and what else is scaled with them (a loss's factor, a temperature): tiny for a CPU, small and
    imagenet as published for CIFAR and ImageNet."""
    options: dict[str, float | str] = field(default_factory=dict)
    """Hyperparameters of the method by name, such as temperature 0.2; default: the method's own."""


@dataclass(frozen=True, kw_only=True)
class ReconConfig:
    """The reconstruction branch of arXiv 2412.03314."""

    weight: float = 1.0
    """Factor of the reconstruction's mean squared error (of standardised pixels) in the loss; 0: no branch."""
    view: ReconView = "second"
    """Which view is reconstructed; random draws it for every image, clean is the unaugmented image of the first,
    intermediate are two images on the way from the unaugmented one to the second view (arXiv 2503.18753)."""
    attention: ReconAttention = "pooled-query"
    """What the decoder reads. pooled-query: every position queries the other view's tokens with its place and one
    pooled vector of the target; target-queries: the target's tokens query the other view's; other-queries: the reverse;
    residual: target-queries plus the query itself; concat: both views' tokens, no attention; autoencode: the target's
    own tokens, the control that never reads the other view."""
    query_gradient: float = 0.1
    """Share of the gradient that passes through the query of pooled-query, 0 to 1; at 0 the pooled vector steers the
    attention but is not trained to code the target."""
    tokens: Literal["map", "vector"] = "map"
    """What attention works on: the tokens of the map, or the pooled vector cut into 16 parts."""
    width: int = 32
    """Channels of the decoder: one linear and four convolutional layers, as light as the follow-up's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 10
    """Passes over the training images; 0 keeps the untrained encoder."""
    batch_size: int = 256
    """Images (pairs of views) a step, over all workers together."""
    optimizer: Literal["adamw", "lars"] = "adamw"
    """adamw or lars."""
    lr: float = 1e-3
    """Learning rate at the end of the warm-up for a batch of 256; scaled in proportion to the batch size."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters but biases and normalisation."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up before the cosine decay to zero."""
    grad_accum_steps: int = 1
    """Parts that a batch is cut into, gradients summed over them, where memory is short."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto: bf16 where the processor multiplies it, else fp32. Losses are always fp32."""
    compile: bool = False
    """Compile the encoder's training (torch.compile): needs a C++ compiler and, at first, a minute."""
    seed: int = 0
    """Seed of the weights and of every draw."""
    threads: int | None = None
    """CPU threads a worker; default: the CPUs Ray gave it, or all."""
    eval_every: int = 0
    """Epochs between evaluations on val during training; 0: only at the end."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    fsdp: bool = False
    """Share parameters, gradients and the optimizer's state out over the workers (FSDP2), for an encoder such as ViT-L
    whose training does not fit on one GPU; without, every worker holds all (DistributedDataParallel)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The frozen encoder's evaluation: fixed transforms, independent of what a trial trained with."""

    level: Literal["quick", "full"] = "quick"
    """quick: kNN and linear accuracy, R2 per factor, collapse; full adds MLP probes, invariance, equivariance,
    retrieval."""
    split: Literal["val", "test"] = "val"
    """Choose on val, report on test."""
    train_images: int = 4096
    """Training images that the probes are fitted on."""
    images: int = 10_000
    """Held-out images that the probes are scored on, or all where the split has fewer."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: EncoderConfig = EncoderConfig()
    method: MethodConfig = MethodConfig()
    recon: ReconConfig = ReconConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        check(self)


def check(config: RunConfig) -> None:
    """Refuse values that cannot work, before anything starts.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """

    def require(ok: bool, option: str, allowed: str) -> None:
        if not ok:
            raise ValueError(f"--{option.replace('_', '-')} is {get(config, option)!r}; allowed: {allowed}")

    for section in dataclasses.fields(config):
        for f in dataclasses.fields(section.type):
            literal = next((kind for kind in (f.type, *get_args(f.type)) if get_origin(kind) is Literal), None)
            if literal is not None:
                option = f"{section.name}.{f.name}"
                optional = f.type is not literal and get(config, option) is None
                require(optional or get(config, option) in get_args(literal), option, ", ".join(get_args(literal)))
    for family in AUGMENTATIONS:
        strength = getattr(config.augment, family)
        require(strength is None or 0 <= strength <= 1, f"augment.{family}", "0 to 1")
    for option in ("data.image_size", "data.train_images", "train.threads", "encoder.output_stride"):
        require(get(config, option) is None or get(config, option) >= 1, option, "1 or more")
    for option in ("data.objects", "train.grad_accum_steps", "train.checkpoint_every", "recon.width",
                   "evaluate.train_images", "evaluate.images"):  # fmt: skip
        require(get(config, option) >= 1, option, "1 or more")
    for option in (
        "train.epochs",
        "train.eval_every",
        "train.warmup_epochs",
        "train.weight_decay",
        "data.max_bad_images",
    ):
        require(get(config, option) >= 0, option, "0 or more")
    require(config.data.views_per_object >= 2, "data.views_per_object", "2 or more, since a pair is two of them")
    require(config.train.lr > 0, "train.lr", "above 0")
    require(config.train.batch_size >= 2, "train.batch_size", "2 or more")
    require(0 <= config.recon.weight < float("inf"), "recon.weight", "0 or more, finite")
    require(0 <= config.recon.query_gradient <= 1, "recon.query_gradient", "0 to 1")
    require(0 <= config.encoder.equi_fraction < 1, "encoder.equi_fraction", "0 (no split) to below 1")
    if config.train.compile and config.train.fsdp:
        raise ValueError("--train.compile goes with copies of the model on all workers, not with --train.fsdp")
    if config.encoder.equi_fraction == 0 and config.recon.weight > 0:
        raise ValueError("--encoder.equi-fraction is 0, so there is no equivariant part to reconstruct from: "
                         "give a split above 0 or --recon.weight 0")  # fmt: skip
    if config.recon.attention == "pooled-query" and config.recon.tokens == "vector" and config.recon.weight > 0:
        raise ValueError("--recon.tokens is 'vector', whose parts have no places on the map; allowed with "
                         "--recon.attention pooled-query: map")  # fmt: skip
    if (config.data.pose or config.data.classes) and config.data.source != "solids":
        option = "pose" if config.data.pose else "classes"
        value, source = getattr(config.data, option), config.data.source
        raise ValueError(f"--data.{option} is {value!r}; allowed with --data.source solids alone, not with {source}")
    if config.method.name == "none" and config.recon.weight == 0:
        raise ValueError("--method.name none with --recon.weight 0 leaves no loss: give a weight above 0")


def options_in(arguments: Iterable[str]) -> set[str]:
    """Return the dotted options that a command line sets, with underscores for dashes."""
    names = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return {name.removeprefix("--").replace("-", "_") for name in names}


def check_effect(config: RunConfig, given: Collection[str]) -> None:
    """Refuse an option that was set and has no effect beside the others.

    Args:
        config: with the options set.
        given: the dotted options that were set, see `options_in`.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    recon = config.recon
    if "recon.query_gradient" in given and recon.attention not in WITH_QUERY_GRADIENT:
        raise ValueError(
            f"--recon.query-gradient is {recon.query_gradient:g}; allowed with --recon.attention "
            f"{', '.join(WITH_QUERY_GRADIENT)} alone, not with {recon.attention}"
        )


def get(config: Any, option: str) -> Any:
    """Return the value of a dotted option, such as `recon.weight`; None for a method's option that is not given."""
    for name in option.split("."):
        config = config.get(name) if isinstance(config, dict) else getattr(config, name)
    return config


def replace(config: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a configuration with dotted options set.

    Args:
        config: any of the dataclasses above.
        values: option -> value, such as `{"recon.weight": 1.0}`; underscores, not dashes.

    Raises:
        ValueError: for a name that is no option, or a value that is not allowed.
    """
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for option, value in values.items():
        name, _, rest = option.partition(".")
        if not any(f.name == name for f in dataclasses.fields(config)):
            names = ", ".join(f.name for f in dataclasses.fields(config))
            raise ValueError(f"{name!r} is no option of {type(config).__name__}; there are: {names}")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            here[name] = value
    for name, inner in below.items():
        old = getattr(config, name)
        here[name] = {**old, **inner} if isinstance(old, dict) else replace(old, inner)
    return dataclasses.replace(config, **here)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def flatten(config: Any) -> dict[str, Any]:
    """Return the configuration as dotted options -> plain values."""
    flat: dict[str, Any] = {}
    for name, value in (config if isinstance(config, dict) else to_dict(config)).items():
        flat |= {f"{name}.{k}": v for k, v in flatten(value).items()} if isinstance(value, dict) else {name: value}
    return flat


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """Return the dataclass that `to_dict` made the values from."""
    made = {}
    for f in dataclasses.fields(kind):
        if f.name in values:
            inner = values[f.name]
            made[f.name] = from_dict(f.type, inner) if dataclasses.is_dataclass(f.type) else inner
    return kind(**made)


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the dotted options that results depend on: all but where data are cached."""
    return {option: value for option, value in flatten(config).items() if option != "data.cache"}


def digest(config: RunConfig) -> str:
    """Return 16 hexadecimal digits that change with any value that results depend on."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
