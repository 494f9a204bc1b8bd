"""Downloads: a file takes its place in one step, and only if its digest is right."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from biograd import disk
from biograd.errors import DataError
from biograd.recipes import DataFile

TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 18
Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes that have come and the bytes in all, if known."""


def download(
    file: DataFile, name: str, folder: Path, urls: tuple[str, ...], progress: Progress | None
) -> Path:
    """Download a file of dataset ``name`` into ``folder``, from the first address that has it.

    Raises:
        DataError: no address serves the published bytes, or the folder cannot be written.
    """
    if not urls or not (file.sha256 or file.md5):
        raise DataError(
            f"{name}: {file.name} is not on this machine and the recipe has no urls: put it in "
            f"{folder}, or name its folder with --data-dir"
        )
    target, failures = folder / file.name, []
    for base in urls:
        url = f"{base.rstrip('/')}/{file.at or file.name}"
        try:
            _transfer(url, target, file, progress)
            return target
        except _TransferError as error:
            failures.append(f"{url}: {error}")
    raise DataError(f"{name}: {file.name} cannot be downloaded: {'; '.join(failures)}")


class _TransferError(Exception):
    """One address did not serve the published bytes; the next may."""


def _transfer(url: str, target: Path, file: DataFile, progress: Progress | None) -> None:
    """Write what ``url`` serves to ``target``, in one step and only if the digest is right."""
    with _replacing(target) as stream:
        kind, due = ("sha256", file.sha256) if file.sha256 else ("md5", file.md5)
        digest = _receive(url, stream, file.name, kind, progress)
        if digest != due:
            name = "SHA-256" if file.sha256 else "MD5"
            raise _TransferError(f"expected {name} {due}, found {digest} in {stream.tell()} bytes")


def _receive(url: str, stream: IO[bytes], name: str, kind: str, progress: Progress | None) -> str:
    """Copy what ``url`` serves into ``stream`` and return its digest."""
    if not url.startswith(("http://", "https://")):
        raise _TransferError("the address must begin with http:// or https://")
    total = hashlib.new(kind, usedforsecurity=False)
    received = 0
    for part, size in _parts(url):
        total.update(part)
        stream.write(part)
        received += len(part)
        if progress:
            progress(name, received, size)
    return total.hexdigest()


def _parts(url: str) -> Iterator[tuple[bytes, int | None]]:
    """Yield what ``url`` serves, piece by piece, with the announced size."""
    request = urllib.request.Request(url, headers={"User-Agent": "biograd"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            announced = response.headers.get("Content-Length", "")
            size = int(announced) if announced.isdecimal() else None
            while part := response.read(CHUNK):
                yield part, size
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise _TransferError(" ".join(str(error).split()) or type(error).__name__) from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file beside ``target`` that takes its place when the context ends without error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing(target) as stream:
            yield stream
    except OSError as error:
        raise _unwritable(target.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: cannot be written: {error.strerror or error}; "
        "put the files elsewhere and name the folder with --data-dir"
    )
