"""Archives of data sets: the unpacked copy is looked for first, else one is made in the cache.

An archive unpacks into a folder of another name, which takes its place in one step: a kill leaves
nothing that looks complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import secrets
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path

from biograd.data.files.fetch import (
    expected,
    fetch_by_key,
    files,
    lying,
    unpacked,
    unpacked_folder,
    user_folders,
)
from biograd.data.files.unpacking import FREE, RATIO
from biograd.data.request import Request
from biograd.errors import DataError, brief
from biograd.recipes import DataFile, DatasetRecipe

UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile, tarfile.TarError, LZMAError),
)
PIECE = 1 << 20


def located(request: Request) -> dict[str, Path]:
    """Return where the files of a recipe lie, unpacked, by their keys.

    An unpacked copy is looked for in the user's folder and one level below it, then in the cache;
    else the archive is, or it is downloaded.

    Raises:
        DataError: a file is nowhere and cannot be fetched, is altered, or cannot be unpacked.
    """
    recipe, name = request.recipe, request.name
    folders, found = user_folders(name, request.data_dir), {}
    for key, file in files(recipe, name).items():
        if not file.holds:
            one = _only(request, key)
            found.update(fetch_by_key(one, name, request.data_dir, request.offline))
            continue
        found[key] = unpacked(file, name, folders) or _unpacked(request, key, file)
    return found


def _only(request: Request, key: str) -> DatasetRecipe:
    """Return the recipe with one of its files."""
    return dataclasses.replace(request.recipe, files={key: request.recipe.files[key]})


def _unpacked(request: Request, key: str, file: DataFile) -> Path:
    """Return the unpacked copy, which is made in the cache."""
    if not expected(file)[1]:
        raise DataError(
            f"{request.name}: {file.holds} is not on this machine, and nothing fetches it: get it "
            "from the makers, and name its folder with --data-dir"
        )
    one = _only(request, key)
    archive = fetch_by_key(one, request.name, request.data_dir, request.offline)[key]
    place = unpacked_folder(file, request.name)
    unpack(archive, place, file.holds)
    there = lying(place, file.holds)
    if there is None:
        raise DataError(f"{archive}: holds no {file.holds}")
    return there


def unpack(archive: Path, place: Path, single: str = "") -> None:
    """Unpack an archive into the folder ``place``, which appears with all of it or not at all.

    Args:
        single: name of the file that a ``.gz`` of one file becomes.

    Raises:
        DataError: it is damaged, leads out of the folder, or says that it is larger than it can be
            or than the disk has room for.
    """
    part = place.parent / f".biograd-{secrets.token_hex(8)}.tmp"
    try:
        part.mkdir(parents=True)
        _extract(archive, part, single)
        os.rename(part, place)
    except UNREADABLE as error:
        if place.is_dir():  # another process was faster
            return
        raise DataError(f"{archive}: cannot be unpacked: {brief(str(error))}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extract(archive: Path, folder: Path, single: str) -> None:
    room = _room(archive, folder)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            room(sum(info.file_size for info in file.infolist()))
            file.extractall(folder)  # names that lead out of the folder are stripped
    elif _is_tar(archive):
        total = 0
        with tarfile.open(archive) as tar:
            for member in tar:
                total += member.size
                room(total)
                tar.extract(member, folder, filter="data")
    else:
        total = 0
        with gzip.open(archive) as packed, open(folder / single, "wb") as output:
            while piece := packed.read(PIECE):
                total += len(piece)
                room(total)
                output.write(piece)


def _is_tar(archive: Path) -> bool:
    with contextlib.suppress(*UNREADABLE):
        return tarfile.is_tarfile(archive)
    return False


def _room(archive: Path, folder: Path) -> Callable[[int], None]:
    """Return a check of how many bytes an archive unpacks to."""
    most = max(FREE, RATIO * archive.stat().st_size)
    free = shutil.disk_usage(folder).free

    def check(size: int) -> None:
        if size > most:
            raise DataError(f"{archive}: {size} bytes and more: it is made to fill the disk")
        if size > free:
            raise DataError(f"{archive}: needs {size} bytes unpacked, the cache has {free}")

    return check
