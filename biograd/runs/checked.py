"""Read HDF5 of which nothing is known: every node is checked before it is used.

A name is followed through hard links alone, to a node of the kind that is asked for. A data set
must hold plain numbers or text, stored within the file, no larger than what is stored can expand
to; nothing is allocated before that is known. Whatever is wrong is one error that names the place.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biograd.disk.atomic import EXPANSION
from biograd.disk.stored_sizes import excess, has_endless_heap
from biograd.errors import RunFileError, brief, natural
from biograd.runs.json_text import parse_object
from biograd.runs.layout import Array

SCALES = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "DIMENSION_LABELS"}
"""Attributes by which HDF5 links axes to their coordinates."""
PLAIN = "iufbS"
"""Kinds of NumPy that a data set of a run may have."""
SLACK = 2**16
"""Bytes that a data set may declare whatever is stored."""
TEXT = 2**26
"""Characters that a column of texts may have."""
LARGE, LARGE_EXPANDS = 2**28, 200
"""Bytes of a data set that is large, and how many times its size such a one may be compressed."""
LEVELS = 8
DEPTHS = {"trials": 2, "snapshots": 2, "scalars": 3, "params": 3, "learning": 3, "spikes": 3}
DEPTHS |= {"weights": 3, "outputs": 2}
"""At how many names the data sets of a table lie."""
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def open_file(path: Path) -> CheckedFile:
    """Open an HDF5 file for reading.

    Raises:
        RunFileError: it is not HDF5, is cut short, or is locked.
        FileNotFoundError: it is not there.
    """
    _refuse_special(path)
    try:
        file = h5py.File(path, "r", locking="best-effort")
        if has_endless_heap(file):
            file.close()
            raise RunFileError(f"{path}: is damaged (HDF5 would read it for ever)")
        return CheckedFile(file)
    except (FileNotFoundError, RunFileError):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        text = str(error)
        if "truncated" in text:
            why = "is cut short; copy it again, or go back to the run's .parts folder"
        elif "signature not found" in text:
            why = "is not an HDF5 file, or is cut short" if path.stat().st_size else "is empty"
        elif "unable to lock" in text:
            why = "is locked by another program; close it, or set HDF5_USE_FILE_LOCKING=FALSE"
        else:
            why = f"cannot be read, it is damaged or cut short ({brief(text)})"
        raise RunFileError(f"{path}: {why}") from error


def _refuse_special(path: Path) -> None:
    """Refuse what would be read without end, or not at all."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
        if missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise RunFileError(f"{path}: cannot be read ({brief(str(error))})") from error
    if stat.S_ISDIR(mode):
        raise RunFileError(f"{path}: is a folder, not a run")
    if not stat.S_ISREG(mode):
        raise RunFileError(f"{path}: is not an ordinary file")


