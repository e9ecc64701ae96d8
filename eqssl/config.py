"""The configuration of a training run: frozen dataclasses, their checks and their digest.

tyro makes every option of every command from these fields, under the same names. Nothing here imports torch,
so that `--help` and a refused option cost no time.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from typing_extensions import Doc
from tyro.constructors import PrimitiveConstructorSpec

from eqssl.renames import RENAMED, did_you_mean, instead_of, names_fields

# name -> module and class, imported on first use.
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
CONDITIONED_METHODS = {
    "augself": "eqssl.methods.augself:AugSelf",
    "equimod": "eqssl.methods.equimod:EquiMod",
    "sie": "eqssl.methods.sie:SIE",
}
REFERENCE_METHODS = {
    "supervised": "eqssl.methods.references:Supervised",
    "supervised_factors": "eqssl.methods.references:SupervisedFactors",
    "none": "eqssl.methods.references:NoMethod",
}
# Sources of the package by name; see `eqssl.data.SOURCES` for their files.
IN_FOLDERS = ("imagefolder", "cifar10", "cifar100", "stl10", "fashion_mnist", "imagenet")
FROM_FILES = ("parquet", "3diebench", *IN_FOLDERS)
RENDERED = ("solids",)
READ_BY = {  # option of the data -> the package's sources that read it; a source of the user's own may read any
    "path": FROM_FILES,
    "max_bad_images": FROM_FILES,
    "image_column": ("parquet",),
    "label_column": ("parquet",),
    **dict.fromkeys(("objects", "views_per_object", "pose", "classes"), RENDERED),
}
SEEDS = 2**32  # number of seeds
WITH_LOCAL_CROPS = ("dino", "ibot")  # methods whose loss takes local crops
ReconView = Literal["first", "second", "both", "random", "clean", "intermediate"]
ReconAttention = Literal["pooled-query", "target-queries", "other-queries", "residual", "concat", "autoencode"]
# Properties of attentions for studies and tables; `eqssl.models.reconstruction.blend` computes them.
AUTOENCODE = "autoencode"  # the attention that does not read the other view
WITH_QUERY_GRADIENT = ("pooled-query",)  # attentions on which --recon.query-gradient has an effect
CROSS_ATTENTION_OPTIONS = ("recon.attention", "recon.query_gradient")  # have no effect on auto-encoding
Scale = Literal["tiny", "small", "imagenet"]
Stem = Literal["auto", "standard", "small"]
Pose = Literal["turntable", "free"]
Classes = Literal["coarse", "fine"]


@dataclass(frozen=True)
class Allowed:
    """The values that an option may have: their description in the error, and the test."""

    text: str
    test: Callable[[Any], bool]


Fraction = Annotated[float, Allowed("0 to 1", lambda value: 0 <= value <= 1)]
NonNegative = Annotated[float, Allowed("0 or more, finite", lambda value: 0 <= value < math.inf)]
Positive = Annotated[float, Allowed("above 0, finite", lambda value: 0 < value < math.inf)]
NonNegativeInt = Annotated[int, Allowed("0 or more", lambda value: value >= 0)]
PositiveInt = Annotated[int, Allowed("1 or more", lambda value: value >= 1)]


def _weights(values: list[str]) -> bool | str:
    """Return True for no value, a boolean for true or false, else the path."""
    text = values[0] if values else "true"
    return {"true": True, "false": False}.get(text.lower(), text)


WEIGHTS = PrimitiveConstructorSpec(
    nargs=(0, 1),
    metavar="[FOLDER]",
    instance_from_str=_weights,
    is_instance=lambda value: isinstance(value, bool | str),
    str_from_instance=lambda value: [str(value)],
)


def check_fields(config: Any, prefix: str = "", only: Collection[str] | None = None) -> None:
    """Refuse values outside the types of a dataclass's fields, see `check_value`.

    Args:
        config: the dataclass.
        prefix: of its options' names, such as `train.`.
        only: names of the fields; default: all.
    """
    for f in dataclasses.fields(config):
        if only is None or f.name in only:
            check_value(prefix + f.name, getattr(config, f.name), f.type)


def check_value(option: str, value: Any, kind: Any) -> None:
    """Refuse a value of another type than its field's, or outside the `Literal` or `Allowed` in it.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    allowed = [base for base in _alternatives(kind) if base is not NoneType]
    if value is None and len(allowed) < len(_alternatives(kind)):
        return
    if get_origin(allowed[0]) is Literal:
        return check_known(option, value, get_args(allowed[0]))
    fits, constraint = is_of(value, kind), _constraint(kind)
    if not fits or (constraint is not None and not constraint.test(value)):
        texts = [] if fits else [" or ".join(map(_type_text, allowed))]
        texts += [] if constraint is None else [constraint.text]
        raise ValueError(f"--{option.replace('_', '-')} is {value!r}; allowed: {', '.join(texts)}")


