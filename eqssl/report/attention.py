"""The figure of an attention: maps of some positions, and reconstructions with a view of another object."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from eqssl.images import image_grid
from eqssl.report.figures import COLOURS, Picture, hide_frame

PANEL = 1.1  # side of an image in inches
HEAT = LinearSegmentedColormap.from_list("heat", ["#d0000000", "#d00000dd"])  # the image is seen where nothing is read
LEFT = {"target": "target", "other": "other view"}  # array of attention.npz -> title; the maps follow
RIGHT = {"reconstruction": "reconstruction", "swapped_target": "target swapped", "swapped_other": "other swapped"}
CAPTION = (
    "Held-out pairs, first seed. Red, on one scale: the weights with which the reconstruction at a marked position "
    "averages the tokens of {read}; a map sums to 1, and {uniform:.2g} everywhere would be uniform. Swapped: "
    "reconstructions with {part} of the target, or with the other view, from the row above (first row: from the last). "
    "A property that changes with the swap comes from the swapped view. The weights show where the attention reads, "
    "not what a reconstruction owes to it: a token has seen its surroundings, and other positions may read elsewhere. "
    "How much the other view contributes is measured by the metric use of the other view."
)


def attention_picture(name: str, arrays: Mapping[str, NDArray[Any]]) -> Picture:
    """Return a row per pair of views: target, other view, a map per position, the reconstruction and two swapped ones.

    Args:
        name: of the configuration.
        arrays: of `attention.npz`, see `attention_maps`.
    """
    weights, attention = arrays["weights"].astype(float), str(arrays["attention"])
    count, shown, rows, columns = weights.shape
    titles = [*LEFT.values(), *["■ reads"] * shown, *RIGHT.values()]
    colours = [*["black"] * len(LEFT), *COLOURS[:shown], *["black"] * len(RIGHT)]
    figure = Figure(figsize=(PANEL * len(titles) + 0.8, PANEL * count + 0.3), layout="compressed")
    grid = figure.subplots(count, len(titles), squeeze=False)
    for row, panels in enumerate(grid):
        left, maps, right = np.split(panels, [len(LEFT), len(LEFT) + shown])
        for axes, image in zip([*left, *right], [*LEFT, *RIGHT], strict=True):
            _show(axes, arrays[image][row], (rows, columns))
        pale = 115 + 0.55 * arrays["read"][row].mean(axis=0, keepdims=True)
        for i, axes in enumerate(maps):
            _show(axes, pale.astype(np.uint8), (rows, columns))
            heat = axes.imshow(weights[row, i], cmap=HEAT, vmin=0, vmax=weights.max())
            for marked in (left[0], axes):
                _mark(marked, arrays["positions"][i], COLOURS[i])
    for axes, title, colour in zip(grid[0], titles, colours, strict=True):
        axes.set_title(title, color=colour, loc="center", fontsize=8)
    figure.colorbar(heat, ax=list(grid.flat), label="attention weight", shrink=0.6, pad=0.01)
    read = "the target's own view" if attention == "other-queries" else "the other view"
    part = "the pooled vector" if attention == "pooled-query" else "the tokens"
    text = CAPTION.format(read=read, part=part, uniform=1 / (rows * columns))
    return Picture("attention", f"Attention of {name}", text, figure)


def _show(axes: Axes, image: NDArray[np.uint8], grid: tuple[int, int]) -> None:
    """Draw an image, uint8 (C, H, W), in the coordinates of a map with these rows and columns."""
    extent = (-0.5, grid[1] - 0.5, grid[0] - 0.5, -0.5)
    axes.imshow(image_grid(image[None, None]), extent=extent, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    hide_frame(axes)


def _mark(axes: Axes, position: NDArray[np.int64], colour: str) -> None:
    """Draw a square round a position, row and column, of the map."""
    row, column = position
    for shade, width in (("white", 3.0), (colour, 1.8)):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=shade, lw=width))
