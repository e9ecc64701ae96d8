"""Steps and whole trainings against lightly's, and against a plain PyTorch loop on torchvision v2's transforms.

All sides have the same backbone, batch, views, widths and optimizer. The others augment image by image in DataLoader
workers, ours in batches on the encoder's device.
"""

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

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
NO_LIGHTLY = "skipped: lightly is not installed (pip install eqssl[test])"


def measure(options: Options) -> list[Row]:
    """Return a step of every method, views per second on one thread, and the trainings of every encoder."""
    rows = [Row(part="peers", name="lightly", note=NO_LIGHTLY)]
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

    def our_step() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        run.model(batch, run.autocast).total.backward()
        run.optimizer.step()
        run.model.update_teachers()

    def their_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        theirs(batch.first, batch.second).backward()
        optimizer.step()

    seconds = interleave({"ours": our_step, "lightly": their_step}, options.seconds)
    subject = f"{name}, {encoder}, batch {options.batch_size}: step"
    return row("peers", subject, seconds["ours"], "lightly", seconds["lightly"], at_most=STEP_AT_MOST)


def augmentations(options: Options) -> list[Row]:
    """Return views per second on one thread."""
    run = make_run(options.run(options.encoders[0]))
    indices = torch.arange(options.batch_size)

    def transform_each(library: str) -> None:
        for index in indices.tolist():
            transformed[library][index]

    transformed = {library: TransformedImages(run, library) for library in libraries()}
    subjects: dict[str, Callable[[], Any]] = {"ours": lambda: run.views.batch(run.dataset.train, indices, epoch=0)}
    subjects |= {library: partial(transform_each, library) for library in transformed}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(subjects, options.seconds)
    finally:
        torch.set_num_threads(threads)
    views = partial(row, "peers", count=2 * len(indices), unit="views/s a thread")
    theirs = [views(f"{library}: views", seconds[library]) for library in transformed]
    ours = partial(views, "ours: views", seconds["ours"])
    return theirs + [ours(library, seconds[library], at_least=VIEWS_AT_LEAST[library]) for library in transformed]


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
    loops = {
        f"{library}, {count} loader workers": Loop(run, library, count) for library in libraries() for count in workers
    }
    subjects: dict[str, Callable[[], Any]] = {"ours": run.next_epoch}
    seconds = interleave(subjects | {name: loop.epoch for name, loop in loops.items()}, options.seconds)
    images_per_s = partial(row, "peers", count=steps * options.batch_size, unit="images/s")
    rows, subject = [], f"{encoder}, {config.data.image_size} px: training"
    for name, loop in loops.items():
        rows.append(images_per_s(f"{subject} by {name}", seconds[name]))
        aim = ON_GPU_AT_LEAST.get(loop.library) if run.device.type == "cuda" else None
        rows.append(images_per_s(f"{subject}, ours", seconds["ours"], name, seconds[name], at_least=aim))
    return rows


class TransformedImages(Dataset):
    """A run's images in memory, each transformed into two views by SimCLR's augmentations; the encoder normalises.

    Args:
        run: contains the images.
        library: its transform is used; blur as in lightly's, for half of the views.
    """

    def __init__(self, run: Run, library: str):
        from torchvision.transforms import v2

        images = run.dataset.train.images
        self.pixels = images.take(torch.arange(len(images)))  # uint8 (N, 3, S, S)
        size = self.pixels.shape[-1]
        if library == "lightly":
            from lightly.transforms import SimCLRTransform

            self.transform = v2.Compose([v2.ToPILImage(), SimCLRTransform(input_size=size, normalize=None)])
            return
        one = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel_size=2 * (size // 20) + 1, sigma=(0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ])  # fmt: skip
        self.transform = lambda pixels: [one(pixels), one(pixels)]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sequence[Any]:
        """Return two views, float32 (3, S, S) in [0, 1]."""
        return self.transform(self.pixels[index])


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
        self.encoder, self.autocast, self.head, self.criterion, self.at_once = (
            encoder,
            autocast,
            head,
            criterion,
            at_once,
        )

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


class Loop:
    """A training loop with a DataLoader and the images, encoder and optimizer of one of our runs.

    Args:
        run: our run.
        library: one of `libraries`.
        workers: number of the DataLoader's workers.
    """

    def __init__(self, run: Run, library: str, workers: int):
        self.library, self.device, ours = library, run.device, run.model.encoder
        encoder = Encoder(ours.config, ours.channels, ours.image_size, *ours.mean_std)
        make_model = plain_simclr if library == "plain" else partial(lightly_method, "simclr")
        if run.config.train.compile:
            # A separate graph for each library and encoder.
            encoder.tokens = partial(compiled_tokens(library, ours.config, ours.image_size), encoder)  # type: ignore[method-assign]
        self.model = make_model(encoder, run.autocast).to(self.device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, run.config.train)
        self.loader = DataLoader(
            TransformedImages(run, library), run.config.train.batch_size, shuffle=True, drop_last=True,
            num_workers=workers, persistent_workers=workers > 0, pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork" if workers else None,
        )  # fmt: skip

    def epoch(self) -> None:
        """Train on every image once."""
        for views in self.loader:
            first, second = (view.to(self.device, non_blocking=True) for view in views)
            self.optimizer.zero_grad(set_to_none=True)
            self.model(first, second).backward()
            self.optimizer.step()
