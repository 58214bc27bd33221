"""Heat maps whose colours change in steps as wide as the noise: what might as well be equal looks equal."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import FigureBase

from lowmem_spin.report.plots import titled_axes
from lowmem_spin.report.svg import INK

STEPS = 9  # of colour at most: more are not told apart


def steps(values: np.ndarray, noise: float) -> np.ndarray:
    """Edges of the colours, from below the lowest to above the highest value.

    Args:
        values: of any shape; nan is no value.
        noise: how far two of them may be apart by chance; 0 or nan if that is not known.

    The steps are as wide as the noise, or a ninth of the whole range if that is more, and lie where they part the fewest
    values that are within noise of each other.
    """
    known = np.unique(values[~np.isnan(values)])
    low, high = known[0], known[-1]
    step = max(0.0 if np.isnan(noise) else noise, (high - low) / STEPS)
    if step == 0:
        return np.array([low - 0.5, low + 0.5])
    a, b = (side.ravel() for side in np.meshgrid(known, known))

    def parted(top: float) -> tuple[int, int]:
        """How many pairs within noise, and within a step, would have two colours."""
        apart, distance = np.floor((top - a) / step) != np.floor((top - b) / step), abs(a - b)
        return int((apart & (distance < noise)).sum()), int((apart & (distance < step)).sum())

    between = (known[:-1] + known[1:]) / 2
    top = min([*(known[::-1] + 1e-9 * step), *between[::-1], high + step / 2], key=parted)
    top += step * np.ceil((high - top) / step)
    count = int(np.floor((top - low) / step)) + 1
    return top - step * np.arange(count, -1, -1)


def around(middle: float, span: tuple[float, float], noise: float) -> np.ndarray:
    """Edges of colours to both sides of a middle: what is within noise of it has one colour."""
    half = max(noise, (span[1] - span[0]) / (2 * STEPS))
    outward = np.arange(half, max(span[1] - middle, middle - span[0]) + half, half)
    return np.unique(np.clip(np.concatenate([middle - outward[::-1], middle + outward]), *span))


def draw_heatmap(
    figure: FigureBase,
    title: str,
    values: np.ndarray,
    texts: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    edges: np.ndarray,
    unit: str,
    colors: str = "cividis",
) -> Axes:
    """A cell with its text for each of `values` (rows, columns), nan without colour; the bar beside them has the steps."""
    axes = titled_axes(figure, title)
    axes.set_facecolor("none")
    cmap = colormaps[colors].resampled(len(edges) - 1)
    mesh = axes.pcolormesh(values, cmap=cmap, norm=BoundaryNorm(edges, cmap.N), edgecolor="none")
    axes.invert_yaxis()
    bright = mesh.to_rgba(values)[..., :3] @ np.array([0.3, 0.6, 0.1]) > 0.5
    for row, column in np.ndindex(values.shape):
        ink = INK if np.isnan(values[row, column]) else "#000000" if bright[row, column] else "#ffffff"
        axes.text(column + 0.5, row + 0.5, str(texts[row, column]), color=ink, ha="center", va="center")
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    bar = figure.colorbar(mesh, ax=axes, spacing="proportional", ticks=edges[:: -(-len(edges) // 10)], format="%.3g")
    bar.set_label(unit)
    return axes
