"""The dense probe: the object's share of a token's patch, read off the single token of a frozen encoder.

B images of T tokens with D channels; the token map is that of the reconstruction, without class and register tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqssl.data.dataset import Split, to_float
from eqssl.data.stores import central_square
from eqssl.evaluation.features import BATCH
from eqssl.evaluation.predictions import ALL, DENSE, Prediction, varying
from eqssl.evaluation.probes import fit_ridge
from eqssl.evaluation.transforms import SEED
from eqssl.random import counter_uniform

MAX_TOKENS = 50_000  # of the train split, for the fit
TOKEN_STREAM = 3  # of the evaluation's random numbers
MASK_TYPES = (torch.uint8, torch.bool)


@dataclass(frozen=True)
class TokenMaps:
    """The token maps of some images and the object's share of every token.

    Args:
        encoder: inside `frozen`, with `tokens`, images float32 (B, C, H, W) in [0, 1] -> (B, T, D), row by row.
        grid: rows and columns of the map.
        split: contains the images and their masks.
        indices: int64 (N,), of the images in the split.
    """

    encoder: nn.Module
    grid: tuple[int, int]
    split: Split
    indices: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield identities int64 (B,), tokens float32 (B, T, D) and shares float32 (B, T), 0 to 1.

        Raises:
            ValueError: for masks or tokens of another number, shape or type.
        """
        masks, images, (rows, columns) = self.split.masks, self.split.images, self.grid
        if masks is None or len(masks) != len(images):
            raise ValueError(f"a split of {len(images)} images has {len(masks or ())} masks; allowed: one of each")
        tokens: Callable[[Tensor], Tensor] = self.encoder.tokens  # type: ignore[assignment]
        device = next(self.encoder.parameters(), torch.empty(0)).device
        for batch in self.indices.split(BATCH):
            shown = masks.take(batch)
            if shown.dtype not in MASK_TYPES or shown.ndim != 4 or shown.shape[1] != 1:
                raise ValueError(
                    f"masks are {shown.dtype} of shape {tuple(shown.shape)}; allowed: uint8 or bool (B, 1, H, W)"
                )
            share = F.adaptive_avg_pool2d((central_square(shown) != 0).float(), self.grid).flatten(1)
            features = tokens(to_float(images.take(batch).to(device))).float().cpu()
            if features.shape[:2] != share.shape:
                raise ValueError(
                    f"tokens have the shape {tuple(features.shape)}; allowed with a grid of {rows}x{columns}: "
                    f"({len(batch)}, {rows * columns}, D)"
                )
            yield self.split.ids[batch], features, share


def dense_predictions(
    train: TokenMaps, eval_maps: TokenMaps, channels_of_parts: Mapping[str, slice]
) -> list[Prediction]:
    """Return predictions of the share of a token's pixels that belong to the object, for each part of the channels.

    The probe is a ridge regression from single tokens with an intercept for each place of the map, so that R2 is 0 for
    an encoder that only knows where objects usually are. It is fitted on some `MAX_TOKENS` tokens. No prediction is
    returned if the shares of all eval images are alike.

    Args:
        train, eval_maps: where the probe is fitted and scored.
        channels_of_parts: part -> its channels of a token.

    Raises:
        ValueError: see `TokenMaps`; for parts that do not end with the last channel.
    """
    x, y, place, mean_x, mean_y = _draw(train)
    if (last := max((of.stop for of in channels_of_parts.values() if of.stop), default=x.shape[1])) != x.shape[1]:
        raise ValueError(
            f"tokens have {x.shape[1]} channels; allowed for an encoder with two parts: {last}, as features"
        )
    x, y = x - mean_x[place], y - mean_y[place, None]
    ridges = {part: fit_ridge(x[:, channels], y) for part, channels in channels_of_parts.items()}
    ids, shares = [], []
    predicted: dict[str, list[Tensor]] = {part: [] for part in ridges}
    for of_batch, tokens, share in eval_maps:
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


def _draw(maps: TokenMaps) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return tokens (n, D), their shares (n, 1) and places in the map, int64 (n,), and the means of all tokens (T, D)
    and of all shares (T,) at each place.

    n is about `MAX_TOKENS`: every image gives equally many, drawn by its identity, at least one.
    """
    kept = max(1, MAX_TOKENS // len(maps.indices))
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    mean_x, mean_y = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for ids, tokens, share in maps:
        mean_x = mean_x + tokens.double().sum(0) / len(maps.indices)
        mean_y = mean_y + share.double().sum(0) / len(maps.indices)
        places = counter_uniform(SEED, 0, ids, TOKEN_STREAM, share.shape[1]).argsort(1)[:, :kept].sort(1).values
        x = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
        drawn.append((x.flatten(0, 1), share.gather(1, places).view(-1, 1), places.flatten()))
    x, y, place = (torch.cat(of_batches) for of_batches in zip(*drawn, strict=True))
    return x, y, place, mean_x.float(), mean_y.float()
