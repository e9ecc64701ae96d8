"""Augmentation alone, and whole trainings, against lightly's pipeline and a plain PyTorch + torchvision v2 loop.

SimCLR on all sides. Theirs augment image by image in DataLoader workers, ours in batches where the encoder runs.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqssl.bench.methods import NO_LIGHTLY
from eqssl.bench.options import Options
from eqssl.bench.plain import Loop, loop, peer_names, quickest
from eqssl.bench.subject import encoder_pass, start
from eqssl.bench.table import Row, row
from eqssl.bench.timing import interleave, timed
from eqssl.training.loop import Run

# Of the views a second of one thread; the plain loop's are torchvision's v2.
FASTER_THAN = {"lightly": 3.0, "plain loop": 1.8}
OF_BOUND = 0.9  # on a CPU, where nothing runs beside the encoder
FASTER_THAN_ON_GPU = {"lightly": 1.8}
EPOCH_S, MOST_STEPS = 3.0, 64


def measure(options: Options) -> list[Row]:
    """Return views a second on one thread, then the trainings of every encoder, each against ours."""
    rows = [] if "lightly" in peer_names() else [Row(part="pipelines", name="lightly", note=NO_LIGHTLY)]
    workers: dict[str, int] = {}
    for encoder in options.encoders:
        sized = _sized(options, encoder)
        run = start(sized.run(encoder, split=0.0, compile=options.compile), sized.steps)
        # What suits the peers is found out with the first encoder, where augmentation weighs most.
        workers = workers or {name: quickest(name, sized, run) for name in peer_names()}
        loops = {name: loop(name, sized, run, count) for name, count in workers.items()}
        if encoder == options.encoders[0]:
            rows += _augmentations(sized, run, loops)
        rows += _trainings(sized, encoder, run, loops)
    return rows


def _sized(options: Options, encoder: str) -> Options:
    """Return options with so many steps an epoch that the wait for a loader's first batch counts for little."""
    run = start(options.run(encoder, split=0.0, compile=options.compile))
    run.next_epoch()
    steps = int(EPOCH_S / timed(run.next_epoch))
    return dataclasses.replace(options, steps=min(max(2, steps), MOST_STEPS))


def _augmentations(options: Options, run: Run, loops: dict[str, Loop]) -> list[Row]:
    split = run.dataset.train
    indices = torch.arange(options.batch_size)
    pixels = split.images.take(indices)

    def each(transform: Callable[[Tensor], list[Tensor]]) -> None:
        for image in pixels:
            transform(image)

    subjects: dict[str, Callable[[], Any]] = {"ours": lambda: run.views.batch(split, indices, epoch=0)}
    subjects |= {name: partial(each, peer.loader.dataset.transform) for name, peer in loops.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleave(subjects, options.seconds)
    finally:
        torch.set_num_threads(threads)
    rate = {"count": 2 * len(indices), "unit": "views/s a thread"}
    ours = partial(row, "pipelines", "ours: views", seconds["ours"], **rate)
    return [
        *(row("pipelines", f"{name}: views", seconds[name], **rate) for name in loops),
        *(ours(name, seconds[name], at_least=FASTER_THAN[name]) for name in loops),
    ]


def _trainings(options: Options, encoder: str, run: Run, loops: dict[str, Loop]) -> list[Row]:
    size = options.image_size
    images = torch.rand(2 * options.batch_size, 3, size, size, device=run.device)

    def alone() -> None:
        for _ in range(options.steps):
            encoder_pass(run.model, images, run.autocast)

    subjects: dict[str, Callable[[], Any]] = {"encoder": alone, "ours": run.next_epoch}
    for name, peer in loops.items():
        subjects |= {name: peer.epoch, f"{name}'s loader": partial(list, peer.loader)}
    seconds = interleave(subjects, options.seconds)
    rate = {"count": options.steps * options.batch_size, "unit": "images/s"}
    ours = partial(row, "pipelines", f"{encoder}, ours: training", seconds["ours"], **rate)
    rows = []
    for name, peer in loops.items():
        workers = f"{peer.loader.num_workers} loader workers, the quickest for {options.encoders[0]}"
        rows.append(row("pipelines", f"{encoder}, {name}: training", seconds[name], **rate, note=workers))
        aim, note = FASTER_THAN_ON_GPU.get(name), ""
        if run.device.type == "cpu":  # what can be won at best is the whole of their augmentation
            bound = float(np.median(1 + seconds[f"{name}'s loader"] / seconds["encoder"]))
            aim, note = round(OF_BOUND * bound, 2), f"bound {bound:.2f}: (encoder + their loader alone) / encoder"
        rows.append(ours(name, seconds[name], at_least=aim, note=note))
    return rows
