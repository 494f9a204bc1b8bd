"""The figures of a run by name; ``biograd plot RUN --what`` and the page take them from here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from biograd.errors import RecipeError, nearest
from biograd.plots import (
    of_activity,
    of_answers,
    of_learning,
    of_representation,
    of_weights,
    rasters,
)
from biograd.plots.panel import Panel, save
from biograd.plots.style import WIDTHS_MM
from biograd.runs.reader import Run

Drawn = Callable[[Run], "Panel | list[Panel]"]

FIGURES: dict[str, Drawn] = {
    "curves": of_learning.curves,
    "loss": of_learning.loss,
    "decorrelation": of_learning.decorrelation,
    "raster": rasters.rasters,
    "rates": of_activity.rates,
    "silence": of_activity.silence,
    "psth": rasters.psth,
    "classes": of_representation.classes,
    "rdm": of_representation.rdms,
    "probes": of_representation.probes,
    "receptive_fields": of_representation.receptive_fields,
    "gradients": of_weights.gradients,
    "alignment": of_weights.alignment,
    "weight_norms": of_weights.weight_norms,
    "weights": of_weights.histograms,
    "confusion": of_answers.confusion,
}
"""What ``--what`` takes."""


def panels(run: Run, names: Iterable[str]) -> list[Panel]:
    """Return the panels of some figures of a run.

    Raises:
        RecipeError: there is no such figure.
        RunFileError: the run does not hold what one needs.
    """
    found: list[Panel] = []
    for name in names:
        if name not in FIGURES:
            raise RecipeError(f"figure {name!r}: {nearest(name, FIGURES)}")
        drawn = FIGURES[name](run)
        found += drawn if isinstance(drawn, list) else [drawn]
    return found


def plot(
    run: Run,
    what: str | Iterable[str],
    path: str | os.PathLike[str],
    *,
    width: str = "double",
    formats: Iterable[str] = ("pdf", "png"),
    force: bool = False,
) -> list[Path]:
    """Draw figures of a run on one sheet, each with its numbers as CSV beside; return the paths.

    Args:
        what: names of figures.
        path: without ending.
        width: single (85 mm) or double (180 mm).
        formats: pdf, png, svg.
        force: overwrite files that are there.

    Raises:
        RecipeError: a name, width or format is not known.
        RunFileError: the run does not hold what a figure needs.
    """
    endings: list[Any] = list(formats)
    for key, value, known in (
        ("width", width, WIDTHS_MM),
        *(("format", e, ("pdf", "png", "svg")) for e in endings),
    ):
        if value not in known:
            raise RecipeError(f"{key} = {value!r}: {nearest(value, known)}")
    names = [what] if isinstance(what, str) else list(what)
    return save(panels(run, names), Path(path), width, endings, force)
