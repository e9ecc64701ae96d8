"""The AugSelf protocol: predict how two augmented views of one image differ in crop, colour, blur and flip.

Lee et al., Improving Transferability of Representations via Augmentation-Aware Self-Supervision (arXiv 2111.09613) and
its code. The augmentations come from one fixed distribution, independent of the encoder's training. B images.
"""

import dataclasses

import torch
from torch import Tensor, nn

from eqssl.augment import Params, draw, max_params
from eqssl.config import AUGMENTATIONS, EvaluateConfig
from eqssl.data.dataset import Dataset, Split
from eqssl.evaluation.features import Pairs, encode, frozen, parts, subset
from eqssl.evaluation.predictions import Prediction, factor_predictions
from eqssl.evaluation.probes import linear_predict, mlp_predict, mlp_predictions, ridge_predictions
from eqssl.evaluation.transforms import SEED, has_effect

PROTOCOL = "augself"
FLIP = "flip"
JITTER = ("brightness", "contrast", "saturation", "hue")
# As in AugSelf: crops of at least .2 of the area, jitter .4, .4, .4, .1, flips of one in two; blur up to 2 px at 224.
STRENGTHS = (
    dict.fromkeys(AUGMENTATIONS, 0.0) | {"crop": 0.8 / 0.92, "flip": 1.0} | dict.fromkeys((*JITTER, "blur"), 0.5)
)
EPOCH = 1  # epoch of the random draws; `eqssl.evaluation.transforms` uses 0


def augself_predictions(encoder: nn.Module, dataset: Dataset, config: EvaluateConfig) -> list[Prediction]:
    """Return the predictions of probes for the differences between two views, from the features of both.

    Args:
        encoder, dataset, config: as in `eqssl.evaluation.protocol.evaluate`; a pair is always two views of one image.

    Returns:
        Predictions whose metrics (`metrics_of`) are `augself/<metric>` on all features, and `inv/augself/...`,
        `equi/augself/...` on the parts. By a ridge: `r2/<family>` for crop, colour and blur, their mean `r2_mean` and,
        by SIE's definition, `r2_pooled/<family>` for crop and colour. By a ridge classifier: `accuracy/flip`, which no
        linear probe of two views can raise above chance. The same by an MLP, with the prefix `mlp_`; and, as the floor,
        by the training pairs' mean and more frequent answer, with `constant_`.
    """
    with frozen(encoder):
        train = _encode(encoder, dataset, dataset.train, config.train_images)
        eval_pairs = _encode(encoder, dataset, getattr(dataset, config.split), config.images)
    mean, agree = train.target.mean(0).expand_as(eval_pairs.target), train.transform[FLIP]
    predictions = factor_predictions("constant_r2", eval_pairs.ids, eval_pairs.targets, mean)
    predictions += _flip_predictions("constant_accuracy", eval_pairs, (agree.mean() > 0.5).expand(len(mean)))
    for part, channels in parts(encoder, eval_pairs.first.shape[1]).items():
        train_part, eval_part = train.part(channels), eval_pairs.part(channels)
        by_ridge = linear_predict(train_part.inputs, agree[:, 0].long(), eval_part.inputs)
        by_mlp = mlp_predict(train_part.inputs, agree, eval_part.inputs, objects=train.objects)[:, 0] > 0.5
        found = [
            *ridge_predictions("r2", train_part, eval_part),
            *_flip_predictions("accuracy", eval_part, by_ridge),
            *mlp_predictions("mlp_r2", train_part, eval_part),
            *_flip_predictions("mlp_accuracy", eval_part, by_mlp),
        ]
        predictions += [dataclasses.replace(prediction, part=part) for prediction in found]
    return [dataclasses.replace(prediction, protocol=PROTOCOL) for prediction in predictions]


def differences(first: Params, second: Params, channels: int, image_size: int) -> dict[str, Tensor]:
    """Return AugSelf's targets: the first view's values minus the second's.

    A view's window in the image follows from its parameters: without rotation, `eqssl.augment` reads the output
    position p (from the centre, in sides) at the input position m exp(-log_scale) (p - d) in x, with m = -1 if the view
    is flipped, and at exp(-log_scale) (p - d) in y. The window is thus exp(-log_scale) high and wide, and its centre is
    at -exp(-log_scale) (dy, m dx) from the image's.

    Args:
        first, second: as `eqssl.augment.draw` returns them.
        channels, image_size: of the images; factors that do not affect them are absent.

    Returns:
        `crop` (B, 4): centre y, x, height, width as fractions of the image's, x mirrored if the first view is;
        windows are square, so the last two are equal. `colour` (B, 4; 2 for grey images): factors over the width of
        their range. `blur` (B, 1): sigma, px. `flip` (B, 1): 1 where both views are flipped or neither is.
    """
    windows = []
    for params in (first, second):
        side, mirror = torch.exp(-params["log_scale"]), 1 - 2 * params["flip"]
        windows.append(torch.stack([-side * params["dy"], -mirror * side * params["dx"], side, side], dim=1))
    crop = windows[0] - windows[1]
    crop[:, 1] *= 1 - 2 * first["flip"]
    ranges = max_params(STRENGTHS, image_size)
    jitter = [name for name in JITTER if has_effect(name, channels, image_size)]
    colour = torch.stack([(first[name] - second[name]) / (2 * ranges[name]) for name in jitter], dim=1)
    blur = {"blur": (first["blur"] - second["blur"])[:, None]} if has_effect("blur", channels, image_size) else {}
    return {"crop": crop, "colour": colour, **blur, FLIP: (first["flip"] == second["flip"]).float()[:, None]}


def _encode(encoder: nn.Module, dataset: Dataset, split: Split, count: int) -> Pairs:
    """Return pairs of augmented views; whether their flips agree is not a regression target."""
    indices = subset(split, count)
    ids, objects = split.ids[indices], None if split.objects is None else split.objects[indices]
    one, two = (
        draw(STRENGTHS, ids, epoch=EPOCH, seed=SEED, view=view, image_size=dataset.image_size) for view in (0, 1)
    )
    first, second = encode(encoder, split, indices, (one, two))
    transform = differences(one, two, dataset.channels, dataset.image_size)
    targets = {name: value for name, value in transform.items() if name != FLIP}
    return Pairs(first=first, second=second, targets=targets, transform=transform, ids=ids, objects=objects)


def _flip_predictions(metric: str, pairs: Pairs, agree: Tensor) -> list[Prediction]:
    return factor_predictions(metric, pairs.ids, {FLIP: pairs.transform[FLIP]}, agree[:, None])
