"""Sound as the ear's nerve has it: bands of frequency, and spikes or levels of each.

A band's output is the analytic signal ``z_b = F^-1(2 X(f) H_b(f))``, ``f > 0``, of the recording
``X``, padded with silence.  Its power in steps of 1 ms, relative to the largest of the recording,
is its level, ``l = 1 + 10 log10(|z|^2 / max |z|^2) / range_db``, at least 0.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from biograd.checking import Checked, Count, NotNegative, Positive
from biograd.data.digests import combined, hash_of, of_files
from biograd.data.formats import FORMATS, AddressEvents
from biograd.data.recordings.labelled import LabelledFile, splits_of
from biograd.data.recordings.packed import groups_of, read_packed
from biograd.data.request import Parts, Request
from biograd.data.rows.items import Items
from biograd.data.source import rows_of
from biograd.errors import DataError, RecipeError

FRAME_US = 1000
SILENCE_SECONDS = 0.05
MOST_BANDS = 10_000


@dataclasses.dataclass(frozen=True)
class SoundSettings(Checked):
    """How sound becomes input: keys of ``[settings]`` of a recipe.

    Attributes:
        filters: ``gammatone``, of order 4 with the bandwidths of the ear, or ``mel``, triangles.
        bands: number of channels, centres equally far apart on the filters' own scale.
        lowest_hz, highest_hz: centres of the first and last band; 0: 0.45 of the sampling rate.
        code: ``spikes``, or ``levels`` from 0 to 1 as currents, one a step.
        peak_hz: rate of the spikes at level 1.
        range_db: by how much a level of 0 is weaker than 1.
        group_part: which part of a file's name, divided at ``_``, names speaker or subject, counted
            from 0; -1: none.
    """

    filters: Literal["gammatone", "mel"] = "gammatone"
    bands: Count = 70
    lowest_hz: Positive = 100.0
    highest_hz: NotNegative = 0.0
    code: Literal["spikes", "levels"] = "spikes"
    peak_hz: Positive = 100.0
    range_db: Positive = 40.0
    group_part: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.highest_hz and self.highest_hz <= self.lowest_hz:
            raise ValueError(f"highest_hz = {self.highest_hz:g}: must be more than lowest_hz")
        if self.bands > MOST_BANDS:
            raise ValueError(f"bands = {self.bands}: at most {MOST_BANDS}")


def centres(settings: SoundSettings, rate: int, where: object) -> np.ndarray:
    """Return the centres of the bands in Hz, ``[bands]``.

    Equal steps of the number of equivalent rectangular bandwidths, ``21.4 log10(1 + 0.00437 f)``,
    or of mel, ``2595 log10(1 + f / 700)``.

    Raises:
        DataError: the highest is beyond half of the sampling rate.

    Source: B. R. Glasberg and B. C. J. Moore, Hearing Research 47:103 (1990); D. O'Shaughnessy,
    Speech Communication (1987).
    """
    highest = settings.highest_hz or 0.45 * rate
    if not settings.lowest_hz < highest <= rate / 2:
        raise DataError(
            f"{where}: bands of {settings.lowest_hz:g} to {highest:g} Hz: the sampling rate is "
            f"{rate} Hz: set settings.highest_hz"
        )
    ear = settings.filters == "gammatone"
    scale, knee = (21.4, 1 / 0.00437) if ear else (2595.0, 700.0)
    ends = scale * np.log10(1 + np.array([settings.lowest_hz, highest]) / knee)
    return knee * (10 ** (np.linspace(ends[0], ends[1], settings.bands) / scale) - 1)


def responses(
    settings: SoundSettings, rate: int, frequencies: np.ndarray, where: object
) -> np.ndarray:
    """Return ``H_b(f)``, complex ``[bands, frequencies]``.

    Gammatone of order 4: ``(1 + i (f - f_b) / b)^-4``, ``b = 1.019 (24.7 + 0.108 f_b)``; mel:
    roots of triangles that reach to the neighbours' centres.

    Source: R. D. Patterson et al., An efficient auditory filterbank (1987).
    """
    middle = centres(settings, rate, where)
    if settings.filters == "gammatone":
        width = 1.019 * (24.7 + 0.108 * middle)
        return (1 + 1j * (frequencies - middle[:, None]) / width[:, None]) ** -4
    mel = 2595 * np.log10(1 + frequencies / 700)
    place = 2595 * np.log10(1 + middle / 700)
    apart = place[1] - place[0] if len(place) > 1 else place[0] / 2
    return np.sqrt(np.clip(1 - np.abs(mel - place[:, None]) / apart, 0, None)).astype(complex)


def levels(settings: SoundSettings, samples: np.ndarray, rate: int, where: object) -> np.ndarray:
    """Return the level of each band in steps of 1 ms, ``[steps, bands]``, from 0 to 1.

    Raises:
        DataError: see ``centres``; or the recording is empty.
    """
    from scipy import fft

    if not len(samples):
        raise DataError(f"{where}: no samples")
    size = fft.next_fast_len(len(samples) + round(SILENCE_SECONDS * rate))
    spectrum = fft.rfft(samples.astype(np.float64), size)
    frequencies = fft.rfftfreq(size, 1 / rate)
    found = responses(settings, rate, frequencies, where) * (2 * spectrum)
    steps = -(-len(samples) * 1000 // rate)
    edges = (np.arange(steps + 1) * rate) // 1000
    power = np.empty((steps, settings.bands))
    whole = np.zeros(size, complex)
    for band, half in enumerate(found):
        whole[: len(half)] = half
        energy = np.abs(fft.ifft(whole)) ** 2
        summed = np.concatenate([[0.0], np.cumsum(energy)])
        last = np.minimum(edges, size)
        power[:, band] = (summed[last[1:]] - summed[last[:-1]]) / np.maximum(np.diff(last), 1)
    loudest = power.max()
    if loudest <= 0:
        return np.zeros((steps, settings.bands))
    decibels = 10 * np.log10(np.maximum(power / loudest, 1e-30))
    return np.clip(1 + decibels / settings.range_db, 0, 1)


def heard(settings: SoundSettings, path: Path) -> np.ndarray:
    """Return the levels of a file, ``[steps, bands]``.

    Raises:
        DataError: it is damaged, or see ``levels``.
    """
    samples, rate = FORMATS["waveform"].read(path)
    return levels(settings, samples, rate, path)


def spikes(settings: SoundSettings, found: np.ndarray) -> AddressEvents:
    """Return the spikes of units that integrate ``peak_hz l(t)`` from 1/2 to each whole number.

    Why no noise: the events of a recording are always the same; ``augmentation`` draws.
    """
    rate = settings.peak_hz * FRAME_US * 1e-6
    charge = 0.5 + np.cumsum(found * rate, 0)
    before = charge - found * rate
    first, last = np.floor(before).astype(np.int64), np.floor(charge).astype(np.int64)
    times, units = list[np.ndarray](), list[np.ndarray]()
    for number in range(1, int((last - first).max(initial=0)) + 1):
        step, band = np.nonzero(last - first >= number)
        share = (first[step, band] + number - before[step, band]) / (found[step, band] * rate)
        times.append((step + np.minimum(share, 1 - 1e-9)) * FRAME_US)
        units.append(band)
    if not times:
        return AddressEvents(np.zeros(0, np.int64), np.zeros((0, 1), np.int64), (settings.bands,))
    at, fired = np.floor(np.concatenate(times)).astype(np.int64), np.concatenate(units)
    order = np.lexsort((fired, at))
    return AddressEvents(at[order], fired[order, None], (settings.bands,))


class HeardFiles(torch.utils.data.Dataset[Any]):
    """Recordings as levels in steps, each computed when it is asked for."""

    def __init__(
        self, settings: SoundSettings, examples: list[LabelledFile], per_step: int
    ) -> None:
        self.settings, self.examples, self.per_step = settings, examples, per_step

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        path = self.examples[row].path
        found = heard(self.settings, path)
        steps = -(-len(found) // self.per_step)
        padded = np.zeros((steps * self.per_step, found.shape[1]))
        padded[: len(found)] = found
        mean = padded.reshape(steps, self.per_step, -1).mean(1)
        return mean.astype(np.float32), self.examples[row].label


def read_sounds(
    request: Request, settings: SoundSettings, examples: list[LabelledFile], classes: int
) -> Parts:
    """Return the sources of sound files, as spikes that are packed, or as levels on demand.

    Raises:
        RecipeError: levels with a step that is no whole number of ms, or keys of events.
        DataError: a file is damaged, or its sampling rate too low.
    """
    if settings.code == "spikes":

        def reader(path: Path) -> AddressEvents:
            return spikes(settings, heard(settings, path))

        how = dataclasses.asdict(settings)
        return read_packed(request, examples, reader, (settings.bands,), how, classes)
    for key in ("binning", "augmentation", "steps"):
        if getattr(request.recipe, key):
            raise RecipeError(
                f"dataset {request.name}: {key}: is of spikes; settings.code = 'levels'"
            )
    per_step = round(request.dt_ms)
    if per_step < 1 or per_step != request.dt_ms or not request.timed:
        raise RecipeError(
            f"dataset {request.name}: settings.code = 'levels': needs encoding.kind = 'given' and "
            f"a whole number of ms as encoding.dt_ms, not {request.dt_ms:g}"
        )
    splits = splits_of(examples, request.name)
    labels = torch.tensor([example.label for example in examples])
    known = hash_of([dataclasses.asdict(settings), per_step, labels.tolist()])
    items = Items(
        HeardFiles(settings, examples, per_step),
        True,
        workers=request.recipe.workers,
        targets=labels,
        digest=combined(of_files([example.path for example in examples]), known),
        where=request.name,
    )
    found = {}
    for split in splits:
        rows: Tensor = torch.tensor([n for n, e in enumerate(examples) if e.split == split])
        found[split or "train"] = rows_of(items, rows)
    return Parts(found, groups_of(examples, splits[0]), classes=classes)


def group_of(path: Path, settings: SoundSettings) -> str:
    """Return the part of a file's name that names its group, "" if none does.

    Raises:
        DataError: the name has no such part.
    """
    if settings.group_part < 0:
        return ""
    parts = path.stem.split("_")
    if settings.group_part >= len(parts):
        raise DataError(f"{path}: settings.group_part = {settings.group_part}: {len(parts)} parts")
    return parts[settings.group_part]
