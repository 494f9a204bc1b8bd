"""Sound: WAV files of whole-number samples."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from biograd.data.files.unpacking import check_memory
from biograd.errors import DataError

FASTEST = 1_000_000


def read(path: Path) -> tuple[np.ndarray, int]:
    """Return the samples of a WAV, float32 ``[n]`` from -1 to 1, and their rate in Hz.

    Channels are averaged.  8 bits are unsigned with 128 as zero; 16, 24 and 32 bits are signed.

    Raises:
        DataError: no WAV file, floating-point or compressed samples, or fewer than it says.
    """
    try:
        with wave.open(str(path), "rb") as file:
            said = file.getparams()
            check_memory(said.nframes * said.nchannels * 8, path)
            data = file.readframes(said.nframes)
    except (wave.Error, EOFError, OSError, RuntimeError, ValueError) as error:
        text = str(error) or "it ends in its header"
        raise DataError(f"{path}: cannot be read as WAV: {text}") from error
    due = said.nframes * said.nchannels * said.sampwidth
    if len(data) != due:
        raise DataError(f"{path}: truncated: {due} bytes of samples are due, found {len(data)}")
    if not 0 < said.framerate <= FASTEST:
        raise DataError(f"{path}: {said.framerate} samples a second: at most {FASTEST}")
    return _values(data, said.sampwidth).reshape(-1, said.nchannels).mean(1), said.framerate


def _values(data: bytes, width: int) -> np.ndarray:
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # to the upper bytes of 32 bits
        table = np.zeros((len(data) // 3, 4), np.uint8)
        table[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return table.reshape(-1).view("<i4").astype(np.float32) / 2**31
    kind = {2: "<i2", 4: "<i4"}[width]
    return np.frombuffer(data, kind).astype(np.float32) / 2 ** (8 * width - 1)
