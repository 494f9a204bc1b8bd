"""Spoken digits as spikes of a cochlea: four rules and their control, chosen on validation rows.

A recurrent layer of 128 integrate-and-fire neurons reads the events of ``spoken_digits_events`` in
steps of 50 ms; of the 700-channel files ten channels side by side are summed.  For every rule a
learning rate is chosen on recordings that are held out of the training rows, some of every digit
and speaker.  Then it learns from all training rows, for each seed, and the test rows are looked at
once: those of the same five speakers, and those of a sixth who is new.

    python tests/benchmarks/spoken_digits.py --data-dir FOLDER         # everything
    python tests/benchmarks/spoken_digits.py --data-dir FOLDER --only weak --channels 70
    python tests/benchmarks/spoken_digits.py --data-dir FOLDER --bars  # classifiers of counts
    python tests/benchmarks/spoken_digits.py --table                   # of what is kept

Every training that has ended is a line of ``--kept`` and is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from biograd import data, experiment, recipes
from biograd.data import rows_of
from biograd.training import evaluate

RULES: dict[str, tuple[str, ...]] = {
    "backprop": (),
    "eprop": (),
    "direct_feedback": (),
    "frozen_hidden": (),
    "weak": ("estimators.weak.copies=9",),
    "weak, trial": ("estimators.weak.copies=9", "estimators.weak.time_bin=trial"),
    "backprop, learned": ("neuron.trainable={ time_constant_ms = [0.1, 5] }",),
    "backprop, drawn": ("neuron.time_constant_ms=gamma(3, 27)",),
    "backprop, drawn and learned": (
        "neuron.time_constant_ms=gamma(3, 27)",
        "neuron.trainable={ time_constant_ms = [0.1, 5] }",
    ),
    "backprop, learned with thresholds": (
        "neuron.trainable={ time_constant_ms = [0.1, 5], threshold = [0.3, 3] }",
    ),
}
"""What is compared, and the settings of each: the name of an estimator, and what is said of it."""
DATASETS = {70: "spoken_digits_events", 700: "spoken_digits_events_700"}
FILES = {70: "fsdd_events", 700: "fsdd_events_700ch"}
HELD_OUT = {70: 12, 700: 8}
"""Training recordings of a lower number, of each digit and speaker, are the validation rows; the
first has number 5."""
NEW = 5
"""Number of the speaker who occurs in no training row."""
DURATION_MS, EPOCHS, RATES = 1000.0, 20, (0.001, 0.003, 0.01)
SETTINGS = (
    "encoding.kind=given",
    f"encoding.duration_ms={DURATION_MS:g}",
    "network.substrate=torch",
    "network.hidden=[128]",
    "network.readout=rate",
    "neuron.time_constant_ms=80",
    "neuron.resistance=2",
    "training.batch_size=64",
)


@dataclass(frozen=True)
class Cell:
    """One training, judged on ``validation`` rows, or learning from all of them and tested."""

    channels: int
    dt_ms: float
    rule: str
    rate: float
    seed: int
    validation: bool

    def experiment(self, folder: Path) -> tuple[experiment.Experiment, dict[str, data.Source]]:
        """Return what is ready for its first step, and the rows that it is judged by."""
        given = split(self.channels, self.dt_ms, folder, self.validation)
        configuration = experiment.configure(
            experiment.TrainingRequest(
                model="spiking_recurrent",
                **experiment.asked(given),
                estimator=self.rule.partition(",")[0],
                seed=self.seed,
                epochs=EPOCHS,
                device="cpu",
                assignments=(
                    *SETTINGS,
                    *RULES[self.rule],
                    f"encoding.dt_ms={self.dt_ms:g}",
                    f"training.learning_rate={self.rate:g}",
                ),
            )
        )
        dataset = configuration.read(given)
        run = experiment.Experiment(configuration, dataset)
        if self.validation:
            return run, {"validation": dataset.evaluated}
        new = speakers(self.channels, "test", folder) == NEW
        same, other = (torch.from_numpy(np.flatnonzero(each)) for each in (~new, new))
        test = dataset.evaluated
        parts = {"same": rows_of(test, same), "new": rows_of(test, other)}
        return run, {"train": dataset.train, **parts}

    def figures(self, folder: Path) -> dict[str, Any]:
        """Train, and return the accuracy on each part of the rows, and CPU seconds."""
        run, parts = self.experiment(folder)
        begin = time.process_time()
        for _record in run.trainer.steps():
            pass
        seconds = time.process_time() - begin
        found = {name: evaluate(run.engine, part)["accuracy"] for name, part in parts.items()}
        run.engine.detach()
        return {**found, "seconds": round(seconds, 1)}


Rows = tuple[torch.Tensor, torch.Tensor]


def split(channels: int, dt_ms: float, folder: Path, validation: bool) -> dict[str, Rows]:
    """Return inputs and digits to learn from and to be judged by."""
    train = binned(channels, dt_ms, "train", folder)
    if not validation:
        return {"train": train, "test": binned(channels, dt_ms, "test", folder)}
    held = torch.from_numpy(recordings(channels, folder) < HELD_OUT[channels])
    return {
        "train": (train[0][~held], train[1][~held]),
        "test": (train[0][held], train[1][held]),
    }


@functools.cache
def binned(channels: int, dt_ms: float, part: str, folder: Path) -> Rows:
    """Return the counts ``[N, T, 70]`` of a split, as the shipped recipe has them, and digits."""
    pool = {"pool": [10]} if channels == 700 else {}
    recipe = recipes.load_dataset(DATASETS[channels])
    recipe = dataclasses.replace(recipe, binning={"end_ms": DURATION_MS, **pool})
    loaded = data.load(
        recipe, name=DATASETS[channels], data_dir=folder, offline=True, timed=True, dt_ms=dt_ms
    )
    source = loaded.train if part == "train" else loaded.evaluated
    batch = source.take(torch.arange(len(source)))
    return batch.inputs, batch.targets


def recordings(channels: int, folder: Path) -> np.ndarray:
    """Return the number that every training recording has among those of its digit and speaker."""
    with h5py.File(place(channels, "train", folder), "r") as file:
        names = file["extra/source"].asstr()[:]
    return np.array([int(name.rpartition("_")[2]) for name in names])


def place(channels: int, split: str, folder: Path) -> Path:
    """Return a file of the data."""
    name = f"{FILES[channels]}_{split}.h5"
    inside = folder / "spoken_digits_events" / name
    return inside if inside.exists() else folder / name


def speakers(channels: int, split: str, folder: Path) -> np.ndarray:
    """Return the number of the speaker of every row."""
    with h5py.File(place(channels, split, folder), "r") as file:
        return np.asarray(file["extra/speaker"][:])


class Kept:
    """What was measured, a line of JSON for each training; a training that is there is not run."""

    def __init__(self, path: Path, folder: Path | None) -> None:
        self.path, self.folder = path, folder
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {self._key(**each["cell"]): each for each in map(json.loads, lines)}

    @staticmethod
    def _key(**cell: Any) -> str:
        return json.dumps(cell, sort_keys=True)

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """Return what a training found; None: it did not run, and there are no data to run it."""
        key = self._key(**vars(cell))
        if key not in self.found and self.folder is not None:
            line = {"cell": vars(cell), **cell.figures(self.folder)}
            with self.path.open("a") as file:
                print(json.dumps(line), file=file)
            print(json.dumps(line), flush=True)
            self.found[key] = line
        return self.found.get(key)

    def best_rate(self, channels: int, dt_ms: float, rule: str) -> float | None:
        """Return the rate that is best on the validation rows; None: not all were measured."""
        cells = [Cell(channels, dt_ms, rule, rate, 0, validation=True) for rate in RATES]
        found = [self.get(cell) for cell in cells]
        if not all(found):
            return None
        return max(zip(found, RATES, strict=True), key=lambda each: each[0]["validation"])[1]


def table(kept: Kept, choice: argparse.Namespace) -> None:
    """Print what was measured as Markdown: mean and range over the seeds."""
    print("| channels | rule | learning rate | train % | same speakers % | new speaker % | time |")
    print("|---|---|---|---|---|---|---|")
    for channels in map(int, choice.channels.split(",")):
        for rule in choice.only:
            rate = kept.best_rate(channels, choice.dt_ms, rule)
            seeds = range(choice.seeds if rate else 0)
            cells = [Cell(channels, choice.dt_ms, rule, rate or 0, seed, False) for seed in seeds]
            found = [each for each in map(kept.get, cells) if each is not None]
            if found:
                columns = [spread([100 * each[name] for each in found]) for name in PARTS]
                columns.append(f"{statistics.mean(each['seconds'] for each in found):.0f} s")
                print(f"| {channels} | {rule} | {rate:g} |", " | ".join(columns), "|", flush=True)


PARTS = ("train", "same", "new")


def spread(values: Sequence[float]) -> str:
    """Return mean and range.

    >>> spread([50.0, 60.0])
    '**55.0** (50.0–60.0)'
    """
    return f"**{statistics.mean(values):.1f}** ({min(values):.1f}–{max(values):.1f})"


def counts(channels: int, split: str, folder: Path, parts: int = 0) -> tuple[Any, Any, Any]:
    """Return spikes in 20 bins of 50 ms, or in equal ``parts`` of each trial; digits, speakers."""
    with h5py.File(place(channels, split, folder), "r") as file:
        times, units = file["spikes/times"][:], file["spikes/units"][:]
        ends, digits = file["extra/duration"][:], file["labels"][:].astype(int)
    found = np.zeros((len(digits), parts or 20, 70))
    for row, (when, unit) in enumerate(zip(times, units, strict=True)):
        when = when.astype(float) + 1e-9
        bins = (when * parts / ends[row] if parts else when / 0.05).astype(int)
        inside = bins < found.shape[1]
        np.add.at(found[row], (bins[inside], unit[inside].astype(int) * 70 // channels), 1)
    return found.reshape(len(digits), -1), digits, speakers(channels, split, folder)


def bars(folder: Path) -> None:
    """Print what classifiers of counts reach, by scikit-learn: the bars to beat.

    A tenth of a spike is added to the deviations by which counts are divided, or channels that
    hardly ever fire would count as much as the others.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    linear = LogisticRegression(C=0.003, max_iter=500)
    for name, model, parts, change in (
        ("logistic regression, square roots of counts, 20 bins of 50 ms", linear, 0, np.sqrt),
        ("support vectors, ten equal parts", SVC(C=3), 10, np.asarray),
    ):
        train, test = (counts(70, split, folder, parts) for split in ("train", "test"))
        mean, deviation = change(train[0]).mean(0), change(train[0]).std(0) + 0.1
        model.fit((change(train[0]) - mean) / deviation, train[1])
        right = model.predict((change(test[0]) - mean) / deviation) == test[1]
        same, new = (right[test[2] != NEW].mean(), right[test[2] == NEW].mean())
        print(f"{name}: same speakers {same:.3f}, new speaker {new:.3f}", flush=True)


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the HDF5 files")
    parser.add_argument("--only", nargs="+", default=list(RULES), choices=RULES, metavar="RULE")
    parser.add_argument("--channels", default="70,700")
    parser.add_argument("--dt-ms", type=float, default=50.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", type=Path, default=Path("spoken_digits.jsonl"))
    parser.add_argument("--bars", action="store_true", help="classifiers of counts instead")
    parser.add_argument("--table", action="store_true", help="train nothing")
    choice = parser.parse_args()
    if not choice.table and choice.data_dir is None:
        parser.error("--data-dir: where are the files?")
    if choice.bars:
        bars(choice.data_dir)
        return
    table(Kept(choice.kept, None if choice.table else choice.data_dir), choice)


if __name__ == "__main__":
    main()
