"""The digest at the end of a finished file, so that a bit that turned is an error.

After the last byte that HDF5 uses stand 81 more, which other readers pass over::

    \\n biograd sha256 <64 digits: SHA-256 of all bytes before> \\n

A program that changes the file by HDF5 cuts them off: the file is then read as one of those that
earlier versions wrote, which have none.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from io import FileIO
from pathlib import Path

from biograd.errors import RunFileError

SEAL = re.compile(rb"\nbiograd sha256 ([0-9a-f]{64})\n")
LENGTH = 81
SIGNATURE = b"\x89HDF\r\n\x1a\n\0"
"""How an HDF5 file begins that says at byte 40 where it ends."""
BLOCK = 2**20
AT_ONCE = 2**28
"""Bytes of a file that is compared with its digest whenever it is opened."""


def write_seal(stream: FileIO) -> None:
    """Append the digest to a file that is complete."""
    end = stream.seek(0, os.SEEK_END)
    digest = _digest(stream, end)
    stream.seek(end)
    stream.write(f"\nbiograd sha256 {digest}\n".encode())


def written_digest(path: Path) -> str:
    """Return the digest that a file carries, unchecked; "": none."""
    with FileIO(str(path)) as stream:
        stream.seek(max(0, os.stat(path).st_size - LENGTH))
        seal = SEAL.fullmatch(stream.read(LENGTH))
    return "" if seal is None else seal[1].decode()


def is_sealed(path: Path, largest: int | None = None) -> bool:
    """Return whether a file carries a digest, which is then right.

    Args:
        path: of the file.
        largest: bytes of a file that is compared with its digest; of a larger one only the
            presence of the digest is looked at. None: whatever its size.

    Raises:
        RunFileError: the file is not what was written.
    """
    found = os.stat(path)
    compared = largest is None or found.st_size <= largest
    return _is_sealed(path, found.st_ino, found.st_size, found.st_mtime_ns, compared)


@functools.lru_cache(4096)
def _is_sealed(path: Path, inode: int, size: int, changed: int, compared: bool) -> bool:
    """See ``is_sealed``; a file that stays as it is need not be read again."""
    with FileIO(str(path)) as stream:
        start = stream.read(48)
        stream.seek(max(0, size - LENGTH))
        seal = SEAL.fullmatch(stream.read(LENGTH))
        if seal is None:
            end = int.from_bytes(start[40:48], "little")
            if len(start) == 48 and start[:9] == SIGNATURE and size > end:
                raise RunFileError(
                    f"{path}: is damaged or cut short (the digest at its end cannot be read)"
                )
            return False
        if compared and _digest(stream, size - LENGTH) != seal[1].decode():
            raise RunFileError(
                f"{path}: is damaged (its digest differs from the one written with it); restore it"
                " from a copy"
            )
    return True


def _digest(stream: FileIO, size: int) -> str:
    stream.seek(0)
    total = hashlib.sha256()
    while size > 0 and (block := stream.read(min(size, BLOCK))):
        total.update(block)
        size -= len(block)
    return total.hexdigest()
