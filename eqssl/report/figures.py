"""What all figures share, and pictures of reconstructions: data in, matplotlib figure out."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eqssl.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555")  # Okabe and Ito


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        name: of its file.
        title, caption: above and below it; the caption says what bands and bars are.
        figure: what is drawn.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"


def style(axes: "Axes", x: str, y: str = "", title: str = "", *, log: bool = False) -> None:
    """Label axes and make them quiet.

    Args:
        x, y, title: labels.
        log: whether the horizontal axis is logarithmic.
    """
    axes.set_xscale("log" if log else "linear")
    if log:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def reconstruction_figure(images: Mapping[str, NDArray]) -> "Figure":
    """Return first views, targets and reconstructions, a block of three rows for every configuration.

    Args:
        images: configuration -> uint8 (3, n, C, H, W).
    """
    from matplotlib.figure import Figure

    shape = next(iter(images.values())).shape
    figure = Figure(figsize=(0.9 * shape[1] + 1.4, 3.0 * len(images)), layout="constrained")
    for axes, (name, block) in zip(figure.subplots(len(images), 1, squeeze=False)[:, 0], images.items(), strict=True):
        height = block.shape[3]
        axes.imshow(image_grid(block), interpolation="nearest")
        axes.set_yticks([height * (row + 0.5) for row in range(3)], ["first view", "target", "result"], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(name, fontsize=9, loc="left")
    return figure


def image_grid(images: NDArray) -> NDArray:
    """Return images as one: uint8 (R, n, C, H, W) -> (R * H, n * W, 3)."""
    rows, count, channels, height, width = images.shape
    grid = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, count * width, channels)
    return np.repeat(grid, 3, axis=2) if channels == 1 else grid


def save_reconstructions(images: "Tensor | NDArray", path: Path) -> None:
    """Write `Result.reconstructions`, uint8 (3, n, C, H, W), as a PNG: first views, targets, reconstructions."""
    from PIL import Image

    picture = Image.fromarray(image_grid(np.asarray(images)))
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG"))
