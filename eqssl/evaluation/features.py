"""Features of a frozen encoder, computed once: pairs of views with a known transformation.

N pairs, T views, D features, k components of a factor.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eqssl.augment import PARAMETERS, Params, apply
from eqssl.config import EvaluateConfig
from eqssl.data.dataset import Dataset, Split, to_float
from eqssl.data.pairs import absolute_factors, pair_indices, relative_transform
from eqssl.evaluation.predictions import varying
from eqssl.evaluation.transforms import BANK_STREAM, SEED, draw, draw_binary
from eqssl.random import permutation

BATCH = 256
BINARY_SHARE = 4  # one pair in four is encoded again with binary factors
BANK_IMAGES, BANK_VIEWS = 256, 50


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Hold every module in inference mode without gradients, then restore each module's mode."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def parts(encoder: nn.Module, dim: int) -> dict[str, slice]:
    """Return the channels of `all` features, and of `inv` and `equi` where the encoder's `dim_inv` is below `dim`."""
    dim_inv = getattr(encoder, "dim_inv", dim)
    split = {"inv": slice(dim_inv), "equi": slice(dim_inv, dim)} if dim_inv < dim else {}
    return {"all": slice(dim)} | split


def encode(encoder: nn.Module, split: Split, indices: Tensor, transforms: Sequence[Params | None] = (None,)) -> Tensor:
    """Return the features of images under one or more transforms, reading each image once.

    Args:
        encoder: images float32 (B, C, H, W) in [0, 1] -> features (B, D), inside `frozen`.
        split: contains the images.
        indices: int64 (N,), of the images in the split.
        transforms: each maps factors to values (N,) and is the identity in all others; None for the clean images.

    Returns:
        float32 (len(transforms), N, D) on the CPU.

    Raises:
        ValueError: for features that are not finite.
    """
    device = next(encoder.parameters(), torch.empty(0)).device
    batches = []
    for rows in torch.arange(len(indices)).split(BATCH):
        clean, identity = to_float(split.images.take(indices[rows]).to(device)), torch.zeros(len(rows))
        features = []
        for params in transforms:
            given = {name: value[rows] for name, value in (params or {}).items()}
            view = apply(clean, {name: given.get(name, identity) for name in PARAMETERS}) if given else clean
            features.append(encoder(view).float().cpu())
        batches.append(torch.stack(features))
    found = torch.cat(batches, dim=1)
    if wrong := int((~found.isfinite()).any(dim=2).any(dim=0).sum()):
        raise ValueError(f"the encoder's features of {wrong} of {len(indices)} images are not finite")
    return found


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Features of the two images of every pair, and the factors that probes predict.

    Args:
        first, second: float32 (N, D).
        targets: factor -> float32 (N, k): for two views of one object the first view's `absolute_factors`, else the
            parameters of the transform.
        transform: factor -> float32 (N, k), from the first image to the second: for two views of one object their
            `relative_transform`, else the targets.
        ids: int64 (N,), the first images' identities.
        labels, objects: int64 (N,), of the first images, or None.
        per_view: whether probes predict the targets from the first view only, not from both.
        binary: some of the pairs, with a transform that also flips, grayscales or solarizes, which are the targets;
            None for pairs of one object.
    """

    first: Tensor
    second: Tensor
    targets: dict[str, Tensor]
    transform: dict[str, Tensor]
    ids: Tensor
    labels: Tensor | None = None
    objects: Tensor | None = None
    per_view: bool = False
    binary: "Pairs | None" = None

    def part(self, channels: slice) -> "Pairs":
        """Return the pairs restricted to some of the features."""
        binary = self.binary and self.binary.part(channels)
        return replace(self, first=self.first[:, channels], second=self.second[:, channels], binary=binary)

    @property
    def inputs(self) -> Tensor:
        """The probes' inputs: z1, float32 (N, D), or [z1, z2], float32 (N, 2 D)."""
        return self.first if self.per_view else torch.cat([self.first, self.second], dim=1)

    @property
    def target(self) -> Tensor:
        """All targets side by side, float32 (N, sum of k)."""
        return torch.cat(list(self.targets.values()), dim=1)

    @property
    def theta(self) -> Tensor:
        """All parameters of the transform side by side, float32 (N, sum of k)."""
        return torch.cat(list(self.transform.values()), dim=1)


@dataclass(frozen=True)
class EncodedViews:
    """The features that the metrics of one part, or of all features, are computed from.

    Args:
        train, eval: the pairs that probes are fitted on and scored on.
        bank: many views of each of some eval images, see `encode_bank`; None at level quick or without known factors.
    """

    train: Pairs
    eval: Pairs
    bank: Pairs | None = None

    def part(self, channels: slice) -> "EncodedViews":
        """Return the views restricted to some of the features."""
        bank = self.bank and self.bank.part(channels)
        return EncodedViews(self.train.part(channels), self.eval.part(channels), bank)


