"""DVS128 Gesture: hand and arm gestures of 29 people under three lights."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from biograd import disk
from biograd.checking import Checked
from biograd.data.files.archives import located
from biograd.data.files.fetch import lying, user_folders
from biograd.data.formats import FORMATS, AddressEvents
from biograd.data.recordings.labelled import LabelledFile, children, inside
from biograd.data.recordings.packed import read_packed
from biograd.data.request import Parts, Request, with_settings
from biograd.errors import DataError

SHAPE, CLASSES = (2, 128, 128), 11
LISTS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
COLUMNS = ["class", "startTime_usec", "endTime_usec"]
LATEST_US = 2**62


@dataclasses.dataclass(frozen=True)
class GestureSettings(Checked):
    """Which gestures.

    Attributes:
        other: whether class 11, gestures of the people's own, is one of the classes.
    """

    other: bool = True


@with_settings(GestureSettings)
def read(request: Request, settings: GestureSettings) -> Parts:
    """Return the events of DVS128 Gesture, ``[B, T, 2, 128, 128]``; groups are the people.

    The published files (AEDAT 3.1, a table of labels beside each, lists of the splits) are cut at
    ``start <= t < end`` of each label by itself, since labels overlap.  What other packages make of
    them is read too: ``ibmGestureTrain/USER_LIGHT/LABEL.npy`` and ``train/LABEL/*.npz``, each
    from its first event.

    Raises:
        DataError: a list, a table or a file is missing or damaged.

    Source: A. Amir et al., CVPR (2017).
    """
    root, form, kind = _found(request)
    examples = [each for split in LISTS for each in form(root, split)]
    kept = [each for each in examples if settings.other or each.label < CLASSES - 1]
    classes = CLASSES if settings.other else CLASSES - 1
    reader = FORMATS[kind].read if form is _published else _from_first
    return read_packed(request, kept, reader, SHAPE, "gesture", classes)


def _from_first(path: Path) -> AddressEvents:
    """Return the events of one gesture, counted from the first: the clock is that of a session."""
    events: AddressEvents = FORMATS["event_arrays"].read(path)
    start = events.times.min() if len(events) else 0
    return AddressEvents(events.times - start, events.places)


Form = Callable[[Path, str], list[LabelledFile]]


def _found(request: Request) -> tuple[Path, Form, str]:
    """Return where the recordings are, how the folder is laid out, and the files' format."""
    for folder in user_folders(request.name, request.data_dir):
        for name, (form, kind) in FORMS.items():
            there = lying(folder, name)
            if there is not None and (form is not _by_label or (there / "0").is_dir()):
                return there.parent, form, kind
    (there,) = located(request).values()
    return there.parent, _published, "aedat"


def _published(root: Path, split: str) -> list[LabelledFile]:
    found = list[LabelledFile]()
    for name in _lines(root / LISTS[split]):
        if not re.fullmatch(r"\w[\w.-]*\.aedat", name):
            raise DataError(f"{root / LISTS[split]}: {name!r}: is no name of a recording")
        path = root / name
        user = name.split("_")[0]
        table = path.with_name(f"{path.stem}_labels.csv")
        for label, start, end in _labels(table):
            found.append(LabelledFile(path, label, split, user, start, end))
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = disk.read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _labels(path: Path) -> list[tuple[int, int, int]]:
    """Return label, start and end of each gesture."""
    rows = list(csv.reader(_lines(path)))
    if not rows or [cell.strip() for cell in rows[0]] != COLUMNS:
        raise DataError(f"{path}: must begin with {','.join(COLUMNS)}")
    found = []
    for number, row in enumerate(rows[1:], 2):
        try:
            label, start, end = (int(cell) for cell in row)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: must be three whole numbers") from error
        if not (1 <= label <= CLASSES and 0 <= start < end < LATEST_US):
            raise DataError(
                f"{path}: line {number}: class 1 to {CLASSES}, and a start before the end"
            )
        found.append((label - 1, start, end))
    return found


def _by_user(root: Path, split: str) -> list[LabelledFile]:
    top = root / f"ibmGesture{split.capitalize()}"
    if not top.is_dir():
        raise DataError(f"{root}: no folder {top.name}")
    return [
        LabelledFile(path, _number(path, path.stem), split, folder.name.split("_")[0])
        for folder in children(top)
        for path in inside(folder, (".npy",))
    ]


def _by_label(root: Path, split: str) -> list[LabelledFile]:
    if not (root / split).is_dir():
        raise DataError(f"{root}: no folder {split}")
    return [
        LabelledFile(path, _number(path, folder.name), split, path.name.split("_")[0])
        for folder in children(root / split)
        for path in inside(folder, (".npz",))
    ]


def _number(path: Path, text: str) -> int:
    if not re.fullmatch(r"\d{1,2}", text) or int(text) >= CLASSES:
        raise DataError(f"{path}: {text!r}: must be a class from 0 to {CLASSES - 1}")
    return int(text)


FORMS: dict[str, tuple[Form, str]] = {
    LISTS["train"]: (_published, "aedat"),
    "ibmGestureTrain": (_by_user, "event_arrays"),
    "train": (_by_label, "event_arrays"),
}
"""By a name in the folder: how it is laid out, and the format of its files."""
