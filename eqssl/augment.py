"""Strengths -> views and the parameters that made them, batched, on any device.

A view is made by one geometric transform, applied as one resampling, and then by the photometric operations in the
order of `PARAMETERS`. Equivariance probes predict the parameters, so 0 is the identity in every one of them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eqssl.config import AUGMENTATIONS, AugmentConfig
from eqssl.devices import to_device
from eqssl.random import counter_uniform

Params = dict[str, Tensor]

GEOMETRIC = ("dx", "dy", "log_scale", "angle_deg", "flip")
PHOTOMETRIC = ("brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize")
PARAMETERS = GEOMETRIC + PHOTOMETRIC
COLOUR = ("saturation", "hue", "grayscale")
ERASING = ("grayscale", "solarize")

MAX_AREA_LOST = 0.92
LEAST_LOCAL_AREA = 0.05  # of the image, in a local crop
MAX_SHIFT = 20 / 224  # of the side
MAX_SIGMA = 4 / 224  # of the side
MAX_SYMMETRIC = {
    "angle_deg": ("rotation", 90.0),
    "brightness": ("brightness", 0.8),
    "contrast": ("contrast", 0.8),
    "saturation": ("saturation", 0.8),
    "hue": ("hue", 0.2),  # of the circle
}  # parameter uniform in ± strength x limit -> its family and limit
MAX_PROBABILITY = {"flip": 0.5, "grayscale": 0.4, "solarize": 0.4}
RATIO = "log_ratio"  # a parameter of crops that are not square

_CACHED_VALUES = 2**19  # 2 MiB of float32

_DRAWS = (
    "area", "crop_x", "crop_y", "shift_x", "shift_y", "rotation", "flip",
    "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize",
    "ratio",
)  # fmt: skip


def strengths(config: AugmentConfig, *, paired: bool, channels: int, altered_by: dict[str, str]) -> dict[str, float]:
    """Return the strength of every family, defaults filled in for the source.

    Pairs of one object have a known transformation and default to 0. Pairs of one image default to .5, the ranges of
    arXiv 2503.18753, except for grayscale and solarize, which erase the colour and brightness that probes predict.

    Args:
        config: strengths in [0, 1], None for the default.
        paired: whether a pair is two views of one object.
        channels: 1 or 3, of the images.
        altered_by: family -> the known factor that it would alter.

    Returns:
        family -> strength in [0, 1].

    Raises:
        ValueError: for a strength above 0 where the family alters a known factor of a pair, or needs colour.
    """
    resolved = {}
    for family in AUGMENTATIONS:
        strength = getattr(config, family)
        colourless = channels == 1 and family in COLOUR
        if strength and paired and family in altered_by:
            raise ValueError(
                f"--augment.{family} is {strength}; allowed for pairs of one object: 0, "
                f"since it would alter the known factor {altered_by[family]}"
            )
        if strength and colourless:
            raise ValueError(f"--augment.{family} is {strength}; allowed for grey images: 0")
        default = 0.0 if paired or colourless or family in ERASING else 0.5
        resolved[family] = default if strength is None else float(strength)
    return resolved


def draw(
    strengths: dict[str, float], ids: Tensor, *, epoch: int, seed: int, view: int, image_size: int,
    crop_ratio: float = 1.0, aspects: Tensor | None = None, local_area: float | None = None,
) -> Params:  # fmt: skip
    """Draw the parameters of one view of every image.

    The geometric ones are those of the net transform of: flip, rotation about the centre, crop (of a window inside the
    rotated image, magnified to its full size), translation. They are relative to the central square of the image, its
    side the unit. Every draw has its own column of the counter-based generator, so that the strength of one family
    never changes the draws of another.

    The area and ratio of a crop are drawn as in torchvision; where it would not fit, it is shrunk to the largest of its
    ratio. At full strength it lies anywhere in an oblong image; a lower strength limits it in proportion to a smaller
    margin beside the central square.

    Args:
        strengths: family -> strength in [0, 1].
        ids: int64 (B,), the images' identities.
        epoch, seed: of the run.
        view: 0 or 1; 2 or more for a local crop.
        image_size: height and width of the view, px.
        crop_ratio: largest width / height of a crop, 1 or more.
        aspects: float64 (B,), width / height of the images; None for squares.
        local_area: largest share of the image's area in a local crop, whose place and area do not depend on the
            strength of the family crop. None for other views.

    Returns:
        Each of `PARAMETERS` as float32 (B,) on the device of `ids`: dx and dy as fractions of the side (positive: the
        content moves right, down), log_scale as the logarithm of the magnification, angle_deg counter-clockwise,
        brightness, contrast and saturation as factor - 1, hue as a fraction of the circle, blur as sigma in px; flip,
        grayscale and solarize 0 or 1. With a crop_ratio above 1 also `RATIO`, the logarithm of the crop's width /
        height, by which log_scale becomes the mean over x and y.
    """
    uniform = counter_uniform(seed, epoch, ids, view, len(_DRAWS)).double()
    zero_to_one = dict(zip(_DRAWS, uniform.unbind(1), strict=True))
    signed = dict(zip(_DRAWS, (2 * uniform - 1).unbind(1), strict=True))

    crop, largest, lost = strengths["crop"], 1.0, MAX_AREA_LOST * strengths["crop"]
    if local_area is not None:
        crop, largest, lost = 1.0, local_area, local_area - LEAST_LOCAL_AREA
    width, height = (1 + crop * (side - 1) for side in _sides(aspects, ids.device))
    area = (largest - lost * zero_to_one["area"]) * (width * height)
    log_ratio = math.log(crop_ratio) * signed["ratio"]
    stretch = (log_ratio / 2).exp()
    too_wide, too_high = area.sqrt() * stretch / width, area.sqrt() / stretch / height
    magnification = area.rsqrt() * torch.maximum(too_wide, too_high).clamp(min=1)
    shift = MAX_SHIFT * strengths["translation"]
    params = {
        "dx": (width * magnification / stretch - 1) / 2 * signed["crop_x"] + shift * signed["shift_x"],
        "dy": (height * magnification * stretch - 1) / 2 * signed["crop_y"] + shift * signed["shift_y"],
        "log_scale": magnification.log(),
        "blur": MAX_SIGMA * image_size * strengths["blur"] * zero_to_one["blur"],
    }
    for name, (family, limit) in MAX_SYMMETRIC.items():
        params[name] = limit * strengths[family] * signed[family]
    for name, probability in MAX_PROBABILITY.items():
        params[name] = zero_to_one[name] < probability * strengths[name]
    ratio = {RATIO: log_ratio.float()} if crop_ratio > 1 else {}
    return {name: params[name].float() for name in PARAMETERS} | ratio


def _sides(aspects: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return width and height of images of an aspect, float64 (B,), in units of their shorter side."""
    aspects = torch.ones(1, dtype=torch.float64) if aspects is None else aspects
    aspects = to_device(aspects, device)
    return aspects.clamp(min=1), (1 / aspects).clamp(min=1)


