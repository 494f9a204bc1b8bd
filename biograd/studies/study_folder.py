"""The folder of a comparison: whose it is, who works in it, and what it may become."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biograd import disk
from biograd.errors import RecipeError
from biograd.recipes import Table, construct
from biograd.studies import SAVED
from biograd.studies.design import Trainings

AGAIN = "run the study again"


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep other processes from placing the same trainings while the context is open.

    Raises:
        RecipeError: another process works there.
    """
    with disk.writing(folder, AGAIN):
        folder.mkdir(parents=True, exist_ok=True)
        lock = disk.Lock(folder / "study.lock")
    try:
        if not lock.take():
            raise RecipeError(f"{folder}: another process works in this folder: wait for it")
        yield
    finally:
        lock.release()


def keep(table: Table, folder: Path) -> None:
    """Write a study into its folder, from where it can go on.

    Raises:
        RecipeError: the folder holds another study.
    """
    check(table, folder)
    with disk.writing(folder / SAVED, AGAIN):
        folder.mkdir(parents=True, exist_ok=True)
        disk.write_json(folder / SAVED, table)


def check(table: Table, folder: Path) -> None:
    """Refuse a folder that holds a study which this one does not go on with.

    It goes on if it has all of its cells as they were; it may have more cells, seeds and trials.

    Raises:
        RecipeError: it does not, or what is there cannot be read.
    """
    path = folder / SAVED
    try:
        known = json.loads(disk.read_text(path))
        old, new = _identity(known), _identity(json.loads(json.dumps(table)))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as a study: delete it") from error
    changed = [name for name in old if name != "cells" and old[name] != new[name]]
    changed += [name for name, cell in old["cells"].items() if new["cells"].get(name) != cell]
    if changed:
        raise RecipeError(
            f"{folder}: holds another study, which differs in {changed[0]!r}: give another folder"
        )


def _identity(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must stay as it is for a folder to go on."""
    settings = construct(Trainings, {k: v for k, v in table.items() if k != "kind"}, SAVED)
    ranges = dataclasses.asdict(settings.tune) if settings.tune else {}
    ranges.pop("trials", None)
    return {
        "cells": {
            cell.name: [cell.model, cell.dataset, cell.estimator, list(cell.assignments)]
            for cell in settings.expanded()
        },
        "set": list(settings.set),
        "loss": settings.loss,
        "reset": settings.reset,
        "metrics": list(settings.metrics),
        "tune": ranges,
    }
