"""Speech Commands: one spoken word a file, lists of validation and test files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from biograd import disk
from biograd.data.files.archives import located
from biograd.data.recordings.labelled import LabelledFile, children, inside
from biograd.data.recordings.sounds import SoundSettings, group_of, read_sounds
from biograd.data.request import Parts, Request, with_settings
from biograd.errors import DataError

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
SPOKEN = "_nohash_"
"""In the names of recordings of one word; those of noise have it not."""


@with_settings(SoundSettings)
def read(request: Request, settings: SoundSettings) -> Parts:
    """Return Speech Commands as spikes or levels of frequency bands; groups are the speakers.

    Classes are the folders in the order of their names, 35 of version 0.02; ``_background_noise_``
    is none.  The published lists say which files are for validation and test.

    Raises:
        DataError: a list is missing or names a file that is not there, or a file is damaged.

    Source: P. Warden, arXiv:1804.03209 (2018).
    """
    settings = dataclasses.replace(settings, group_part=0)
    (there,) = located(request).values()
    root = there.parent
    listed = {name: split for split, file in LISTS.items() for name in _lines(root / file)}
    folders = children(root)
    examples = list[LabelledFile]()
    for label, folder in enumerate(folders):
        for path in inside(folder, (".wav",)):
            if SPOKEN in path.name:
                split = listed.pop(f"{folder.name}/{path.name}", "train")
                examples.append(LabelledFile(path, label, split, group_of(path, settings)))
    if listed:
        name = next(iter(listed))
        raise DataError(
            f"{request.name}: {root / name}: is in {LISTS[listed[name]]}, but not there"
        )
    return read_sounds(request, settings, examples, len(folders))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in disk.read_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
