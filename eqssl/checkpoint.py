"""All state there is of a training run, written so that a kill at any moment leaves the last whole one."""

import os
from pathlib import Path
from typing import Any

import torch

FILE = "checkpoint.pt"


def save(state: dict[str, Any], folder: Path) -> None:
    """Write the state; the file appears whole or not at all.

    Args:
        state: tensors and plain values, as `torch.save` takes them.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.{os.getpid()}"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def load(folder: Path) -> dict[str, Any] | None:
    """Return the state last saved, tensors on the CPU; None where there is none."""
    path = folder / FILE
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)
