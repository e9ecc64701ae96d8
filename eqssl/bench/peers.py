"""Steps and whole trainings against lightly's, and against a plain PyTorch loop on torchvision v2's transforms.

All sides have the same backbone, batch, views, widths and optimizer. The others augment image by image in DataLoader
workers, ours in batches on the encoder's device.
"""

import copy
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from eqssl.bench.command import Options
from eqssl.bench.step import make_run
from eqssl.bench.timing import Row, interleave, row, timed
from eqssl.config import check_known
from eqssl.methods.heads import projector
from eqssl.methods.simclr import nt_xent
from eqssl.models.encoder import Encoder
from eqssl.models.model import compiled_tokens
from eqssl.training.loop import Run
from eqssl.training.optim import make_optimizer

STEP_AT_MOST = 1.1
VIEWS_AT_LEAST = {"lightly": 3.0, "plain": 1.8}  # views per second on one thread
ON_GPU_AT_LEAST = {"lightly": 1.8}
EPOCH_S, MAX_STEPS = 3.0, 64  # per epoch, so that the wait for a loader's first batch matters little
WIDTH, EMBEDDING, TEMPERATURE = 512, 128, 0.2
Criterion = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor], list[Tensor]]
NO_LIGHTLY = "skipped: lightly is not installed (pip install eqssl[test])"


def measure(options: Options) -> list[Row]:
    """Return a step of every method, views per second on one thread, and the trainings of every encoder."""
    rows = [Row(name="lightly", note=NO_LIGHTLY)]
    if "lightly" in libraries():
        rows = [method_step(options, name) for name in options.methods]
    rows += augmentations(options)
    return rows + [made for encoder in options.encoders for made in trainings(options, encoder)]


def libraries() -> tuple[str, ...]:
    """Return the names of the others: the plain loop, and lightly if it is installed."""
    return ("plain", "lightly") if find_spec("lightly") else ("plain",)


