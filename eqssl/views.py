"""The batches of a run: two views of every image, the transformation between them, and local crops.

B images, C channels, S side in pixels, k components of a factor.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from eqssl.augment import Params, apply, draw, interpolate_params, max_params, relative, strengths
from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset, Split, to_float
from eqssl.data.pairs import absolute_factors, pair_indices, relative_factors
from eqssl.data.stores import FramedImages
from eqssl.devices import pinned, to_device
from eqssl.random import counter_uniform

PICK_STREAM, MASK_STREAM = 1000, 1001  # of the counter-based draws, in addition to the augmentations' own
N_INTERMEDIATE = 2  # images on the way to the second view, the best number of arXiv 2503.18753 (Table 9)


class Batch(NamedTuple):
    """Two augmented views, float (B, C, S, S) in [0, 1], and the other data that a run requires.

    Args:
        first, second: the views.
        clean: the unaugmented image of the first view.
        pick_second: bool (B,), whether the second view is the target if `recon.view` is `random`.
        labels: int64 (B,), for the supervised reference.
        theta: factor -> (B, k), from the first view to the second, for methods that require the transformation.
        mask: bool (2 B, T), for methods that mask patches.
        intermediate: (N_INTERMEDIATE x B, C, S, S), the targets of `recon.view intermediate`.
        factors: factor -> (2 B, k), of both views of an object, for methods that require factors.
        local: (N x B, C, s, s), s < S: the first local crop of every image, then the second ones, and so on, for
            methods that take them; of two renders, the even crops are of the first, the odd ones of the second.
    """

    first: Tensor
    second: Tensor
    clean: Tensor
    pick_second: Tensor
    labels: Tensor | None = None
    theta: dict[str, Tensor] | None = None
    mask: Tensor | None = None
    intermediate: Tensor | None = None
    factors: dict[str, Tensor] | None = None
    local: Tensor | None = None


class Read(NamedTuple):
    """The stored images of a batch, and their indices in the split."""

    split: Split
    pair: tuple[Tensor, Tensor]  # int64 (B,) each
    epoch: int
    first: Tensor  # uint8 (B, C, R, R), R is S or `data.stored_size`
    second: Tensor  # the first again if a pair is one image twice


class Requirements(Protocol):
    """The data that a method requires in addition to the views, see `eqssl.methods.base.Method`."""

    requires_labels: ClassVar[bool]
    requires_transform: ClassVar[bool]
    requires_factors: ClassVar[bool]
    draw_masks: ClassVar[Callable[..., Tensor] | None]


class Views:
    """Draws the views of a run by (seed, epoch, image, view), in any batch, worker or process.

    Args:
        config: the run.
        dataset: its images.
        device: where the views are made.
        method: of the run; None: batches contain only the views.
        tokens: T, the length of a mask.
        local_size: s, side of the local crops in pixels; 0: none are made.

    Raises:
        ValueError: for a strength or a target that the source does not allow.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, device: torch.device | None = None,
        method: Requirements | None = None, tokens: int = 0, local_size: int = 0,
    ):  # fmt: skip
        self.config, self.dataset, self.seed = config, dataset, config.train.seed
        self.device, self.method, self.tokens, self.local_size = device, method, tokens, local_size
        self.strengths = strengths(
            config.augment, paired=dataset.paired, channels=dataset.channels, altered_by=dataset.altered_by
        )
        self.makes_intermediate = config.recon.view == "intermediate" and config.recon.weight > 0
        if dataset.paired and self.makes_intermediate:
            raise ValueError(
                "--recon.view is 'intermediate'; allowed for pairs of one object: first, second, both, random, clean, "
                "since no image lies between two renders"
            )

        self._check_crops()
        every = _aspects(dataset.train, torch.arange(len(dataset.train)))
        self.ranges = max_params(self.strengths, dataset.image_size, config.augment.crop_ratio, every)

    def _check_crops(self) -> None:
        ratio, method = self.config.augment.crop_ratio, self.config.method.name
        if ratio > 1 and self.strengths["crop"] == 0:
            raise ValueError(f"--augment.crop-ratio is {ratio:g}; allowed without --augment.crop: 1")
        if ratio > 1 and self.strengths["rotation"] > 0 and self._requires_theta():
            raise ValueError(
                f"--augment.crop-ratio is {ratio:g}; allowed with --method.name {method} and --augment.rotation "
                f"{self.strengths['rotation']:g}: 1, since the transformation between two such views would shear"
            )

    def _requires_theta(self) -> bool:
        method = self.method
        return method is not None and (
            method.requires_transform or (method.requires_factors and not self.dataset.paired)
        )

    def batch(self, split: Split, indices: Tensor, epoch: int) -> Batch:
        """Return the views of the images at `indices` (B,) in an epoch."""
        return self.make(self.read(split, indices, epoch))

    def read(self, split: Split, indices: Tensor, epoch: int) -> Read:
        """Return the images of both views; a thread may read them ahead."""
        pair = pair_indices(split, indices, epoch=epoch, seed=self.seed, paired=self.dataset.paired)
        images = split.images.whole if isinstance(split.images, FramedImages) else split.images
        first = pinned(images.take(pair[0]), self.device)
        second = first if pair[1] is pair[0] else pinned(images.take(pair[1]), self.device)
        return Read(split, pair, epoch, first, second)

    def make(self, read: Read) -> Batch:
        """Return the views of images that were read, on the device, without waiting for it."""
        split, pair, epoch = read[:3]
        params = self._params(split, pair, epoch)
        stored = to_float(to_device(read.first, self.device))
        other = stored if read.second is read.first else to_float(to_device(read.second, self.device))
        size, (aspects, of_other) = self.dataset.image_size, (_aspects(split, indices) for indices in pair)
        clean = stored
        if aspects is not None:
            clean = apply(stored, interpolate_params(params[0], 0.0), size, aspects)
        pick = counter_uniform(self.seed, epoch, split.ids[pair[0]], PICK_STREAM, 1)[:, 0] < 0.5
        required: dict[str, Any] = {}
        if self.makes_intermediate:
            shares = [k / (N_INTERMEDIATE + 1) for k in range(1, N_INTERMEDIATE + 1)]
            images = [apply(other, interpolate_params(params[1], share), size, of_other) for share in shares]
            required["intermediate"] = torch.cat(images)
        if self.local_size:
            sources, local = ((stored, aspects), (other, of_other)), []
            for view in range(2, 2 + self.config.augment.local_crops):
                source, sides = sources[view % 2]
                local.append(apply(source, self._draw(split, pair, epoch, view), self.local_size, sides))
            required["local"] = torch.cat(local)
        if self.method is not None:
            required |= self._required(self.method, split, pair, epoch, params)
        views = apply(stored, params[0], size, aspects), apply(other, params[1], size, of_other)
        return Batch(*views, clean, to_device(pick, self.device), **required)

    def _required(
        self, method: Requirements, split: Split, pair: tuple[Tensor, Tensor], epoch: int, params: tuple[Params, Params]
    ) -> dict[str, Any]:
        """Return the fields of a `Batch` that a method requires in addition to the views."""
        required: dict[str, Any] = {}
        if method.requires_labels and split.labels is not None:
            required["labels"] = to_device(split.labels[pair[0]], self.device)
        of_objects = method.requires_factors and self.dataset.paired
        if of_objects:
            required["factors"] = self._on_device(absolute_factors(split, torch.cat(pair)))
        if self._requires_theta():
            required["theta"] = self._on_device(self._theta(split, pair, params))
        if method.draw_masks is not None:
            ids = to_device(split.ids[pair[0]], self.device)  # drawn on the device, since there are many draws
            draws = [counter_uniform(self.seed, epoch, ids, MASK_STREAM + view, self.tokens + 1) for view in (0, 1)]
            required["mask"] = method.draw_masks(torch.cat(draws))
        return required

    def theta_sizes(self) -> dict[str, int]:
        """Return factor -> number of components of the transformation between the views."""
        split, indices = self.dataset.train, torch.arange(2)
        pair = pair_indices(split, indices, epoch=0, seed=0, paired=self.dataset.paired)
        theta = self._theta(split, pair, self._params(split, pair, epoch=0))
        return {name: values.shape[1] for name, values in theta.items()}

    def factor_sizes(self) -> dict[str, int] | None:
        """Return factor -> number of components of the known factors of one view; None for pairs of one image."""
        if not self.dataset.paired:
            return None
        known = absolute_factors(self.dataset.train, torch.arange(2))
        return {name: values.shape[1] for name, values in known.items()}

    def _on_device(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: to_device(value, self.device) for name, value in values.items()}

    def _params(self, split: Split, pair: tuple[Tensor, Tensor], epoch: int) -> tuple[Params, Params]:
        return self._draw(split, pair, epoch, 0), self._draw(split, pair, epoch, 1)

    def _draw(self, split: Split, pair: tuple[Tensor, Tensor], epoch: int, view: int) -> Params:
        """Return the parameters of view 0 or 1, or of a local crop, 2 and up, cut from first and second in turn."""
        indices, augment, is_local = pair[view % 2], self.config.augment, view > 1
        return draw(
            self.strengths, split.ids[indices], epoch=epoch, seed=self.seed, view=view,
            image_size=self.local_size if is_local else self.dataset.image_size, crop_ratio=augment.crop_ratio,
            aspects=_aspects(split, indices), local_area=augment.local_crop_area if is_local else None,
        )  # fmt: skip

    def _theta(self, split: Split, pair: tuple[Tensor, Tensor], params: tuple[Params, Params]) -> dict[str, Tensor]:
        """Return the transformation between the views: known factors of objects, and augmentations over their range."""
        known = relative_factors(split, *pair) if self.dataset.paired else {}
        between, ranges = relative(*params), self.ranges
        return known | {name: (between[name] / ranges[name])[:, None] for name in between if ranges[name] > 0}


def _aspects(split: Split, indices: Tensor) -> Tensor | None:
    """Return width / height of the stored images, float64 (B,); None if these are square."""
    return split.images.aspects[indices] if isinstance(split.images, FramedImages) else None
