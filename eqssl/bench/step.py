"""Where the time of a training step goes, without and with reconstruction."""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from eqssl.bench.options import Options
from eqssl.bench.subject import encoder_pass, even_run, random_dataset
from eqssl.bench.table import Row, row
from eqssl.bench.timing import Stopwatch, interleave
from eqssl.training.loop import Run

# Device, encoder and image size that aims are stated for -> step efficiency without and with reconstruction, both at
# least, and the step with it over the one without, at most.
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
    plain, recon = (Watched(options, encoder, recon) for recon in (False, True))
    run = plain.run
    images = torch.rand(2 * options.batch_size, 3, options.image_size, options.image_size, device=run.device)
    alone, product = "encoder alone", matrix_product(run.device, run.autocast)
    seconds = interleave(
        {
            alone: lambda: encoder_pass(run.model, images, run.autocast),
            plain.name: plain.step,
            recon.name: recon.step,
            "product": product,
        },
        options.seconds,
    )
    *aims, at_most = AIMS.get((run.device.type, encoder, options.image_size), (None, None, None))
    base = seconds[plain.name]
    note = f"{options.batch_size / np.median(base):.0f} images/s"
    rows = [row("step", f"{encoder}: {plain.name}", base, note=note)]
    for subject, aim in zip((plain, recon), aims, strict=True):
        rows.append(_efficiency(encoder, seconds[alone], subject.name, seconds[subject.name], aim))
        rows += subject.rows(encoder, len(seconds[alone]))
    rows.append(row("step", f"{encoder}: {recon.name}", seconds[recon.name], plain.name, base, at_most=at_most))
    return [*rows, share_of_peak(encoder, seconds[alone], seconds["product"], run, images)]


def matrix_product(device: torch.device, bf16: bool) -> Callable[[], torch.Tensor]:
    """Return a product of large square matrices, in bf16 or fp32: the most that a device can do."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = torch.rand(2, PRODUCT[device.type], PRODUCT[device.type], device=device).to(dtype)
    return lambda: a @ b


def share_of_peak(encoder: str, alone: np.ndarray, product: np.ndarray, run: Run, images: torch.Tensor) -> Row:
    """Return the row of the encoder's rate of arithmetic over that of a matrix product.

    Args:
        encoder: its name.
        alone, product: seconds of the encoder's pass and of the product in the same rounds, (R,).
        run: with the encoder.
        images: that the pass takes, float32 (2 B, C, S, S).
    """
    few = images[:2]  # counted in fp32, which takes more memory than the pass itself may have
    with FlopCounterMode(display=False) as counter:  # of what is not compiled, which it sees through
        run.model.encoder.tokens(few).sum().backward()
    flops = counter.get_total_flops() * len(images) / len(few)
    same = product * flops / (2 * PRODUCT[run.device.type] ** 3)  # seconds that it would take for as many
    rate = {"count": flops / 1e9, "unit": "GFLOP/s"}
    return row("step", f"{encoder}: encoder alone", alone, "a large matrix product", same, **rate)


def _efficiency(encoder: str, alone: np.ndarray, name: str, whole: np.ndarray, aim: float | None) -> Row:
    return row("step", f"{encoder}: encoder alone", alone, f"{name} (step efficiency)", whole, at_least=aim)


class Watched:
    """A training of one step an epoch whose parts are timed.

    Args:
        options: sizes.
        encoder: its name.
        recon: with the reconstruction branch.
    """

    def __init__(self, options: Options, encoder: str, recon: bool):
        self.name = "step with reconstruction" if recon else "step"
        self.watch = Stopwatch()
        config = options.run(encoder, recon=recon, compile=options.compile)
        dataset = self.watch.watch(random_dataset(options.batch_size, options.image_size))
        self.run = even_run(config, dataset)
        self.watch.follow(self.run)
        self.rounds: list[dict[str, float]] = []

    def step(self) -> None:
        """Train an epoch, which is one step, by the package's own loop."""
        self.watch.start()
        self.run.next_epoch()
        self.rounds.append(self.watch.stop())

    def rows(self, encoder: str, rounds: int) -> list[Row]:
        """Return the parts of the last rounds, each against their sum."""
        counted = self.rounds[-rounds:]
        whole = np.array([sum(parts.values()) for parts in counted])
        seconds = {part: np.array([parts[part] for parts in counted]) for part in counted[0]}
        return [row("step", f"{encoder}: {part}", part_s, self.name, whole) for part, part_s in seconds.items()]
