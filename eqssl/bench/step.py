"""Shares of a training step, without and with reconstruction, and the encoder's rate over the device's peak."""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, interleave, row
from eqssl.bench.training import TimedSteps, encoder_pass
from eqssl.training.loop import Run

# (device, encoder, image size) -> step efficiency without and with reconstruction, both at least, and the step with
# reconstruction over the one without, at most.
AIMS = {
    ("cpu", "resnet18", 64): (0.85, 0.75, 1.15),
    ("cuda", "resnet18", 64): (0.9, None, 1.15),
    ("cuda", "resnet50", 224): (0.9, None, None),
    ("cuda", "vit_small_patch16_224", 224): (0.9, None, None),
}
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices whose product is a device's peak


def measure(options: Options) -> list[Row]:
    """Return the rows of every encoder."""
    return [made for encoder in options.encoders for made in _measure(encoder, options)]


def _measure(encoder: str, options: Options) -> list[Row]:
    plain, recon = (TimedSteps(options, encoder, recon) for recon in (False, True))
    run = plain.run
    images = torch.rand(2 * options.batch_size, 3, options.image_size, options.image_size, device=run.device)
    seconds = interleave(
        {
            "encoder": lambda: encoder_pass(run.model, images, run.autocast),
            plain.name: plain.step,
            recon.name: recon.step,
            "product": matrix_product(run.device, run.autocast),
        },
        options.seconds,
    )
    *efficiencies, at_most = AIMS.get((run.device.type, encoder, options.image_size), (None, None, None))
    base = seconds[plain.name]
    rows = [row("step", f"{encoder}: step", base, note=f"{options.batch_size / np.median(base):.0f} images/s")]
    for subject, aim in zip((plain, recon), efficiencies, strict=True):
        efficiency = f"{subject.name} (step efficiency)"
        name = f"{encoder}: encoder alone"
        rows.append(row("step", name, seconds["encoder"], efficiency, seconds[subject.name], at_least=aim))
        counted = subject.rounds[-len(base) :]
        whole = np.array([sum(parts.values()) for parts in counted])
        for part in counted[0]:
            of_part = np.array([parts[part] for parts in counted])
            rows.append(row("step", f"{encoder}: {part}", of_part, subject.name, whole))
    rows.append(row("step", f"{encoder}: {recon.name}", seconds[recon.name], plain.name, base, at_most=at_most))
    return [*rows, share_of_peak(encoder, seconds["encoder"], seconds["product"], run, images)]


def matrix_product(device: torch.device, bf16: bool) -> Callable[[], torch.Tensor]:
    """Return a product of large square matrices, in bf16 or fp32: the peak of a device."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = torch.rand(2, PRODUCT[device.type], PRODUCT[device.type], device=device).to(dtype)
    return lambda: a @ b


def share_of_peak(encoder: str, alone: np.ndarray, product: np.ndarray, run: Run, images: torch.Tensor) -> Row:
    """Return the row of the encoder's FLOP/s over those of a matrix product.

    Args:
        encoder: its name.
        alone, product: seconds of the encoder's pass and of the product in the same rounds, (R,).
        run: with the encoder.
        images: of the pass, float32 (2 B, C, S, S).
    """
    few = images[:2]  # counted in fp32, which needs more memory than the pass
    with FlopCounterMode(display=False) as counter:  # it sees nothing of compiled code
        run.model.encoder.tokens(few).sum().backward()
    flops = counter.get_total_flops() * len(images) / len(few)
    at_peak = product * flops / (2 * PRODUCT[run.device.type] ** 3)  # seconds of the product for as many operations
    rate = {"count": flops / 1e9, "unit": "GFLOP/s"}
    return row("step", f"{encoder}: encoder alone", alone, "a large matrix product", at_peak, **rate)
