"""The folder in which a run grows: where it lies, who owns it, and what in it is a run's own.

A parts folder is a run as long as it holds ``header.json``, which is written last and deleted
first.  Only writers change anything, only in a folder that holds no links, and only files whose
names and places are a run's: what a user keeps there, or beside it, stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from biograd import disk
from biograd.errors import RecipeError, RunFileError, brief

FOLDERS = ("segments", "checkpoints")
FILES = {
    "": r"(header\.json|commits\.jsonl|status\.json|probe\.h5)(\.tmp)?",
    "segments": r"\d{6,}\.h5(\.tmp)?",
    "checkpoints": r"\d+(-\d+)?\.(json|safetensors)(\.tmp)?",
}
"""Names of a run's files by folder; earlier versions called those that were not complete .tmp."""


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where a run lies: the finished file, and the folder of its parts beside it.

    Attributes:
        aside: the parts folder of a run that was about to be replaced, in place of its usual name.
    """

    file: Path
    aside: Path | None = None

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> RunPaths:
        """Return the place of ``run.h5``, given that path or ``run.h5.parts``."""
        path = Path(path)
        if not path.name:
            raise RecipeError(f"{str(path)!r} is a folder: name a file, such as run.h5")
        if len(os.fsencode(path.name)) > 255 - len(".parts"):
            raise RunFileError(f"{brief(path.name, 40)}: no file has so long a name")
        return cls(path.with_suffix("") if path.suffix == ".parts" else path)

    @property
    def parts(self) -> Path:
        """The folder of a run that is not finished."""
        return self.aside or self.file.with_name(self.file.name + ".parts")

    def another(self) -> Path:
        """Return a new name for a parts folder that is about to be replaced."""
        return self.parts.with_name(f"{self.parts.name}.{secrets.token_hex(8)}.old")

    def replaced(self) -> list[Path]:
        """Return the parts folders that a process which was killed had moved aside."""
        pattern = re.compile(re.escape(self.parts.name) + r"\.[0-9a-f]{16}\.old")
        with contextlib.suppress(OSError), os.scandir(self.file.parent) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
        return []


def holds_run(parts: Path) -> bool:
    """Return whether a folder is that of a run: one that is whole."""
    return (parts / "header.json").is_file()


def own_files(parts: Path) -> Iterator[Path]:
    """Yield the files of a parts folder that are a run's own, but the lock; links are not."""
    for folder, pattern in FILES.items():
        where = parts / folder
        if where.is_symlink() or not where.is_dir():
            continue
        for path in sorted(where.iterdir()):
            known = re.fullmatch(pattern, path.name) or disk.is_temporary(path.name)
            if known and path.is_file() and not path.is_symlink():
                yield path


def clear(parts: Path) -> bool:
    """Delete what is a run's own of a parts folder; return whether nothing is left.

    Its header goes first, so that a run is never met half-deleted, and the lock last.
    """
    disk.remove(parts / "header.json")
    for path in own_files(parts):
        disk.remove(path)
    for folder in FOLDERS:
        with contextlib.suppress(OSError):
            os.rmdir(parts / folder)
    disk.remove(parts / "lock")
    with contextlib.suppress(OSError):
        os.rmdir(parts)
    return not parts.exists()


def refuse_links(parts: Path) -> None:
    """Refuse to write in a parts folder from which a link leads elsewhere.

    Raises:
        RunFileError: it is a link, or holds one.
    """
    folders = [parts, *(parts / folder for folder in FOLDERS)]
    found = [path for path in folders if path.is_symlink()]
    if not found:
        found = [path for one in folders if one.is_dir() for path in one.iterdir()]
        found = [path for path in found if path.is_symlink()]
    if found:
        raise RunFileError(
            f"{found[0]}: is a link, and a run is written in its own folder alone: put there what"
            " the link leads to, or remove it"
        )


def own(place: RunPaths) -> disk.Lock:
    """Take the lock of a parts folder.

    Raises:
        RecipeError: the run is still being written.
        RunFileError: the folder is a link, or holds one.
    """
    refuse_links(place.parts)
    with disk.writing(place.parts, "try again"):
        lock = disk.Lock(place.parts / "lock")
    if not lock.take():
        lock.release()
        raise RecipeError(f"{place.parts}: another process still writes this run; wait for it")
    return lock
