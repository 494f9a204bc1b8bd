"""Files in the IDX format: MNIST, Fashion-MNIST, and one's own."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from biograd.checking import NoSettings
from biograd.data.files.fetch import fetch_by_key
from biograd.data.files.unpacking import check_size
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.errors import DataError, RecipeError, nearest

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"
MOST_AXES, DENSEST = 8, 64
"""Axes, and bytes to one of a packed file: images have less than ten."""


@with_settings(NoSettings)
def read(request: Request, _settings: NoSettings) -> Parts:
    """Return the splits of four IDX files, inputs from 0 to 1.

    Images of one channel gain the axis that the recipe's shape has: ``[N, 28, 28]`` becomes
    ``[N, 1, 28, 28]``.

    Raises:
        RecipeError: ``files`` does not name the four files.
        DataError: a file is missing, altered, or not what it should be.

    Source: Y. LeCun et al., Proceedings of the IEEE 86:2278 (1998), for MNIST;
    H. Xiao, K. Rasul and R. Vollgraf, arXiv:1708.07747 (2017), for Fashion-MNIST.
    """
    _check_keys(request)
    paths = fetch_by_key(request.recipe, request.name, request.data_dir, request.offline)
    shape = request.recipe.shape
    return Parts(
        {
            split: _split(paths[f"{split}_images"], paths[f"{split}_labels"], shape)
            for split in ("train", "test")
        }
    )


def _check_keys(request: Request) -> None:
    for key in request.recipe.files:
        if key not in KEYS:
            hint = nearest(key, KEYS)
            raise RecipeError(f"dataset {request.name}: unknown key files.{key}: {hint}")
    for key in KEYS:
        if key not in request.recipe.files:
            raise RecipeError(f"dataset {request.name}: missing key files.{key}")


def _split(images: Path, labels: Path, shape: tuple[int, ...]) -> Arrays:
    values = parse(images)
    found = tuple(values.shape[1:])
    if shape and shape not in (found, (1, *found)):
        raise DataError(f"{images}: inputs have shape {list(found)}, the recipe says {list(shape)}")
    classes = parse(labels)
    if classes.dim() != 1:
        raise DataError(f"{labels}: labels must have 1 axis, found {classes.dim()}")
    if len(classes) != len(values):
        raise DataError(f"{labels}: {len(classes)} labels for {len(values)} images")
    inputs = values.reshape(len(values), *(shape or found)).float().div_(255)
    return Arrays(inputs, classes.long())


def parse(path: Path) -> Tensor:
    """Return the values of an IDX file of unsigned bytes, packed with gzip or not, as uint8.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, each axis's
    length as a big-endian 32-bit integer, then the values, last axis fastest.

    Raises:
        DataError: not IDX, another type, or more or fewer values than the header says.
    """
    try:
        with _opened(path) as stream:
            return _values(stream, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged gzip: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    """Return a file, unpacked as it is read."""
    stream = path.open("rb")
    packed = stream.read(2) == GZIP_MAGIC
    stream.seek(0)
    if not packed:
        return stream
    stream.close()
    return gzip.open(path)


def _values(stream: IO[bytes] | gzip.GzipFile, path: Path) -> Tensor:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise DataError(f"{path}: not an IDX file: it begins with 0x{start.hex()}")
    kind, axes = start[2], start[3]
    if kind != UNSIGNED_BYTE or not 1 <= axes <= MOST_AXES:
        raise DataError(
            f"{path}: IDX type 0x{kind:02x}, {axes} axes: must be unsigned bytes, 0x08, of 1 to "
            f"{MOST_AXES} axes"
        )
    header = stream.read(4 * axes)
    if len(header) < 4 * axes:
        size, found = 4 + 4 * axes, 4 + len(header)
        raise DataError(f"{path}: truncated: the header of {size} bytes ends at {found}")
    sizes = np.frombuffer(header, ">u4").tolist()
    expected = math.prod(sizes)
    shape = f"{'x'.join(map(str, sizes))} values need {expected} bytes, found"
    stored = path.stat().st_size
    if not isinstance(stream, gzip.GzipFile) and expected > stored:
        raise DataError(f"{path}: truncated: {shape} {stored - 4 - len(header)}")
    check_size(expected, stored, path, DENSEST)
    content = stream.read(expected)
    if len(content) < expected:
        raise DataError(f"{path}: truncated: {shape} {len(content)}")
    if stream.read(1):
        packed = isinstance(stream, gzip.GzipFile)
        more = "more" if packed else str(stored - 4 - len(header))
        raise DataError(f"{path}: too long: {shape} {more}")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(sizes).copy())
