"""Figures of gradients and weights: direction, size, norms, change, histograms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import of_run, weights
from biograd.errors import RunFileError
from biograd.plots.of_learning import by_step
from biograd.plots.panel import Panel, on_axes
from biograd.plots.style import (
    AXIS,
    INK,
    is_readout,
    largest,
    layer_looks,
    layer_title,
)
from biograd.runs.reader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]


def gradients(run: Run) -> list[Panel]:
    """Return direction, size and signs of the gradient estimate, by snapshot."""
    table = {n: v for n, v in run.learning.items() if "cosine" in v}
    if not table:
        raise RunFileError(f"{run.path}: holds no gradients: train with training.probe=4")
    steps = of_run.steps_of(run)
    sizes = [
        math.prod(e["shape"])
        for n, e in run.credit.items()
        if n.rsplit(".", 1)[0] in table and isinstance(e.get("shape"), list)
    ]
    reach = 1.96 / math.sqrt(max(min((s for s in sizes if s > 100), default=100), 1))
    probe = run.config.get("recipe", {}).get("training", {}).get("probe")
    draws = (
        f"Means of {probe} draws; bars: 95 % of those means. "
        if type(probe) is int and probe > 0
        else ""
    )

    def panel(
        key: str, title: str, label: str, caption: str, scale: float = 1.0, **how: Any
    ) -> Panel:
        lacking = [n for n, v in table.items() if key not in v]
        if lacking:
            raise RunFileError(f"{run.path}: /learning/{lacking[0]} is damaged (it lacks {key})")
        values = {n: scale * v[key] for n, v in table.items()}
        errors = {n: scale * v[f"{key}_error"] for n, v in table.items() if f"{key}_error" in v}
        return by_step(
            f"gradient_{key}", title, label, draws + caption, steps, values, errors=errors, **how
        )

    return [
        panel(
            "cosine",
            "Gradient: direction",
            "cosine of one draw",
            "1: the direction of back-propagation (of spikes: with the surrogate derivative), 0: "
            "none of it. Shaded: 95 % of random directions.",
            band=(-reach, reach),
            limits=(-0.15 - reach, 1.08),
        ),
        panel(
            "norm_ratio",
            "Gradient: size of one draw",
            "norm / norm of the reference (log)",
            "Dotted: as large as the reference. Above it at a low cosine: mostly noise.",
            log=True,
            levels=[(1.0, "as large")],
        ),
        panel(
            "sign_agreement",
            "Gradient: signs",
            "same sign (%)",
            "Share of the weights whose estimate has the reference's sign.",
            100.0,
            limits=(0, 104),
            levels=[(50.0, "guessing")],
        ),
    ]


def weight_norms(run: Run) -> list[Panel]:
    """Return the norms of the weights, and their net change by step."""
    steps, found, change = of_run.steps_of(run), {}, {}
    gaps = np.diff(steps, prepend=steps[:1])
    for name, table in run.params.items():
        if name.endswith("weight") and "norm" in table and table["norm"][0] > 0:
            found[name] = table["norm"] / table["norm"][0]
            if "update_norm" in table:
                with np.errstate(divide="ignore", invalid="ignore"):
                    moved = table["update_norm"] / table["norm"] / gaps
                change[name] = np.where(gaps > 0, moved, np.nan)
    if not found:
        raise RunFileError(f"{run.path}: holds no norms of weights")
    panels = [
        by_step(
            "weight_norm",
            "Weights: norm",
            "norm / initial norm",
            "Frobenius norm, by that before training.",
            steps,
            found,
            levels=[(1.0, "as at first")],
        )
    ]
    if any(np.isfinite(v).any() and (np.nan_to_num(v) > 0).any() for v in change.values()):
        positive = {n: np.where(v > 0, v, np.nan) for n, v in change.items()}
        panels.append(
            by_step(
                "weight_change",
                "Weights: net change of a step",
                "net change / norm, by step (log)",
                "The straight way since the snapshot before, by the norm and the steps between: a "
                "way that turns is longer than its line, so long intervals look slower.",
                steps,
                positive,
                log=True,
            )
        )
    return panels


def histograms(run: Run) -> list[Panel]:
    """Return the weights of each layer before and after training."""
    panels = []
    for name in run.params:
        if not name.endswith("weight"):
            continue
        course = run.weights(name)
        both = np.stack([np.asarray(course[0]), np.asarray(course[-1])])
        if not np.isfinite(both).all():
            continue
        panels.append(_histogram(name, weights.histograms(both), both))
    if not panels:
        raise RunFileError(f"{run.path}: holds no weights at its snapshots")
    return panels


def _histogram(name: str, found: dict[str, Array], both: Array) -> Panel:
    title = f"Weights of {layer_title(name)}"
    number = both[0].size
    before, after = (float(one.std()) for one in both)

    def draw(axes: Axes) -> None:
        edge, share = found["edge"], 100 * found["share"]
        axes.stairs(share[0], edge, fill=True, color=AXIS, alpha=0.55, label="before")
        look = layer_looks([name])[name]
        axes.stairs(
            share[1],
            edge,
            color=look.colour if not is_readout(name) else INK,
            lw=1.4,
            label="after",
        )
        axes.legend(frameon=False, handlelength=1.2, loc="upper left", labelcolor=INK)
        axes.set(xlabel="weight", ylabel=f"% of {number:,} weights".replace(",", "\u2009"))

    rows = [
        {"low": float(a), "high": float(b), "before": float(p), "after": float(q)}
        for a, b, p, q in zip(found["edge"], found["edge"][1:], *found["share"], strict=False)
    ]
    caption = f"Before (filled) and after (line); standard deviation {before:.3g} and {after:.3g}."
    return Panel(
        f"weights_{layer_title(name).replace(' ', '_')}", title, caption, rows, on_axes(title, draw)
    )


def alignment(run: Run) -> Panel:
    """Return the angle between the rule's update and back-propagation's, by snapshot."""
    found = {n: v["angle_deg"] for n, v in run.learning.items() if "angle_deg" in v}
    if not found:
        raise RunFileError(f"{run.path}: holds no angles: train with training.probe=4")
    return by_step(
        "alignment",
        "Angle to back-propagation",
        "angle (degrees)",
        "Of one draw of the estimate; 90: no alignment.",
        of_run.steps_of(run),
        found,
        limits=(-3, max(largest(v, 90.0) + 5 for v in found.values())),
        levels=[(90.0, "no alignment")],
    )
