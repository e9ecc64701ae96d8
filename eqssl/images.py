"""Grids of images, as arrays and as PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eqssl.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor


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
