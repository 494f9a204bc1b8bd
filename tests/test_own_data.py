"""One's own data: the page's examples from training to comparison, layouts, laziness, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pictures import message
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import biograd
from biograd import data
from biograd.__main__ import main
from biograd.data import digests
from biograd.data.choosing import divided
from biograd.data.sources import hdf5
from biograd.errors import BiogradError, DataError, RecipeError
from biograd.recipes import DatasetRecipe, ModelRecipe, construct, load_dataset
from biograd.tasks import MISSING
from biograd.testing import check_source

ROOT = Path(__file__).parents[1]
SMALL = ["network.hidden=[4]", "training.epochs=1", "training.batch_size=16"]

# The page ----------------------------------------------------------------------------------------


def blocks() -> list[str]:
    page = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page.split("## Your own data")[1], re.DOTALL)


NAMES = ("arrays", "tensor dataset", "loader", "npz", "hdf5", "events")


def test_the_page_has_an_example_of_each_kind_and_each_is_short() -> None:
    *kinds, then = blocks()
    assert len(kinds) == len(NAMES) and all(word in then for word in ("resume", "compare"))
    for block in kinds:
        lines = [line for line in block.splitlines() if line and not line.startswith("import")]
        assert len(lines) <= 10


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train in a folder of its own, small networks and few epochs."""
    monkeypatch.chdir(tmp_path)
    train, compare = biograd.train, biograd.compare

    def short(model: str, data: Any, **choices: Any) -> Any:
        choices["settings"] = [*choices.get("settings", ()), *SMALL]
        return train(model, data, **choices)

    def few(models: list[str], rules: list[str], **choices: Any) -> Any:
        settings = [*choices.pop("settings", ()), *SMALL]
        return compare(models, rules[:1], settings=settings, seeds=1, **choices)

    monkeypatch.setattr(biograd, "train", short)
    monkeypatch.setattr(biograd, "compare", few)
    return tmp_path


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_the_examples_of_the_page(place: int, small: Path) -> None:
    *kinds, then = blocks()
    settings = ["encoding.kind=given", *(["dataset.time_unit=ms"] if place == 5 else [])]
    if place >= 4:  # with time: another model, and its settings
        then = then.replace('["ann"], ', '["spiking"], ').replace(
            "data=data, folder", f"data=data, settings={settings}, folder"
        )
    space: dict[str, Any] = {}
    exec(kinds[place], space)
    before = space["run"].summary
    assert before["evaluated_on"] == "validation" and set(before["test"]) >= {"loss"}
    exec(then, space)
    with biograd.load("mine.h5") as run:
        assert run.summary["epochs"] == 3
        assert biograd.reproduce("mine.h5", data=space["data"]).verdict == "bits"
        assert run.config["data"]["task"]["name"] == ("regression" if place == 1 else "classes")
    assert (small / "compared" / "set.h5").exists()


# Loading -----------------------------------------------------------------------------------------

STREAM = np.random.default_rng(0)
X = STREAM.random((60, 4), dtype=np.float32)
Y = np.arange(60) % 3
COURSE = STREAM.random((60, 7, 4), dtype=np.float32)


def load(given: Any, *, timed: bool = False, dt_ms: float = 1.0, **keys: Any) -> data.Dataset:
    """Return own data as a call with ``data=given`` loads them."""
    from biograd.data.sources.own_data import named

    name, table = named(given)
    recipe = construct(DatasetRecipe, {**table, **keys}, "data")
    return data.load(recipe, name=name, own=given, timed=timed, dt_ms=dt_ms)


def inputs_of(source: data.Source) -> torch.Tensor:
    return source.take(torch.arange(len(source))).inputs


def test_undivided_data_are_divided_in_proportion_and_for_every_seed_alike() -> None:
    found = load((X, Y))
    parts = (found.train, found.validation, found.test)
    assert [len(part) for part in parts if part] == [42, 9, 9]
    for part in parts:
        assert part is not None and len(part.targets.bincount().unique()) == 1  # type: ignore[union-attr]
    rows = torch.cat([inputs_of(part) for part in parts if part])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, torch.from_numpy(X).tolist()))
    assert found.digest == load((X, Y)).digest != load((X + 1, Y)).digest
    assert any("divided" in note for note in found.notes)


def test_the_test_split_is_looked_at_only_when_it_is_asked_for() -> None:
    spoiled = np.full((9, 4), np.nan, np.float32)
    given = {"train": (X, Y), "validation": (X[:9], Y[:9]), "test": (spoiled, Y[:9])}
    found = load(given)
    assert found.evaluated_on == "validation" and found.evaluated is found.validation
    assert "test split, row 0" in message(DataError, found.open_test)
    assert "test split" in message(
        DataError, lambda: load({"train": (X, Y), "test": given["test"]})
    )


def test_held_out_rows_take_the_place_of_other_validation_rows() -> None:
    found = load((X, Y, X[:9], Y[:9]), validation=0.2)
    assert found.evaluated is found.validation and len(found.evaluated) == 12
    assert found.test is not None and len(found.test) == 9 and len(found.train) == 48


