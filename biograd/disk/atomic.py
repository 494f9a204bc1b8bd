"""Write files so that they are there in full or not at all, and never through a link."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from biograd.errors import OutputError, RecipeError, brief, check_text

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
EXPANSION = 1032
"""How many times its size data can be compressed, at most (deflate): more is not on the disk."""
_LINKS = getattr(os, "O_NOFOLLOW", 0)
OWN = _LINKS | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags of every file that is opened for writing: a link under its name is an error."""
TEMPORARY = re.compile(r"\.biograd-[0-9a-f]{16}\.tmp")

LONGEST_NAME = 215
"""Bytes of a file's name: file systems take 255, and what lies beside it has a longer one."""


def check_name(path: Path) -> None:
    """Refuse a file whose name is too long, no text, or none.

    Raises:
        RecipeError: it is.
    """
    check_text(path)
    if not path.name:
        raise RecipeError(f"{path}: is a folder: name a file")
    size = len(os.fsencode(path.name))
    if size > LONGEST_NAME:
        shown = brief(path.name, 40)
        raise RecipeError(
            f"{shown}: a file name of {size} bytes: take one of {LONGEST_NAME} at most"
        )


def check_target(path: Path, force: bool) -> None:
    """Refuse a file that cannot be written, or lies there already.

    Raises:
        RecipeError: its name is too long, it exists and ``force`` is not set, or what lies there
            is no file: a folder, a device.
    """
    check_name(path)
    if path.is_symlink() or not path.exists():
        kind = stat.S_IFREG  # a link is replaced, not what it leads to
    else:
        kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        what = "a folder" if kind == stat.S_IFDIR else "no ordinary file"
        raise RecipeError(f"{path}: is {what}: name a file")
    if path.exists() and not force:
        raise RecipeError(f"{path}: exists; choose another path or replace it with --force")


def is_temporary(name: str) -> bool:
    """Return whether a name is one that :func:`replacing` gives to files that are not complete."""
    return TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def writing(path: Path, then: str) -> Iterator[None]:
    """Turn an error of the file system into one line; ``then`` says how to go on.

    Raises:
        OutputError: anything could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 reports a failed flush as a RuntimeError
        code = getattr(error, "errno", None)
        text = str(error).replace("\n", " ")
        if code in NO_SPACE or any(f"errno = {number}," in text for number in NO_SPACE):
            message = (
                f"{path}: no space left on the disk (or quota reached); free space, then {then}"
            )
        elif code == errno.ELOOP:
            where = getattr(error, "filename", path)
            message = f"{where}: is a link, and nothing is written through links; {then}"
        else:
            reason = os.strerror(code) if code else text
            message = f"{path}: cannot be written ({reason}); make it writable, then {then}"
        raise OutputError(message) from error


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WholeWrites(FileIO):
    """A file of which each write takes all that it is given."""

    def write(self, data: Any) -> int:
        """Write all bytes, however often the system must be asked."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)


def _open(descriptor: int) -> WholeWrites:
    return WholeWrites(descriptor, "w+")


@contextlib.contextmanager
def replacing(
    target: Path,
    *,
    folder: Path | None = None,
    opened: Callable[[int], FileIO] = _open,
) -> Iterator[FileIO]:
    """Yield an empty file that takes the name ``target`` when the context ends without error.

    Args:
        folder: where it lies until then, on the same file system; that of ``target`` by default.
        opened: makes the stream of a descriptor.

    Raises:
        OSError: something could not be written; nothing is left behind.
    """
    temporary = (folder or target.parent) / f".biograd-{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | OWN, 0o666)
    try:
        with opened(descriptor) as stream:
            yield stream
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # give the space back
            os.unlink(temporary)
        raise
    sync_folder(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when all of it is on disk."""
    with replacing(path) as file:
        file.write(data)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files of which none appears before all are on disk."""
    with contextlib.ExitStack() as stack:
        for path, data in files.items():
            stack.enter_context(replacing(path)).write(data)


@contextlib.contextmanager
def filling(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder whose files are those of ``folder`` when the context ends well.

    Args:
        force: the folder may be there: then files of the same name are replaced, others stay.

    Raises:
        RecipeError: it is there and ``force`` is not set, is no folder, or its name is too long.
        OutputError: something could not be written; nothing is left behind.
    """
    check_name(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise RecipeError(f"{folder}: is no folder: choose another path")
    if folder.exists() and not force:
        raise RecipeError(f"{folder}: exists; choose another path or replace its files by --force")
    with writing(folder, "export again"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".biograd-", dir=folder.parent) as place:
            new = Path(place, "new")
            new.mkdir()
            yield new
            if folder.is_dir():
                for path in new.iterdir():
                    path.replace(folder / path.name)
            else:
                new.rename(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that appears under its name only when all of it is on disk."""
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def open_appending(path: Path) -> int:
    """Return a descriptor by which to add to a file that is no link; it may be a new one."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | OWN, 0o666)


def append_line(path: Path, line: str) -> None:
    """Append one line and wait until it is on disk; on failure nothing of it stays."""
    descriptor = open_appending(path)
    with open(descriptor, "ab") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


def remove(path: Path) -> None:
    """Delete a file, or a link itself, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_bytes(path: Path, limit: int = 2**30) -> bytes:
    """Return what an ordinary file holds.

    Raises:
        OSError: it is no ordinary file, holds more than ``limit`` bytes, or claims bytes that are
            not on the disk.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | OWN & ~_LINKS)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        kept = getattr(found, "st_blocks", found.st_size) * 512
        if found.st_size > limit or found.st_size > 2**20 + EXPANSION * kept:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read(found.st_size + 1)  # it allocates what is asked for


def read_text(path: Path, limit: int = 2**28) -> str:
    """Return the text of an ordinary file; see :func:`read_bytes`.

    Raises:
        ValueError: it is not UTF-8.
    """
    return read_bytes(path, limit).decode()
