"""`python -m eqssl.bench.simulation`: duration of a study on a cluster that loses nodes, by arithmetic only.

Trials take turns on the cluster's GPUs. Each consists of a start, its epochs and an evaluation; the loss of a node
costs the training since the last checkpoint and the time until another node continues. The inputs are measured values.
"""

import heapq
import math
import random
from dataclasses import dataclass, fields

import numpy as np
import tyro

from eqssl.config import NonNegative, Positive, PositiveInt, check_value

MEASURED = {"hours": "h", "gpu_hours": "GPU-h", "wasted_gpu_hours": "GPU-h", "losses": ""}  # of a study, with units


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study on a cluster; the defaults are ImageNet-1k, 100 trials of 100 epochs, on 64 GPUs."""

    trials: PositiveInt = 100
    """Trials, reference rows and seeds included."""
    epochs: PositiveInt = 100
    """Epochs of each trial."""
    images: PositiveInt = 1_281_167
    """Training images per epoch."""
    images_per_s: Positive
    """Speed of one GPU; measure it."""
    evaluate_s: NonNegative = 0.0
    """Seconds of the evaluation at a trial's end."""
    start_s: NonNegative = 30.0
    """Seconds from a trial's turn until its first step."""
    gpus: PositiveInt = 64
    """GPUs of the cluster."""
    gpus_per_node: PositiveInt = 8
    """GPUs of a node, which are lost together."""
    gpus_per_trial: PositiveInt = 8
    """GPUs of a trial."""
    scaling: Positive = 1.0
    """Speed of a trial's GPUs together over that of as many alone."""
    lost_per_node_hour: NonNegative = 0.0
    """Nodes that the cloud reclaims, per node and hour."""
    recover_s: NonNegative = 60.0
    """Seconds from the loss of a node until its trial trains again."""
    save_s: Positive = 300.0
    """Seconds of training between two checkpoints; the end of an epoch is one too."""
    repetitions: PositiveInt = 100
    """Simulations; their medians and 90 % ranges are printed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_value(field.name, getattr(self, field.name), field.type)
        if self.gpus_per_trial > self.gpus:
            raise ValueError(f"--gpus-per-trial is {self.gpus_per_trial}; allowed: up to the --gpus {self.gpus}")

    @property
    def epoch_s(self) -> float:
        """Seconds of an undisturbed epoch."""
        return self.images / (self.images_per_s * self.gpus_per_trial * self.scaling)

    @property
    def losses_per_s(self) -> float:
        """Losses per second that hit one trial, from all nodes that it uses."""
        return self.lost_per_node_hour / 3600 * math.ceil(self.gpus_per_trial / self.gpus_per_node)


def simulate(plan: Plan, seed: int) -> dict[str, float]:
    """Return `MEASURED` of one study with losses at random moments; wasted: training without lasting progress.

    Args:
        plan: the study's.
        seed: seed of the losses.
    """
    rng = random.Random(seed)
    trials = np.array([_trial(plan, rng) for _ in range(plan.trials)])
    free_h = [0.0] * (plan.gpus // plan.gpus_per_trial)  # when each concurrent trial's GPUs become free
    for trial_h in trials[:, 0].tolist():
        heapq.heapreplace(free_h, free_h[0] + trial_h)
    (hours, wasted, losses), gpus = trials.sum(0).tolist(), plan.gpus_per_trial
    return {"hours": max(free_h), "gpu_hours": gpus * hours, "wasted_gpu_hours": gpus * wasted, "losses": losses}


def _trial(plan: Plan, rng: random.Random) -> tuple[float, float, int]:
    """Return the hours of a trial, how many of them its losses cost, and the number of losses."""
    useful_s = plan.epochs * plan.epoch_s + plan.evaluate_s
    saved_s, total_s, wasted_s, losses = 0.0, plan.start_s, 0.0, 0
    while True:
        until_loss_s = rng.expovariate(plan.losses_per_s) if plan.losses_per_s else math.inf
        if saved_s + until_loss_s >= useful_s:
            return (total_s + useful_s - saved_s) / 3600, wasted_s / 3600, losses
        reached_s = saved_s + until_loss_s
        # The last checkpoint: at the end of the last whole epoch, or within the current one.
        epoch_began_s = min(reached_s // plan.epoch_s, plan.epochs) * plan.epoch_s
        trained_s = min(reached_s, plan.epochs * plan.epoch_s)  # an evaluation has no checkpoints
        saved_s = epoch_began_s + (trained_s - epoch_began_s) // plan.save_s * plan.save_s
        total_s += until_loss_s + plan.recover_s
        wasted_s += reached_s - saved_s + plan.recover_s
        losses += 1


def main(arguments: list[str] | None = None) -> None:
    """Print medians and 90 % ranges over the simulations; the command exits with 2 for options that cannot work."""
    plan = tyro.cli(Plan, args=arguments, description=Plan.__doc__, prog="python -m eqssl.bench.simulation")
    studies = [simulate(plan, seed) for seed in range(plan.repetitions)]
    print("| | median | 90 % |\n| --- | --- | --- |")
    for name, unit in MEASURED.items():
        values = [study[name] for study in studies]
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        print(f"| {name.replace('_', ' ')} | {middle:.4g} {unit} | {low:.4g} to {high:.4g} |")


if __name__ == "__main__":
    main()
