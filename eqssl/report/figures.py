"""Figures of a study: data in, matplotlib figure out; numbers are made elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00", "#555555")  # Okabe and Ito


def dose_response(
    panels: Mapping[str, tuple[Sequence[float], NDArray]],
    references: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    bands: Sequence[str],
    option: str,
    log: bool,
) -> "Figure":
    """Return one panel a figure of the evaluation: its value against the varied option, beside the reference rows.

    Args:
        panels: figure -> (doses (N,), mean, low, high (N, 3)); bounds may be NaN.
        references: figure -> row -> (mean, low, high), lines over the whole width.
        bands: rows whose interval is shown as well.
        option: what is varied, the label of the horizontal axis.
        log: whether that axis is logarithmic.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (doses, bounds)) in zip(grid, panels.items(), strict=True):
        for colour, (row, (mean, low, high)) in zip(COLOURS[1:], references.get(name, {}).items(), strict=False):
            axes.axhline(mean, color=colour, lw=1.3, ls="--" if row in bands else ":", label=row)
            if row in bands:
                axes.axhspan(low, high, color=colour, alpha=0.1, lw=0)
        errors = np.abs(bounds[:, 1:] - bounds[:, :1]).T
        axes.errorbar(doses, bounds[:, 0], errors, fmt="o-", capsize=3, color=COLOURS[0], label="with reconstruction")
        _label(axes, option, name, log)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    return figure


def factor_response(
    doses: Sequence[float], factors: Mapping[str, tuple[NDArray, float | None]], *, option: str, log: bool
) -> "Figure":
    """Return R2 of every factor against the varied option, a small panel each.

    Args:
        doses: (N,), the option's values.
        factors: factor -> (mean, low, high (N, 3); the better control's mean or None).
        option, log: as in `dose_response`.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(factors))
    rows = -(-len(factors) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, (name, (bounds, control)) in zip(grid, factors.items(), strict=False):
        axes.fill_between(doses, bounds[:, 1], bounds[:, 2], color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(doses, bounds[:, 0], "o-", ms=4, color=COLOURS[0])
        if control is not None:
            axes.axhline(control, color=COLOURS[1], lw=1.2, ls="--")
        _label(axes, option, name, log)
    for axes in list(grid)[len(factors) :]:
        axes.remove()
    figure.suptitle("R² per factor; dashed: the better control", fontsize=10)
    return figure


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


def _label(axes: Any, option: str, name: str, log: bool) -> None:
    axes.set_xscale("log" if log else "linear")
    axes.set_xlabel(option, fontsize=9)
    axes.set_title(name, fontsize=10, loc="left")
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def image_grid(images: NDArray) -> NDArray:
    """Return images as one: uint8 (R, n, C, H, W) -> (R * H, n * W, 3)."""
    rows, count, channels, height, width = images.shape
    grid = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, count * width, channels)
    return np.repeat(grid, 3, axis=2) if channels == 1 else grid


def save_reconstructions(images: "Tensor | NDArray", path: Path) -> None:
    """Write `Result.reconstructions`, uint8 (3, n, C, H, W), as a PNG: first views, targets, reconstructions."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_grid(np.asarray(images))).save(path)
