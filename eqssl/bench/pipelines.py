"""Augmentation alone, and whole trainings, against lightly's pipeline and a plain PyTorch + torchvision v2 loop.

SimCLR on all sides. Theirs augment image by image in DataLoader workers, ours in batches where the encoder runs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqssl.bench.methods import NO_LIGHTLY
from eqssl.bench.options import Options
from eqssl.bench.plain import Loop, peer_names, quickest_loop
from eqssl.bench.subject import encoder_pass, start
from eqssl.bench.table import Row, row
from eqssl.bench.timing import interleave
from eqssl.training import Run

# Of the views a second of one thread; the plain loop's are torchvision's v2.
FASTER_THAN = {"lightly": 3.0, "plain loop": 1.8}
OF_BOUND = 0.9  # on a CPU, where nothing runs beside the encoder
FASTER_THAN_ON_GPU = {"lightly": 1.8}


def measure(options: Options) -> list[Row]:
    """Return views a second on one thread, then the trainings of every encoder, each against ours."""
    rows = [] if "lightly" in peer_names() else [Row(part="pipelines", name="lightly", note=NO_LIGHTLY)]
    for encoder in options.encoders:
        run = start(options.run(encoder, split=0.0, compile=options.compile), options.steps)
        loops = {name: quickest_loop(name, options, run) for name in peer_names()}
        if encoder == options.encoders[0]:
            rows += _augmentations(options, run, loops)
        rows += _trainings(options, encoder, run, loops)
    return rows


def _augmentations(options: Options, run: Run, loops: dict[str, Loop]) -> list[Row]:
    split = run.dataset.train
    indices = torch.arange(options.batch_size)
    pixels = split.images.take(indices)

    def each(transform: Callable[[Tensor], list[Tensor]]) -> None:
        for image in pixels:
            transform(image)

    subjects: dict[str, Callable[[], Any]] = {"ours": lambda: run.views.batch(split, indices, epoch=0)}
    subjects |= {name: partial(each, loop.loader.dataset.transform) for name, loop in loops.items()}
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
    for name, loop in loops.items():
        subjects |= {name: loop.epoch, f"{name}'s loader": partial(list, loop.loader)}
    seconds = interleave(subjects, options.seconds)
    rate = {"count": options.steps * options.batch_size, "unit": "images/s"}
    ours = partial(row, "pipelines", f"{encoder}, ours: training", seconds["ours"], **rate)
    rows = []
    for name, loop in loops.items():
        workers = f"with {loop.loader.num_workers} workers, the quickest"
        rows.append(row("pipelines", f"{encoder}, {name}: training", seconds[name], **rate, note=workers))
        aim, note = FASTER_THAN_ON_GPU.get(name), ""
        if run.device.type == "cpu":  # what can be won at best is the whole of their augmentation
            bound = float(np.median(1 + seconds[f"{name}'s loader"] / seconds["encoder"]))
            aim, note = round(OF_BOUND * bound, 2), f"bound {bound:.2f}: (encoder + their loader alone) / encoder"
        rows.append(ours(name, seconds[name], at_least=aim, note=note))
    return rows
