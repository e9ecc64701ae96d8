"""The distribution of evaluation transforms, the same for every encoder.

The ranges are those of arXiv 2503.18753 (at 224 px, proportional at other sizes); all draws come from a stored seed.
"""

import hashlib
import math

import torch
from torch import Tensor

from eqssl.augment import COLOUR, Params, blurs
from eqssl.random import counter_uniform

SEED = 241203314
PAIR_STREAM, BINARY_STREAM, BANK_STREAM = 0, 1, 2  # streams of the counter-based generator
SHIFT = 10 / 224
RANGES = {
    "dx": (-SHIFT, SHIFT),
    "dy": (-SHIFT, SHIFT),
    "log_scale": (math.log(0.7), math.log(1.1)),
    "angle_deg": (-45.0, 45.0),
    "brightness": (-0.4, 0.4),
    "contrast": (-0.4, 0.4),
    "saturation": (-0.4, 0.4),
    "hue": (-0.1, 0.1),
    "blur": (0.1 / 224, 2 / 224),  # sigma as a fraction of the side; the parameter itself is in px
}
BINARY = ("flip", "grayscale", "solarize")


def draw(ids: Tensor, channels: int, image_size: int, stream: int = PAIR_STREAM) -> Params:
    """Return continuous transforms, one for each image.

    Args:
        ids: int64 (B,), identities that the draws depend on.
        channels, image_size: of the images; factors that do not affect them are absent.
        stream: stream of the counter-based generator.

    Returns:
        factor -> float32 (B,) in the units of `eqssl.augment`.
    """
    uniform = counter_uniform(SEED, 0, ids, stream, len(RANGES))
    params = {}
    for column, (name, (low, high)) in zip(uniform.unbind(1), RANGES.items(), strict=True):
        if has_effect(name, channels, image_size):
            params[name] = (low + (high - low) * column) * (image_size if name == "blur" else 1)
    return params


def draw_binary(ids: Tensor, channels: int) -> Params:
    """Return flip, grayscale (of colour images) and solarize, each with probability .5: factor -> float32 (B,), 0 or 1.

    Args:
        ids: int64 (B,), identities that the draws depend on.
        channels: of the images.
    """
    uniform = counter_uniform(SEED, 0, ids, BINARY_STREAM, len(BINARY))
    on = zip(BINARY, (uniform < 0.5).float().unbind(1), strict=True)
    return {name: column for name, column in on if channels == 3 or name not in COLOUR}


def digest() -> str:
    """Return 16 hexadecimal digits that change with any draw of the distribution."""
    ids = torch.arange(64)
    params = [draw(ids, 3, 224, PAIR_STREAM), draw(ids, 3, 224, BANK_STREAM), draw_binary(ids, 3)]
    values = torch.cat([column for drawn in params for column in drawn.values()])
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def has_effect(name: str, channels: int, image_size: int) -> bool:
    """Return whether a factor, in its range, alters images of this kind."""
    if name in COLOUR:
        return channels == 3
    return name != "blur" or blurs(RANGES["blur"][1] * image_size)  # no effect below about 30 px
