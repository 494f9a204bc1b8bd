"""Repeat a run from its file alone, and say whether what comes out is the same.

::

    run file -> configuration -> the same training, into another file -> both files side by side

Times, paths and what a machine has to do with them (memory, speed) are not compared.  On one
machine all bits agree; where something of the machine differs (processor, number of threads,
versions), sums are rounded differently, and the numbers are compared within ``Limits``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from biograd.configuration import Configuration
from biograd.errors import RecipeError
from biograd.experiment import begin, go_on, need_data, need_module
from biograd.metrics import DEFAULT, headline, is_share, words, written
from biograd.progress import Progress, Silent
from biograd.recording import Interrupted
from biograd.runs.environment import environment
from biograd.runs.layout import Array
from biograd.runs.reader import Run, open_run
from biograd.runs.storage import RunPaths

Kind = Literal["tensors", "metrics", "snapshots", "spikes"]
Verdict = Literal["bits", "numbers", "neither"]

TIMES = frozenset(("wall_time", "seconds", "steps_per_second", "training_seconds"))
MACHINE = TIMES | {"run", "peak_memory_bytes", "ranks"}
"""What of a summary belongs to the machine and not to the training."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far numbers may be apart that were rounded differently.

    Why a network that spikes has others: a potential that misses its threshold by a rounding error
    moves a spike, and from there on the two trainings go ways of their own.  Their weights then
    say nothing, and of their results only what is beyond such chance does.

    Attributes:
        parameters: largest difference within a tensor of the network at the end, by its largest
            value; None: not judged.
        losses: the same of every loss, step by step and epoch by epoch.
        result: difference of the task's headline metric on the evaluated split at the end: of
            shares (0..1) as it is, of others by their size.
    """

    parameters: float | None = 0.01
    losses: float = 0.01
    result: float = 0.01


RATE, SPIKING = Limits(), Limits(parameters=None, losses=0.2, result=0.02)


@dataclasses.dataclass(frozen=True)
class Difference:
    """Something that the two runs have in common, but not bit for bit.

    Attributes:
        name: as in the run file, ``network.readout.weight`` or ``epoch/test_loss``.
        size: largest difference by the largest value; infinite if shapes differ.
        step: at which the first difference is; None: of the end.
    """

    kind: Kind
    name: str
    size: float
    step: int | None = None

    def __str__(self) -> str:
        """Return name, size and step."""
        size = "another shape" if math.isinf(self.size) else f"{self.size:.1g}"
        return f"{self.name} ({size}{'' if self.step is None else f', from step {self.step} on'})"


@dataclasses.dataclass(frozen=True)
class Change:
    """Something of the machine that was different when the run was made."""

    what: str
    then: Any
    now: Any

    def __str__(self) -> str:
        """Return what it was, and is."""
        return f"{self.what} {'unknown' if self.then is None else self.then}, now {self.now}"


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What came of repeating a run.

    Attributes:
        run: path of the file that was repeated.
        repeated: path of the new file; None: it was not kept.
        step: up to which the run was repeated.
        compared: how many tensors, rows of metrics, snapshots and spikes.
        differences: what does not agree bit for bit.
        numbers: largest differences of ``parameters`` and ``losses`` and that of the ``result``
            (see ``Limits``), and both results.
        metric: the task's headline.
        changes: what differs in the environment.
        notes: what else there is to say, a sentence each.
    """

    run: Path
    repeated: Path | None
    step: int
    compared: Mapping[Kind, int]
    differences: tuple[Difference, ...]
    numbers: Mapping[str, float]
    limits: Limits
    changes: tuple[Change, ...]
    device: str
    notes: tuple[str, ...] = ()
    metric: str = DEFAULT

    @property
    def within(self) -> bool:
        """Whether the numbers agree within the limits."""
        limits = dataclasses.asdict(self.limits)
        return all(
            self.numbers[name] <= limit
            for name, limit in limits.items()
            if limit is not None and name in self.numbers
        )

    @property
    def verdict(self) -> Verdict:
        """What agrees: all ``bits``, the ``numbers``, or ``neither``.

        Numbers that agree are not enough where nothing is known that could have rounded them
        differently; on CUDA sums may come in any order.
        """
        if not self.differences:
            return "bits"
        excused = bool(self.changes) or self.device == "cuda"
        return "numbers" if excused and self.within else "neither"

    @property
    def failure(self) -> str:
        """One line that says why the run was not reproduced; "" if it was."""
        if self.verdict != "neither":
            return ""
        worst = sorted(self.differences, key=lambda one: -one.size)
        named = ", ".join(map(str, worst[:3]))
        more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        why = "" if self.changes else ", though nothing known differs in the environment"
        return f"{self.run}: is not reproduced{why}: {named}{more}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        found = dataclasses.asdict(self)
        return {"verdict": self.verdict, **found, "run": str(self.run)}

    def __str__(self) -> str:
        """Return the result for people."""
        rows = [("run", str(self.run)), ("repeated", _steps(self))]
        rows += [("", note) for note in self.notes]
        rows += [("bits", _bits(self))]
        if self.differences:
            rows += [("numbers", _numbers(self))]
            changes = "; ".join(map(str, self.changes)) or "nothing known differs"
            rows += [("environment", changes)]
        return "\n".join(f"{label:<13}{text}".rstrip() for label, text in rows)


