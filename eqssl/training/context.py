"""The surroundings of a run: its place among the workers, and the destination of its checkpoints and metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from eqssl.training import checkpoint


class Context(Protocol):
    """The interface of a run's surroundings; a study and several workers have contexts of their own."""

    rank: int
    world_size: int
    device: torch.device

    def load(self) -> dict[str, Any] | None:
        """Return the state last saved, or None at the start."""
        ...

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        """Take an epoch's metrics and, from rank 0 at a checkpoint, the state; called by every worker."""
        ...

    def should_checkpoint(self) -> bool:
        """Return whether the state should be saved within an epoch, as before the process is gone."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Take the state within an epoch, or between the last one and its evaluation, from rank 0."""
        ...


class LocalContext:
    """The context of a single process.

    Args:
        folder: of the checkpoints; None: none are written.
    """

    rank, world_size = 0, 1

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(self) -> dict[str, Any] | None:
        return checkpoint.load(self.folder) if self.folder else None

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        if self.folder and state is not None:
            checkpoint.save(state, self.folder)

    def should_checkpoint(self) -> bool:
        return False

    def save(self, state: dict[str, Any]) -> None:
        if self.folder:
            checkpoint.save(state, self.folder)


class PrintingContext(LocalContext):
    """A single process that prints every epoch's metrics and passes them on.

    Args:
        folder: of the checkpoints.
        log: takes every epoch's metrics.
    """

    def __init__(self, folder: Path, log: Callable[[dict[str, float]], object]):
        super().__init__(folder)
        self.log = log

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        super().report(metrics, state)
        self.log(metrics)
        print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)
