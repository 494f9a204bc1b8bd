"""What a process that was killed left of a run: readers look past it, writers put it right."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from biograd import disk
from biograd.errors import RunFileError
from biograd.runs.checked import open_file
from biograd.runs.json_text import read_object
from biograd.runs.storage import RunPaths, clear, holds_run, refuse_links


def located(place: RunPaths) -> RunPaths | None:
    """Return where the parts of a run are, None if its finished file says more; change nothing."""
    if holds_run(place.parts):
        return place if _says_more(place.parts, place.file) else None
    return next((RunPaths(place.file, old) for old in place.replaced() if holds_run(old)), None)


def settle(place: RunPaths) -> None:
    """Finish or undo, for a writer, what a process that was killed left between two steps.

    Raises:
        RunFileError: the parts folder is a link, or holds one.
    """
    parts = place.parts
    refuse_links(parts)
    if parts.is_dir() and not holds_run(parts):
        _clear_left(parts)
    for old in place.replaced():
        if not parts.exists() and holds_run(old):
            with contextlib.suppress(OSError):
                os.rename(old, parts)
        else:
            _clear_left(old)
    if holds_run(parts) and place.file.exists() and not _says_more(parts, place.file):
        _clear_left(parts)


def _clear_left(folder: Path) -> None:
    """Clear a folder in which no process writes; one that cannot be written stays."""
    with contextlib.suppress(OSError, RunFileError):
        refuse_links(folder)
        if disk.is_held(folder / "lock") is not True:
            clear(folder)


def _says_more(parts: Path, file: Path) -> bool:
    """Return whether a parts folder holds more than the finished file made of it."""
    try:
        identity = read_object(parts / "header.json").get("parts_id")
        with open_file(file) as packed:
            return bool(packed.attributes("").get("parts_id") != identity)
    except (OSError, RunFileError):
        return True
