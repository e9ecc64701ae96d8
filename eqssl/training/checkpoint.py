"""The whole state of a training run in one file, written so that a kill at any moment leaves the last complete one.

The previous checkpoint is kept next to it, as the fallback for a damaged one.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eqssl.files import move, on_disk, set_aside, write_atomically

FILE, PREVIOUS = "checkpoint.pt", "previous.pt"


def save(state: dict[str, Any], folder: Path) -> None:
    """Write the state; the existing file becomes the previous one once the new one has been read back.

    Args:
        state: tensors and plain values, as `torch.save` takes them.
        folder: created if it does not exist.
    """

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:  # given a path, torch would lose the error of a full disk
                torch.save(state, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        with zipfile.ZipFile(temporary) as written:
            if broken := written.testzip():
                raise OSError(f"{folder / FILE} was not written: {broken} does not read back as it was")
        move(folder / FILE, folder / PREVIOUS)

    write_atomically(folder / FILE, write)


def exists(folder: Path) -> bool:
    """Return whether a folder contains a state; a full disk or a stop before the first one may leave it empty."""
    return any((folder / name).exists() for name in (FILE, PREVIOUS))


def load(folder: Path, is_own: Callable[[dict[str, Any]], bool] = lambda state: True) -> dict[str, Any] | None:
    """Return the state last saved, tensors on the CPU; None where there is none.

    A file that cannot be read is reported and set aside, and the previous one is used.

    Args:
        folder: as in `save`.
        is_own: returns whether a state belongs to this run; one that does not counts as damaged.
    """
    for name in (FILE, PREVIOUS):
        try:
            with on_disk(folder / name) as path:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if is_own(state):
                return state
            set_aside(folder / name, "it belongs to another run")
        except FileNotFoundError:
            continue
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of any type: the file may contain anything
            set_aside(folder / name, error)
    return None