def _steps(found: Reproduction) -> str:
    kept = "" if found.repeated is None else f", into {found.repeated}"
    return f"{found.step} steps{kept}"


def _bits(found: Reproduction) -> str:
    words: dict[Kind, str] = {"tensors": "tensors", "metrics": "rows of metrics"}
    words |= {"snapshots": "snapshots", "spikes": "spikes"}
    if not found.differences:
        parts = [f"{n} {words[kind]}" for kind, n in found.compared.items() if n]
        return f"agree: {', '.join(parts)}"
    counts = Counter(one.kind for one in found.differences)
    parts = [f"{kind} {counts[kind]}" for kind in words if counts[kind]]
    timed = [one for one in found.differences if one.step is not None]
    first = min(timed, key=lambda one: one.step or 0) if timed else None
    since = "" if first is None else f"; the first from step {first.step} on, {first.name}"
    return f"differ: {', '.join(parts)}{since}"


def _numbers(found: Reproduction) -> str:
    parts = []
    for name, limit in dataclasses.asdict(found.limits).items():
        if name not in found.numbers:
            continue
        if name == "result":
            now, then = (
                written(found.metric, found.numbers[key]) for key in ("result_now", "result_then")
            )
            allowed = f"within {100 * limit:g}{'' if is_share(found.metric) else ' %'} is enough"
            parts.append(f"test {words(found.metric)} {now}, was {then} ({allowed})")
        else:
            allowed = "not judged" if limit is None else f"{100 * limit:g} is enough"
            parts.append(f"{name} within {100 * found.numbers[name]:.2g} % ({allowed})")
    return f"{'agree' if found.within else 'differ'}: {', '.join(parts)}"


