"""AEDAT files of DVS cameras: version 2, of CIFAR10-DVS, and 3.1, of DVS128 Gesture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from biograd.data.formats.address_events import AddressEvents, camera, content, records
from biograd.errors import DataError

SIDE = 128
END, HEAD, POLARITY, SIZE = b"#!END-HEADER", 28, 1, 8


def read(path: Path) -> AddressEvents:
    """Return the events of an ``.aedat``, of the version that its first line names.

    Raises:
        DataError: another version, or a packet or record that is not complete.
    """
    data = content(path)
    if data.startswith(b"#!AER-DAT3.1"):
        return _packets(data, path)
    if data.startswith(b"#!AER-DAT2.0"):
        return _records(data, path)
    said = data[:16].split(b"\n")[0].decode("ascii", "replace").strip()
    raise DataError(f"{path}: begins with {said!r}: must be #!AER-DAT2.0 or #!AER-DAT3.1")


def read_turned(path: Path) -> AddressEvents:
    """Return the events of CIFAR10-DVS upright: x = 127 - y, y = 127 - x, polarity inverted.

    Raises:
        DataError: see ``read``; or the file is of another version.
    """
    data = content(path)
    if not data.startswith(b"#!AER-DAT2.0"):
        raise DataError(f"{path}: must begin with #!AER-DAT2.0, as CIFAR10-DVS does")
    events = _records(data, path)
    polarity, y, x = events.places.T
    return camera(events.times, SIDE - 1 - y, SIDE - 1 - x, 1 - polarity)


def _lines(data: bytes, path: Path) -> int:
    """Return where lines that begin with ``#`` end."""
    start = 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        if end < 0:
            raise DataError(f"{path}: truncated: a line of the header does not end")
        start = end + 1
    return start


def _records(data: bytes, path: Path) -> AddressEvents:
    """Return events of version 2: address, time, big-endian; polarity bit 0, x 1-7, y 8-14."""
    words = records(data[_lines(data, path) :], SIZE, path).view(">u4").astype(np.int64)
    address = words[:, 0]
    return camera(words[:, 1], address >> 1 & 0x7F, address >> 8 & 0x7F, address & 1)


@dataclasses.dataclass(frozen=True)
class _Packet:
    """The header of a packet."""

    kind: int
    size: int
    overflow: int
    capacity: int
    number: int

    @classmethod
    def at(cls, data: bytes, start: int, path: Path) -> _Packet:
        head = data[start : start + HEAD]
        if len(head) < HEAD:
            raise DataError(f"{path}: truncated: the header of the packet at byte {start}")
        kind = int.from_bytes(head[:2], "little")
        size, _, overflow, capacity, number, _ = np.frombuffer(head[4:], "<u4").tolist()
        if start + HEAD + size * capacity > len(data):
            raise DataError(
                f"{path}: truncated: the packet at byte {start} has {capacity} events of {size} "
                f"bytes, the file ends after {len(data) - start - HEAD}"
            )
        if number > capacity or (kind == POLARITY and size != SIZE):
            raise DataError(
                f"{path}: the packet at byte {start} has {number} events of {size} bytes in the "
                f"room of {capacity}"
            )
        return cls(kind, size, overflow, capacity, number)


def _packets(data: bytes, path: Path) -> AddressEvents:
    """Return events of version 3.1: those of polarity packets that are marked as valid.

    Time is ``overflow 2^31 + t``; what lies behind ``number`` in a packet is spare room.
    """
    end = data.find(END)
    start = data.find(b"\n", end) + 1
    if end < 0 or not start:
        raise DataError(f"{path}: truncated: no line {END.decode()}")
    words, highs = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    while start < len(data):
        packet = _Packet.at(data, start, path)
        start += HEAD
        if packet.kind == POLARITY:
            taken = data[start : start + SIZE * packet.number]
            words.append(np.frombuffer(taken, "<u4").reshape(-1, 2).astype(np.int64))
            highs.append(np.full(packet.number, packet.overflow << 31))
        start += packet.size * packet.capacity
    table, high = np.concatenate(words), np.concatenate(highs)
    valid = (table[:, 0] & 1) == 1
    word, times = table[valid, 0], (high + table[:, 1])[valid]
    return camera(times, word >> 17 & 0x7FFF, word >> 2 & 0x7FFF, word >> 1 & 1)