def test_groups_stay_together() -> None:
    """As scikit-learn's GroupKFold: no group is in two parts, and every row is in one."""
    group = np.arange(60) // 6
    found = load({"x": X, "y": Y, "group": group})
    rows = [{tuple(row) for row in inputs_of(s).tolist()} for s in (found.train, found.evaluated)]
    for number in range(10):
        own = {tuple(row) for row in torch.from_numpy(X[group == number]).tolist()}
        assert all(own <= part or not own & part for part in rows)
    few = message(DataError, lambda: load({"x": X, "y": Y, "group": np.arange(60) // 30}))
    assert "2 groups" in few and "3 splits" in few
    parts = divided(60, (0.5, 0.0, 0.5), None, torch.from_numpy(group), "here")
    assert set(parts) == {"train", "test"}
    assert sum(len(part) for part in parts.values()) == 60


def test_split_is_read_as_words() -> None:
    words = np.array(["train"] * 40 + ["test"] * 20)
    found = load({"x": X, "y": Y, "split": words})
    assert (len(found.train), len(found.evaluated), found.evaluated_on) == (40, 20, "test")
    wrong = message(DataError, lambda: load({"x": X, "y": Y, "split": np.array(["tset"] * 60)}))
    assert "did you mean 'test'?" in wrong


def written(path: Path, table: dict[str, Any], **attributes: Any) -> Path:
    if path.suffix == ".npz":
        meta = {"meta": json.dumps(attributes)} if attributes else {}
        np.savez(path, **table, **meta)  # type: ignore[arg-type]
        return path
    with h5py.File(path, "w") as file:
        for name, values in table.items():
            if isinstance(values, list):
                column = file.create_dataset(name, (len(values),), h5py.vlen_dtype(values[0].dtype))
                for row, value in enumerate(values):
                    column[row] = value
            else:
                file[name] = values
        file.attrs.update(attributes)
    return path


@pytest.mark.parametrize("ending", [".npz", ".h5"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"classes": float("inf")},
        {"classes": float("nan")},
        {"classes": 2.5},
        {"n_units": -3},
        {"dt_ms": "soon"},
        {"dt_ms": float("nan")},
        {"task": 7},
        {"licence": [1, 2]},
    ],
)
def test_what_a_file_says_of_itself_must_make_sense(
    attributes: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    path = written(tmp_path / f"a{ending}", {"x": X, "y": Y}, **attributes)
    assert f"{path}: meta: " in message(DataError, lambda: load(str(path)))


def test_a_whole_number_may_be_written_with_a_point(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", {"x": X, "y": Y}, classes=10.0, task="classes")
    assert load(str(path)).task.outputs == 10


@pytest.mark.parametrize("ending", [".npz", ".h5"])
def test_files_are_what_arrays_are(ending: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"a{ending}", {"inputs": X, "labels": Y})
    assert load(str(path)).digest == load((X, Y)).digest
    by_split = {"x_train": X[:40], "y_train": Y[:40], "x_test": X[40:], "y_test": Y[40:]}
    path = written(tmp_path / f"b{ending}", by_split)
    assert load(str(path)).digest == load((X[:40], Y[:40], X[40:], Y[40:])).digest


def test_a_split_without_training_rows_is_refused(tmp_path: Path) -> None:
    words = np.array(["test"] * 60)
    assert "no row is of train" in message(
        DataError, lambda: load({"x": X, "y": Y, "split": words})
    )
    path = tmp_path / "none.h5"
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = X[:0], Y[:0]
        file.create_dataset("split", (0,), h5py.string_dtype(), maxshape=(None,))
    assert "no row is of train" in message(DataError, lambda: load(str(path)))


def test_a_file_of_each_kind_says_its_task(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=X, y=Y, meta='{"task": "regression"}')
    test = written(tmp_path / "test.h5", {"x": X, "y": Y})
    found = load({"train": str(tmp_path / "train.npz"), "test": str(test)})
    assert found.task_name == "regression"


def test_lazy_rows_are_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.h5", {"x": COURSE, "y": Y})
    whole = load(str(path), timed=True)
    monkeypatch.setattr(hdf5, "IN_MEMORY", 0)
    lazy = load(str(path), timed=True)
    assert isinstance(whole.train, data.Arrays) and not isinstance(lazy.train, data.Arrays)
    assert lazy.digest != whole.digest and lazy.digest == load(str(path), timed=True).digest
    for epoch in range(2):
        orders = [
            data.batches(each.train, 8, torch.Generator().manual_seed(epoch))
            for each in (whole, lazy)
        ]
        for one, other in zip(*orders, strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets) and torch.equal(one.index, other.index)
    check_source(lazy.train)


def test_lazy_inputs_are_checked_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "IN_MEMORY", 0)
    spoiled = X.copy()
    spoiled[7, 1] = np.nan
    found = load(str(written(tmp_path / "a.h5", {"x": spoiled, "y": Y})), split=(0.8, 0.0, 0.2))
    text = message(DataError, lambda: [inputs_of(s) for s in (found.train, found.evaluated)])
    assert "an input is NaN" in text


def events(count: int = 60) -> tuple[list[np.ndarray], list[np.ndarray]]:
    stream = np.random.default_rng(1)
    counts = stream.integers(1, 9, count)
    times = [np.sort(stream.random(n).astype(np.float32) * stream.integers(5, 20)) for n in counts]
    return times, [stream.integers(0, 5, n) for n in counts]


def flat(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


def test_events_are_the_same_from_lists_offsets_and_hdf5(tmp_path: Path) -> None:
    times, units = events()
    values, offsets = flat(times)
    table = {"times": values, "units": flat(units)[0], "offsets": offsets, "y": Y}
    shd = {"spikes/times": times, "spikes/units": units, "labels": Y, "extra/speaker": Y}
    sources = [
        load({"times": times, "units": units, "y": Y}, time_unit="ms"),
        load(str(written(tmp_path / "a.npz", table, time_unit="ms", n_units=5))),
        load(str(written(tmp_path / "a.h5", shd, time_unit="ms"))),
    ]
    batches = [each.train.take(torch.tensor([5, 0, 9])) for each in sources]
    for batch in batches:
        assert torch.equal(batch.inputs, batches[0].inputs)
        assert batch.lengths is not None and int(batch.lengths.max()) <= batch.inputs.shape[1]
    check_source(sources[0].train)


def test_a_trial_of_events_does_not_depend_on_those_beside_it() -> None:
    """A module reads the mean over time, or the last step: both change with the length."""
    times, units = events()
    found = load({"times": times, "units": units, "y": Y}, time_unit="ms")
    assert found.validation is not None
    for part in (found.train, found.validation):
        for row in range(len(part)):
            alone = part.take(torch.tensor([row]))
            assert alone.inputs.shape[1] == found.train.steps
            assert alone.lengths is not None
    assert len({int(found.train.take(torch.tensor([row])).lengths) for row in range(20)}) > 1


def test_events_too_large_for_memory_are_read_by_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, units = events()
    values, offsets = flat(times)
    table = {"times": values, "units": flat(units)[0], "offsets": offsets, "y": Y}
    shd = {"spikes/times": times, "spikes/units": units, "labels": Y}
    for name, columns in (("flat.h5", table), ("ragged.h5", shd)):
        path = str(written(tmp_path / name, columns, time_unit="ms"))
        held = load(path)
        with monkeypatch.context() as patch:
            patch.setattr("biograd.data.sources.hdf5.IN_MEMORY", 10)
            lazy = load(path)
        rows = torch.tensor([5, 0, 9])
        assert torch.equal(held.train.take(rows).inputs, lazy.train.take(rows).inputs)
        base = [each.train.source.source for each in (held, lazy)]
        kinds = [type(getattr(each.times, "values", each.times)).__name__ for each in base]
        assert kinds == [{"flat.h5": "ndarray", "ragged.h5": "list"}[name], "Column"]


def test_binned_events_are_histograms() -> None:
    times, units = events()
    source = data.Events(times, units, torch.from_numpy(Y), 5, dt_ms=2.0)
    batch = source.take(torch.arange(60))
    edges = [np.arange(0, 2 * batch.inputs.shape[1] + 1, 2), np.arange(6)]
    for row, (t, u) in enumerate(zip(times, units, strict=True)):
        expected = np.histogram2d(t, u, edges)[0]
        assert np.array_equal(batch.inputs[row].numpy(), expected)
    check_source(source)


@pytest.mark.parametrize(
    ("change", "keys", "expected"),
    [
        ({}, {}, "set dataset.time_unit"),
        ({}, {"time_unit": "ms", "units": 3}, "unit 4 is outside 0..2"),
        ({}, {"time_unit": "ms", "steps": 4}, "is behind steps = 4"),
        ({"times": [np.array([-1.0])] * 60}, {"time_unit": "ms"}, "negative or not finite"),
        ({"x": X}, {"time_unit": "ms"}, "both x and times"),
        ({"mask": Y > 0}, {"time_unit": "ms"}, "mask: events say themselves"),
    ],
)
def test_events_that_are_refused(
    change: dict[str, Any], keys: dict[str, Any], expected: str
) -> None:
    times, units = events()
    table = {"times": times, "units": units, "y": Y, **change}

    def look() -> None:
        found = load(table, **keys)
        inputs_of(found.train), inputs_of(found.evaluated)

    assert expected in message(DataError, look)


def test_spoken_digits(shared_data: Path) -> None:
    folder = shared_data / "spoken_digits_events"
    files = {split: folder / f"fsdd_events_{split}.h5" for split in ("train", "test")}
    found = load(files, dt_ms=10.0, time_unit="s")
    assert (len(found.train), len(found.evaluated), found.shape) == (2250, 750, (70,))
    assert found.task.outputs == 10 and found.evaluated_on == "test"
    batch = found.train.take(torch.arange(32))
    assert batch.lengths is not None and int(batch.lengths.max()) < 100
    assert batch.inputs.shape[1] == found.train.steps < 250
    with h5py.File(files["train"]) as file:
        counted = sum(len(file["spikes/times"][row]) for row in range(32))
    assert int(batch.inputs.sum()) == counted


# Padding -----------------------------------------------------------------------------------------


def test_padding_changes_nothing() -> None:
    """What lies behind the end of a trial, and how much of it, has no effect on the loss."""
    lengths = 3 + np.arange(60) % 5
    targets = STREAM.random((60, 7, 2)).astype(np.float32)
    longer = [np.concatenate([a, np.full_like(a, 9)], 1) for a in (COURSE, targets)]
    short = load({"x": COURSE, "y": targets, "lengths": lengths}, timed=True)
    padded = load({"x": longer[0], "y": longer[1], "lengths": lengths}, timed=True)
    network = torch.nn.Linear(4, 2)
    losses = []
    for found in (short, padded):
        batch = found.train.take(torch.arange(20))
        losses.append(found.task.losses(network(batch.inputs), batch.targets))
    assert torch.allclose(*losses)
    assert found.task.timed and bool(batch.targets[:, 7:].isnan().all())


@pytest.mark.parametrize("kind", ["float", "class"])
def test_a_mask_makes_targets_missing(kind: str) -> None:
    mask = STREAM.random((60, 7)) < 0.7
    mask[:, 0] = True
    targets = STREAM.random((60, 7)).astype(np.float32) if kind == "float" else COURSE.argmax(2)
    table = {"x": COURSE, "y": targets, "mask": mask}
    task = {"name": "time_series"} if kind == "float" else {"name": "classes"}
    found = load(table, timed=True, task=task, split=(0.5, 0.0, 0.5))
    known = found.train.targets
    assert known is not None
    absent = known.isnan() if kind == "float" else known == MISSING
    assert 0.1 < float(absent.float().mean()) < 0.5 and not absent[:, 0].any()


def test_trials_of_different_lengths_are_padded_in_time() -> None:
    rows = [(torch.ones(2 + n % 4, 3), n % 2) for n in range(30)]
    found = load(rows_of(rows), timed=True)
    batch = found.train.take(torch.arange(9))
    assert batch.lengths is not None and batch.inputs.shape[1:] == (int(batch.lengths.max()), 3)
    assert torch.equal(batch.inputs.sum((1, 2)), 3.0 * batch.lengths)
    check_source(found.train)


class Examples(IterableDataset[Any]):
    """Examples that come one after the other."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


def ragged(count: int, ends: Any = None, course: bool = False) -> list[Any]:
    """Return trials of 5 steps, those by ``ends`` shorter, of ones."""
    lengths = [5 if ends is None else ends(n) for n in range(count)]
    return [
        (torch.ones(k, 3), torch.full((k, 1), 0.5) if course else n % 2)
        for n, k in enumerate(lengths)
    ]


SHORT: dict[str, Any] = {
    "arrays": lambda ends: {
        "x": np.ones((300, 5, 3), np.float32), "y": np.arange(300) % 2,
        "lengths": np.array([5 if ends is None else ends(n) for n in range(300)]),
    },
    "dataset": lambda ends: rows_of(ragged(300, ends)),
    "splits": lambda ends: {"train": rows_of(ragged(300, ends)), "test": rows_of(ragged(9))},
    "stream": lambda ends: Examples(ragged(300, ends)),
    "stream beside rows": lambda ends: {
        "train": Examples(ragged(300, ends)), "validation": rows_of(ragged(9)),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SHORT)
def test_ends_that_a_readout_passes_are_said(kind: str) -> None:
    """One value of a trial is read of all its steps, whatever its length."""
    for ends, said in ((lambda n: 3 + n % 3, True), (None, False)):
        found = load(SHORT[kind](ends), timed=True)
        assert any("the readout takes all steps" in note for note in found.notes) is said


def test_ends_that_come_late_are_said_when_they_come() -> None:
    late = ragged(600, lambda n: 5 if n < 400 else 3)
    found = load(Examples(late), timed=True)
    assert not any("lengths" in note for note in found.notes)
    with pytest.warns(UserWarning, match="the readout takes all steps") as said:
        list(found.train.batches(50, (0, 0), 0))  # type: ignore[attr-defined]
    assert len(said) == 1
    timed = load(Examples(ragged(600, lambda n: 5 if n < 400 else 3, course=True)), timed=True)
    list(timed.train.batches(50, (0, 0), 0))  # type: ignore[attr-defined]
    assert timed.task.timed and not any("lengths" in note for note in timed.notes)


def test_a_padded_trial_is_one_without_input_to_the_end() -> None:
    """What is said is what happens: the same outputs as of the short trial, whatever stands by."""
    table = {
        "network": {"kind": "spiking", "hidden": [6]},
        "encoding": {"kind": "given", "duration_ms": 9.0},
    }
    network = biograd.build(construct(ModelRecipe, table, "test"), (3,), 2)
    short = 20 * torch.rand(2, 5, 3)
    padded = torch.cat([short, torch.zeros(2, 4, 3)], 1)
    assert torch.equal(network(short), network(padded)) and network(short).any()


@pytest.mark.parametrize("stream", [False, True])
def test_lengths_of_examples_are_obeyed(stream: bool) -> None:
    """What lies behind them is no input, and no target."""
    rows = [(torch.full((5, 3), 2.0), torch.full((5, 1), 0.5), 3) for _ in range(300)]
    found = load(Examples(rows) if stream else rows_of(rows), timed=True)
    for source in (found.train, found.validation):
        assert source is not None
        batch = source.take(torch.arange(4))
        assert batch.inputs[:, :3].eq(2).all() and not batch.inputs[:, 3:].any()
        assert batch.targets[:, 3:].isnan().all() and not batch.targets[:, :3].isnan().any()


@pytest.mark.parametrize("wrong", [0, 6, 2.5])
def test_lengths_of_examples_that_are_none_are_refused(wrong: float) -> None:
    rows = [(torch.ones(5, 3), n % 2, wrong) for n in range(30)]
    with pytest.raises(DataError, match="lengths must be whole numbers from 1 to 5"):
        load(rows_of(rows), timed=True)
    with pytest.raises(DataError, match="of data without a time axis"):
        load(rows_of([(torch.ones(5), 1, 3)] * 30))


def test_weights_reach_the_loss() -> None:
    weight = np.linspace(0, 2, 60)
    found = load({"x": X, "y": Y, "weight": weight}, split=(0.5, 0.0, 0.5))
    plain = load((X, Y), split=(0.5, 0.0, 0.5))
    index, network = torch.arange(30), torch.nn.Linear(4, 3)
    (one, other) = (each.train.take(index) for each in (found, plain))
    ratio = found.task.losses(network(one.inputs), one.targets) / plain.task.losses(
        network(other.inputs), other.targets
    )
    due = dict(zip(map(tuple, X.tolist()), weight.tolist(), strict=True))
    expected = torch.tensor([due[tuple(row)] for row in one.inputs.tolist()])
    assert torch.allclose(ratio, expected, atol=1e-5)


# torch -------------------------------------------------------------------------------------------


class rows_of(Dataset[Any]):
    """A map-style Dataset of a list."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


class Augmented(rows_of):
    """Every example is drawn anew, from the global generators."""

    def __getitem__(self, row: int) -> Any:
        inputs, label = self.rows[row]
        return inputs + torch.rand(4) + float(np.random.rand()), label


def pairs() -> list[tuple[torch.Tensor, int]]:
    return list(zip(torch.from_numpy(X), Y.tolist(), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int) -> None:
    plain, own = (load(Augmented(pairs()), workers=n) for n in (0, workers))

    def epoch(found: data.Dataset, number: int) -> torch.Tensor:
        order = torch.Generator().manual_seed(number)
        taken = data.batches(found.train, 16, order, key=(0, number))
        return torch.cat([batch.inputs for batch in taken])

    state = torch.get_rng_state()
    assert torch.equal(epoch(plain, 1), epoch(own, 1))
    assert not torch.equal(epoch(plain, 1).sort(0)[0], epoch(plain, 2).sort(0)[0])
    assert torch.equal(state, torch.get_rng_state())
    assert plain.digest == own.digest != ""


def test_a_loader_gives_its_dataset_and_collate_and_says_so() -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        return {"x": torch.stack([2 * x for x, _ in rows]), "y": torch.tensor([y for _, y in rows])}

    found = load(DataLoader(rows_of(pairs()), 7, shuffle=True, collate_fn=collate))
    plain = load(rows_of(pairs()))
    assert torch.equal(inputs_of(found.train), 2 * inputs_of(plain.train))
    assert any("order and batch size are the run's" in note for note in found.notes)
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 60, 60)
    own = DataLoader(rows_of(pairs()), 7, sampler=sampler)
    assert "sampler of its own" in message(DataError, lambda: load(own))


class Endless(IterableDataset[Any]):
    """Rows by and by."""

    def __iter__(self) -> Iterator[Any]:
        stream = torch.Generator().manual_seed(0)
        for number in itertools.count():
            yield torch.rand(4, generator=stream), number % 3


def finite(seed: int, epoch: int) -> Iterator[Any]:
    stream = torch.Generator().manual_seed(100 * seed + epoch)
    for number in range(300):
        yield torch.rand(4, generator=stream), number % 3


@pytest.mark.parametrize("given", [Endless(), finite], ids=["endless", "function"])
def test_streams_resume_where_they_were(given: Any) -> None:
    found = load(given, epoch_rows=64)
    assert found.digest == "" and len(found.evaluated) == 256
    assert any("do not repeat" in note for note in found.notes)

    def epoch(number: int, skip: int = 0) -> list[torch.Tensor]:
        source = load(given, epoch_rows=64).train
        return [b.inputs for b in data.batches(source, 8, None, skip=skip, key=(0, number))]

    assert len(epoch(0)) == 8
    assert all(map(torch.equal, epoch(2)[3:], epoch(2, 3)))
    assert not torch.equal(epoch(0)[0], epoch(1)[0])
    kept = {tuple(row) for row in inputs_of(found.evaluated).tolist()}
    seen = {tuple(row) for part in epoch(0) for row in part.tolist()}
    assert given is finite or not kept & seen
    assert "epoch_rows" in message(RecipeError, lambda: load(given))


def test_a_stream_trains_and_resumes_and_is_not_compared(small: Path) -> None:
    settings = ["dataset.epoch_rows=64"]
    run = biograd.train("ann", Endless(), path="a.h5", settings=settings)
    assert run.summary["epochs"] == 1
    assert biograd.resume("a.h5", 2, data=Endless()).summary["epochs"] == 2
    found = message(RecipeError, lambda: biograd.reproduce("a.h5", data=Endless()))
    assert "do not repeat" in found

    def compare() -> object:
        return biograd.compare(["ann"], ["backprop"], data=Endless(), folder="c", settings=settings)

    assert "do not repeat" in message(BiogradError, compare)


# Folders and functions ---------------------------------------------------------------------------


def test_a_folder_of_classes(tmp_path: Path) -> None:
    from matplotlib.image import imsave

    for split, label, row in itertools.product(("train", "test"), ("cat", "dog"), range(5)):
        folder = tmp_path / "pets" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        value = STREAM.random((3, 4)).astype(np.float32)
        if label == "cat":
            np.save(folder / f"{row}.npy", np.stack([value] * 4))
        else:
            imsave(folder / f"{row}.png", value)
    found = load(str(tmp_path / "pets"))
    assert (found.shape, found.task.outputs, found.evaluated_on) == ((4, 3, 4), 2, "test")
    assert found.train.targets is not None and found.train.targets.tolist() == [0] * 5 + [1] * 5
    check_source(found.train)
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("x")
    assert "notes.txt" in message(DataError, lambda: load(str(tmp_path / "pets")))


MODULE = """
import numpy as np
from pathlib import Path

Path({trace!r}).touch()

def choices():
    stream = np.random.default_rng(0)
    x = stream.random((60, 4))
    return x, (x[:, 0] > 0.5).astype(int)
"""


def test_a_function_is_typed_each_time_and_never_read_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "trace"
    (tmp_path / "own_data_of_a_test.py").write_text(MODULE.format(trace=str(trace)))
    name = "own_data_of_a_test:choices"
    sets = [word for text in SMALL for word in ("--set", text)]
    assert main(["train", "--model", "ann", "--dataset", name, "-o", "a.h5", "-q", *sets]) == 0
    assert trace.exists()
    import sys

    def again(*words: str) -> int:
        trace.unlink(missing_ok=True)
        sys.modules.pop("own_data_of_a_test", None)
        return main(list(words))

    for command in ("resume", "probe", "reproduce", "inspect"):
        code = again(command, "a.h5")
        assert code == (0 if command == "inspect" else 2) and not trace.exists()
    assert "--dataset package.module:function" in capsys.readouterr().err
    assert again("probe", "a.h5", "--dataset", name, "--draws", "2") == 0 and trace.exists()
    assert again("reproduce", "a.h5", "--dataset", name, "-q") == 0
    words = [
        "compare",
        "--models",
        "ann",
        "--dataset",
        name,
        "--seeds",
        "1",
        "-w",
        "1",
        "-q",
        *sets,
    ]
    assert again(*words, "-o", "c", "--no-control") == 0
    assert again("compare", "--resume", "c", "-w", "1", "-q") == 2 and not trace.exists()
    assert again("compare", "--resume", "c", "--dataset", name, "-w", "1", "-q") == 0
    recipe = tmp_path / "code.toml"
    recipe.write_text(f'source = "python"\npath = "{name}"\n')
    assert again("train", "--dataset", str(recipe), "-q") == 2 and not trace.exists()
    assert "a file cannot name code" in capsys.readouterr().err


def test_a_course_of_targets_trains_a_network_in_time(small: Path) -> None:
    """Own trials of different lengths with a target in every step, from arrays to the run."""
    rows = [(torch.rand(4 + n % 3, 2), torch.rand(4 + n % 3, 1)) for n in range(30)]
    settings = ["encoding.kind=given", "encoding.duration_ms=6", "decorrelation.rule=off"]
    run = biograd.train(
        "spiking",
        {"train": rows_of(rows), "validation": rows_of(rows[:8])},
        path="a.h5",
        estimator="backprop",
        settings=settings,
    )
    assert run.config["data"]["task"]["name"] == "time_series"
    assert run.summary["headline"] == "r2" and "test" not in run.summary


# Refusals ----------------------------------------------------------------------------------------


class Broken(torch.utils.data.Dataset[Any]):
    """Fails at one of its examples."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        if row == 7:
            raise ValueError("no such picture")
        return X[row], int(Y[row])


def test_numbers_of_16_bits_are_data() -> None:
    wide = load((torch.tensor(X).bfloat16(), Y))
    assert inputs_of(wide.train).dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((X, Y[:-1]), "60 inputs, 59 targets"),
        ((X, np.array(["a"] * 60)), "must be numbers"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "rows differ in shape: pad them and give lengths"),
        ({"x": X, "y": Y, "z": Y}, "unknown key 'z'"),
        ({"x": X}, "no y"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y}, "give one kind"),
        ({"x": X, "y": Y, "lengths": Y}, "of data without a time axis"),
        ({"x": X, "y": Y, "weight": Y[:3]}, "weight is [3], must be [60]"),
        ({"test": (X, Y)}, "no train beside test"),
        ((X, Y == 1), "may be of several tasks"),
        ((X, Y[:, None]), "a column of whole numbers, [60, 1]: give targets[:, 0]"),
        ((X[:, 0], Y), "inputs must be [N, ...] with an axis of features"),
        ((np.float32(3), np.int64(4)), "inputs must be [N, ...] with an axis of features"),
        ((np.ma.masked_less(X, 0.1), Y), "values are masked: fill them"),
        ((X, np.ma.masked_equal(Y, 2)), "20 values are masked"),
        ({"x": np.ma.masked_less(X, 0.1), "y": Y}, "values are masked"),
        ((torch.tensor(X).to_sparse(), Y), "sparse: give x.to_dense()"),
        ((torch.tensor(X).to("meta"), Y), "on the device meta, without values"),
        ((torch.tensor(X).to(torch.cfloat), Y), "complex: give real and imaginary parts"),
        ((X, np.full(60, 2**64 - 1, "u8")), "beyond 63 bits"),
        (rows_of([(torch.rand(3) + 1j, 0)] * 9), "complex: give real and imaginary parts"),
        (Broken(), "Broken, row 7 of 60: ValueError: no such picture"),
        ({"train": (X, Y), "tset": (X, Y)}, "unknown split 'tset': did you mean 'test'?"),
        ((np.where(X > 0.99, np.nan, X), Y), "an input is NaN or infinite"),
        (rows_of([(torch.rand(n % 2 + 1), 0) for n in range(9)]), "examples differ in shape"),
        (rows_of([torch.rand(3)] * 9), "must be (inputs, targets), or a mapping"),
        (rows_of([{"x": torch.rand(3), "z": 1}] * 9), "unknown key 'z'"),
    ],
)
def test_own_data_that_are_refused(given: Any, expected: str) -> None:
    assert expected in message(DataError, lambda: load(given))


@pytest.mark.parametrize("given", [3, None, object()])
def test_what_is_no_data(given: Any) -> None:
    from biograd.data.sources.own_data import named

    assert "give a shipped name" in message(RecipeError, lambda: named(given))


def test_names_that_are_no_dataset(tmp_path: Path) -> None:
    assert "did you mean 'digits'?" in message(RecipeError, lambda: load_dataset("digit"))
    missing = str(tmp_path / "a.npz")
    assert "there is no such file" in message(RecipeError, lambda: load_dataset(missing))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([[1], [1, 2]], dtype=object), y=Y)
    assert "an array of objects" in message(DataError, lambda: load(str(path)))
    (tmp_path / "b.npz").write_bytes(pickle.dumps({"x": X}))
    assert "cannot be read as npz" in message(DataError, lambda: load(str(tmp_path / "b.npz")))
    (tmp_path / "b.h5").write_bytes(b"text")
    assert "cannot be read as HDF5" in message(DataError, lambda: load(str(tmp_path / "b.h5")))


def test_time_is_never_flattened(small: Path) -> None:
    """A time axis goes to an encoding that passes it on, or is refused by name."""

    def train(*settings: str, model: str = "spiking") -> str:
        return message(
            BiogradError,
            lambda: biograd.train(model, (COURSE, Y), path="a.h5", force=True, settings=settings),
        )

    assert "'given'" in train("dataset.timed=true")
    assert "the network has none" in train("dataset.timed=true", model="ann")
    text = train("encoding.kind=given", "encoding.duration_ms=5")
    assert "set encoding.duration_ms = 7" in text


def test_steps_of_a_file_must_be_those_of_the_encoding(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", {"x": COURSE, "y": Y}, dt_ms=2.0)
    assert "encoding.dt_ms = 1" in message(DataError, lambda: load(str(path), timed=True))
    assert load(str(path), timed=True, dt_ms=2.0).steps == 7


# Digests -----------------------------------------------------------------------------------------


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_place", lambda: tmp_path / "cache" / "digests.json")
    path = tmp_path / "a.h5"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    known = digests.of_files([path])
    assert known == digests.sha256(path)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256", lambda _path: pytest.fail("hashed again"))
        assert digests.of_files([path]) == known
    path.write_bytes(b"two")  # of the same size, changed now
    assert digests.of_files([path]) == digests.sha256(path) != known


def test_changed_data_are_refused(small: Path) -> None:
    biograd.train("ann", (X, Y), path="a.h5")
    other = (X + 0.5, Y)
    for call in (biograd.resume, biograd.reproduce):
        assert "other arrays data" in message(DataError, lambda c=call: c("a.h5", data=other))
    with biograd.load("a.h5") as run:
        assert "other arrays data" in message(DataError, lambda: biograd.diagnose(run, data=other))
    for name in ("resume", "reproduce"):
        text = message(RecipeError, lambda n=name: getattr(biograd, n)("a.h5"))
        assert f"biograd.{name}(path, data=...)" in text


def test_a_comparison_goes_on_only_with_its_own_data(small: Path) -> None:
    biograd.compare(["ann"], ["backprop"], data=(X, Y), folder="c", control=False)
    again = biograd.compare(["ann"], ["backprop"], data=(X, Y), folder="c", control=False)
    assert len(again.runs) == 1
    other = (X + 0.5, Y)
    text = message(
        BiogradError,
        lambda: biograd.compare(["ann"], ["backprop"], data=other, folder="c", control=False),
    )
    assert "other" in text and "data" in text


def test_killed_and_resumed_is_the_same(small: Path) -> None:
    """A run that is cut in the middle of an epoch ends in the same bits."""
    from biograd import experiment
    from biograd.configuration.own_parts import OwnParts
    from biograd.progress import Progress

    data = rows_of(pairs())
    whole = biograd.train("ann", data, path="whole.h5", settings=["training.epochs=2"])
    config = experiment.Configuration.of(whole.config, "whole.h5")
    experiment.begin(config, Path("cut.h5"), Progress(), OwnParts(data=data)).run(until=3)
    resumed = biograd.resume("cut.h5", data=data)
    for name, tensor in whole.checkpoint()[0].items():
        assert torch.equal(tensor, resumed.checkpoint()[0][name])


# The public check --------------------------------------------------------------------------------


class Wrong(data.Arrays):
    """Gives rows in the order of their numbers, whatever is asked for."""

    def take(self, index: torch.Tensor, key: Any = None) -> data.Batch:
        return dataclasses.replace(super().take(index.sort()[0]), index=index)


class Noisy(data.Arrays):
    """Draws from the global generator."""

    def take(self, index: torch.Tensor, key: Any = None) -> data.Batch:
        batch = super().take(index)
        return dataclasses.replace(batch, inputs=batch.inputs + torch.rand(batch.inputs.shape))


class Aliased(data.Arrays):
    """Gives its own memory away where rows follow each other."""

    def take(self, index: torch.Tensor, key: Any = None) -> data.Batch:
        batch = super().take(index)
        if index.tolist() != list(range(len(index))):
            return batch
        return dataclasses.replace(batch, inputs=self.inputs[: len(index)])


class Sorting(data.Arrays):
    """Puts the numbers in order that it is given."""

    def take(self, index: torch.Tensor, key: Any = None) -> data.Batch:
        index.copy_(index.sort()[0])
        return super().take(index)


SEEN = [
    (Wrong, "in another order"),
    (Noisy, "not the same the second time"),
    (Aliased, "own memory"),
    (Sorting, "changes the numbers"),
]


@pytest.mark.parametrize(("kind", "expected"), SEEN)
def test_the_check_sees_what_is_wrong(kind: type[data.Arrays], expected: str) -> None:
    given = torch.from_numpy(X), torch.from_numpy(Y)
    check_source(data.Arrays(*given))
    assert expected in message(BiogradError, lambda: check_source(kind(*given)))


def test_tensor_datasets_are_arrays() -> None:
    given = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    assert load(given).digest == load((X, Y)).digest


TABLE = "u,v,kind\n" + "\n".join(f"{n / 3},{n},{'ab'[n % 2]}" for n in range(24))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace(",", ";"), "divided by ';'"),
        (TABLE + "\n1_000,1,a", "'1_000': is no number"),
        (TABLE + "\n\u0661,1,a", "is no number"),
        (TABLE + "\n1e39,1,a", "row 26: u: is beyond float32"),
        (TABLE + "\n1\0,1,a", "NUL"),
        (TABLE + '\n"1,1,a', "unexpected end"),
        (TABLE + "\ninf,1,a", "row 26: u: is not finite"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_table_of_numbers(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)):
        load(str(tmp_path / "a.csv"), settings={"target": ["kind"]})


def test_a_line_that_ends_within_quotes_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE.replace("a\n", '"a\nb\u2028c"\n'), encoding="utf-8")
    found = load(str(tmp_path / "a.csv"), settings={"target": ["kind"]})
    targets = found.train.take(torch.arange(len(found.train))).targets
    assert sorted(targets.unique().tolist()) == [0, 1]


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.h5", "a.nwb"])
@pytest.mark.timeout(20)
def test_what_never_ends_is_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((DataError, RecipeError)):
        load(str(tmp_path / name), settings={"target": ["kind"]} if name == "a.csv" else {})
    (tmp_path / "classes" / "b").mkdir(parents=True)
    os.mkfifo(tmp_path / "classes" / "b" / "0.npy")
    with pytest.raises(DataError, match="no ordinary file"):
        load(str(tmp_path / "classes"))


def test_values_that_lie_in_other_files_are_not_read(tmp_path: Path) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    with h5py.File(other, "w") as file:
        file["s"] = X.numpy() if isinstance(X, torch.Tensor) else np.asarray(X)
        shape = file["s"].shape
    for source, why in ((other, "another file"), (path, "")):
        with h5py.File(path, "w") as file:
            layout = h5py.VirtualLayout(shape, "f4")
            if not why:
                file["extra/s"] = h5py.File(other)["s"][()].astype("f4")
                layout[:] = h5py.VirtualSource(file["extra/s"])
            else:
                layout[:] = h5py.VirtualSource(source, "s", shape)
            file.create_virtual_dataset("x", layout)
            file["y"] = np.arange(shape[0]) % 3
        if why:
            with pytest.raises(DataError, match=why):
                load(str(path))
        else:
            load(str(path))
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((10**10, 4), "f4")
        file["y"] = np.arange(3)
        layout[:3, 0] = h5py.VirtualSource(file["y"])
        file.create_virtual_dataset("x", layout)
    with pytest.raises(DataError, match="no data are packed so well"):
        load(str(path))


def test_an_array_that_is_there_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 2)), y=np.arange(6) % 2)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("x.npy", file.read("x.npy"))
    with pytest.raises(DataError, match=r"x\.npy: is there twice"):
        load(str(tmp_path / "a.npz"))


def test_long_doubles_are_doubles(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 24, dtype=np.longdouble).reshape(12, 2)
    np.savez(tmp_path / "a.npz", x=values, y=np.arange(12) % 2)
    np.savez(tmp_path / "b.npz", x=values.astype(float), y=np.arange(12) % 2)
    one, two = (inputs_of(load(str(tmp_path / name)).train) for name in ("a.npz", "b.npz"))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("key", "value"), [("classes", True), ("dt_ms", float("inf"))])
def test_attributes_that_are_no_such_number(tmp_path: Path, key: str, value: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = np.zeros((12, 2)), np.arange(12) % 2
        file.attrs[key] = value
    with pytest.raises(DataError, match="is not such a number"):
        load(str(tmp_path / "a.h5"))