def is_of(value: Any, kind: Any) -> bool:
    """Return whether a value has the type of a field: a float is finite and may be an int; a bool is neither."""
    for base in _alternatives(kind):
        inner = get_args(base)
        if get_origin(base) is dict:
            # The range of each number, with its name, is the method's or the resource's to check.
            entries = value.items() if isinstance(value, dict) else [(None, None)]
            fits = all(is_of(k, inner[0]) and (isinstance(v, float) or is_of(v, inner[1])) for k, v in entries)
        elif get_origin(base) is tuple:
            fits = isinstance(value, tuple | list) and all(is_of(entry, inner[0]) for entry in value)
        elif get_origin(base) is Literal:
            fits = value in inner
        elif base is float:
            fits = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
        else:
            fits = isinstance(value, base) and (base is not int or not isinstance(value, bool))
        if fits:
            return True
    return False


def _alternatives(kind: Any) -> list[Any]:
    """Return the members of a union, or a single type, without annotations."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [base for part in get_args(kind) for base in _alternatives(part)]
    return [kind]


def _constraint(kind: Any) -> Allowed | None:
    if get_origin(kind) in (Union, UnionType):
        return next(filter(None, map(_constraint, get_args(kind))), None)
    return next((entry for entry in get_args(kind)[1:] if isinstance(entry, Allowed)), None)


def _type_text(kind: Any) -> str:
    names = {float: "a finite number", int: "an integer", str: "a text", bool: "True or False"}
    if get_origin(kind) is dict:
        return f"a dictionary of {' or '.join(map(_type_text, _alternatives(get_args(kind)[1])))} by name"
    if get_origin(kind) is tuple:
        return f"a tuple, each entry {_type_text(get_args(kind)[0])}"
    return names.get(kind) or kind.__name__


def check_known(option: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of the allowed ones.

    Raises:
        ValueError: naming the option, its value, the allowed values and the nearest of them.
    """
    allowed = list(allowed)
    if value not in allowed:
        near = did_you_mean(str(value), allowed)
        raise ValueError(f"--{option.replace('_', '-')} is {value!r}; allowed: {', '.join(allowed)}{near}")


def check_source(data: "DataConfig", given: Iterable[str]) -> None:
    """Refuse an option of the data that was set but that their source does not read.

    Args:
        data: with the options set.
        given: names of the options that were set, such as `path`.

    Raises:
        ValueError: naming the option, its value and the sources that read it.
    """
    for option in given:
        sources = READ_BY.get(option, ())
        if sources and data.source in (*RENDERED, *FROM_FILES) and data.source not in sources:
            raise ValueError(
                f"--data.{option.replace('_', '-')} is {getattr(data, option)!r}; allowed with --data.source "
                f"{', '.join(sources)} alone, not with {data.source}"
            )


_PARSING = ContextVar("parsing", default=False)


@contextmanager
def parsing() -> Iterator[None]:
    """Leave the checks of sections to their run: tyro would show an error of a section in its own form."""
    token = _PARSING.set(True)
    try:
        yield
    finally:
        _PARSING.reset(token)


class Section:
    """Options with a common prefix, which are checked wherever one is made: on the command line, in a run, or alone."""

    def __post_init__(self) -> None:
        if not _PARSING.get():
            self.check()

    def check(self) -> None:
        check_fields(self, f"{type(self).__name__.removesuffix('Config').lower()}.")