def method_step(options: Options, name: str) -> Row:
    """Return a step of a method on a fixed batch over lightly's."""
    encoder = options.encoders[0]
    run = make_run(options.run(encoder, method=name, equi_fraction=0.0))
    run.model.train()
    batch = run.views.batch(run.dataset.train, torch.arange(options.batch_size), epoch=0)
    theirs = lightly_method(name, copy.deepcopy(run.model.encoder), run.autocast).to(run.device).train()
    optimizer = make_optimizer(theirs, run.config.train)
    steps = {
        "ours": lambda: step(run.optimizer, run.model(batch, run.autocast).total),
        "lightly": lambda: step(optimizer, theirs(batch.first, batch.second)),
    }
    seconds = interleave(steps, options.seconds)
    subject = f"{name}, {encoder}, batch {options.batch_size}: step"
    return row(subject, seconds["ours"], "lightly", seconds["lightly"], at_most=STEP_AT_MOST)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def augmentations(options: Options) -> list[Row]:
    """Return views per second on one thread."""
    run = make_run(options.run(options.encoders[0]))
    indices = torch.arange(options.batch_size)
    images = run.dataset.train.images.take(indices)

    def augment(transform: Transform) -> None:
        for image in images:
            transform(image)

    subjects: dict[str, Callable[[], Any]] = {"ours": lambda: run.views.batch(run.dataset.train, indices, epoch=0)}
    subjects |= {library: partial(augment, two_views(library, images.shape[-1])) for library in libraries()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(subjects, options.seconds)
    finally:
        torch.set_num_threads(threads)
    views = partial(row, count=2 * len(indices), unit="views/s a thread")
    theirs = [views(f"{library}: views", seconds[library]) for library in libraries()]
    ours = partial(views, "ours: views", seconds["ours"])
    return theirs + [ours(library, seconds[library], at_least=VIEWS_AT_LEAST[library]) for library in libraries()]


def trainings(options: Options, encoder: str) -> list[Row]:
    """Return images per second of whole trainings by SimCLR: theirs, and ours over each.

    On a CPU the others augment in the training's process, or in one loader worker per core.
    """
    run = make_run(config := options.run(encoder, equi_fraction=0.0))
    run.next_epoch()
    steps = min(max(2, int(EPOCH_S / timed(run.next_epoch))), MAX_STEPS)
    run = make_run(config, steps=steps)
    cores = os.cpu_count() or 1
    workers = (0, cores) if run.device.type == "cpu" else (cores,)
    subjects: dict[str, Callable[[], Any]] = {"ours": run.next_epoch}
    for library in libraries():
        for count in workers:
            subjects[f"{library}, {count} loader workers"] = their_epoch(run, library, count)
    seconds = interleave(subjects, options.seconds)
    ours, rows, subject = seconds.pop("ours"), [], f"{encoder}, {config.data.image_size} px: training"
    images_per_s = partial(row, count=steps * options.batch_size, unit="images/s")
    for name, theirs in seconds.items():
        rows.append(images_per_s(f"{subject} by {name}", theirs))
        aim = ON_GPU_AT_LEAST.get(name.partition(",")[0]) if run.device.type == "cuda" else None
        rows.append(images_per_s(f"{subject}, ours", ours, name, theirs, at_least=aim))
    return rows


def their_epoch(run: Run, library: str, workers: int) -> Callable[[], None]:
    """Return an epoch of SimCLR with a DataLoader and the images, encoder and optimizer of one of our runs.

    Args:
        run: ours.
        library: one of `libraries`.
        workers: number of the DataLoader's workers.
    """
    ours, images, config = run.model.encoder, run.dataset.train.images, run.config.train
    encoder = Encoder(ours.config, ours.channels, ours.image_size, *ours.mean_std)
    if config.compile:  # a separate graph for each library and encoder
        encoder.tokens = partial(compiled_tokens(library, ours.config, ours.image_size), encoder)  # type: ignore[method-assign]
    make_model = plain_simclr if library == "plain" else partial(lightly_method, "simclr")
    model = make_model(encoder, run.autocast).to(run.device).to(memory_format=torch.channels_last).train()
    optimizer, transform = make_optimizer(model, config), two_views(library, ours.image_size)
    loader: DataLoader = DataLoader(
        images.take(torch.arange(len(images))),  # type: ignore[arg-type]  # a data set by its length and items
        config.batch_size, shuffle=True, drop_last=True,
        collate_fn=lambda batch: default_collate([transform(image) for image in batch]),
        num_workers=workers, persistent_workers=workers > 0, pin_memory=run.device.type == "cuda",
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip

    def epoch() -> None:
        for views in loader:
            first, second = (view.to(run.device, non_blocking=True) for view in views)
            step(optimizer, model(first, second))

    return epoch


def two_views(library: str, size: int) -> Transform:
    """Return SimCLR's augmentations of a library, from an image, uint8 (3, S, S), to two views in [0, 1].

    The encoder normalises; blur is for half of the views, as in lightly.
    """
    from torchvision.transforms import v2

    if library == "lightly":
        from lightly.transforms import SimCLRTransform

        return v2.Compose([v2.ToPILImage(), SimCLRTransform(input_size=size, normalize=None)])
    one = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(kernel_size=2 * (size // 20) + 1, sigma=(0.1, 2.0))], p=0.5),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    return lambda image: [one(image), one(image)]


class Joint(nn.Module):
    """Encoder and projection head; the loss compares the projections of both views.

    Args:
        encoder: images -> features, without a split.
        autocast: bf16 in the encoder.
        head: projects features.
        criterion: loss of two projections.
        at_once: both views in one pass; else one after the other, as in lightly's examples.
    """

    def __init__(self, encoder: Encoder, autocast: bool, head: nn.Module, criterion: Criterion, at_once: bool):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.autocast, self.criterion, self.at_once = autocast, criterion, at_once

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of two views, float32 (B, C, S, S) each."""
        if self.at_once:
            return self.criterion(*self.project(torch.cat([first, second])).chunk(2))
        return self.criterion(self.project(first), self.project(second))

    def project(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.encoder(images)
        return self.head(features.float())


def plain_simclr(encoder: Encoder, autocast: bool) -> Joint:
    """Return SimCLR as one would write it; the loss is ours."""
    head = projector(encoder.dim, WIDTH, EMBEDDING)
    return Joint(encoder, autocast, head, partial(nt_xent, temperature=TEMPERATURE), at_once=True)


def lightly_method(name: str, encoder: Encoder, autocast: bool) -> Joint:
    """Return lightly's method of our name, with the widths of our scale `tiny`.

    Raises:
        ValueError: for a method that is not compared.
    """
    import lightly.loss as losses
    from lightly.models.modules import heads

    known = {
        "simclr": (heads.SimCLRProjectionHead, EMBEDDING, partial(losses.NTXentLoss, TEMPERATURE)),
        "vicreg": (heads.VICRegProjectionHead, WIDTH, losses.VICRegLoss),
        "barlow_twins": (heads.BarlowTwinsProjectionHead, WIDTH, losses.BarlowTwinsLoss),
    }
    check_known("methods", name, known)
    make_head, embedding, make_criterion = known[name]
    return Joint(encoder, autocast, make_head(encoder.dim, WIDTH, embedding), make_criterion(), at_once=False)
