"""Files of a dataset: looked for in the user's folder and the cache, downloaded, always checked.

A file is used only if its digest is the recipe's: SHA-256, or MD5 where only that is published.
The user's folder (``--data-dir``, or
the environment variable ``BIOGRAD_DATA``) is read, never written: an altered file there is an
error.  An altered file in the cache is replaced by a fresh download.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from biograd.data.digests import digested, sha256
from biograd.data.files.download import Progress, download
from biograd.errors import DataError, RecipeError
from biograd.recipes import DataFile, DatasetRecipe, construct

BELOW = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-bin",
    "spoken_digits_events_700": "spoken_digits_events",
}
"""Other folders where files of a set are, such as those of torchvision."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A file on this machine: its path, the digest that it should have and the one it has."""

    path: Path
    expected: str
    digest: str

    @property
    def good(self) -> bool:
        """Whether the bytes are the published ones."""
        return self.digest == self.expected


def fetch(
    recipe: DatasetRecipe,
    name: str,
    data_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Return the checked files of a dataset in the recipe's order, downloading what is missing.

    Raises:
        RecipeError: a file table is not valid.
        DataError: a file is altered in the user's folder, missing while ``offline``, or cannot
            be downloaded.
    """
    return list(fetch_by_key(recipe, name, data_dir, offline, progress).values())


def fetch_by_key(
    recipe: DatasetRecipe,
    name: str,
    data_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Return what :func:`fetch` returns, by the files' keys in the recipe."""
    folders = user_folders(name, data_dir)
    paths = {}
    for key, file in files(recipe, name).items():
        path = _mine(file, name, folders) or _cached(file, name, offline)
        paths[key] = path or download(file, name, cache_folder(name), recipe.urls, progress)
    return paths


def expected(file: DataFile) -> tuple[str, str]:
    """Return the kind of a file's digest and the digest; "", "": none is known."""
    return ("sha256", file.sha256) if file.sha256 else ("md5", file.md5) if file.md5 else ("", "")


def digest_of(file: DataFile, path: Path) -> str:
    """Return the digest of a file, of the kind that is known of it; "": none is."""
    kind, _ = expected(file)
    return digested(path, kind) if kind else ""


def verify(recipe: DatasetRecipe, name: str, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """Return one row for each file: ``file, path, expected, found, status``; changes nothing.

    ``status`` is ``ok``, ``altered`` or ``missing``; a missing file's path says where it belongs.
    An archive whose unpacked copy is there is ``unpacked``: of that no digest is known.
    """
    folders = user_folders(name, data_dir)
    places = [*folders, cache_folder(name)]
    rows = []
    for file in files(recipe, name).values():
        found = _best(file, folders) or _best(file, [cache_folder(name)])
        status: Literal["ok", "altered", "missing", "unpacked"] = "missing"
        there = unpacked(file, name, folders) if file.holds else None
        if there:
            rows.append({"file": file.name, "path": str(there), "expected": None, "found": None,
                         "status": "unpacked"})  # fmt: skip
            continue
        if found:
            status = "ok" if found.good else "altered"
        rows.append(
            {
                "file": file.name,
                "path": str(found.path if found else places[0] / file.name),
                "expected": found.expected if found else expected(file)[1],
                "found": found.digest if found else None,
                "status": status,
            }
        )
    return rows


def lying(folder: Path, name: str) -> Path | None:
    """Return what is called ``name`` in a folder, or in one of its folders."""
    if (folder / name).exists():
        return folder / name
    below = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    return next((each / name for each in below if (each / name).exists()), None)


def unpacked(file: DataFile, name: str, folders: list[Path]) -> Path | None:
    """Return the unpacked copy of an archive, the user's or that in the cache."""
    here = next((path for folder in folders if (path := lying(folder, file.holds))), None)
    digest = expected(file)[1]
    return here or (lying(unpacked_folder(file, name), file.holds) if digest else None)


def unpacked_folder(file: DataFile, name: str) -> Path:
    """Return the folder of the cache into which an archive is unpacked."""
    return cache_folder(name) / f"{file.name}-{expected(file)[1][:16]}"


def files(recipe: DatasetRecipe, name: str) -> dict[str, DataFile]:
    """Return the recipe's ``[files]`` as checked :class:`DataFile` objects.

    Raises:
        RecipeError: not a table, a name that leaves the folder, or a digest of the wrong length.
    """
    where, result = f"dataset {name}", {}
    for key, table in recipe.files.items():
        if not isinstance(table, dict):
            raise RecipeError(f"{where}: files.{key}: must be a table with name and sha256")
        file = construct(DataFile, table, where, f"files.{key}")
        if not re.fullmatch(r"\w[\w.+-]*", file.name):
            raise RecipeError(f"{where}: files.{key}.name = {file.name!r}: must be a plain name")
        if not (expected(file)[1] or file.holds):
            raise RecipeError(f"{where}: missing key files.{key}.sha256, or md5")
        for digest, length in (("sha256", 64), ("sha256_raw", 64), ("md5", 32)):
            value = getattr(file, digest)
            if value and not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
                raise RecipeError(
                    f"{where}: files.{key}.{digest} = {value!r}: must be {length} digits of 0-9a-f"
                )
        for part in ("holds", "at"):
            value = getattr(file, part)
            if value and not re.fullmatch(r"\w[\w.+-]*", value):
                raise RecipeError(f"{where}: files.{key}.{part} = {value!r}: must be a plain name")
        result[key] = file
    return result


def user_folders(name: str, data_dir: Path | None) -> list[Path]:
    """Return the folders below ``data_dir`` or ``BIOGRAD_DATA`` where files may be, best first.

    The dataset's own folder comes first: MNIST and Fashion-MNIST name their files alike.

    Raises:
        DataError: the folder does not exist.
    """
    variable = os.environ.get("BIOGRAD_DATA")
    if data_dir is None and not variable:
        return []
    root = Path(data_dir if data_dir is not None else variable or "").expanduser()
    if not root.is_dir():
        origin = "--data-dir" if data_dir is not None else "BIOGRAD_DATA"
        raise DataError(f"{name}: {origin} = {root}: no such folder")
    plain = _plain(name)
    below = [plain, BELOW[plain]] if plain in BELOW else [plain]
    return [*(root / folder for folder in below), root]


def cache_folder(name: str) -> Path:
    """Return the folder of this user's cache where the files of a dataset are kept."""
    import platformdirs

    return platformdirs.user_cache_path("biograd", appauthor=False) / _plain(name)


def _plain(name: str) -> str:
    """Turn a dataset's name, which may be a path, into the name of one folder."""
    return re.sub(r"[^\w.-]", "_", Path(name).name.removesuffix(".toml")).lstrip(".") or "_"


def _candidates(file: DataFile, folders: list[Path]) -> Iterator[Found]:
    """Yield what is there of a file, packed or unpacked."""
    for folder in folders:
        packed, unpacked = folder / file.name, folder / file.name.removesuffix(".gz")
        if packed.is_file():
            yield Found(packed, expected(file)[1], digest_of(file, packed))
        if file.sha256_raw and unpacked != packed and unpacked.is_file():
            yield Found(unpacked, file.sha256_raw, sha256(unpacked))


def _best(file: DataFile, folders: list[Path]) -> Found | None:
    """Return a good copy, else the first altered one, else None."""
    altered = None
    for found in _candidates(file, folders):
        if found.good:
            return found
        altered = altered or found
    return altered


def _mine(file: DataFile, name: str, folders: list[Path]) -> Path | None:
    found = _best(file, folders)
    if found and not found.good:
        raise DataError(f"{name}: {_altered(found)}; replace or remove it")
    return found.path if found else None


def _altered(found: Found) -> str:
    return (
        f"{found.path} is truncated or altered: expected {shown(found.expected)}, "
        f"found {found.digest}"
    )


def shown(digest: str) -> str:
    """Return a digest with the name of its kind, for a message."""
    return f"{'MD5' if len(digest) == 32 else 'SHA-256'} {digest}"


def _cached(file: DataFile, name: str, offline: bool) -> Path | None:
    """Return the good copy of the cache, None if one must be downloaded."""
    folder = cache_folder(name)
    found = _best(file, [folder])
    if found and found.good:
        return found.path
    if offline and found:
        raise DataError(f"{name}: {_altered(found)}; replace it, or let it be downloaded again")
    if offline:
        raise DataError(
            f"{name}: {file.name} is not on this machine and downloads are off: put it in "
            f"{folder}, or name its folder with --data-dir ({shown(expected(file)[1])})"
        )
    return None
