"""Steps and trainings on a GPU in one command of at most eight minutes; nothing is measured without CUDA."""

import dataclasses
import time

import torch

from eqssl.bench.command import Options
from eqssl.bench.peers import trainings
from eqssl.bench.step import steps_of
from eqssl.bench.timing import Row

CASES = {"resnet18": (64, 512), "resnet50": (224, 64), "vit_small_patch16_224": (224, 64)}  # size, px, and batch
LIMIT_S, COMPARISON_S = 330.0, 8.0  # seconds after which no comparison begins; seconds of each


def measure(options: Options) -> list[Row]:
    """Return the rows of the parts step and peers for three common encoders, those of the steps first."""
    if not torch.cuda.is_available():
        return [Row(name="all", note="skipped: no CUDA device")]
    start, rows = time.perf_counter(), []
    for measured in (lambda sized, name: steps_of(sized, name, sized.image_sizes[0], sized.precisions[0]), trainings):
        for name, (size, batch) in CASES.items():
            if time.perf_counter() - start > LIMIT_S:
                rows.append(Row(name=name, note=f"skipped: {LIMIT_S:.0f} s are over"))
                continue
            sized = dataclasses.replace(options, image_sizes=(size,), batch_size=batch, seconds=COMPARISON_S)
            rows += measured(sized, name)
    return rows
