"""What AugSelf asks of two augmented views of one image: how their crops, colours, blurs and flips differ.

Lee et al., Improving Transferability of Representations via Augmentation-Aware Self-Supervision (arXiv 2111.09613) and
its code. The augmentations come from one fixed distribution, whatever an encoder was trained with. B images.
"""

import dataclasses

import torch
from torch import Tensor, nn

from eqssl.augment import Params, draw, max_params
from eqssl.config import AUGMENTATIONS, EvaluateConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.evaluation.features import encode, frozen, parts
from eqssl.evaluation.linear import linear_predict
from eqssl.evaluation.mlp import mlp_predict
from eqssl.evaluation.pairs import Pairs, subset
from eqssl.evaluation.predictions import Prediction, figures_of, predictions_of
from eqssl.evaluation.ridge import fit, moments
from eqssl.evaluation.transforms import SEED, has_effect

PROTOCOL = "augself"
FLIP = "flip"
JITTER = ("brightness", "contrast", "saturation", "hue")
# AugSelf's: at least .2 of the area, jitter .4, .4, .4, .1, flips of one in two; blur up to 2 px at 224.
STRENGTHS = (
    dict.fromkeys(AUGMENTATIONS, 0.0) | {"crop": 0.8 / 0.92, "flip": 1.0} | dict.fromkeys((*JITTER, "blur"), 0.5)
)
EPOCH = 1  # of the draws; 0 has those of `eqssl.evaluation.transforms`


def augself_figures(
    encoder: nn.Module, dataset: Dataset, config: EvaluateConfig, predictions: list[Prediction] | None = None
) -> dict[str, float]:
    """Return how well probes of both views' features tell their differences; heads are those of `evaluate`.

    Args:
        encoder, dataset, config, predictions: as `evaluate` takes them; a pair is two views of one image in any case.

    Returns:
        Figure -> value, of all features; `inv/augself/...` and `equi/augself/...` of the parts. Of a ridge
        `augself/r2/<family>` for crop, colour and blur, their mean `augself/r2_mean` and, by SIE's definition,
        `augself/r2_pooled/<family>` for crop and colour; of a ridge classifier `augself/accuracy/flip`, which no
        linear probe of two views can raise above chance. The same with `mlp_` of an MLP, and with `constant_` of the
        training pairs' mean and more frequent answer, the floor.
    """
    with frozen(encoder):
        train = _encode(encoder, dataset, dataset.train, config.train_images)
        held = _encode(encoder, dataset, getattr(dataset, config.split), config.images)
    said = _said("constant_", held, train.target.mean(0).expand_as(held.target))
    for part, channels in parts(encoder, held.first.shape[1]).items():
        probes = _probes(train.part(channels), held.part(channels))
        said += [dataclasses.replace(prediction, part=part) for prediction in probes]
    if predictions is not None:
        predictions += said
    return figures_of(said)


def differences(first: Params, second: Params, channels: int, image_size: int) -> dict[str, Tensor]:
    """Return AugSelf's targets, the first view's minus the second's.

    A view's window in the image follows from its parameters: without rotation, `eqssl.augment` reads the output
    position p (from the centre, in sides) at the input position m exp(-log_scale) (p - d) in x, with m = -1 where it is
    flipped, and at exp(-log_scale) (p - d) in y. The window is thus exp(-log_scale) high and wide, and its centre lies
    at -exp(-log_scale) (dy, m dx) from the image's.

    Args:
        first, second: as `eqssl.augment.draw` returns them.
        channels, image_size: of the images; what has no effect on them is absent.

    Returns:
        `crop` (B, 4): centre y, x, height, width as fractions of the image's, x mirrored where the first view is;
        windows are square, so the last two are equal. `colour` (B, 4; 2 for grey images): factors over the width of
        their range. `blur` (B, 1): sigma, px. `flip` (B, 1): 1 where both views are flipped or neither is.
    """
    crop = _window(first) - _window(second)
    crop[:, 1] *= _mirror(first)
    ranges = max_params(STRENGTHS, image_size)
    colours = [
        (first[name] - second[name]) / (2 * ranges[name]) for name in JITTER if has_effect(name, channels, image_size)
    ]
    targets = {"crop": crop, "colour": torch.stack(colours, dim=1)}
    if has_effect("blur", channels, image_size):
        targets["blur"] = (first["blur"] - second["blur"])[:, None]
    return targets | {FLIP: (first["flip"] == second["flip"]).float()[:, None]}


def _window(params: Params) -> Tensor:
    """Return centre y, x, height and width (B, 4) of the part of the image that a view shows."""
    side = torch.exp(-params["log_scale"])
    return torch.stack([-side * params["dy"], -_mirror(params) * side * params["dx"], side, side], dim=1)


def _mirror(params: Params) -> Tensor:
    return 1 - 2 * params["flip"]


def _encode(encoder: nn.Module, dataset: Dataset, split: Split, count: int) -> Pairs:
    indices = subset(split, count)
    ids = split.ids[indices]
    views = [draw(STRENGTHS, ids, epoch=EPOCH, seed=SEED, view=view, image_size=dataset.image_size) for view in (0, 1)]
    features = encode(encoder, split, indices, views)
    objects = None if split.objects is None else split.objects[indices]
    return Pairs(*features, differences(*views, dataset.channels, dataset.image_size), None, ids, objects)


def _probes(train: Pairs, held: Pairs) -> list[Prediction]:
    agree = train.targets[FLIP][:, 0].long()
    flips = linear_predict(train.inputs, agree, held.inputs)[:, None]
    linear = torch.cat([fit(moments(train.inputs, train.target)).predict(held.inputs)[:, :-1], flips], dim=1)
    predicted = torch.cat(
        [mlp_predict(train.inputs, target, held.inputs, objects=train.objects) for target in train.targets.values()],
        dim=1,
    )
    return _said("", held, linear) + _said("mlp_", held, predicted)


def _said(head: str, held: Pairs, predicted: Tensor) -> list[Prediction]:
    """Name a head's predictions (B, sum of k), whose last column says whether the flips agree."""
    targets = {name: target for name, target in held.targets.items() if name != FLIP}
    agree = (predicted[:, -1:] > 0.5).float()
    said = predictions_of(f"{head}r2", held.ids, targets, predicted[:, :-1], PROTOCOL)
    return said + predictions_of(f"{head}accuracy", held.ids, {FLIP: held.targets[FLIP]}, agree, PROTOCOL)