class CheckedFile:
    """An HDF5 file, open for reading."""

    def __init__(self, file: h5py.File) -> None:
        """Trust nothing of it yet."""
        self.path = str(file.filename)
        self.size = Path(self.path).stat().st_size
        self._file = file
        self._found: dict[str, Any] = {"": file}
        self._sound: dict[str, h5py.Dataset] = {}

    def __enter__(self) -> CheckedFile:
        """Return the file; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._found.clear()
        self._sound.clear()
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()

    def damaged(self, name: str, why: object) -> RunFileError:
        """Return the error that says what is wrong at a place."""
        return RunFileError(f"{self.path}: /{name}: is damaged ({brief(str(why))})")

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        if not self._file:
            raise RunFileError(f"{self.path}: the run is closed; open it again")
        try:
            yield
        except (RunFileError, FileNotFoundError):  # it was packed meanwhile
            raise
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise self.damaged(name, error) from error
        except MemoryError as error:
            raise self.damaged(name, "it declares more than fits into memory") from error

    def _node(self, name: str) -> Any:
        """Return what a name leads to through hard links, None if it is not there."""
        if name not in self._found:
            above, _, last = name.rpartition("/")
            group = self._node(above)
            if group is None:
                return None
            if not isinstance(group, h5py.Group):
                raise self.damaged(name, "a group is expected on the way to it")
            link = group.get(last, None, getlink=True)
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise self.damaged(name, f"it is a {type(link).__name__}, and none is followed")
            self._found[name] = group[last]
        return self._found[name]

    def holds(self, name: str) -> bool:
        """Return whether there is a node of this name."""
        with self._reading(name):
            return self._node(name) is not None

    def members(self, name: str, ordered: bool = False) -> list[str]:
        """Return the names in a group; none if there is no such group.

        Args:
            ordered: as they were written, if the file knows; else sorted.

        Raises:
            RunFileError: it is not a group, or a name is not text.
        """
        with self._reading(name):
            group = self._node(name)
            if group is not None and not isinstance(group, h5py.Group):
                raise self.damaged(name, "it is not a group")
            found = list(group) if group is not None else []
            found = found if ordered else sorted(found, key=natural)
            for member in found:
                member.encode()
        return found

    def links(self, name: str) -> dict[str, Any]:
        """Return the links of a group by name, none of them followed."""
        names = self.members(name, ordered=True)
        with self._reading(name):
            group = self._node(name)
            return {member: group.get(member, getlink=True) for member in names}

    def datasets(self, prefix: str = "") -> list[str]:
        """Return the names of all data sets under ``prefix``, sorted."""
        found: list[str] = []
        self._collect(prefix, LEVELS, set(), found)
        return found

    def _collect(self, name: str, levels: int, seen: set[int], found: list[str]) -> None:
        """Add the data sets under ``name``; a group that was ``seen`` is not entered again."""
        if levels == 0:
            raise self.damaged(name, "groups lie too deep")
        for member in self.members(name):
            below = f"{name}/{member}" if name else member
            with self._reading(below):
                node = self._node(below)
                if node is None:
                    raise self.damaged(below, "its name leads nowhere")
                place = h5py.h5o.get_info(node.id).addr
            if isinstance(node, h5py.Dataset):
                found.append(below)
            elif below.count("/") + 1 == DEPTHS.get(below.split("/")[0]):
                raise self.damaged(below, "it is no data set")
            elif isinstance(node, h5py.Group) and place not in seen:
                seen.add(place)
                self._collect(below, levels - 1, seen, found)

    def attributes(self, name: str) -> dict[str, Any]:
        """Return the attributes of a node as text, numbers, truth values and arrays of numbers.

        Raises:
            RunFileError: the node is missing, or an attribute is of another kind.
        """
        with self._reading(name):
            node = self._node(name)
            if node is None:
                raise self.damaged(name, "it is missing")
            return {key: _attribute(node, key) for key in node.attrs if key not in SCALES}

    def dataset(self, name: str, kinds: str = PLAIN, dimensions: int | None = None) -> h5py.Dataset:
        """Return a data set of plain values whose size is honest.

        Args:
            kinds: of its values, as NumPy names them.
            dimensions: how many axes it must have.

        Raises:
            RunFileError: it is missing, or anything about it is not as it must be.
        """
        node, why = self._sound.get(name), ""
        if node is None:
            with self._reading(name):
                node = self._node(name)
                if not isinstance(node, h5py.Dataset):
                    what = "it is missing" if node is None else "it is no data set"
                    raise self.damaged(name, what)
                why = _doubts(node, self.size)
            self._sound |= {} if why else {name: node}
        if not why and node.dtype.kind not in kinds:
            why = f"it holds {node.dtype}"
        if not why and dimensions not in (None, node.ndim):
            why = f"it has {node.ndim} axes, not {dimensions}"
        if why:
            raise self.damaged(name, why)
        return node

    def array(self, name: str, kinds: str = PLAIN, dimensions: int | None = None) -> Array:
        """Return the values of a data set; see :meth:`dataset`."""
        item = self.dataset(name, kinds, dimensions)
        with self._reading(name):
            return _texts(item) if item.dtype.kind == "O" else np.asarray(item[()])

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows of a data set of numbers."""
        item = self.dataset(name, "iufb")
        with self._reading(name):
            return np.asarray(item[start:stop])

    def text(self, name: str) -> bytes:
        """Return the text of a data set."""
        return bytes(self.array(name, "S", 0)[()])

    def object(self, name: str) -> dict[str, Any]:
        """Return the JSON object of a data set."""
        return parse_object(self.text(name), f"{self.path}: /{name}")


def _attribute(node: Any, key: object) -> Any:
    """Return the value of one attribute.

    Raises:
        ValueError: it is not text, a number, a truth value or an array of these.
    """
    if not isinstance(key, str):  # as h5py gives what is no UTF-8
        raise ValueError(f"attribute {key!r}: its name is no text")
    key.encode()
    kept = node.attrs.get_id(key)
    if kept.get_storage_size() > SLACK or int(np.prod(kept.shape, dtype=object)) > SLACK:
        raise ValueError(f"attribute {key} is too large")
    value = node.attrs[key]
    if isinstance(value, bytes | np.bytes_):
        value = value.decode()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        value.encode()
    elif not isinstance(value, bool | int | float | np.ndarray):
        raise ValueError(f"attribute {key} is of another kind")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "iufb":
        raise ValueError(f"attribute {key} is of another kind")
    return value


def _texts(item: h5py.Dataset) -> Array:
    """Return texts of any length, which may take no more than ``TEXT`` bytes in all."""
    found: list[str] = []
    left = TEXT
    for start in range(0, len(item), 64):
        block = [text.decode() for text in item[start : start + 64]]
        left -= sum(map(len, block))
        if left < 0:
            raise ValueError("its texts are too long")
        found += block
    return np.array(found, dtype=object)


def _doubts(item: h5py.Dataset, size: int) -> str:
    """Return why a data set must not be read, "" if it may be."""
    creation = item.id.get_create_plist()
    filters = {creation.get_filter(number)[0] for number in range(creation.get_nfilters())}
    if item.is_virtual or item.external:
        return "its values lie in other files"
    texts = h5py.check_string_dtype(item.dtype) is not None
    if (
        item.shape is None
        or item.dtype.subdtype is not None
        or not (texts or item.dtype.kind in PLAIN)
    ):
        return f"it holds {item.dtype if item.shape is not None else 'nothing'}"
    if filters - FILTERS:
        return "it is compressed in a way that runs are not"
    expands = EXPANSION if h5py.h5z.FILTER_DEFLATE in filters else 1
    if math.prod(item.shape) * item.dtype.itemsize > LARGE:
        expands = min(expands, LARGE_EXPANDS)
    return excess(item, size, SLACK, expands)
