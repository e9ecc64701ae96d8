"""How the time of a step grows with image size and batch."""

import dataclasses

import numpy as np

from eqssl.bench.options import Options
from eqssl.bench.subject import start
from eqssl.bench.table import Row
from eqssl.bench.timing import exponent, interleave

VARIED = {"image_size": "growth_sizes", "batch_size": "growth_batches"}


def measure(options: Options) -> list[Row]:
    """Return the exponents of a step with reconstruction."""
    return [_measure(options, varied, getattr(options, values)) for varied, values in VARIED.items()]


def _measure(options: Options, varied: str, values: tuple[int, ...]) -> Row:
    """Fit each round by itself, so that the spread is that of the exponent."""
    encoder = options.encoders[0]
    runs = {str(v): start(dataclasses.replace(options, **{varied: v}).run(encoder, recon=True)) for v in values}
    seconds = interleave({value: run.next_epoch for value, run in runs.items()}, options.seconds)
    of_rounds = [exponent(values, of_round) for of_round in zip(*seconds.values(), strict=True)]
    low, high = np.quantile(of_rounds, [0.25, 0.75])
    medians = {value: np.median(s) for value, s in seconds.items()}
    return Row(
        part="growth",
        name=f"{encoder}: step with reconstruction ~ {varied}^k",
        value=exponent(values, list(medians.values())),
        unit="= k",
        rounds=len(of_rounds),
        note=f"ms: {', '.join(f'{value}: {1000 * s:.0f}' for value, s in medians.items())}; quartiles of k over rounds "
        f"{low:.2f} to {high:.2f}",
    )
