"""What came of repeating a run: differences, limits, a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from biograd.metrics import DEFAULT, is_share, words, written

Kind = Literal["tensors", "metrics", "snapshots", "spikes"]
Verdict = Literal["bits", "numbers", "neither"]


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
        differently; beside the CPU sums may come in any order.  Other code computes other numbers.
        """
        if not self.differences:
            return "bits"
        other = any(change.what == "code" for change in self.changes)
        excused = not other and (bool(self.changes) or self.device != "cpu")
        return "numbers" if excused and self.within else "neither"

    @property
    def failure(self) -> str:
        """One line that says why the run was not reproduced; "" if it was."""
        if self.verdict != "neither":
            return ""
        worst = sorted(self.differences, key=lambda one: -one.size)
        named = ", ".join(map(str, worst[:3]))
        more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        changes = "; ".join(map(str, self.changes))
        why = f" ({changes})" if changes else ", though nothing known differs in the environment"
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