def reproduce(
    path: str | Path,
    network: nn.Module | None = None,
    *,
    data: Any = None,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Repeat a run from its file alone and compare what comes out with what is in the file.

    A run that did not come to its end is repeated up to its last commit; one that was trained on
    with other epochs is repeated part by part, each with its own schedule.  A run that was
    interrupted and resumed is the same as one that was not.

    Args:
        path: of a run file, or of its parts.
        network: your own module as it was before the training, if the run trained one; it is
            trained.
        data: your own data, if the run learned from any that are in no file; or where its files
            are now.
        out: where to keep the repeated run; None: it is deleted.
        data_dir: of the data; None: as the run had it.
        offline: do not download; None: as the run had it.
        progress: shows how it goes on.

    Raises:
        RunFileError: there is no such run, it cannot be read, or has no commit.
        RecipeError: the run's budget is a time; or its own module is missing.
        DataError: the data cannot be had, or are others.
    """
    shown = progress or Silent()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(open_run(path))
        configuration = _configuration(run, data_dir, offline)
        need_module(configuration, network, run.path, "reproduce")
        need_data(configuration, data, run.path, "reproduce")
        if not run.attributes["dataset_sha256"]:
            raise RecipeError(f"{run.path}: its data do not repeat, nor does the run")
        configuration = configuration.given(data)
        step = int(run.checkpoint()[1]["step"])
        if out is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="biograd-"))
            target = Path(folder) / "repeated.h5"
        else:
            target = RunPaths.of(out).file
            if target.exists() or RunPaths.of(out).parts.exists():
                raise RecipeError(f"{target}: exists; give another --out")
        try:
            _repeat(run, configuration, target, step, shown, network, data)
        except Interrupted as error:
            if out is not None:
                raise
            message = f"interrupted: nothing of the repetition of {run.path} is kept"
            raise Interrupted(message, error.exit_code - 128) from error
        with open_run(target) as repeated:
            found = _compared(run, repeated, step, configuration.device)
        return dataclasses.replace(
            found, repeated=None if out is None else target, notes=_notes(run, configuration, step)
        )


def _configuration(run: Run, data_dir: str | Path | None, offline: bool | None) -> Configuration:
    """Return how the run is repeated here.

    Raises:
        RecipeError: nothing says how far it went.
    """
    configuration = Configuration.of(run.config, run.path)
    seconds = configuration.recipe.training.seconds
    if seconds is not None:
        raise RecipeError(
            f"{run.path}: its budget is training.seconds = {seconds}: how far a training comes in "
            "that time does not repeat, nor do its numbers; train with training.passes"
        )
    here = configuration.device == "cpu" or torch.cuda.is_available()
    control = run.summary.get("frozen_hidden_control", 0) is not None
    return dataclasses.replace(
        configuration,
        device=configuration.device if here else "cpu",
        data_dir=configuration.data_dir if data_dir is None else str(data_dir),
        offline=configuration.offline if offline is None else offline,
        control=configuration.control and control,  # a module's is not trained after a resumption
    )


def _repeat(
    run: Run,
    configuration: Configuration,
    target: Path,
    step: int,
    progress: Progress,
    network: nn.Module | None,
    own: Any,
) -> None:
    """Train as the run did, with every budget that it had, up to ``step``."""
    last = None if run.status == "completed" else step
    stages = configuration.stages
    training = configuration.recipe.training
    budgets = [*(stage.epochs for stage in stages), training.epochs]
    first = dataclasses.replace(
        configuration,
        stages=(),
        recipe=dataclasses.replace(
            configuration.recipe, training=dataclasses.replace(training, epochs=budgets[0])
        ),
    )
    ends = [*(stage.steps for stage in stages), last]
    begin(first, target, progress, network, own=own, like=run).run(ends[0])
    for epochs, end in zip(budgets[1:], ends[1:], strict=True):
        go_on(target, epochs, progress, network, own).run(end)


def _notes(run: Run, configuration: Configuration, step: int) -> tuple[str, ...]:
    notes = []
    if run.status != "completed":
        notes.append(f"the run is {run.status}: repeated up to its last commit, at step {step}")
    for stage in configuration.stages:
        notes.append(f"up to step {stage.steps} training.epochs was {stage.epochs}")
    return tuple(notes)


# Two runs side by side ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """An array of a run that must repeat.

    Attributes:
        steps: of its rows; None: it is of the end.
    """

    kind: Kind
    name: str
    values: Array
    steps: Array | None = None


def contents(run: Run, step: int) -> Iterator[Part]:
    """Yield all of a run up to a step that does not depend on when and where it was made."""
    for name, tensor in run.checkpoint(step)[0].items():
        known = tensor.float() if tensor.dtype is torch.bfloat16 else tensor  # NumPy has none
        yield Part("tensors", name, known.numpy())
    yield from _metrics(run, step)
    count = int((run.snapshots.get("step", np.zeros(0)) <= step).sum())
    yield from _snapshots(run, count)
    yield from _spikes(run, count)


def _metrics(run: Run, step: int) -> Iterator[Part]:
    for stream in run.streams:
        columns = run.scalars(stream)
        rows = columns["step"] <= step
        if stream == "final":  # every end of a run that was trained on left a row
            if run.status != "completed":
                continue
            rows = np.arange(len(rows)) == len(rows) - 1
        for name, values in columns.items():
            missing = np.isnan(values[rows]).all() and rows.any()  # of earlier ends alone
            if name not in TIMES and not missing:
                yield Part("metrics", f"{stream}/{name}", values[rows], columns["step"][rows])
    if run.status == "completed":
        for name, value in run.summary.items():
            if name not in MACHINE and isinstance(value, int | float):
                yield Part("metrics", f"summary/{name}", np.array([value]))


def _snapshots(run: Run, count: int) -> Iterator[Part]:
    places = run.snapshots
    steps = places.get("step", np.zeros(0))[:count]

    def part(name: str, values: Array) -> Part:
        return Part("snapshots", name, values[:count], steps)

    for name in places.keys() - TIMES:
        yield part(f"snapshots/{name}", places[name])
    for title, groups in (("params", run.params), ("learning", run.learning)):
        for group, columns in groups.items():
            for name, values in columns.items():
                yield part(f"{title}/{group}/{name}", values)
    for layer in run.layers:
        yield part(f"layers/{layer}/activation", run.activation(layer))
        for name, values in run.statistics(layer).items():
            yield part(f"layers/{layer}/{name}", values)


def _spikes(run: Run, count: int) -> Iterator[Part]:
    spiking = [name for name, layer in run.layers.items() if layer.kind == "spiking"]
    trials = int((run.trials["snapshot"] < count).sum()) if spiking else 0
    for layer in spiking:
        spikes = run.spikes(layer)
        stop = int(spikes.trial_ptr[trials])
        for name in ("timestamps", "node_ids", "trial_ids"):
            yield Part("spikes", f"spikes/{layer}/{name}", getattr(spikes, name)[:stop])


def _compared(run: Run, repeated: Run, step: int, device: str) -> Reproduction:
    then = {part.name: part for part in contents(run, step)}
    now = {part.name: part for part in contents(repeated, step)}
    differences = tuple(
        difference
        for name in dict.fromkeys((*then, *now))
        if (difference := _difference(then.get(name), now.get(name))) is not None
    )
    spiking = any(layer.kind == "spiking" for layer in run.layers.values())
    return Reproduction(
        run=run.path,
        repeated=None,
        step=step,
        compared=_counts(then),
        differences=differences,
        numbers=_sizes(then, now, headline(run.attributes)),
        limits=SPIKING if spiking else RATE,
        changes=tuple(_changes(run, device)),
        device=device,
        metric=headline(run.attributes),
    )


def _counts(parts: Mapping[str, Part]) -> dict[Kind, int]:
    """Return how many tensors, rows, snapshots and spikes there are."""

    def rows(ending: str) -> int:
        return sum(len(p.values) for name, p in parts.items() if name.endswith(ending))

    return {
        "tensors": sum(part.kind == "tensors" for part in parts.values()),
        "metrics": sum(rows(name) for name in parts if name.endswith("/step"))
        - rows("snapshots/step"),
        "snapshots": rows("snapshots/step"),
        "spikes": rows("/timestamps"),
    }


def _difference(then: Part | None, now: Part | None) -> Difference | None:
    """Return how two arrays differ; None if every bit agrees."""
    if then is None or now is None:
        only = then or now
        assert only is not None
        return Difference(only.kind, only.name, math.inf)
    a, b = then.values, now.values
    if a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return None
    step = None
    if then.steps is not None and a.shape == b.shape:
        same = (a == b) | ((a != a) & (b != b))
        rows = np.flatnonzero(~same.reshape(len(a), -1).all(1))
        step = int(then.steps[rows[0]]) if len(rows) else None
    return Difference(then.kind, then.name, size(a, b), step)


def size(a: Array, b: Array) -> float:
    """Return the largest difference of two arrays by the largest value of the first.

    >>> size(np.array([2.0, 4.0, np.nan]), np.array([2.0, 3.0, np.nan]))
    0.25
    """
    if a.shape != b.shape:
        return math.inf
    a, b = (np.atleast_1d(values).astype(np.float64) for values in (a, b))
    apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    if not apart.size or not apart.any():
        return 0.0
    scale = float(np.nanmax(np.abs(a), initial=0.0))
    largest = float(apart.max())
    return largest / scale if scale > 0 and math.isfinite(largest) else math.inf


def _sizes(then: Mapping[str, Part], now: Mapping[str, Part], metric: str) -> dict[str, float]:
    """Return the largest differences of what is judged."""

    def largest(names: list[str]) -> float:
        missing = np.zeros((0, 0))
        return max(
            (size(then[n].values, now[n].values if n in now else missing) for n in names),
            default=0.0,
        )

    found = {
        "parameters": largest([n for n in then if n.startswith("network.")]),
        "losses": largest(
            [n for n, p in then.items() if p.kind == "metrics" and n.endswith("loss")]
        ),
    }
    results = [parts.get(f"epoch/test_{metric}") for parts in (then, now)]
    if all(part is not None and len(part.values) for part in results):
        before, after = (float(part.values[-1]) for part in results if part is not None)
        scale = 1.0 if is_share(metric) else max(abs(before), 1e-12)
        found |= {"result": abs(after - before) / scale}
        found |= {"result_then": before, "result_now": after}
    return found


def _changes(run: Run, device: str) -> Iterator[Change]:
    """Yield what of the environment can round differently, and is not as it was."""
    then, now = run.environment, environment(device)
    versions = then.get("versions", {})
    for name, version in now["versions"].items():
        if version != versions.get(name):
            yield Change(name, versions.get(name), version)
    for what in ("cpu", "threads", "device"):
        if now[what] != then.get(what):
            yield Change(what, then.get(what), now[what])
    if run.summary.get("ranks", 1) != 1:
        yield Change("ranks", run.summary["ranks"], 1)
