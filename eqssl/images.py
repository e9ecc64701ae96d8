"""Stored images: the arrays of a trial, grids of images, PNG files."""

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqssl.files import read, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def read_arrays(path: Path) -> Any:
    """Return the array of a .npy file, or name -> array of an .npz file.

    None for a missing file and, with a warning, for a damaged one.
    """
    if (content := read(path)) is None:
        return None
    try:
        found = np.load(io.BytesIO(content))
        return found if isinstance(found, np.ndarray) else dict(found)
    except Exception as error:  # of any type, by damaged bytes
        logger.warning("%s is damaged (%s), and is not shown", path, error)
        return None


def image_grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a grid of images, R rows of n, as one image: uint8 (R, n, C, H, W) -> (R * H, n * W, 3)."""
    rows, count, channels, height, width = images.shape
    grid = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, count * width, channels)
    return np.repeat(grid, 3, axis=2) if channels == 1 else grid


def save_reconstructions(images: "Tensor | NDArray[np.uint8]", path: Path) -> None:
    """Write `Result.reconstructions`, uint8 (3, n, C, H, W), as a PNG: first views, targets, reconstructions."""
    from PIL import Image

    picture = Image.fromarray(image_grid(np.asarray(images)))
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG"))