def max_params(
    strengths: dict[str, float], image_size: int, crop_ratio: float = 1.0, aspects: Tensor | None = None
) -> dict[str, float]:
    """Return the largest size of each parameter from `draw`; 0 for one that stays 0 or has no effect.

    Args:
        strengths: family -> strength in [0, 1].
        image_size: height and width, px.
        crop_ratio, aspects: as `draw` takes them, of all images.

    Returns:
        parameter -> largest absolute value, or a bound for images that are not square, in the units of `draw`; 1
        for binary ones that can occur.
    """
    width, height = (1 + strengths["crop"] * (float(side.max()) - 1) for side in _sides(aspects, torch.device("cpu")))
    magnification = (1 - MAX_AREA_LOST * strengths["crop"]) ** -0.5
    sigma = MAX_SIGMA * image_size * strengths["blur"]

    def shift(side: float) -> float:
        most = max(magnification * (side * crop_ratio) ** 0.5, side * crop_ratio)
        return (most - 1) / 2 + MAX_SHIFT * strengths["translation"]

    return {
        "dx": shift(width),
        "dy": shift(height),
        "log_scale": math.log(max(magnification, crop_ratio**0.5, width**0.5, height**0.5)),
        "blur": sigma if blurs(sigma) else 0.0,
        **{name: limit * strengths[family] for name, (family, limit) in MAX_SYMMETRIC.items()},
        **{name: float(strengths[name] > 0) for name in MAX_PROBABILITY},
        **({RATIO: math.log(crop_ratio)} if crop_ratio > 1 else {}),
    }


def blurs(sigma: float) -> bool:
    """Return whether a blur of sigma px can move a pixel by one of 255 levels, by the weight of its four neighbours."""
    return sigma > 0 and 4 * math.exp(-0.5 / sigma**2) >= 1 / 255


