"""What surrounds a run: nothing, or what a study or several workers put there."""

from pathlib import Path
from typing import Any, Protocol

import torch

from eqssl.training import checkpoint


class Context(Protocol):
    """What surrounds a run: its place among the workers and where its state and metrics go."""

    rank: int
    world_size: int
    device: torch.device

    def load(self) -> dict[str, Any] | None:
        """Return the state last reported, or None at the start."""
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
        folder: where checkpoints go; None: nowhere.
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
