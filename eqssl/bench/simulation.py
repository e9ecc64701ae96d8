"""`python -m eqssl.bench.simulation`: what a study would take on a cluster whose nodes are lost now and then.

A model of the arithmetic, not of Ray: trials take turns on as many places as the cluster has, each is a start, its
epochs and its evaluations, and a node that is lost costs what was not saved and the time until another goes on. Every
figure it needs is one that was measured: by `eqssl bench`, by a study's forecast, by the table of faults.
"""

import heapq
import math
import random
from dataclasses import dataclass, fields
from statistics import quantiles

import tyro

from eqssl.report.render import markdown_rows

MAY_BE_ZERO = {"evaluate_s", "start_s", "lost_per_node_hour", "recover_s", "read_s", "image_bytes", "state_bytes"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study on a cluster; the defaults are ImageNet-1k, 100 trials of 100 epochs, on 64 GPUs."""

    trials: int = 100
    """Trials, reference rows and seeds counted."""
    epochs: int = 100
    """Epochs of each."""
    images: int = 1_281_167
    """Training images an epoch."""
    images_per_s: float
    """That one GPU trains; measure it."""
    evaluate_s: float = 0.0
    """Seconds of the evaluation at a trial's end."""
    start_s: float = 30.0
    """Seconds from a trial's turn until its first step."""
    gpus: int = 64
    """Of the cluster."""
    gpus_per_node: int = 8
    """Of a node, which are lost together."""
    gpus_per_trial: int = 8
    """Of a trial."""
    scaling: float = 1.0
    """Speed of a trial's GPUs together over that of as many alone."""
    lost_per_node_hour: float = 0.0
    """Nodes that the cloud takes away, per node and hour."""
    recover_s: float = 60.0
    """Seconds from the loss of a node until its trial trains again, another node included."""
    read_s: float = 0.0
    """Seconds in which a new node reads all images from storage; it does so once, for all trials."""
    save_s: float = 300.0
    """Seconds of training between two saved states; the end of an epoch is one too."""
    image_bytes: float = 110_000.0
    """Bytes of an image in storage."""
    state_bytes: float = 0.0
    """Bytes of a saved state."""
    repetitions: int = 100
    """Simulations, of which medians and 90 % ranges are told."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, zero = getattr(self, field.name), field.name in MAY_BE_ZERO
            if value is not None and not (value > 0 or (zero and value == 0)):
                option, allowed = field.name.replace("_", "-"), "0 or more" if zero else "above 0"
                raise ValueError(f"--{option} is {value}; allowed: {allowed}")
        if self.gpus_per_trial > self.gpus:
            raise ValueError(f"--gpus-per-trial is {self.gpus_per_trial}; allowed: up to the --gpus {self.gpus}")

    @property
    def epoch_s(self) -> float:
        """Seconds that an epoch takes undisturbed."""
        return self.images / (self.images_per_s * self.gpus_per_trial * self.scaling)

    @property
    def losses_per_s(self) -> float:
        """Losses that reach one trial: of every node that it has a part of."""
        return self.lost_per_node_hour / 3600 * math.ceil(self.gpus_per_trial / self.gpus_per_node)


@dataclass
class Outcome:
    """Of one simulated study: hours, GPU-hours (and which of them trained nothing that stayed), losses and bytes."""

    hours: float = 0.0
    gpu_hours: float = 0.0
    wasted_gpu_hours: float = 0.0
    losses: int = 0  # of a node, once for every trial on it
    read_bytes: float = 0.0
    written_bytes: float = 0.0


def simulate(plan: Plan, seed: int) -> Outcome:
    """Return what a study took, with losses at random moments.

    Args:
        plan: of the study.
        seed: of the losses.
    """
    places = plan.gpus // plan.gpus_per_trial
    chance, reading_h = random.Random(seed), places * plan.gpus_per_trial * plan.read_s / 3600
    outcome = Outcome(gpu_hours=reading_h, wasted_gpu_hours=reading_h)
    free_s = [plan.read_s] * places  # when each place is free again
    for _ in range(plan.trials):
        begin = heapq.heappop(free_s)
        took_s = _trial(plan, chance, outcome)
        heapq.heappush(free_s, begin + took_s)
        outcome.gpu_hours += took_s * plan.gpus_per_trial / 3600
        outcome.hours = max(outcome.hours, (begin + took_s) / 3600)
    lost = outcome.losses * min(1, plan.gpus_per_trial / plan.gpus_per_node)  # it is a loss of all trials that it had
    nodes = math.ceil(plan.gpus / plan.gpus_per_node) + lost
    outcome.read_bytes = nodes * plan.images * plan.image_bytes
    return outcome


def _trial(plan: Plan, chance: random.Random, outcome: Outcome) -> float:
    """Return the seconds of a trial, and add to the outcome what was lost on the way."""
    useful_s = plan.epochs * plan.epoch_s + plan.evaluate_s
    saved_s, took_s = 0.0, plan.start_s
    while True:
        until_loss_s = chance.expovariate(plan.losses_per_s) if plan.losses_per_s else math.inf
        if saved_s + until_loss_s >= useful_s:
            took_s += useful_s - saved_s
            outcome.written_bytes += plan.state_bytes * plan.epochs * (1 + plan.epoch_s // plan.save_s)
            return took_s
        reached_s = saved_s + until_loss_s
        # What is left: the last whole epoch or, within it, the last state that was saved.
        epoch_began_s = min(reached_s // plan.epoch_s, plan.epochs) * plan.epoch_s
        trained_s = min(reached_s, plan.epochs * plan.epoch_s)  # of the evaluation nothing is saved
        kept_s = epoch_began_s + (trained_s - epoch_began_s) // plan.save_s * plan.save_s
        away_s = plan.recover_s + plan.read_s
        took_s += until_loss_s + away_s
        outcome.losses += 1
        outcome.wasted_gpu_hours += (reached_s - kept_s + away_s) * plan.gpus_per_trial / 3600
        saved_s = kept_s


def table(plan: Plan) -> str:
    """Return medians and 90 % ranges over the simulations, in Markdown."""
    outcomes = [simulate(plan, seed) for seed in range(plan.repetitions)]
    rows = []
    for name, scale, unit in (
        ("hours", 1, "h"), ("gpu_hours", 1, "GPU-h"), ("wasted_gpu_hours", 1, "GPU-h"), ("losses", 1, ""),
        ("read_bytes", 1e12, "TB"), ("written_bytes", 1e12, "TB"),
    ):  # fmt: skip
        values = [getattr(outcome, name) / scale for outcome in outcomes]
        low, middle, high = (quantiles(values * 2, n=20)[i] for i in (0, 9, 18))  # `* 2`: of one value too
        rows.append([name.replace("_", " "), f"{middle:.4g} {unit}".strip(), f"{low:.4g} to {high:.4g}"])
    return markdown_rows(["", "median", "90 %"], rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; it ends with 2 for options that cannot work."""
    print(table(tyro.cli(Plan, args=arguments, description=Plan.__doc__, prog="python -m eqssl.bench.simulation")))


if __name__ == "__main__":
    main()