@names_fields
@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Where images, labels and known factors come from."""

    source: str = "solids"
    """Registered source: solids, parquet, 3diebench, imagefolder, cifar10, cifar100, stl10, fashion_mnist, imagenet."""
    path: str | None = None
    """File, folder or URI (s3://, gs://, ...) of the source; not used by solids."""
    cache: str = "~/.cache/eqssl"
    """Folder of rendered, converted and downloaded data."""
    image_size: PositiveInt | None = None
    """Height and width in pixels that the encoder sees; default: the source's own, 32 for solids."""
    stored_size: PositiveInt | None = None
    """Height and width in pixels at which whole images, also oblong ones, are kept for training, whose crops are cut
    from them; at least image_size. Default: crops are cut from the central square at image_size. Not for solids."""
    pairs: Literal["auto", "object", "image"] = "auto"
    """A pair is two views of one object (a paired source's default) or two augmentations of one image."""
    train_images: PositiveInt | None = None
    """Use only this many training images, drawn once by a fixed seed; default: all."""
    max_bad_images: NonNegativeInt = 10
    """Maximum number of unreadable images to skip; they are named."""
    image_column: str = "image"
    """Parquet column with the encoded image: struct<bytes, path> or binary."""
    label_column: str = "label"
    """Parquet column with the class as an integer; may be absent."""
    objects: PositiveInt = 1250
    """Training objects that solids renders; val and test have half as many each."""
    views_per_object: Annotated[int, Allowed("2 or more, for a pair", lambda value: value >= 2)] = 4
    """Views that solids renders of one object."""
    pose: Pose | None = None
    """Rotations of the objects of solids: turntable (one angle, +-90 degrees) or free (three angles, as in 3DIEBench,
    which takes some 8,000 objects to learn). Default: turntable."""
    classes: Classes | None = None
    """Classes of solids: coarse (12 families) or fine (24: each family in two proportions). Default: fine."""

    def check(self) -> None:
        super().check()
        size, stored = self.image_size, self.stored_size
        if stored is not None and (size is None or stored < size):
            raise ValueError(f"--data.stored-size is {stored}; allowed: at least --data.image-size, which is {size}")
        check_source(self, [option for option in ("pose", "classes") if getattr(self, option) is not None])


@names_fields
@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """One strength in [0, 1] per augmentation family; .5 is the range of arXiv 2503.18753 if it has one.

    The default depends on the source: 0 for pairs of one object; for pairs of one image .5, but 0 for grayscale and
    solarize, and for the colour families on grey images.
    """

    crop: Fraction | None = None
    """Random resized crop: smallest area kept is 1 - .92 x strength (SimCLR: 1)."""
    crop_ratio: Annotated[float, Allowed("1 or more, finite", lambda value: 1 <= value < math.inf)] = 1.0
    """Largest ratio of a crop's sides, log-uniform between 1/ratio and ratio. Default: 1, squares, with which
    the published tables of this package were measured; torchvision and SimCLR: 1.333."""
    translation: Fraction | None = None
    """Shift in both directions, up to ± 20/224 of the side x strength."""
    rotation: Fraction | None = None
    """Rotation, up to ± 90 degrees x strength."""
    flip: Fraction | None = None
    """Horizontal flip, with probability strength / 2."""
    brightness: Fraction | None = None
    """Brightness factor 1 ± .8 x strength."""
    contrast: Fraction | None = None
    """Contrast factor 1 ± .8 x strength."""
    saturation: Fraction | None = None
    """Saturation factor 1 ± .8 x strength; colour images only."""
    hue: Fraction | None = None
    """Hue shift, up to ± .2 of the colour circle x strength; colour images only."""
    grayscale: Fraction | None = None
    """Grayscale, with probability .4 x strength; colour images only."""
    blur: Fraction | None = None
    """Gaussian blur, sigma from 0 up to 4 px at 224 px (in proportion at other sizes) x strength."""
    solarize: Fraction | None = None
    """Solarize above .5, with probability .4 x strength."""
    local_crops: Annotated[int, Allowed("0 to 100", lambda value: 0 <= value <= 100)] = 0
    """Small crops of an image, of 96/224 of its side, that only the student sees; for dino and ibot, whose authors
    take 10 in their longest trainings. Of two renders of one object, each gives half of them."""
    local_crop_area: Annotated[float, Allowed(".05 to 1", lambda value: 0.05 <= value <= 1)] = 0.4
    """Largest share of an image's area in a local crop; the smallest is .05."""


NO_FAMILIES = ("crop_ratio", "local_crops", "local_crop_area")
AUGMENTATIONS = tuple(f.name for f in dataclasses.fields(AugmentConfig) if f.name not in NO_FAMILIES)


@names_fields
@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """The backbone, its token map and its split into an invariant and an equivariant part."""

    name: str = "resnet_tiny"
    """resnet_tiny (ours, 23 million multiply-adds at 64 px), any timm name, torchvision/NAME, or a registered one."""
    equi_fraction: Annotated[float, Allowed("0 (no split) to below 1", lambda value: 0 <= value < 1)] = 0.5
    """Share of the channels that is equivariant; 0: no split, every channel goes to the method."""
    stem: Stem = "auto"
    """Stem of a ResNet: small (3x3, stride 1, no pooling) or standard; auto: small up to 64 px."""
    output_stride: PositiveInt | None = None
    """Pixels a token covers along one side, if the backbone offers a choice; default: its own."""
    pretrained: Annotated[bool | str, WEIGHTS] = False
    """Start from the weights that timm or torchvision publish for this name, or, with FOLDER, from those of an exported
    encoder of this name, of a folder of timm's, or of a .safetensors file."""


@names_fields
@dataclass(frozen=True, kw_only=True)
class MethodConfig(Section):
    """The self-supervised method that makes the invariant part invariant."""

    name: Annotated[
        str,
        Doc(
            f"Registered method: {', '.join(BASE_METHODS)}; {', '.join(CONDITIONED_METHODS)} (conditioned on the "
            f"transformation between the views); {', '.join(REFERENCE_METHODS)} (references of the tables)."
        ),
    ] = "vicreg"
    preset: Literal["cifar", "imagenet", "3diebench"] | None = None
    """Published settings of the whole training: encoder, scale, optimizer, rate, decay, warm-up, epochs, batch and
    augmentation, wherever the command line does not set them; docs/recipes.md lists them. Default: none."""
    scale: Scale = "tiny"
    """Widths of the heads, with the loss factors and temperatures that depend on them: tiny for a CPU, small and
    imagenet as published for CIFAR and ImageNet."""
    options: dict[str, float | str | bool] = field(default_factory=dict)
    """Hyperparameters of the method by name, such as temperature 0.2; default: the method's own."""

    def check(self) -> None:  # a method of the user's own, built alone, may have other scales
        check_fields(self, "method.", only=("name", "preset", "options"))


@names_fields
@dataclass(frozen=True, kw_only=True)
class ReconConfig(Section):
    """The reconstruction branch of arXiv 2412.03314."""

    weight: NonNegative = 1.0
    """Factor of the reconstruction's mean squared error (of standardised pixels) in the loss; 0: no branch."""
    gradient_share: Annotated[float, Allowed("above 0 and below 1", lambda value: 0 < value < 1)] | None = None
    """The reconstruction's share of the encoder's gradient: its norm over the sum of both terms' norms. The weight is
    adapted to keep it, so that one value serves losses of very different sizes. Default: the weight is constant."""
    view: ReconView = "second"
    """The view that is reconstructed; random draws it for every image, clean is the unaugmented image of the first,
    intermediate: two images on the way from the unaugmented one to the second view (arXiv 2503.18753)."""
    attention: ReconAttention = "pooled-query"
    """Input of the decoder. pooled-query: every position queries the other view's tokens with its place and one pooled
    vector of the target; target-queries: the target's tokens query the other view's; other-queries: the reverse;
    residual: target-queries plus the query itself; concat: both views' tokens, no attention; autoencode: the target's
    own tokens, the control that never reads the other view."""
    query_gradient: Fraction = 0.1
    """Share of the gradient that passes through the query of pooled-query, 0 to 1; at 0 the pooled vector steers the
    attention but is not trained to code the target."""
    tokens: Literal["map", "vector"] = "map"
    """Tokens of the attention: those of the map, or the pooled vector cut into 16 parts."""
    width: PositiveInt = 32
    """Channels of the decoder: one linear and four convolutional layers, as in arXiv 2503.18753."""


@names_fields
@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The optimisation."""

    epochs: NonNegativeInt = 10
    """Passes over the training images; 0 keeps the untrained encoder."""
    batch_size: Annotated[int, Allowed("2 or more", lambda value: value >= 2)] = 256
    """Images (pairs of views) per step, over all workers together."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """adamw, sgd (momentum .9) or lars (momentum .9, trust coefficient .001)."""
    lr: Positive = 1e-3
    """Learning rate at the end of the warm-up for a batch of 256; scaled in proportion to the batch size."""
    weight_decay: NonNegative = 1e-4
    """Weight decay of all parameters but biases and normalisation."""
    weight_decay_end: NonNegative | None = None
    """Weight decay at the end, reached by a cosine; default: it is constant."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters, to which a larger one is scaled; default: no clipping."""
    warmup_epochs: NonNegative = 1.0
    """Epochs of linear warm-up before the cosine decay to zero."""
    grad_accum_steps: PositiveInt = 1
    """Parts of a batch whose gradients are accumulated for one step, if memory is short."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto: bf16 if the processor is faster in it, else fp32. Losses are always fp32."""
    compile: bool = False
    """Compile the encoder's training (torch.compile): needs a C++ compiler and, at first, a minute."""
    seed: Annotated[int, Allowed(f"0 to {SEEDS - 1}", lambda value: 0 <= value < SEEDS)] = 0
    """Seed of the weights and of every draw."""
    threads: PositiveInt | None = None
    """CPU threads per worker; default: the CPUs Ray gave it, or all."""
    eval_every: NonNegativeInt = 0
    """Epochs between evaluations on val during training; 0: only at the end."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints."""
    fsdp: bool = False
    """Shard parameters, gradients and the optimizer's state over the workers (FSDP2), for an encoder such as ViT-L
    whose training does not fit on one GPU; without it, every worker holds them all (DistributedDataParallel)."""


@names_fields
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """The frozen encoder's evaluation: fixed transforms, independent of the training's."""

    level: Literal["quick", "full"] = "quick"
    """quick: kNN and linear accuracy, R2 per factor, collapse; full adds MLP probes, invariance, equivariance,
    retrieval and, for data with masks, a dense probe."""
    split: Literal["val", "test"] = "val"
    """Choose on val, report on test."""
    train_images: PositiveInt = 4096
    """Training images of the probes."""
    images: PositiveInt = 10_000
    """Held-out images that score the probes, or all if the split has fewer."""


@names_fields
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


OPTION_TYPES = {  # of a run, by dotted option
    f"{section.name}.{f.name}": f.type
    for section in dataclasses.fields(RunConfig)
    for f in dataclasses.fields(getattr(RunConfig, section.name))
}


def check(config: RunConfig) -> None:
    """Refuse values that cannot work, before anything starts.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    check_fields(config)
    for section in dataclasses.fields(config):
        getattr(config, section.name).check()
    check_value("method.scale", config.method.scale, Scale)
    train, recon = config.train, config.recon
    if train.compile and train.fsdp:
        raise ValueError("--train.compile needs a copy of the model on every worker; it excludes --train.fsdp")
    if train.fsdp and recon.gradient_share:
        raise ValueError("--recon.gradient-share needs gradients of whole parameters; it excludes --train.fsdp")
    if config.encoder.equi_fraction == 0 and recon.weight > 0:
        raise ValueError("--encoder.equi-fraction is 0, so there is no equivariant part to reconstruct from; "
                         "allowed: above 0, or --recon.weight 0")  # fmt: skip
    if recon.attention == "pooled-query" and recon.tokens == "vector" and recon.weight > 0:
        raise ValueError("--recon.tokens is 'vector', whose parts have no position on the map; "
                         "allowed with --recon.attention pooled-query: map")  # fmt: skip
    method, crops = config.method.name, config.augment.local_crops
    if crops and method in (BASE_METHODS | CONDITIONED_METHODS) and method not in WITH_LOCAL_CROPS:
        raise ValueError(f"--augment.local-crops is {crops}; allowed with --method.name {method}: 0, since only "
                         f"{' and '.join(WITH_LOCAL_CROPS)} use local crops")  # fmt: skip
    if config.method.name == "none" and recon.weight == 0:
        raise ValueError("--method.name none with --recon.weight 0 leaves no loss; allowed: a weight above 0")


def options_in(arguments: Iterable[str]) -> set[str]:
    """Return the dotted options that a command line sets, with underscores for dashes.

    Raises:
        ValueError: for the former name of an option, with its current name.
    """
    names = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    given = {name.removeprefix("--").replace("-", "_") for name in names}
    for name in given & RENAMED.keys():
        raise ValueError(f"--{name.replace('_', '-')} is now --{RENAMED[name].replace('_', '-')}")
    return given


def check_effect(config: RunConfig, given: Collection[str]) -> None:
    """Refuse an option that was set but has no effect, given the others.

    Args:
        config: with the options set.
        given: the dotted options that were set, see `options_in`.

    Raises:
        ValueError: naming the option, its value and the allowed values.
    """
    check_source(config.data, [option.removeprefix("data.") for option in given if option.startswith("data.")])
    recon, augment = config.recon, config.augment
    if "augment.local_crop_area" in given and augment.local_crops == 0:
        raise ValueError(
            f"--augment.local-crop-area is {augment.local_crop_area:g}; allowed with --augment.local-crops above 0"
        )
    if "recon.query_gradient" in given and recon.attention not in WITH_QUERY_GRADIENT:
        raise ValueError(
            f"--recon.query-gradient is {recon.query_gradient:g}; allowed with --recon.attention "
            f"{', '.join(WITH_QUERY_GRADIENT)} alone, not with {recon.attention}"
        )
    if recon.gradient_share and "recon.weight" in given:
        raise ValueError(
            f"--recon.gradient-share is {recon.gradient_share:g} and --recon.weight {recon.weight:g}; allowed: one "
            "of them, since the share adapts the weight"
        )
    if recon.gradient_share and "recon.gradient_share" in given and config.method.name == "none":
        raise ValueError(
            f"--recon.gradient-share is {recon.gradient_share:g}; allowed with a --method.name that has a loss, "
            "not with none"
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
        ValueError: for a name that is not an option, or a value that is not allowed.
    """
    names = [f.name for f in dataclasses.fields(config)]
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}  # of sections, each replaced once, since its options are checked together
    for option, value in values.items():
        name, _, rest = option.partition(".")
        if name not in names:
            raise ValueError(f"{name!r} is not an option of {type(config).__name__}{instead_of(name, names)}")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
            inner.pop(name, None)
    for name, of_section in inner.items():
        current = changes.get(name, getattr(config, name))
        changes[name] = current | of_section if isinstance(current, dict) else replace(current, of_section)
    return dataclasses.replace(config, **changes)


def flatten(config: Any) -> dict[str, Any]:
    """Return the configuration, a dataclass or nested dictionaries, as dotted options -> plain values."""
    flat: dict[str, Any] = {}
    for name, value in (config if isinstance(config, dict) else dataclasses.asdict(config)).items():
        flat |= {f"{name}.{k}": v for k, v in flatten(value).items()} if isinstance(value, dict) else {name: value}
    return flat


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the dotted options that results depend on: all but the folder that caches data."""
    return {option: value for option, value in flatten(config).items() if option != "data.cache"}


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the options that differ between an earlier run and one that is to continue it.

    An option that only one version of the package has differs unless its value is the default of that version.

    Args:
        before: options of the earlier run, see `identity`.
        now: those of the new run.
        defaults: those of the package version of the earlier run.
    """
    before, now = {**identity(RunConfig()), **before}, {**defaults, **now}
    return sorted(option for option in before.keys() | now.keys() if before.get(option) != now.get(option))


def digest(config: RunConfig) -> str:
    """Return 16 hexadecimal digits that change with any value that results depend on, but not with a new option."""
    default, values = identity(RunConfig()), identity(config)
    text = json.dumps({o: v for o, v in values.items() if o not in default or v != default[o]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
