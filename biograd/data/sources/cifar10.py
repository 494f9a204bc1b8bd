"""CIFAR-10 in its binary form: a byte a label, then the picture, red, green and blue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from biograd.checking import NoSettings
from biograd.data.files.archives import located
from biograd.data.request import Parts, Request, with_settings
from biograd.data.rows.arrays import Arrays
from biograd.errors import DataError

PICTURE = (3, 32, 32)
BYTES = 3 * 32 * 32
CLASSES = 10
FILES = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}


@with_settings(NoSettings)
def read(request: Request, _settings: NoSettings) -> Parts:
    """Return the splits of CIFAR-10, inputs ``[N, 3, 32, 32]`` from 0 to 1, as published.

    Raises:
        DataError: a file is missing, not whole records, or has a label beyond 9.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images (2009).
    """
    (there,) = located(request).values()
    root = there.parent if there.is_file() else there
    return Parts({split: _split(root, names) for split, names in FILES.items()}, classes=CLASSES)


def _split(root: Path, names: list[str]) -> Arrays:
    tables = [_records(root / name) for name in names if (root / name).exists()]
    if len(tables) < len(names):
        missing = next(name for name in names if not (root / name).exists())
        raise DataError(f"{root / missing}: no such file: the published set has six")
    table = np.concatenate(tables)
    inputs = torch.from_numpy(table[:, 1:].reshape(-1, *PICTURE)).float().div_(255)
    return Arrays(inputs, torch.from_numpy(table[:, 0].astype(np.int64)))


def _records(path: Path) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not len(data) or len(data) % (BYTES + 1):
        raise DataError(f"{path}: {len(data)} bytes: must be records of {BYTES + 1}")
    table = data.reshape(-1, BYTES + 1)
    if table[:, 0].max() >= CLASSES:
        row = int(np.argmax(table[:, 0] >= CLASSES))
        raise DataError(f"{path}: row {row}: label {table[row, 0]} is outside 0..{CLASSES - 1}")
    return table
