"""Pictures of the retrieval: the views whose features are nearest to those predicted for a transform."""

from collections.abc import Iterable

import torch
from torch import Tensor

from eqssl.augment import PARAMETERS, apply
from eqssl.data.dataset import Dataset, to_float, to_uint8
from eqssl.evaluation.features import BANK_IMAGES, BANK_VIEWS, object_views, subset
from eqssl.evaluation.predictions import PART, Prediction
from eqssl.evaluation.transforms import BANK_STREAM, draw

SHOWN = 8  # images


def retrieved_views(predictions: Iterable[Prediction], dataset: Dataset, split: str) -> Tensor | None:
    """Return some images, a view of each, and the view that a ridge regression from z1 and theta retrieves for it.

    Args:
        predictions: of `eqssl.evaluation.protocol.evaluate` on these data.
        dataset: the data.
        split: name of the eval split.

    Returns:
        uint8 (3, n, C, S, S): first views, views wanted, views retrieved; None without predictions of `hit1`, such as
        at level quick.
    """
    found = next((p for p in predictions if p.metric == "hit1" and p.part == PART), None)
    if found is None:
        return None
    count, views = found.predicted[:SHOWN].shape
    rows = torch.arange(count)
    wanted = 1 + rows % (views - 1)  # in pairs of objects, view 0 is the first view itself
    retrieved = found.predicted[rows, wanted].long()
    images = getattr(dataset, split)
    if dataset.paired:
        indices = object_views(images)[:count]
        return torch.stack([images.images.take(indices[rows, view]) for view in (0 * rows, wanted, retrieved)])
    clean = images.images.take(subset(images, BANK_IMAGES)[:count])
    params = draw(torch.arange(BANK_VIEWS), dataset.channels, dataset.image_size, BANK_STREAM)
    identity = torch.zeros(BANK_VIEWS)

    def seen(view: Tensor) -> Tensor:
        return to_uint8(apply(to_float(clean), {name: params.get(name, identity)[view] for name in PARAMETERS}))

    return torch.stack([clean, seen(wanted), seen(retrieved)])
