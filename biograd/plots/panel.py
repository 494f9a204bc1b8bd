"""A figure and its numbers: drawn on a page as SVG, on paper as PDF and PNG, with a CSV file."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biograd import disk
from biograd.disk.atomic import check_name, check_target
from biograd.display.csv_text import as_csv
from biograd.plots.style import INK, NEUTRAL, WIDTHS_MM, plain, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        name: of its files.
        title: above it.
        caption: what it shows, its n, its intervals, what it does not say.
        rows: its numbers.
        draw: draws it on an empty part of a figure.
        spoken: one sentence with the numbers, for those who do not see it.
        wide: takes the place of two.
        height: inches.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[Row]
    draw: Callable[[Figure | SubFigure], None]
    spoken: str = ""
    wide: bool = False
    height: float = 2.35


def on_axes(title: str, function: Callable[[Axes], None]) -> Callable[[Figure | SubFigure], None]:
    """Return what draws a panel of a single pair of axes."""

    def draw(figure: Figure | SubFigure) -> None:
        axes = figure.subplots()
        axes.set_title(plain(title))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        function(axes)

    return draw


def svg(panel: Panel, prefix: str, points: float = 8.5) -> str:
    """Return a panel as SVG to be put into a page, its neutral colours those of the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width = 5.2 if panel.wide else 3.4
    with rc_context(settings(points)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that a font lacks are drawn as boxes
        figure = Figure((width, panel.height), layout="constrained")
        panel.draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return inlined(stream.getvalue(), prefix, panel)


NUMBER = re.compile(r"-?\d+\.\d{3,}")
PLACES = re.compile(r'\b(d|transform|x|y|points)="([^"]*)"')


def inlined(text: str, prefix: str, panel: Panel) -> str:
    """Return matplotlib's SVG without what leaks into a page: styles, metadata, ids, sizes."""
    from html import escape

    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'(href)="#', rf'\1="#{prefix}', body).replace("url(#", f"url(#{prefix}")
    short = lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip(".")  # noqa: E731
    body = PLACES.sub(lambda m: f'{m[1]}="{NUMBER.sub(short, m[2])}"', body)
    for colour, name in NEUTRAL.items():
        body = body.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="([^"]*)"', body)
    head = (
        f'<svg viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{prefix}t {prefix}d" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{prefix}t">{escape(plain(panel.title, 200))}</title>'
        f'<desc id="{prefix}d">{escape(plain(panel.spoken or panel.caption, 600))}</desc>'
    )
    return head + body[body.index(">") + 1 :]


def paper(panels: Sequence[Panel], column: str = "double", points: float = 7.0) -> Figure:
    """Return panels as one figure for a journal, lettered from a on.

    Args:
        column: single (85 mm) or double (180 mm).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    most = 3 if column == "double" else 1
    lines = _lines(panels, most)
    taken = [sum(min(2, most) if panel.wide else 1 for panel in line) for line in lines]
    width = WIDTHS_MM[column] / 25.4 * max(taken) / most
    tall = [max(p.height * (0.8 if p.wide else 0.72) for p in line) for line in lines]
    with rc_context(settings(points)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure((width, sum(tall)), layout="constrained")
        letter = 0
        for row, line, used in zip(_split(figure, tall), lines, taken, strict=True):
            shares = [2 if panel.wide else 1 for panel in line] + [1] * (max(taken) - used)
            cells = row.subfigures(1, len(shares), width_ratios=shares, squeeze=False).ravel()
            for cell, panel in zip(cells, line, strict=False):
                panel.draw(cell)
                if len(panels) > 1:
                    mark = chr(ord("a") + letter % 26)
                    cell.text(0.0, 1.0, mark, weight="bold", size=9, va="top", color=INK)
                letter += 1
    return figure


def _split(figure: Figure, tall: Sequence[float]) -> Sequence[SubFigure]:
    return list(figure.subfigures(len(tall), 1, height_ratios=list(tall), squeeze=False).ravel())


def _lines(panels: Sequence[Panel], most: int) -> list[list[Panel]]:
    """Divide panels into lines: a wide one takes the place of two."""
    lines: list[list[Panel]] = []
    room = 0
    for panel in panels:
        need = min(2 if panel.wide else 1, most)
        if need > room:
            lines.append([])
            room = most
        lines[-1].append(panel)
        room -= need
    return lines


def files(figure: Figure, endings: Sequence[str]) -> dict[str, bytes]:
    """Return a figure as PDF, PNG (300 dpi) or SVG, by ending; the same for the same numbers."""
    from matplotlib import rc_context

    found = {}
    for ending in endings:
        key = {"pdf": "CreationDate", "png": "Software", "svg": "Date"}[ending]
        stream = io.BytesIO()
        with rc_context(settings(7.0)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure.savefig(stream, format=ending, dpi=300, facecolor="white", metadata={key: None})
        found[ending] = stream.getvalue()
    return found


def save(
    panels: Sequence[Panel], stem: Path, column: str, endings: Sequence[str], force: bool = True
) -> list[Path]:
    """Write panels as one figure, and the numbers of each as CSV beside; return the paths.

    Raises:
        RecipeError: a file is there already, and ``force`` is not set.
        OutputError: a file cannot be written; then none is.
    """
    check_name(stem)
    figures = {ending: stem.with_name(f"{stem.name}.{ending}") for ending in endings}
    tables = [stem.with_name(f"{stem.name}-{panel.name}.csv") for panel in panels]
    for path in (*figures.values(), *tables):
        check_target(path, force)
    drawn = files(paper(panels, column), endings)
    contents = {figures[ending]: data for ending, data in drawn.items()}
    for path, panel in zip(tables, panels, strict=True):
        contents[path] = as_csv(panel.rows).encode()
    with disk.writing(stem, "draw again"):
        disk.write_together(contents)
    return [*figures.values(), *tables]
