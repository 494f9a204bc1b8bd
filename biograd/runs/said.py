"""What a run says of itself, checked: every part has the type that its readers take it for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biograd.errors import RecipeError, RunFileError, brief
from biograd.runs.json_text import are_texts
from biograd.runs.layout import LayerInfo, checked_layer
from biograd.runs.schema.row_info import rows_of

TEXTS = ("config", "environment", "hyperparameters", "summary", "credit", "code", "recording")
LATER = ("credit", "code", "recording")  # early files lack them
PARTS = {
    "parts_id": str,
    "attributes": dict,
    "layers": dict,
    "history": list,
    **dict.fromkeys(TEXTS, dict),
}
"""What a run says of itself, and its types."""
TABLES = ("versions", "distributions", "slurm", "git", "brian2")
"""Parts of the environment that are tables; those that are not known are missing, or null."""
COUNTS = (
    "seed",
    "epochs",
    "best_epoch",
    "ranks",
    "seconds",
    "steps_per_second",
    "training_seconds",
    "forward_passes",
    "peak_memory_bytes",
    "multiply_accumulates",
    "synaptic_operations",
    "frozen_hidden_control",
    "control_learning_rate",
)
"""Numbers of a summary, beside the figures ``train_NAME`` and ``test_NAME``."""
WORDS = (
    "run",
    "model",
    "dataset",
    "estimator",
    "asks",
    "decorrelation",
    "headline",
    "better",
    "evaluated_on",
    "stopped",
    "stopped_by",
    "kept",
    "outside",
)
"""Texts of a summary."""
FIGURES = ("budget", "test", "silent")
"""Tables of a summary, of numbers."""


def described_by(values: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return what a run says of itself, each part of the type that it must have.

    Raises:
        RunFileError: a part is missing, or of another type.
    """
    found: dict[str, Any] = {}
    values = {**{name: {} for name in LATER}, **values}
    for name, kind in PARTS.items():
        if not isinstance(values.get(name), kind):
            raise RunFileError(f"{where}: is damaged ({name} is not {kind.__name__})")
        found[name] = values[name]
    if not all(isinstance(found["environment"].get(name) or {}, dict) for name in TABLES):
        raise RunFileError(f"{where}: is damaged (environment holds others than its tables)")
    found["layers"] = {name: layer_of(layer, where) for name, layer in found["layers"].items()}
    owed = [isinstance(one, dict) and one.get("credit") for one in found["credit"].values()]
    if not all(isinstance(one, str) for one in owed):
        raise RunFileError(f"{where}: is damaged (credit is not that of parameters)")
    if not are_texts(found["code"]):
        raise RunFileError(f"{where}: is damaged (code is not that of files)")
    check_summary(found["summary"], where)
    _check_recording(found["recording"], where)
    if not all(integers(row, 4) for row in found["history"]):
        raise RunFileError(f"{where}: is damaged (history is not rows of four integers)")
    return found


def _check_recording(recording: Mapping[str, Any], where: object) -> None:
    try:
        rows_of(recording)
    except RecipeError as error:
        raise RunFileError(f"{where}: is damaged (recording: {brief(str(error))})") from error
    classes = recording.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise RunFileError(f"{where}: is damaged (recording: classes are not texts)")


def integers(row: object, length: int) -> bool:
    """Return whether a value is a list of so many integers of 64 bits."""
    return (
        isinstance(row, list)
        and len(row) == length
        and all(type(n) is int and -(2**63) <= n < 2**63 for n in row)
    )


def check_summary(summary: Mapping[str, Any], where: object) -> None:
    """Refuse a summary whose known parts are of another type; each may be missing, or null.

    Raises:
        RunFileError: with the part.
    """
    for name, value in summary.items():
        number = name in COUNTS or name.startswith(("train_", "test_"))
        if number and not _number(value):
            raise RunFileError(f"{where}: is damaged (summary: {name} is not a number)")
        if name in WORDS and not isinstance(value, str | None):
            raise RunFileError(f"{where}: is damaged (summary: {name} is not a text)")
        if name in FIGURES and not _figures(value):
            raise RunFileError(f"{where}: is damaged (summary: {name} is not a table of numbers)")


def _number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _figures(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_number, value.values())))


def layer_of(values: object, where: object) -> LayerInfo:
    """Return the layer that a header describes.

    Raises:
        RunFileError: it is damaged.
    """
    try:
        if not isinstance(values, dict):
            raise RecipeError(f"{values!r} is not a table")
        return checked_layer(values)
    except (RecipeError, TypeError, ValueError) as error:
        raise RunFileError(f"{where}: a layer is damaged ({brief(str(error))})") from error
