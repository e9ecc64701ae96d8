"""Published settings of whole trainings, to which each method adds its own."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Published settings of a training.

    Args:
        options: dotted options -> values.
        source: of the settings, with the differences here.
        expected: accuracy that the source reports, with the protocol.
    """

    options: dict[str, Any]
    source: str
    expected: str


# Multi-crop of the authors' 800-epoch runs of DINO and iBOT: views of .25 to 1 of the area, local crops of .05 to .25.
MULTI_CROP = {"crop": 0.815, "local_crops": 10, "local_crop_area": 0.25}


def cifar(expected: str) -> Preset:
    """Return the settings that lightly's CIFAR-10 benchmark shares among methods."""
    crop_and_colour = {"crop": 1.0, "flip": 1.0, "grayscale": 0.5, "translation": 0.0, "rotation": 0.0, "blur": 0.0}
    return Preset(
        options={
            "data.image_size": 32, "encoder.name": "resnet18", "encoder.stem": "small", "method.scale": "small",
            "train.optimizer": "sgd", "train.lr": 0.12, "train.weight_decay": 5e-4, "train.warmup_epochs": 0.0,
            "train.epochs": 200, "train.batch_size": 128,
            **{f"augment.{name}": strength for name, strength in crop_and_colour.items()},
        },
        source="lightly's CIFAR-10 benchmark (learning rate .06 for a batch of 128); here every view has colour "
        "jitter, not 80 % of them, and the heads are solo-learn's",
        expected=expected,
    )  # fmt: skip


def imagenet(source: str, expected: str, **options: Any) -> Preset:
    """Return the authors' settings on ImageNet-1k at 224 px; the options are those of the training.

    Args:
        source, expected: see `Preset`.
        options: `encoder`; `augment`, a dictionary of strengths in addition to the usual ones; and options of the
            training by name.
    """
    augment = {"crop": 1.0, "flip": 1.0, "grayscale": 0.5, "blur": 0.5, "translation": 0.0, "rotation": 0.0}
    augment |= options.pop("augment", {})
    encoder = options.pop("encoder", "resnet50")
    return Preset(
        options={
            "data.image_size": 224, "encoder.name": encoder, "method.scale": "imagenet",
            **{f"train.{name}": value for name, value in options.items()},
            **{f"augment.{name}": value for name, value in augment.items()},
        },
        source=source,
        expected=expected,
    )  # fmt: skip
