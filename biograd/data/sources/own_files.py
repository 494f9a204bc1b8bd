"""One's own files: where they are, and folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from biograd.data.choosing import SPLITS
from biograd.data.digests import of_files
from biograd.data.files.unpacking import open_npy
from biograd.data.request import Parts, Request
from biograd.data.rows.items import Items
from biograd.data.source import Source
from biograd.errors import DataError

ENDINGS = (".npy", ".png")


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
        found[split] = path
    return found


class Pictures(torch.utils.data.Dataset[Any]):
    """Files of one example each, with the number of their class."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return load(self.paths[row]), self.labels[row]


def load(path: Path) -> np.ndarray:
    """Return the values of a file: an ``.npy`` as it is, a ``.png`` as ``[C, H, W]`` from 0 to 1.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.suffix == ".npy":
            return open_npy(path)
        from matplotlib.image import imread

        picture = imread(path)
    except DataError:
        raise
    except Exception as error:  # of a picture's reader, anything, such as a DecompressionBombError
        raise DataError(f"{path}: cannot be read: {error}") from error
    return picture[None] if picture.ndim == 2 else np.moveaxis(picture, -1, 0)


def read(request: Request) -> Parts:
    """Return the sources of a folder, ``SPLIT/CLASS/FILE`` or ``CLASS/FILE``, ``.npy`` or ``.png``.

    Classes are numbered in the order of their names.

    Raises:
        DataError: no such folder, or it holds something else.
    """
    (root,) = paths_of(request).values()
    tops = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"train": root}
    if "train" not in tops:
        raise DataError(f"{root}: no folder train beside {next(iter(tops))}")
    names = sorted({each.name for top in tops.values() for each in _folders(top)})
    if not names:
        raise DataError(f"{root}: no folder of a class: write train/CLASS/FILE.npy, or .png")
    found: dict[str, Source] = {}
    for split, top in tops.items():
        found[split] = _split(top, names, request)
    return Parts(found, classes=len(names))


def _folders(top: Path) -> list[Path]:
    return [each for each in top.iterdir() if each.is_dir() and not each.name.startswith(".")]


def _split(top: Path, names: list[str], request: Request) -> Items:
    paths, labels = list[Path](), list[int]()
    for label, name in enumerate(names):
        inside = sorted((top / name).iterdir()) if (top / name).is_dir() else []
        if not inside:
            raise DataError(f"{top}: no example of class {name!r}")
        for path in inside:
            if path.suffix not in ENDINGS:
                raise DataError(f"{path}: neither {' nor '.join(ENDINGS)}")
            paths.append(path)
            labels.append(label)
    return Items(
        Pictures(paths, labels),
        request.timed,
        workers=request.recipe.workers,
        targets=torch.tensor(labels),
        digest=of_files(paths),
        where=str(top),
    )
