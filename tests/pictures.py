"""Small datasets of pictures in the IDX format, and the one-line message of an error."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biograd import data
from biograd.data import Dataset
from biograd.errors import BiogradError
from biograd.recipes import DatasetRecipe

KEYS = {
    "train_images": "train-images.gz",
    "train_labels": "train-labels.gz",
    "test_images": "test-images.gz",
    "test_labels": "test-labels.gz",
}


def message(kind: type[BiogradError], call: Callable[[], object]) -> str:
    """Return the message of the error that ``call`` raises, which is one line."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def pack(values: np.ndarray) -> bytes:
    """Write unsigned bytes in the IDX format."""
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def pictures(rows: int = 40, side: int = 3, classes: int = 4, seed: int = 0) -> dict[str, bytes]:
    """Return the unpacked content of a small dataset of pictures."""
    draw = np.random.default_rng(seed)
    content = {}
    for split in ("train", "test"):
        images = draw.integers(0, 256, (rows, side, side), dtype=np.uint8)
        content[f"{split}_images"] = pack(images)
        content[f"{split}_labels"] = pack((np.arange(rows) % classes).astype(np.uint8))
    return content


class Files:
    """A dataset of pictures: its recipe, and its files packed and unpacked."""

    def __init__(self, content: dict[str, bytes] | None = None, **recipe: Any) -> None:
        self.raw = {KEYS[key]: value for key, value in (content or pictures()).items()}
        self.packed = {name: gzip.compress(value, mtime=0) for name, value in self.raw.items()}
        table = {
            key: {
                "name": name,
                "sha256": hashlib.sha256(self.packed[name]).hexdigest(),
                "sha256_raw": hashlib.sha256(self.raw[name]).hexdigest(),
            }
            for key, name in KEYS.items()
        }
        self.recipe = DatasetRecipe(
            **{"source": "idx", "shape": (1, 3, 3), "classes": 4, "files": table, **recipe}
        )

    def write(self, folder: Path, packed: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEYS.values():
            content = self.packed[name] if packed else self.raw[name]
            (folder / (name if packed else name.removesuffix(".gz"))).write_bytes(content)
        return folder

    def load(self, folder: Path, name: str = "pictures", **more: Any) -> Dataset:
        return data.load(self.recipe, name=name, data_dir=folder, offline=True, **more)
