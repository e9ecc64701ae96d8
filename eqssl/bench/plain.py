"""SimCLR as it is written by hand: a transform of one image in DataLoader workers, and a loop."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eqssl.bench.options import Options
from eqssl.bench.timing import interleave
from eqssl.methods.heads import projector
from eqssl.methods.simclr import nt_xent
from eqssl.models.encoder import Encoder
from eqssl.models.model import compiled_tokens
from eqssl.training.loop import Run
from eqssl.training.optim import make_optimizer

WIDTH, EMBEDDING, TEMPERATURE = 512, 128, 0.2


class LightlyViews:
    """lightly's SimCLR transform, of a PIL image; the encoder standardises, so it does not.

    Args:
        size: height and width, px.
    """

    def __init__(self, size: int):
        from lightly.transforms import SimCLRTransform

        self.transform = SimCLRTransform(input_size=size, normalize=None)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Return two views, float32 (3, S, S) in [0, 1], of an image uint8 (3, H, W)."""
        from PIL import Image

        return self.transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))


class TorchvisionViews:
    """The same of torchvision v2, on tensors; blur as in lightly's for half of the views.

    Args:
        size: height and width, px.
    """

    def __init__(self, size: int):
        from torchvision.transforms import v2

        self.transform = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel_size=2 * (size // 20) + 1, sigma=(0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ])  # fmt: skip

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Return two views as `LightlyViews` does."""
        return [self.transform(pixels), self.transform(pixels)]


class Images(Dataset):
    """Images in memory and the transform of one.

    Args:
        pixels: uint8 (N, 3, S, S).
        transform: image -> two views.
    """

    def __init__(self, pixels: Tensor, transform: Callable[[Tensor], list[Tensor]]):
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.pixels[index])


class PlainSimCLR(nn.Module):
    """Encoder, projector and NT-Xent, both views in one pass."""

    def __init__(self, encoder: Encoder, autocast: bool):
        super().__init__()
        self.encoder, self.autocast = encoder, autocast
        self.projector = projector(encoder.dim, WIDTH, EMBEDDING)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views, float (B, C, S, S) each."""
        with torch.autocast(first.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.encoder(torch.cat([first, second])).float()
        return nt_xent(*self.projector(features).chunk(2), TEMPERATURE)


class Loop:
    """A training loop around a transform and a model, on the images and with the optimizer of one of ours.

    Args:
        options: sizes.
        run: ours.
        transform: of one image into two views.
        model: (encoder, autocast) -> module of two views that returns the loss.
        workers: of the DataLoader.
    """

    def __init__(
        self, options: Options, run: Run, transform: Callable[[Tensor], list[Tensor]],
        model: Callable[[Encoder, bool], nn.Module], workers: int,
    ):  # fmt: skip
        self.device, ours = run.device, run.model.encoder
        encoder = Encoder(ours.config, ours.channels, ours.image_size, *ours.mean_std)
        if run.config.train.compile:
            encoder.tokens = partial(compiled_tokens(model), encoder)  # apart: theirs may take a view at a time
        self.model = model(encoder, run.autocast).to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, run.config.train)
        self.loader = DataLoader(
            Images(run.dataset.train.images.pixels, transform), options.batch_size, shuffle=True, drop_last=True,
            num_workers=workers, persistent_workers=workers > 0, pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    def epoch(self) -> None:
        """Train on every image once."""
        for views in self.loader:
            first, second = (view.to(self.device, non_blocking=True) for view in views)
            self.optimizer.zero_grad(set_to_none=True)
            self.model(first, second).backward()
            self.optimizer.step()


def peer_names() -> tuple[str, ...]:
    """Return the names of the loops that can be had: the plain one, and lightly's where it is installed."""
    return ("plain loop", "lightly") if find_spec("lightly") else ("plain loop",)


def loop(name: str, options: Options, run: Run, workers: int) -> Loop:
    """Return a peer's loop.

    Args:
        name: one of `peer_names`.
        options: sizes.
        run: ours, whose images, encoder and optimizer it takes.
        workers: of its DataLoader.
    """
    if name == "plain loop":
        return Loop(options, run, TorchvisionViews(options.image_size), PlainSimCLR, workers)
    return Loop(options, run, LightlyViews(options.image_size), lightly_simclr, workers)


def lightly_simclr(encoder: Encoder, autocast: bool) -> nn.Module:
    """Return lightly's SimCLR around an encoder, in bf16 where autocast is on."""
    from eqssl.bench.peers import build_peer

    return build_peer("simclr", encoder, autocast)


def quickest(name: str, options: Options, run: Run) -> int:
    """Return how many workers suit a peer: none, half of those of the options or all of them."""
    counts = sorted({0, options.workers // 2, options.workers})
    if len(counts) == 1:
        return counts[0]
    epochs = {str(count): loop(name, options, run, count).epoch for count in counts}
    seconds = interleave(epochs, seconds=0)
    return min(counts, key=lambda count: float(np.median(seconds[str(count)])))
