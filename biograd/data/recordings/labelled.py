"""Lists of recordings: which file, or which piece of it, has which label, split and group."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from biograd.data.choosing import SPLITS
from biograd.data.files.unpacking import check_ordinary
from biograd.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class LabelledFile:
    """One example.

    Attributes:
        path: of the file that holds it.
        label: number of its class.
        split: ``train``, ``validation``, ``test``; "": none is given.
        group: subject, speaker or session; "": none is known.
        start_us, end_us: the piece of the file that it is, ``start <= t < end``; None: all.
    """

    path: Path
    label: int
    split: str = ""
    group: str = ""
    start_us: int = 0
    end_us: int | None = None

    def __post_init__(self) -> None:
        """Refuse a file that would never end.

        Raises:
            DataError: it is no ordinary file.
        """
        check_ordinary(self.path)


def children(folder: Path) -> list[Path]:
    """Return the folders in a folder, in the order of their names.

    Raises:
        DataError: it cannot be read.
    """
    try:
        found = [each for each in folder.iterdir() if each.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return sorted(each for each in found if not each.name.startswith((".", "_")))


def inside(folder: Path, endings: Sequence[str], omitted: str = "") -> list[Path]:
    """Return the files of a folder that have one of the endings, in the order of their names.

    Args:
        omitted: files whose name holds this are no examples.

    Raises:
        DataError: there is none.
    """
    try:
        names = sorted(each for each in folder.iterdir() if each.suffix.lower() in endings)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    found = [each for each in names if not (omitted and omitted in each.name)]
    if not found:
        raise DataError(f"{folder}: no file {' or '.join(endings)}")
    return found


def by_class(
    folders: Mapping[str, Path],
    names: Sequence[str],
    endings: Sequence[str],
    split: str,
    omitted: str = "",
) -> list[LabelledFile]:
    """Return the files in a folder of each class; the label is the place of its name in ``names``.

    Classes without a folder have no examples.

    Raises:
        DataError: there is no folder of a class, or one of another name, or one without a file.
    """
    if not set(folders) & set(names):
        raise DataError(f"no folder of a class: must be {', '.join(names)}")
    for name in folders:
        if name not in names:
            raise DataError(f"folder {name!r} is no class: {nearest(name, names)}")
    return [
        LabelledFile(path, label, split)
        for label, name in enumerate(names)
        if name in folders
        for path in inside(folders[name], endings, omitted)
    ]


def absent(examples: Iterable[LabelledFile], names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return what is to be said of classes that a split has no examples of."""
    found: dict[str, set[int]] = {}
    for example in examples:
        found.setdefault(example.split, set()).add(example.label)
    notes = []
    for split, labels in found.items():
        missing = [name for label, name in enumerate(names) if label not in labels]
        if missing:
            what = f"{where}: {split} split" if split else where
            notes.append(f"{what}: no recordings of {', '.join(missing)}")
    return tuple(notes)


def splits_of(examples: Iterable[LabelledFile], where: object) -> list[str]:
    """Return the splits that examples are of, "" alone if none is given.

    Raises:
        DataError: there is no example, none of train, or one of no split beside others.
    """
    named = {example.split for example in examples}
    if not named:
        raise DataError(f"{where}: no examples")
    if named == {""}:
        return [""]
    if "" in named or "train" not in named:
        raise DataError(f"{where}: splits {sorted(named)}: must name train, and each example one")
    return [split for split in SPLITS if split in named]