def relative(first: Params, second: Params) -> Params:
    """Return the parameters of the transform from the first view to the second.

    The geometric ones are those of the composition g2 g1^-1; the photometric ones are differences, as AugSelf's
    (arXiv 2111.09613); a binary one is 1 where the views differ. Non-square crops have such parameters only if
    nothing is rotated, since the composition would include a shear.

    Args:
        first, second: of two views of the same images, as `draw` returns them.

    Returns:
        Each of `PARAMETERS` as float32 (B,), in the units of `draw`; binary ones 0 or 1.
    """
    between = {
        name: second[name] - first[name]
        for name in ("log_scale", RATIO, "brightness", "contrast", "saturation", "hue", "blur")
        if name in first
    }
    between |= {name: (second[name] - first[name]).abs() for name in MAX_PROBABILITY}
    mirror = 1 - 2 * between["flip"]
    between["angle_deg"] = second["angle_deg"] - mirror * first["angle_deg"]
    angle, scale = torch.deg2rad(between["angle_deg"]), between["log_scale"].exp()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    stretch = (between[RATIO] / 2).exp() if RATIO in between else 1
    # y points down, and an angle turns counter-clockwise.
    between["dx"] = second["dx"] - (mirror * cos * first["dx"] + sin * first["dy"]) / stretch
    between["dy"] = second["dy"] - (-mirror * sin * first["dx"] + cos * first["dy"]) * stretch
    return {name: between[name] for name in first}


def interpolate_params(params: Params, share: float) -> Params:
    """Return the parameters of a view that is `share` of the way from the image to the view of `params`.

    A binary operation happens half-way.

    Args:
        params: as `draw` returns them, (B,) each.
        share: in [0, 1]; 0 is the identity, 1 the view.

    Returns:
        Each parameter as float32 (B,), in the units of `draw`.
    """
    return {
        name: (value * (share >= 0.5) if name in MAX_PROBABILITY else value * share) for name, value in params.items()
    }


