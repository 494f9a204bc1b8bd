"""One's own files: which ones a recipe names."""

from __future__ import annotations

from pathlib import Path

from biograd.data.files.unpacking import check_ordinary
from biograd.data.request import Request
from biograd.errors import DataError


def paths_of(request: Request) -> dict[str, Path]:
    """Return the files of a recipe by split; "" is one for all.

    Raises:
        DataError: there is none, or it is missing.
    """
    recipe = request.recipe
    named = dict(recipe.paths) if recipe.paths else {"": recipe.path} if recipe.path else {}
    if not named:
        raise DataError(f"dataset {request.name}: path: missing: say which file")
    found = {}
    for split, text in named.items():
        path = Path(text).expanduser()
        if not path.exists():
            raise DataError(f"dataset {request.name}: {path}: no such file")
        check_ordinary(path)
        found[split] = path
    return found
