"""One's own files: where they are, and folders of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biograd.checking import NoSettings, construct
from biograd.data.choosing import SPLITS
from biograd.data.digests import combined, hash_of, of_files
from biograd.data.files.csv_files import ENDINGS as CSV
from biograd.data.files.csv_files import numbers, read_csv
from biograd.data.files.own_paths import paths_of
from biograd.data.files.unpacking import open_npy
from biograd.data.formats import FORMATS
from biograd.data.recordings.labelled import LabelledFile
from biograd.data.recordings.packed import read_packed
from biograd.data.recordings.sounds import SoundSettings, group_of, read_sounds
from biograd.data.request import Parts, Request
from biograd.data.rows.items import Items
from biograd.data.source import Source
from biograd.errors import DataError, RecipeError

ENDINGS = (".npy", ".png")


class Pictures(torch.utils.data.Dataset[Any]):
    """Files of one example each, with the number of their class."""

    def __init__(
        self, paths: list[Path], labels: list[int], read_one: Callable[[Path], np.ndarray]
    ) -> None:
        self.paths, self.labels, self.read_one = paths, labels, read_one

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.read_one(self.paths[row]), self.labels[row]


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
    """Return the sources of a folder, ``SPLIT/CLASS/FILE`` or ``CLASS/FILE``.

    Files are ``.npy`` or ``.png``, ``.csv`` of a line of names and a row a step, sounds (``.wav``)
    or recordings of events, by their ending or by ``settings.format``; all of one kind.  Classes
    are numbered in the order of their names.

    Raises:
        DataError: no such folder, or it holds something else.
    """
    (root,) = paths_of(request).values()
    tops = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"": root}
    if "train" not in tops and "" not in tops:
        raise DataError(f"{root}: no folder train beside {next(iter(tops))}")
    names = sorted({each.name for top in tops.values() for each in _folders(top)})
    if not names:
        raise DataError(f"{root}: no folder of a class: write train/CLASS/FILE.npy, or .png")
    examples = [example for split, top in tops.items() for example in _examples(top, names, split)]
    kind = _kind({example.path.suffix.lower(): example.path for example in examples}, request)
    if kind in (".npy", ".png"):
        _without_settings(request, kind)
        return _pictures(examples, tops, request, load, len(names))
    if kind in CSV:
        _without_settings(request, kind)
        if not request.timed:
            raise RecipeError(
                f"dataset {request.name}: files {kind} are courses: set dataset.timed=true, or "
                "encoding.kind = 'given'"
            )
        return _pictures(examples, tops, request, load_course, len(names))
    return _recordings(examples, request, kind, len(names))


@dataclass(frozen=True)
class FolderSettings(SoundSettings):
    """``[settings]`` of a folder, for those who list them.

    Attributes:
        format: of recordings of events, or of sounds, whose the other keys are; "": their ending
            tells.
    """

    format: str = ""


vars(read)["Settings"] = FolderSettings


def _without_settings(request: Request, kind: str) -> None:
    recipe = request.recipe
    for key in ("settings", "binning", "augmentation", "steps"):
        if getattr(recipe, key):
            raise RecipeError(f"dataset {request.name}: {key}: has no effect on files {kind}")


def _kind(endings: Mapping[str, Path], request: Request) -> str:
    """Return the one ending that all files have, or the format that settings name."""
    named = request.recipe.settings.get("format")
    if named is not None:
        return str(named)
    known = {*ENDINGS, *CSV, *(end for each in FORMATS.values() for end in each.endings)} - {".npz"}
    for ending, path in endings.items():
        if ending not in known:
            raise DataError(f"{path}: neither {' nor '.join(sorted(known))}")
    if len(endings) > 1 and not set(endings) <= set(ENDINGS):
        raise DataError(f"{request.name}: files of several kinds: {', '.join(sorted(endings))}")
    return next(iter(endings))


def _recordings(examples: list[LabelledFile], request: Request, kind: str, classes: int) -> Parts:
    """Return the sources of sounds, or of recordings of events."""
    settings = dict(request.recipe.settings)
    where = f"dataset {request.name}: settings.format"
    named = settings.pop("format", None)
    if named is None:
        found = [name for name, each in FORMATS.items() if kind in each.endings]
        named = found[0]  # of one ending the first is the plain one
    chosen = FORMATS.find(named, where)
    if chosen.sound:
        sound = construct(SoundSettings, settings, f"dataset {request.name}", "settings")
        grouped = [replace(e, group=group_of(e.path, sound)) for e in examples]
        return read_sounds(request, sound, grouped, classes)
    plain = construct(NoSettings, settings, f"dataset {request.name}", "settings")
    assert plain is not None
    if request.recipe.workers:
        raise RecipeError(f"dataset {request.name}: workers: has no effect on recordings of events")
    shape = request.recipe.shape
    return read_packed(request, examples, chosen.read, shape, named, classes)


def _folders(top: Path) -> list[Path]:
    return [each for each in top.iterdir() if each.is_dir() and not each.name.startswith(".")]


def _examples(top: Path, names: list[str], split: str) -> list[LabelledFile]:
    """Return the files of a split with the numbers of their classes."""
    found = list[LabelledFile]()
    for label, name in enumerate(names):
        inside = sorted((top / name).iterdir()) if (top / name).is_dir() else []
        if not inside:
            raise DataError(f"{top}: no example of class {name!r}")
        found += [LabelledFile(path, label, split) for path in inside]
    return found


def _pictures(
    examples: list[LabelledFile],
    tops: Mapping[str, Path],
    request: Request,
    read_one: Callable[[Path], np.ndarray],
    classes: int,
) -> Parts:
    """Return sources of files that are read one by one."""
    found: dict[str, Source] = {}
    for split, top in tops.items():
        part = [example for example in examples if example.split == split]
        paths, labels = [e.path for e in part], [e.label for e in part]
        found[split or "train"] = Items(
            Pictures(paths, labels, read_one),
            request.timed,
            workers=request.recipe.workers,
            targets=torch.tensor(labels),
            digest=combined(of_files(paths), hash_of(labels)),
            where=str(top),
        )
    return Parts(found, classes=classes)


def load_course(path: Path) -> np.ndarray:
    """Return the columns of a ``.csv`` side by side, ``[steps, columns]``.

    Raises:
        DataError: it cannot be read, or holds something else than numbers.
    """
    table = read_csv(path)
    return numbers(table, list(table), path)
