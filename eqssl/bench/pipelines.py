"""Augmentation alone, and whole trainings, against lightly's pipeline and a plain PyTorch + torchvision v2 loop.

SimCLR on all sides. Theirs augment image by image in DataLoader workers, ours in batches on the encoder's device.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eqssl.bench.methods import NO_LIGHTLY
from eqssl.bench.options import Options
from eqssl.bench.timing import Row, interleave, row, timed
from eqssl.bench.training import encoder_pass, make_run
from eqssl.methods.heads import projector
from eqssl.methods.simclr import nt_xent
from eqssl.models.encoder import Encoder
from eqssl.models.model import compiled_tokens
from eqssl.training.loop import Run
from eqssl.training.optim import make_optimizer

FASTER_THAN = {"lightly": 3.0, "plain loop": 1.8}  # views a second of one thread
OF_BOUND = 0.9  # on a CPU, where nothing runs beside the encoder
FASTER_THAN_ON_GPU = {"lightly": 1.8}
EPOCH_S, MOST_STEPS = 3.0, 64
WIDTH, EMBEDDING, TEMPERATURE = 512, 128, 0.2
Transform = Callable[[Tensor], Sequence[Any]]  # image uint8 (3, H, W) -> two views float32 (3, S, S) in [0, 1]


def lightly_views(size: int) -> Transform:
    """Return lightly's SimCLR transform, of a PIL image; without normalisation, which the encoder does.

    Args:
        size: height and width, px.
    """
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms.functional import to_pil_image

    transform = SimCLRTransform(input_size=size, normalize=None)
    return lambda pixels: transform(to_pil_image(pixels))


def torchvision_views(size: int) -> Transform:
    """Return the same transform of torchvision v2, on tensors; blur as in lightly's for half of the views.

    Args:
        size: height and width, px.
    """
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(kernel_size=2 * (size // 20) + 1, sigma=(0.1, 2.0))], p=0.5),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    return lambda pixels: [transform(pixels), transform(pixels)]


class TransformedImages(Dataset):
    """Images in memory, uint8 (N, 3, S, S), each transformed into two views."""

    def __init__(self, pixels: Tensor, transform: Transform):
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sequence[Any]:
        return self.transform(self.pixels[index])


class PlainSimCLR(nn.Module):
    """Encoder, projector and NT-Xent, both views in one pass."""

    def __init__(self, encoder: Encoder, autocast: bool):
        super().__init__()
        self.encoder, self.autocast = encoder, autocast
        self.projector = projector(encoder.dim, WIDTH, EMBEDDING)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views, float32 (B, C, S, S) each."""
        with torch.autocast(first.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.encoder(torch.cat([first, second])).float()
        z1, z2 = self.projector(features).chunk(2)
        return nt_xent(z1, z2, TEMPERATURE)


class Loop:
    """A training loop with a DataLoader, on the images and with the encoder and optimizer of one of ours.

    Args:
        name: one of `peer_names`.
        options: sizes.
        run: ours.
        workers: of the DataLoader.
    """

    def __init__(self, name: str, options: Options, run: Run, workers: int):
        self.device, ours = run.device, run.model.encoder
        encoder = Encoder(ours.config, ours.channels, ours.image_size, *ours.mean_std)
        model: Callable[[Encoder, bool], nn.Module] = PlainSimCLR
        transform = torchvision_views(options.image_size)
        if name == "lightly":
            from eqssl.bench.peers import build_peer

            model, transform = partial(build_peer, "simclr"), lightly_views(options.image_size)
        if run.config.train.compile:
            # A graph of its own for each loop.
            encoder.tokens = partial(compiled_tokens(model), encoder)  # type: ignore[method-assign]
        self.model = model(encoder, run.autocast).to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, run.config.train)
        self.transform = transform
        images = run.dataset.train.images
        pixels = images.take(torch.arange(len(images)))
        self.loader = DataLoader(
            TransformedImages(pixels, transform), options.batch_size, shuffle=True,
            drop_last=True, num_workers=workers, persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None, pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    def epoch(self) -> None:
        """Train on every image once."""
        for views in self.loader:
            first, second = (view.to(self.device, non_blocking=True) for view in views)
            self.optimizer.zero_grad(set_to_none=True)
            self.model(first, second).backward()
            self.optimizer.step()


def peer_names() -> tuple[str, ...]:
    """Return the names of the loops: the plain one, and lightly's where it is installed."""
    return ("plain loop", "lightly") if find_spec("lightly") else ("plain loop",)


def measure(options: Options) -> list[Row]:
    """Return views a second on one thread, then the trainings of every encoder, each against ours."""
    rows = [] if "lightly" in peer_names() else [Row(part="pipelines", name="lightly", note=NO_LIGHTLY)]
    workers: dict[str, int] = {}
    for encoder in options.encoders:
        sized = _with_long_epochs(options, encoder)
        run = make_run(sized.run(encoder, equi_fraction=0.0, compile=options.compile), steps=sized.steps)
        # The number of workers is tuned with the first encoder, where augmentation weighs most.
        workers = workers or {name: fastest_workers(name, sized, run) for name in peer_names()}
        loops = {name: Loop(name, sized, run, count) for name, count in workers.items()}
        if encoder == options.encoders[0]:
            rows += _augmentations(sized, run, loops)
        rows += _trainings(sized, encoder, run, loops)
    return rows


def fastest_workers(name: str, options: Options, run: Run) -> int:
    """Return the best number of DataLoader workers of a peer: none, half of those of the options or all of them."""
    counts = sorted({0, options.workers // 2, options.workers})
    if len(counts) == 1:
        return counts[0]
    seconds = interleave({str(count): Loop(name, options, run, count).epoch for count in counts}, seconds=0)
    return min(counts, key=lambda count: float(np.median(seconds[str(count)])))


def _with_long_epochs(options: Options, encoder: str) -> Options:
    """Return options with epochs of some seconds, beside which the wait for a loader's first batch is short."""
    run = make_run(options.run(encoder, equi_fraction=0.0, compile=options.compile))
    run.next_epoch()
    steps = int(EPOCH_S / timed(run.next_epoch))
    return dataclasses.replace(options, steps=min(max(2, steps), MOST_STEPS))


def _augmentations(options: Options, run: Run, loops: dict[str, Loop]) -> list[Row]:
    split = run.dataset.train
    indices = torch.arange(options.batch_size)
    pixels = split.images.take(indices)

    def transform_each(transform: Transform) -> None:
        for image in pixels:
            transform(image)

    subjects: dict[str, Callable[[], Any]] = {"ours": lambda: run.views.batch(split, indices, epoch=0)}
    subjects |= {name: partial(transform_each, peer.transform) for name, peer in loops.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(subjects, options.seconds)
    finally:
        torch.set_num_threads(threads)
    views = partial(row, "pipelines", count=2 * len(indices), unit="views/s a thread")
    return [
        *(views(f"{name}: views", seconds[name]) for name in loops),
        *(views("ours: views", seconds["ours"], name, seconds[name], at_least=FASTER_THAN[name]) for name in loops),
    ]


def _trainings(options: Options, encoder: str, run: Run, loops: dict[str, Loop]) -> list[Row]:
    size = options.image_size
    images = torch.rand(2 * options.batch_size, 3, size, size, device=run.device)

    def encoder_alone() -> None:
        for _ in range(options.steps):
            encoder_pass(run.model, images, run.autocast)

    subjects: dict[str, Callable[[], Any]] = {"encoder": encoder_alone, "ours": run.next_epoch}
    for name, peer in loops.items():
        subjects |= {name: peer.epoch, f"{name}'s loader": partial(list, peer.loader)}
    seconds = interleave(subjects, options.seconds)
    images_per_s = partial(row, "pipelines", count=options.steps * options.batch_size, unit="images/s")
    rows = []
    for name, peer in loops.items():
        workers = f"{peer.loader.num_workers} loader workers, the fastest for {options.encoders[0]}"
        rows.append(images_per_s(f"{encoder}, {name}: training", seconds[name], note=workers))
        aim, note = FASTER_THAN_ON_GPU.get(name), ""
        if run.device.type == "cpu":  # the most that can be gained is all of their augmentation
            bound = float(np.median(1 + seconds[f"{name}'s loader"] / seconds["encoder"]))
            aim, note = round(OF_BOUND * bound, 2), f"bound {bound:.2f}: (encoder + their loader alone) / encoder"
        ours = f"{encoder}, ours: training"
        rows.append(images_per_s(ours, seconds["ours"], name, seconds[name], at_least=aim, note=note))
    return rows
