"""How figures look: colours, type, sizes, names at the end of lines, the axis of training steps.

Colours are those of Okabe & Ito (2008), which colour-blind readers tell apart; every line has a
marker or a stroke of its own besides, for prints without colour.  Orange and sky blue lack contrast
on white: as fills they get an outline in ink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biograd.errors import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY = "#e69f00", "#56b4e9"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, SOFT, AXIS, GRID, SHADE, PAPER = (
    "#1b1f24",
    "#57606a",
    "#8b929a",
    "#e4e7eb",
    "#edf0f4",
    "#ffffff",
)
NEUTRAL = {
    INK: "ink",
    SOFT: "soft",
    AXIS: "axis",
    GRID: "grid",
    SHADE: "shade",
    PAPER: "paper",
}
"""Colours that a page replaces by those of its scheme, and what they are called there."""
DARK = {
    "ink": "#e8eaed",
    "soft": "#a4abb3",
    "axis": "#7b838c",
    "grid": "#2c3238",
    "shade": "#21272e",
    "paper": "#15181c",
}
FAMILIES = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")
WIDTHS_MM = {"single": 85.0, "double": 180.0}
"""Columns of journals."""


def settings(points: float) -> Any:
    """Return matplotlib's settings for letters of a size in points."""
    from matplotlib import font_manager

    there = {entry.name for entry in font_manager.fontManager.ttflist}
    return {
        "font.family": [name for name in FAMILIES if name in there] or ["sans-serif"],
        "font.size": points,
        "axes.titlesize": points,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.labelsize": points,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": AXIS,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": AXIS,
        "ytick.color": AXIS,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "xtick.labelsize": points - 0.5,
        "ytick.labelsize": points - 0.5,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.3,
        "lines.markersize": 3.6,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "biograd",
        "image.composite_image": False,
    }


class Look(NamedTuple):
    """How one thing is drawn wherever it appears."""

    colour: str
    marker: str
    line: str = "-"


def layer_looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for each layer: by depth; the readout in ink, dashed."""
    hidden = [name for name in names if not is_readout(name)]
    if len(hidden) <= 2:
        shades: Sequence[str] = COLOURS
    else:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        places = np.linspace(0.15, 0.75, len(hidden))
        shades = [to_hex(colormaps["viridis"](place)) for place in places]
    marks = [MARKERS[k % len(MARKERS)] for k in range(len(hidden))]
    found = {n: Look(c, m) for n, c, m in zip(hidden, shades, marks, strict=False)}
    return found | {name: Look(INK, "^", "--") for name in names if is_readout(name)}


def is_readout(name: str) -> bool:
    """Return whether a module or parameter is of the readout."""
    return name.split(".")[0] == "readout"


def layer_title(name: str) -> str:
    """Return a module's name for people.

    >>> layer_title("blocks.0.activity"), layer_title("blocks.1.synapse.weight")
    ('hidden 1', 'hidden 2')
    >>> layer_title("readout.weight"), layer_title("encoder.cells")
    ('readout', 'encoder.cells')
    """
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdecimal():
        return f"hidden {int(parts[1]) + 1}"
    return "readout" if is_readout(name) else plain(name, 24)


def plain(text: object, most: int = 60) -> str:
    """Return a text of anybody's as it is drawn: visible, and not too long."""
    found = visible(str(text))
    return found if len(found) <= most else found[: most - 1] + "…"


def name_lines(axes: Axes, ends: Sequence[tuple[str, float, Look]]) -> None:
    """Write names at the right end of lines, in ink beside a piece of the line, pushed apart.

    Args:
        ends: name, last value and look of each.
    """
    from matplotlib.lines import Line2D

    if not ends:
        return
    figure = axes.get_figure()
    assert figure is not None
    height = axes.get_window_extent().height or 1.0
    gap = 1.25 * _points(axes) * figure.dpi / 72 / height
    places = [_fraction(axes, value) for _, value, _ in ends]
    for index, place in zip(*_apart(places, gap), strict=True):
        name, _, look = ends[index]
        piece = Line2D(
            [1.025, 1.055, 1.085],
            [place] * 3,
            color=look.colour,
            ls=look.line,
            marker=look.marker,
            markevery=[1],
            transform=axes.transAxes,
            clip_on=False,
        )
        axes.add_artist(piece)
        axes.text(1.11, place, plain(name, 26), transform=axes.transAxes, va="center", color=INK)


def _points(axes: Axes) -> float:
    return float(axes.yaxis.label.get_fontsize())


def _fraction(axes: Axes, value: float) -> float:
    shown = axes.transData.transform((axes.get_xlim()[0], value))
    place = float(axes.transAxes.inverted().transform(shown)[1])
    return min(max(place, 0.0), 1.0) if np.isfinite(place) else 0.5


def _apart(places: Sequence[float], gap: float) -> tuple[list[int], list[float]]:
    """Return the order of places and the places, none nearer to the next than the gap."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    moved: list[float] = []
    for index in order:
        moved.append(max(places[index], moved[-1] + gap) if moved else places[index])
    over = max(0.0, (moved[-1] - 1.0)) if moved else 0.0
    return order, [place - over for place in moved]


ZERO = -0.75
"""Where step 0 stands on the axis of the logarithm of the steps."""


def largest(values: Any, least: float) -> float:
    """Return the largest finite value for the end of an axis, at least ``least``."""
    given = np.asarray(values, float)
    return float(np.max(given[np.isfinite(given)], initial=least))


def step_places(steps: NDArray[Any]) -> NDArray[Any]:
    """Return where training steps stand: their logarithm, 0 at a place of its own."""
    given = np.asarray(steps, float)
    return np.where(given > 0, np.log10(np.maximum(given, 1)), ZERO)


def step_axis(axes: Axes, steps: NDArray[Any]) -> None:
    """Make the axis of training steps: logarithmic, broken before the first step."""
    last = max(float(np.log10(max(np.max(steps, initial=1), 1))), 0.3)
    powers = list(range(int(np.floor(last)) + 1))
    axes.set_xlim(ZERO - 0.25, last + 0.12)
    axes.set_xticks([ZERO, *powers], ["0", *(f"{10**p:,}".replace(",", "\u2009") for p in powers)])
    small = [p + np.log10(k) for p in powers for k in range(2, 10) if p + np.log10(k) <= last]
    axes.set_xticks(small, minor=True)
    axes.tick_params(axis="x", which="minor", length=1.5, width=0.5)
    middle = axes.transData.transform(((ZERO + 0.0) / 2, 0))[0]
    place = float(axes.transAxes.inverted().transform((middle, 0))[0])
    axes.text(place, 0, "//", transform=axes.transAxes, ha="center", va="center", color=AXIS)
    axes.set_xlabel("training step (log; 0 = before training)")


def log_axis(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def step_line(axes: Axes, steps: NDArray[Any], values: NDArray[Any], look: Look) -> None:
    """Draw a course over snapshots; what was before training is not joined to the rest."""
    places, after = step_places(steps), np.asarray(steps) > 0
    how: Any = {"color": look.colour, "marker": look.marker, "ls": look.line}
    axes.plot(places[after], values[after], **how)
    axes.plot(places[~after], values[~after], **how | {"ls": "none"})
