"""Where the time of a training step goes, without and with reconstruction."""

import numpy as np
import torch

from eqssl.bench.options import Options
from eqssl.bench.subject import encoder_pass, even_run, random_dataset
from eqssl.bench.table import Row, row
from eqssl.bench.timing import Stopwatch, interleave

AIMED_AT = ("resnet18", 64)  # encoder and image size that the aims are stated for
EFFICIENCY, EFFICIENCY_RECON, ADDED = 0.85, 0.75, 1.15


def measure(options: Options) -> list[Row]:
    """Return the rows of every encoder."""
    return [made for encoder in options.encoders for made in _measure(encoder, options)]


def _measure(encoder: str, options: Options) -> list[Row]:
    plain, recon = (Watched(options, encoder, recon) for recon in (False, True))
    run = plain.run
    images = torch.rand(2 * options.batch_size, 3, options.image_size, options.image_size, device=run.device)
    alone = "encoder alone"
    seconds = interleave(
        {
            alone: lambda: encoder_pass(run.model.encoder, images, run.autocast),
            plain.name: plain.step,
            recon.name: recon.step,
        },
        options.seconds,
    )
    aimed = (encoder, options.image_size) == AIMED_AT
    rows = [row("step", f"{encoder}: {plain.name}", seconds[plain.name])]
    for subject, aim in ((plain, EFFICIENCY), (recon, EFFICIENCY_RECON)):
        rows.append(_efficiency(encoder, seconds[alone], subject.name, seconds[subject.name], aim if aimed else None))
        rows += subject.rows(encoder, len(seconds[alone]))
    added = ADDED if aimed else None
    base = seconds[plain.name]
    return [*rows, row("step", f"{encoder}: {recon.name}", seconds[recon.name], plain.name, base, at_most=added)]


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
        config = options.run(encoder, recon=recon)
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
