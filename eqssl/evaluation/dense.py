"""The dense probe: the object's share of a token's patch, read off the single token of a frozen encoder.

B images of T tokens with D channels; the token map is that of the reconstruction, without class and register tokens.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset, Split, to_float
from eqssl.data.stores import central_square
from eqssl.evaluation.features import BATCH, subset
from eqssl.evaluation.predictions import ALL, DENSE, PART, Prediction, varying
from eqssl.evaluation.probes import fit_ridge
from eqssl.evaluation.transforms import SEED
from eqssl.random import counter_uniform

MAX_TOKENS = 50_000  # of the train split, for the fit
TOKEN_STREAM = 3  # of the evaluation's random numbers


def token_maps(encoder: nn.Module, split: Split, indices: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield identities int64 (B,), tokens float32 (B, T, D) and the object's share of each, float32 (B, T), 0 to 1.

    Args:
        encoder: inside `frozen`, with the `grid`, rows and columns, of its `tokens`, images float32 (B, C, H, W) in
            [0, 1] -> (B, T, D), row by row.
        split: contains the images and their masks.
        indices: int64 (N,), of the images in the split.

    Raises:
        ValueError: for masks or tokens of another number, shape or type.
    """
    masks, images, (rows, columns) = split.masks, split.images, encoder.grid  # type: ignore[misc]
    if masks is None or len(masks) != len(images):
        raise ValueError(f"a split of {len(images)} images has {len(masks or ())} masks; allowed: one of each")
    device = next(encoder.parameters(), torch.empty(0)).device
    for batch in indices.split(BATCH):
        shown = masks.take(batch)
        if shown.dtype not in (torch.uint8, torch.bool) or shown.ndim != 4 or shown.shape[1] != 1:
            raise ValueError(
                f"masks are {shown.dtype} of shape {tuple(shown.shape)}; allowed: uint8 or bool (B, 1, H, W)"
            )
        share = F.adaptive_avg_pool2d((central_square(shown) != 0).float(), (rows, columns)).flatten(1)
        features = encoder.tokens(to_float(images.take(batch).to(device))).float().cpu()  # type: ignore[operator]
        if features.shape[:2] != share.shape:
            raise ValueError(
                f"tokens have the shape {tuple(features.shape)}; allowed with a grid of {rows}x{columns}: "
                f"({len(batch)}, {rows * columns}, D)"
            )
        yield split.ids[batch], features, share


def dense_predictions(
    encoder: nn.Module, dataset: Dataset, config: EvaluateConfig, channels_of_parts: Mapping[str, slice]
) -> list[Prediction]:
    """Return predictions of the share of a token's pixels that belong to the object, for each part of the channels.

    The probe is a ridge regression from single tokens with an intercept for each place of the map, so that R2 is 0 for
    an encoder that only knows where objects usually are. It is fitted on some `MAX_TOKENS` tokens. No prediction is
    returned for an encoder without a token map, or if the shares of all eval images are alike.

    Args:
        encoder, dataset, config: as in `eqssl.evaluation.protocol.evaluate`; the train split and `config.split` have
            masks.
        channels_of_parts: part -> its channels of a token.

    Raises:
        ValueError: see `token_maps`; for parts that do not end with the last channel.
    """
    if getattr(encoder, "grid", None) is None or not hasattr(encoder, "tokens"):
        return []
    split = getattr(dataset, config.split)
    # All channels of a token, which may be more than the features, as for large images of the row `pixels`.
    channels_of_parts = {**channels_of_parts, PART: slice(None)}
    x, y, place, mean_x, mean_y = _draw(encoder, dataset.train, subset(dataset.train, config.train_images))
    if (last := max((of.stop for of in channels_of_parts.values() if of.stop), default=x.shape[1])) != x.shape[1]:
        raise ValueError(
            f"tokens have {x.shape[1]} channels; allowed for an encoder with two parts: {last}, as features"
        )
    x, y = x - mean_x[place], y - mean_y[place, None]
    ridges = {part: fit_ridge(x[:, channels], y) for part, channels in channels_of_parts.items()}
    ids, shares = [], []
    predicted: dict[str, list[Tensor]] = {part: [] for part in ridges}
    for of_batch, tokens, share in token_maps(encoder, split, subset(split, config.images)):
        ids.append(of_batch)
        shares.append(share.double())
        tokens = (tokens - mean_x).flatten(0, 1)
        for part, ridge in ridges.items():
            beyond_place = ridge.predict(tokens[:, channels_of_parts[part]]).view_as(share)
            predicted[part].append(beyond_place + mean_y)
    target = torch.cat(shares)
    if not varying(target).any():
        return []
    total = (target - target.mean(0)).square().sum(1, keepdim=True).float()
    return [
        Prediction(
            DENSE, ALL, torch.cat(ids), total, (target - torch.cat(of_part)).square().sum(1, keepdim=True).float(),
            part=part,
        )
        for part, of_part in predicted.items()
    ]  # fmt: skip


def _draw(encoder: nn.Module, split: Split, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return tokens (n, D), their shares (n, 1) and places in the map, int64 (n,), and the means of all tokens (T, D)
    and of all shares (T,) at each place.

    n is about `MAX_TOKENS`: every image gives equally many, drawn by its identity, at least one.
    """
    kept = max(1, MAX_TOKENS // len(indices))
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    mean_x, mean_y = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for ids, tokens, share in token_maps(encoder, split, indices):
        mean_x = mean_x + tokens.double().sum(0) / len(indices)
        mean_y = mean_y + share.double().sum(0) / len(indices)
        places = counter_uniform(SEED, 0, ids, TOKEN_STREAM, share.shape[1]).argsort(1)[:, :kept].sort(1).values
        x = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
        drawn.append((x.flatten(0, 1), share.gather(1, places).view(-1, 1), places.flatten()))
    x, y, place = (torch.cat(of_batches) for of_batches in zip(*drawn, strict=True))
    return x, y, place, mean_x.float(), mean_y.float()
