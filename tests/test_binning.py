"""Events in steps, windows, sums, and what augmentation changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pictures import message

from biograd.data import Events, batches, rows_of
from biograd.data.rows.augmentation import Augmentation
from biograd.data.rows.binning import Binning
from biograd.data.source import FIXED
from biograd.errors import BiogradError, DataError, RecipeError
from biograd.testing import check_source

ROWS, SENSOR = 8, (2, 6, 9)
UNITS = 108


def source(seed: int = 0, **keys: Any) -> Events:
    stream = np.random.default_rng(seed)
    counts = stream.integers(20, 60, ROWS)
    times = [stream.random(count) * 50 for count in counts]
    units = [stream.integers(0, UNITS, count) for count in counts]
    return Events(times, units, torch.arange(ROWS), UNITS, 2.0, **{"sensor": SENSOR, **keys})


EVERY = torch.arange(ROWS)


def dense(given: Events, key: tuple[int, int] = FIXED) -> np.ndarray:
    return given.take(EVERY, key).inputs.numpy()


def raw(given: Events, row: int) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(given.times[row]), np.asarray(given.channels[row])


def test_a_window_leaves_out_what_lies_outside() -> None:
    shown = source(binning=Binning(start_ms=10.0, end_ms=30.0))
    assert shown.steps == 10
    for row in range(ROWS):
        times, units = raw(shown, row)
        inside = (times >= 10) & (times < 30)
        edges = [np.arange(11) * 2 + 10, np.arange(UNITS + 1)]
        due = np.histogram2d(times[inside], units[inside], edges)[0].reshape(10, *SENSOR)
        found = shown.take(torch.tensor([row])).inputs[0].numpy()
        assert np.array_equal(found, due[: len(found)]) and not due[len(found) :].any()
    check_source(shown)


def test_binary_and_pooled_events() -> None:
    counts, binary = dense(source()), dense(source(binning=Binning(binary=True)))
    assert counts.max() > 1 and np.array_equal(binary, np.minimum(counts, 1))
    summed = source(binning=Binning(pool=(2, 3, 4)))
    assert summed.shape == (1, 2, 3)
    padded = np.zeros((*counts.shape[:2], 2, 6, 12), np.float32)
    padded[..., :9] = counts
    due = padded.reshape(*counts.shape[:2], 1, 2, 2, 3, 3, 4).sum((3, 5, 7))
    assert np.array_equal(dense(summed), due)
    check_source(summed)


@pytest.mark.parametrize("unit", ["s", "float16", "us"])
def test_units_of_time_are_equal(unit: str) -> None:
    plain = source()
    factor = {"s": 1e-3, "float16": 1e-3, "us": 1e3}[unit]
    times = [np.asarray(t) * factor for t in plain.times]
    if unit == "float16":  # as the Heidelberg digits store them
        times = [t.astype(np.float16) for t in times]
        plain.times = [t.astype(np.float64) * 1000 for t in times]
    other = Events(
        times, plain.channels, torch.arange(ROWS), UNITS, 2.0, sensor=SENSOR, to_ms=1 / factor
    )
    assert np.array_equal(dense(other), dense(plain))


def test_unsigned_times_do_not_wrap() -> None:
    times = [np.array([2**32 - 1, 5], np.uint32), np.array([1], np.uint32)]
    given = Events(times, [[0, 0], [1]], torch.zeros(2), 2, 1e6, to_ms=1e-3)
    assert given.take(torch.tensor([0])).lengths.tolist() == [5]  # type: ignore[union-attr]


AUGMENTED = Augmentation(drop=0.2, delay_ms=4.0, jitter_ms=1.0, flip=True, shift=(0, 1, 2))


def test_what_is_drawn_depends_on_seed_epoch_and_row_alone() -> None:
    given = source(augmentation=AUGMENTED)
    first = dense(given, (3, 5))
    assert np.array_equal(first, dense(source(augmentation=AUGMENTED), (3, 5)))
    for key in ((3, 6), (4, 5)):
        assert first.shape != dense(given, key).shape or not np.array_equal(
            first, dense(given, key)
        )
    for row in range(ROWS):  # in any order, alone or beside others
        alone = given.take(torch.tensor([row]), (3, 5)).inputs[0].numpy()
        assert np.array_equal(alone, first[row, : len(alone)])
    seeded = source(augmentation=Augmentation(**{**AUGMENTED.__dict__, "seed": 1}))
    assert not np.array_equal(dense(seeded, (3, 5))[:, :20], first[:, :20])
    check_source(given)


def test_rows_that_are_evaluated_are_not_changed() -> None:
    assert np.array_equal(dense(source(augmentation=AUGMENTED)), dense(source()))
    held_out = rows_of(source(augmentation=AUGMENTED), torch.tensor([1, 2]))
    plain = rows_of(source(), torch.tensor([1, 2]))
    assert torch.equal(
        next(batches(held_out, 2, None)).inputs, next(batches(plain, 2, None)).inputs
    )


@pytest.mark.parametrize(
    ("keys", "same"),
    [
        ({"drop": 0.5}, lambda found, due: found.sum() < due.sum() and (found <= due).all()),
        ({"jitter_ms": 5.0}, lambda found, due: not np.array_equal(found, due)),
        ({"shift": (0, 2, 2)}, lambda found, due: found.sum() < due.sum()),
        ({"shift": (0, 0, 0)}, np.array_equal),
        ({"jitter_ms": 0.0}, np.array_equal),
    ],
)
def test_each_kind_of_change(keys: dict[str, Any], same: Any) -> None:
    given = source(augmentation=Augmentation(**keys), steps=40)
    found, due = dense(given, (0, 0)), dense(source(steps=40))
    steps = max(found.shape[1], due.shape[1])
    found, due = (np.pad(x, ((0, 0), (0, steps - x.shape[1]), *[(0, 0)] * 3)) for x in (found, due))
    assert same(found, due)


def test_a_flip_mirrors_the_columns_of_half_of_the_trials() -> None:
    given, due = source(augmentation=Augmentation(flip=True)), dense(source())
    seen = []
    for epoch in range(20):
        for row, (found, plain) in enumerate(zip(dense(given, (0, epoch)), due, strict=True)):
            mirrored = np.array_equal(found, plain[..., ::-1])
            assert mirrored or np.array_equal(found, plain), row
            seen.append(mirrored)
    assert 0.35 < np.mean(seen) < 0.65


def test_a_shift_moves_places_and_loses_the_edge() -> None:
    given, due = source(augmentation=Augmentation(shift=(0, 1, 0))), dense(source())
    moves = set()
    for epoch in range(10):
        for found, plain in zip(dense(given, (0, epoch)), due, strict=True):
            options = {0: plain, 1: np.zeros_like(plain), -1: np.zeros_like(plain)}
            options[1][:, :, 1:], options[-1][:, :, :-1] = plain[:, :, :-1], plain[:, :, 1:]
            fits = [
                by for by, value in options.items() if np.array_equal(found, value[: len(found)])
            ]
            assert fits
            moves.update(fits)
    assert moves == {-1, 0, 1}


def test_changed_events_stay_within_the_steps() -> None:
    given = source(augmentation=Augmentation(delay_ms=100.0))
    longest = max(dense(given, (0, epoch)).shape[1] for epoch in range(5))
    assert longest <= given.steps


def test_targets_of_every_step_have_whole_trials() -> None:
    stream = np.random.default_rng(0)
    times, units = [stream.random(5) * 10 for _ in range(3)], [np.arange(5)] * 3
    given = Events(times, units, torch.zeros(3, 20, 2), 5, 1.0, steps=20)
    batch = given.take(torch.arange(3))
    assert batch.inputs.shape == (3, 20, 5) and batch.lengths is None


@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        (RecipeError, {"binning": Binning(pool=(2,))}, "binning.pool = [2]: the events have shape"),
        (RecipeError, {"binning": Binning(end_ms=5.0)}, "is not a whole number of steps"),
        (RecipeError, {"augmentation": Augmentation(shift=(1,))}, "augmentation.shift = [1]"),
        (
            RecipeError,
            {"sensor": (), "augmentation": Augmentation(flip=True)},
            "mirrors the columns",
        ),
        (RecipeError, {"sensor": (2, 2)}, "the events have 108 channels"),
        (DataError, {"steps": 3}, "binning.end_ms leaves out what comes later"),
        (DataError, {"to_ms": 1e15}, "is time_unit right?"),
    ],
)
def test_what_is_refused(kind: type[BiogradError], keys: dict[str, Any], expected: str) -> None:
    assert expected in message(kind, lambda: dense(source(**keys)))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (Binning, {"start_ms": 5.0, "end_ms": 5.0}),
        (Binning, {"pool": (0,)}),
        (Augmentation, {"drop": 1.0}),
        (Augmentation, {"drop": -0.1}),
        (Augmentation, {"shift": (-1,)}),
        (Augmentation, {"jitter_ms": float("nan")}),
    ],
)
def test_settings_out_of_range(kind: Any, keys: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, RecipeError)):
        kind(**keys)
