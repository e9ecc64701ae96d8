"""The batches of a run: two views of every image, and what lies between them.

B images, C channels, S side in pixels, k components of a factor.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eqssl.augment import Params, apply, draw, interpolate_params, largest, relative, strengths
from eqssl.config import RunConfig
from eqssl.data.dataset import Dataset, Split, to_float
from eqssl.data.pairs import absolute_factors, pair_indices, relative_factors
from eqssl.devices import pinned, to_device
from eqssl.methods import find_method
from eqssl.models.reconstruction import N_INTERMEDIATE
from eqssl.random import counter_uniform

PICK_STREAM, MASK_STREAM = 1000, 1001  # of the counter-based draws, beside the augmentations' own


class Batch(NamedTuple):
    """Two augmented views, float (B, C, S, S) in [0, 1], and what belongs to them.

    What a run does not ask for is None: labels are the supervised reference's, `theta` (factor -> (B, k), from the
    first view to the second) that of methods that see it, `factors` (factor -> (2 B, k), of either view of an object)
    those of methods that require them, `mask` (2 B, T) that of those that mask, and `intermediate` (N_INTERMEDIATE x B, C, S, S) the
    targets of `recon.view intermediate`.
    """

    first: Tensor
    second: Tensor
    clean: Tensor  # the unaugmented image of the first view
    pick_second: Tensor  # bool (B,): the target where `recon.view` is `random`
    labels: Tensor | None = None
    theta: dict[str, Tensor] | None = None
    mask: Tensor | None = None
    intermediate: Tensor | None = None
    factors: dict[str, Tensor] | None = None


class Read(NamedTuple):
    """The images of a batch as they are stored, and which they are."""

    split: Split
    pair: tuple[Tensor, Tensor]  # int64 (B,) each
    epoch: int
    first: Tensor  # uint8 (B, C, S, S)
    second: Tensor  # where a pair is one image twice, the first again


class Views:
    """Draws the views of a run by (seed, epoch, image, view), whatever batch, worker or process asks.

    Args:
        config: the run.
        dataset: its images.
        device: where the views are made.

    Raises:
        ValueError: for a strength or a target that the source does not allow.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, device: torch.device | None = None):
        self.config, self.dataset, self.device = config, dataset, device
        self.method = find_method(config.method.name)
        self.strengths = strengths(
            config.augment, paired=dataset.paired, channels=dataset.channels, altered_by=dataset.altered_by
        )
        self.needs_stops = config.recon.view == "intermediate" and config.recon.weight > 0
        if dataset.paired and self.needs_stops:
            raise ValueError(
                "--recon.view is 'intermediate'; allowed for pairs of one object: first, second, both, random, clean, "
                "since no image lies between two renders"
            )

    def batch(self, split: Split, indices: Tensor, epoch: int, tokens: int = 0) -> Batch:
        """Return the views of the images at `indices` (B,), as this epoch draws them; T = `tokens` if masks are."""
        return self.make(self.read(split, indices, epoch), tokens)

    def read(self, split: Split, indices: Tensor, epoch: int) -> Read:
        """Return the images of both views, which a thread may read ahead."""
        seed = self.config.train.seed
        pair = pair_indices(split, indices, epoch=epoch, seed=seed, paired=self.dataset.paired)
        first = pinned(split.images.take(pair[0]), self.device)
        second = first if pair[1] is pair[0] else pinned(split.images.take(pair[1]), self.device)
        return Read(split, pair, epoch, first, second)

    def make(self, read: Read, tokens: int = 0) -> Batch:
        """Return the views of images that were read, on the device, which nothing here waits for."""
        config, seed, (split, pair, epoch) = self.config, self.config.train.seed, read[:3]
        params = self._params(split, pair, epoch)
        first = to_float(to_device(read.first, self.device))
        second = first if read.second is read.first else to_float(to_device(read.second, self.device))
        pick = counter_uniform(seed, epoch, split.ids[pair[0]], PICK_STREAM, 1)[:, 0] < 0.5
        batch = Batch(apply(first, params[0]), apply(second, params[1]), first, to_device(pick, self.device))
        if config.method.name == "supervised":
            batch = batch._replace(labels=to_device(split.labels[pair[0]], self.device))
        absolute = self.method.requires_factors and self.dataset.paired
        if self.method.requires_transform or (self.method.requires_factors and not absolute):
            theta = self._theta(split, pair, params)
            batch = batch._replace(theta={name: to_device(value, self.device) for name, value in theta.items()})
        if absolute:
            factors = absolute_factors(split, torch.cat(pair))
            batch = batch._replace(factors={name: to_device(value, self.device) for name, value in factors.items()})
        if self.method.draw_masks is not None:
            ids = to_device(split.ids[pair[0]], self.device)  # so many draws that the device has them sooner
            draws = [counter_uniform(seed, epoch, ids, MASK_STREAM + view, tokens + 1) for view in (0, 1)]
            batch = batch._replace(mask=self.method.draw_masks(torch.cat(draws)))
        if self.needs_stops:
            stops = [
                apply(second, interpolate_params(params[1], k / (N_INTERMEDIATE + 1)))
                for k in range(1, N_INTERMEDIATE + 1)
            ]
            batch = batch._replace(intermediate=torch.cat(stops))
        return batch

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

    def _params(self, split: Split, pair: tuple[Tensor, Tensor], epoch: int) -> tuple[Params, Params]:
        settings = {"epoch": epoch, "seed": self.config.train.seed, "image_size": self.dataset.image_size}
        one, two = (split.ids[chosen] for chosen in pair)
        return draw(self.strengths, one, view=0, **settings), draw(self.strengths, two, view=1, **settings)

    def _theta(self, split: Split, pair: tuple[Tensor, Tensor], params: tuple[Params, Params]) -> dict[str, Tensor]:
        """Return what lies between the views: of the objects as it is known, of the augmentations over its range."""
        known = relative_factors(split, *pair) if self.dataset.paired else {}
        between = relative(*params)
        ranges = largest(self.strengths, self.dataset.image_size)
        scaled = {name: (between[name] / ranges[name])[:, None] for name in between if ranges[name] > 0}
        return known | scaled
