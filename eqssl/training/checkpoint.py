"""All state there is of a training run, written so that a kill at any moment leaves the last whole one."""

from pathlib import Path
from typing import Any

import torch

from eqssl.files import on_disk, write_atomically

FILE = "checkpoint.pt"


def save(state: dict[str, Any], folder: Path) -> None:
    """Write the state; the file appears whole or not at all.

    Args:
        state: tensors and plain values, as `torch.save` takes them.
        folder: made if it is not there.
    """
    write_atomically(folder / FILE, lambda temporary: torch.save(state, temporary))


def load(folder: Path) -> dict[str, Any] | None:
    """Return the state last saved, tensors on the CPU; None where there is none."""
    try:
        with on_disk(folder / FILE) as path:
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