def encode_views(encoder: nn.Module, dataset: Dataset, config: EvaluateConfig) -> EncodedViews:
    """Return the features of the train split and of `config.split`, from an encoder inside `frozen`."""
    split = getattr(dataset, config.split)
    train = encode_pairs(encoder, dataset, dataset.train, config.train_images)
    # The training pairs decide which factors vary, so that both have the same targets.
    eval_pairs = encode_pairs(encoder, dataset, split, config.images, train.targets)
    if config.level == "quick" or not train.targets:
        return EncodedViews(train, eval_pairs)
    return EncodedViews(train, eval_pairs, encode_bank(encoder, dataset, split, train.transform))


def subset(split: Split, count: int) -> Tensor:
    """Return int64 indices of up to `count` images, the same ones every time."""
    return permutation(SEED, 0, len(split))[:count]


def fixed_pairs(split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return int64 indices (N,) of the two views of each evaluation pair, the same ones every time."""
    return pair_indices(split, indices, epoch=0, seed=SEED, paired=True)


def encode_pairs(
    encoder: nn.Module, dataset: Dataset, split: Split, count: int, factors: Collection[str] | None = None
) -> Pairs:
    """Return fixed pairs that start from up to `count` images of a split.

    Args:
        factors: targets for two views of one object; default: the known factors that vary.
    """
    indices = subset(split, count)
    ids = split.ids[indices]
    labels, objects = (None if of is None else of[indices] for of in (split.labels, split.objects))
    if dataset.paired:
        one, two = fixed_pairs(split, indices)
        # Most second views are also the first view of another pair.
        shown, place = torch.cat([one, two]).unique(return_inverse=True)
        first, second = encode(encoder, split, shown)[0][place].split(len(indices))
        targets, transform = absolute_factors(split, one), relative_transform(split, one, two)
        if factors is None:
            factors = [name for name, value in targets.items() if varying(value).any()]
        targets, transform = ({name: values[name] for name in factors} for values in (targets, transform))
    else:
        params = draw(ids, dataset.channels, dataset.image_size)
        first, second = encode(encoder, split, indices, (None, params))
        targets = transform = {name: value[:, None] for name, value in params.items()}
    pairs = Pairs(
        first=first, second=second, targets=targets, transform=transform, ids=ids, labels=labels, objects=objects,
        per_view=dataset.paired,
    )  # fmt: skip
    return pairs if dataset.paired else replace(pairs, binary=_encode_binary(encoder, dataset, split, pairs))


def _encode_binary(encoder: nn.Module, dataset: Dataset, split: Split, pairs: Pairs) -> Pairs | None:
    """Return a quarter of the pairs with binary factors on top of their transform; None if that leaves no pair."""
    indices = subset(split, len(pairs.ids) // BINARY_SHARE)
    if len(indices) == 0:
        return None
    ids = split.ids[indices]
    binary = draw_binary(ids, dataset.channels)
    params = draw(ids, dataset.channels, dataset.image_size) | binary
    second = encode(encoder, split, indices, (params,))[0]
    targets = {name: value[:, None] for name, value in binary.items()}
    return Pairs(first=pairs.first[: len(ids)], second=second, targets=targets, transform=targets, ids=ids)


def encode_bank(encoder: nn.Module, dataset: Dataset, split: Split, factors: Collection[str]) -> Pairs:
    """Return a bank of views: pairs of an image (first) and each of its T views (second), one image after another.

    Views are 50 fixed transforms of up to 256 images, or all views of up to 256 objects (`object_views`).

    Args:
        factors: those of the transform to keep, in the order of `Pairs.theta`.
    """
    if dataset.paired:
        indices = object_views(split)
        second = encode(encoder, split, indices.flatten())[0]
        first, ids = second[:: indices.shape[1]], split.ids[indices[:, 0]]
        transform = relative_transform(split, indices[:, :1].expand_as(indices).flatten(), indices.flatten())
    else:
        indices = subset(split, BANK_IMAGES)
        params = draw(torch.arange(BANK_VIEWS), dataset.channels, dataset.image_size, BANK_STREAM)
        each = [
            {name: value[view].expand(len(indices)) for name, value in params.items()} for view in range(BANK_VIEWS)
        ]
        first, *views = encode(encoder, split, indices, [None, *each])
        second, ids = torch.stack(views, dim=1).flatten(0, 1), split.ids[indices]
        transform = {name: value.repeat(len(indices))[:, None] for name, value in params.items()}
    count = len(second) // len(first)
    return Pairs(
        first=first.repeat_interleave(count, dim=0),
        second=second,
        targets={},
        transform={name: transform[name] for name in factors},
        ids=ids.repeat_interleave(count),
    )


def object_views(split: Split) -> Tensor:
    """Return int64 indices (N, T) of the views of up to 256 objects, the same ones every time, in order.

    T is the median number of views, at most 50; objects with fewer are left out, so that one with a missing view
    does not make the search easier for all.
    """
    order, _, first_rank, count = split.sorted_by_object
    starts = first_rank.unique()
    counts = count[order[starts]]
    views = min(int(counts.median()), BANK_VIEWS)
    chosen = permutation(SEED, 0, len(starts))
    chosen = chosen[counts[chosen] >= views][:BANK_IMAGES]
    return order[starts[chosen][:, None] + torch.arange(views)]