def apply(images: Tensor, params: Params, size: int | None = None, aspects: Tensor | None = None) -> Tensor:
    """Return the views that the parameters make of the images.

    Borders are reflected. A sample's view does not depend on the batch it is in, and a parameter of 0 leaves it
    unchanged, bit for bit, where the view has the image's size. On grey images saturation, hue and grayscale have no
    effect. Each image is resampled once, from all of its pixels.

    Args:
        images: float32 (B, C, R, R) in [0, 1], C 1 or 3.
        params: each of `PARAMETERS`, float32 (B,), as `draw` returns them; on a CPU, so that operations without
            effect are skipped without waiting for a GPU that has the images.
        size: S, height and width of the views, px; None: R.
        aspects: float64 (B,), width / height of images that were squeezed into squares; None: they were squares.

    Returns:
        float32 (B, C, S, S) in [0, 1]; where no parameter alters anything it may be `images`, not a copy.
    """
    # On a CPU, chunks that fit into its cache are 1.5 times as fast as one large batch.
    count = len(images) if images.is_cuda else max(1, _CACHED_VALUES // images[0].numel())
    parts = [slice(start, start + count) for start in range(0, len(images), count)]
    size = images.shape[-1] if size is None else size
    views = [
        _apply(
            images[part], {name: params[name][part] for name in params}, size,
            None if aspects is None else aspects[part],
        )
        for part in parts
    ]  # fmt: skip
    return views[0] if len(views) == 1 else torch.cat(views)


def _apply(images: Tensor, params: Params, size: int, aspects: Tensor | None) -> Tensor:
    values = torch.stack(list(params.values()))
    used = {name for name, use in zip(params, (values != 0).any(dim=1).tolist(), strict=True) if use}
    params = dict(zip(params, to_device(values, images.device).unbind(), strict=True))
    if images.shape[1] == 1:
        used -= set(COLOUR)
    if size != images.shape[-1] or aspects is not None:
        images = _resample(images, params, size, aspects)
    elif not used.isdisjoint((*GEOMETRIC, RATIO)):
        moved = torch.stack([params[name] for name in (*GEOMETRIC, RATIO) if name in params]).any(dim=0)
        images = _choose(moved[:, None, None, None], _resample(images, params, size, None), images)
    for name in PHOTOMETRIC:
        if name in used:
            images = _OPERATIONS[name](images, params[name][:, None, None, None])
    return images


def _resample(images: Tensor, params: Params, size: int, aspects: Tensor | None) -> Tensor:
    """Transform about the centre, by the inverse map from output to input positions, in units of the side.

    A view smaller than its image averages several samples per pixel, so that no pixel of the image is skipped.
    """
    # In float64, since vectorised and remainder loops round sin and cos differently, which would depend on the batch.
    dx, dy, log_scale, angle_deg, flip = (params[name].double() for name in GEOMETRIC)
    angle, shrink, mirror = torch.deg2rad(angle_deg), torch.exp(-log_scale), 1 - 2 * flip
    cos, sin = shrink * angle.cos(), shrink * angle.sin()
    per_x = torch.stack([mirror * cos, sin], dim=1)
    per_y = torch.stack([-mirror * sin, cos], dim=1)
    if RATIO in params:
        stretch = (params[RATIO].double() / 2).exp()[:, None]
        per_x, per_y = per_x * stretch, per_y / stretch
    offset = -(per_x * dx[:, None] + per_y * dy[:, None])
    if aspects is not None:
        sides = torch.stack(_sides(aspects, images.device), dim=1)
        per_x, per_y, offset = per_x / sides, per_y / sides, offset / sides
    per_x, per_y, offset = (2 * t.float()[:, :, None, None] for t in (per_x, per_y, offset))
    samples = math.ceil(images.shape[-1] / size)  # of a pixel, along one side
    position = (torch.arange(samples * size, device=images.device) + 0.5) / (samples * size) - 0.5
    grid = per_x * position + (per_y * position[:, None] + offset)
    views = F.grid_sample(images, grid.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)
    if samples > 1:
        views = F.avg_pool2d(views, samples)
    return views.clamp_(0, 1)


def _choose(condition: Tensor, images: Tensor, others: Tensor) -> Tensor:
    # lerp is exact at 0 and 1, and on a CPU several times as fast as torch.where.
    return torch.lerp(others, images, condition.float())


def luma(images: Tensor) -> Tensor:
    """Return the luma of ITU-R BT.601, with torchvision's coefficients; grey images are returned unchanged.

    Args:
        images: float (B, C, S, S), C 1 or 3: red, green, blue.

    Returns:
        float (B, 1, S, S), in the images' range.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _brightness(images: Tensor, amount: Tensor) -> Tensor:
    return (images * (1 + amount)).clamp_(0, 1)


def _contrast(images: Tensor, amount: Tensor) -> Tensor:
    # In two steps, since a reduction to a single number is split among threads, and then depends on the batch.
    mean = luma(images).mean(3, keepdim=True).mean(2, keepdim=True)
    return torch.lerp(mean, images, 1 + amount).clamp_(0, 1)


def _saturation(images: Tensor, amount: Tensor) -> Tensor:
    return torch.lerp(luma(images), images, 1 + amount).clamp_(0, 1)


def _hue(images: Tensor, amount: Tensor) -> Tensor:
    """Turn the hue of HSV, whose circle is six sixths, without branches.

    With h the hue in (-3, 3], a channel that peaks at p is low + chroma x clamp(2 - |h - p|, 0, 1), the distance taken
    around the circle; and |h| x chroma = green + blue - red + high - 2 low, as each order of the channels shows.
    """
    red, green, blue = images.split(1, dim=1)
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    size = (green + blue).sub_(red).add_(high).sub_(low, alpha=2)
    hue = torch.copysign(size, green - blue).div_(chroma.clamp_min(1e-12)).add_(6 * amount)
    distance = hue - torch.arange(0, 6, 2.0, device=images.device)[:, None, None]
    distance.sub_((distance / 6).round_(), alpha=6)
    turned = distance.abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low)
    return _choose(amount != 0, turned, images)


def _grayscale(images: Tensor, on: Tensor) -> Tensor:
    return _choose(on, luma(images), images)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolve with a Gaussian cut at three times the largest sigma, rows and columns in turn."""
    side = images.shape[-1]
    radius = math.ceil(3 * MAX_SIGMA * side)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    exponent = -(offsets**2) / (2 * sigma.double().clamp_min(1e-3) ** 2)
    taps = exponent.softmax(dim=-1).float().split(1, dim=-1)
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded = F.pad(images, padding, mode="reflect")
        # Shifted sums instead of a convolution, whose algorithm, and so its rounding, depends on the batch.
        images = padded.narrow(dim, 0, side) * taps[0]
        for start, tap in enumerate(taps[1:], start=1):
            images.addcmul_(padded.narrow(dim, start, side), tap)
    return images.clamp_(0, 1)


def _solarize(images: Tensor, on: Tensor) -> Tensor:
    return _choose(on, torch.minimum(images, 1 - images), images)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}
