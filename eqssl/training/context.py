"""The context of a run: its place among the workers, and the destination of its checkpoints and metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from eqssl.signals import Interrupted, SignalHandler
from eqssl.training import checkpoint


class Context(Protocol):
    """The interface of a run's context; a study and several workers have contexts of their own."""

    rank: int
    world_size: int
    device: torch.device

    def load(self) -> dict[str, Any] | None:
        """Return the state last saved, or None at the start."""

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        """Take an epoch's metrics and, from rank 0 at a checkpoint, the state; called by every worker."""

    def should_checkpoint(self) -> bool:
        """Return whether the state should be saved within an epoch, such as before the process ends."""

    def save(self, state: dict[str, Any]) -> None:
        """Take the state within an epoch, or between the last one and its evaluation, from rank 0."""


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


class LoggingContext(LocalContext):
    """A single process that passes every epoch's metrics on; a signal ends it with its state saved.

    While `signals` is entered, SIGINT or SIGTERM makes the training loop save after its step. If nothing is unsaved,
    such as during the last evaluation, it ends the run at once, and so does a second signal.

    Args:
        folder: of the checkpoints; None: none are written.
        loggers: functions that take an epoch's metrics.

    Raises:
        Interrupted: after a signal.
    """

    def __init__(self, folder: Path | None, *loggers: Callable[[dict[str, float]], object]):
        super().__init__(folder)
        self.loggers = loggers
        self._signal, self._unsaved = 0, False
        self.signals = SignalHandler(self._handle)

    def _handle(self, number: int, first: bool) -> None:
        self._signal = number
        if not first or not self._unsaved:
            raise Interrupted(number)

    def report(self, metrics: dict[str, float], state: dict[str, Any] | None) -> None:
        self._unsaved = True
        super().report(metrics, state)
        for log in self.loggers:
            log(metrics)
        if state is not None:
            self._saved()

    def should_checkpoint(self) -> bool:
        self._unsaved = True
        return self._signal > 0

    def save(self, state: dict[str, Any]) -> None:
        self._unsaved = True
        super().save(state)
        self._saved()

    def _saved(self) -> None:
        self._unsaved = False
        if self._signal:
            raise Interrupted(self._signal)
