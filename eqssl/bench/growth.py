"""How times grow: of a step with image size and batch, of what a study works out at its end with its trials.

How a step's images a second grow with workers is the part scaling's.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np

from eqssl.bench.options import Options
from eqssl.bench.subject import start
from eqssl.bench.table import Row
from eqssl.bench.timing import exponent, interleave
from eqssl.study import Study
from eqssl.study.results import summarise
from eqssl.study.store.records import TrialRecord

VARIED = {"image_size": "growth_sizes", "batch_size": "growth_batches"}
FIGURES = ("linear", "r2_mean", "equivariance", *(f"r2/{factor}" for factor in range(20)))
SEEDS = 2


def measure(options: Options) -> list[Row]:
    """Return the exponents of a step with reconstruction, and that of a study's summary."""
    of_steps = [_of_steps(options, varied, getattr(options, values)) for varied, values in VARIED.items()]
    return [*of_steps, _of_trials(options)]


def _of_steps(options: Options, varied: str, values: tuple[int, ...]) -> Row:
    encoder = options.encoders[0]
    runs = {v: start(dataclasses.replace(options, **{varied: v}).run(encoder, recon=True)) for v in values}
    seconds = interleave({str(value): run.next_epoch for value, run in runs.items()}, options.seconds)
    return fitted("growth", f"{encoder}: step with reconstruction ~ {varied}^k", values, seconds)


def _of_trials(options: Options) -> Row:
    study, counts = Study(name="growth", question="", space={}, configs=0), options.growth_trials
    subjects = {str(n): partial(summarise, study, _records(n), {}) for n in counts}
    return fitted("growth", "a study's intervals and choice ~ trials^k", counts, interleave(subjects, options.seconds))


def _records(count: int) -> list[TrialRecord]:
    """Return trials that never ran, of two seeds a configuration."""
    draws, names = np.random.default_rng(0), ("base", "no-recon", "autoencode")
    return [
        TrialRecord(
            trial_id=str(i),
            configuration=names[i // SEEDS] if i // SEEDS < len(names) else f"no. {i // SEEDS}",
            number=i // SEEDS if i // SEEDS >= len(names) else None,
            params={},
            seed=i % SEEDS,
            status="COMPLETE",
            metrics=dict(zip(FIGURES, draws.normal(size=len(FIGURES)), strict=True)),
        )
        for i in range(count)
    ]


def fitted(part: str, name: str, values: Sequence[int], seconds: dict[str, np.ndarray]) -> Row:
    """Return the row of an exponent, fitted to each round by itself, so that the spread is that of the exponent.

    Args:
        part, name: of the row.
        values: what varied.
        seconds: in the same order, of the rounds, (R,) each.
    """
    of_rounds = [exponent(values, of_round) for of_round in zip(*seconds.values(), strict=True)]
    low, high = np.quantile(of_rounds, [0.25, 0.75])
    medians = {value: np.median(s) for value, s in seconds.items()}
    return Row(
        part=part,
        name=name,
        value=exponent(values, list(medians.values())),
        unit="= k",
        rounds=len(of_rounds),
        note=f"ms: {', '.join(f'{value}: {1000 * s:.0f}' for value, s in medians.items())}; quartiles of k over rounds "
        f"{low:.2f} to {high:.2f}",
    )
