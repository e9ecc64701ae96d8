"""The whole state of a training run in one file, written so that a kill at any moment leaves the last whole one."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from eqssl.files import on_disk, write_atomically

FILE = "checkpoint.pt"


def save(state: dict[str, Any], folder: Path) -> None:
    """Write the state; the file before it is replaced once the new one has been read back.

    Args:
        state: tensors and plain values, as `torch.save` takes them.
        folder: made if it is not there.
    """

    def write(temporary: Path) -> None:
        torch.save(state, temporary)
        with zipfile.ZipFile(temporary) as written:
            if broken := written.testzip():
                raise OSError(f"{folder / FILE} was not written: {broken} does not read back as it was")

    write_atomically(folder / FILE, write)


def load(folder: Path) -> dict[str, Any] | None:
    """Return the state last saved, tensors on the CPU; None where there is none.

    Raises:
        ValueError: for a file that is not whole, naming it.
    """
    try:
        with on_disk(folder / FILE) as path:
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder / FILE} cannot be read; remove it to start this run again: {error}") from error
