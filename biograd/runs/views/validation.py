"""Whether a run file is what the layout says, read to the last value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from biograd.errors import BiogradError
from biograd.runs.contents import LOST_SEAL
from biograd.runs.parts.seal import is_sealed


class CheckedPart(NamedTuple):
    """One part of a run that was looked at.

    Attributes:
        name: the part.
        problem: what is wrong, "" if nothing is.
        note: what is not wrong, but should be known.
    """

    name: str
    problem: str
    note: str = ""


def validate(run: Any) -> list[CheckedPart]:
    """Read every part of a run and compare it with the layout; nothing is changed.

    Args:
        run: an open run.
    """
    unsealed = "there is no digest: damage would not be seen" if not run.sealed else ""
    digest = _tried("digest", partial(_digest, run))
    rest = [_tried(name, part) for name, part in _parts(run)]
    return [*rest, digest._replace(note="" if digest.problem else unsealed)]


def _tried(name: str, part: Callable[[], str]) -> CheckedPart:
    try:
        return CheckedPart(name, part())
    except BiogradError as error:
        return CheckedPart(name, str(error))


def _parts(run: Any) -> Iterator[tuple[str, Callable[[], str]]]:
    for stream in run.streams:
        yield f"scalars/{stream}", partial(_read, partial(run.scalars, stream))
    for name in ("snapshots", "trials", "params", "learning"):
        yield name, partial(_read, partial(getattr, run, name))
    names = {entry.name for entry in run.tree()}
    for layer, info in run.layers.items():
        if f"layers/{layer}/activation" in names:
            yield f"layers/{layer}", partial(_each, partial(run.activity, layer))
        if info.kind == "spiking" and f"spikes/{layer}/timestamps" in names:
            yield f"spikes/{layer}", partial(_spikes, run, layer)
    for name in (name for name in run.further_rows if name in names):
        yield name, partial(_each, partial(run.named, name))
    for step in run.checkpoints:
        yield f"checkpoints/{step}", partial(_read, partial(run.checkpoint, step))
    yield "names, units and sentences", partial(_explained, run)


def _digest(run: Any) -> str:
    if run.path.is_file():
        is_sealed(run.path)  # whatever its size
    return LOST_SEAL if run.lost_seal else ""


def _explained(run: Any) -> str:
    lacking = run.unexplained()
    return f"/{lacking[0]} lacks long_name, units or description" if lacking else ""


def _read(part: Callable[[], Any]) -> str:
    """Read a part; whatever is wrong is raised."""
    part()
    return ""


def _each(part: Callable[[], Any]) -> str:
    for _one in part():
        pass
    return ""


def _spikes(run: Any, layer: str) -> str:
    """Compare the spikes with the mean activity of their trials."""
    spikes, activity = run.spikes(layer), run.activity(layer)
    for number, mean in enumerate(activity):
        counts = spikes.snapshot(number).counts()
        expected = mean * (spikes.info.n_steps or 0)
        if not np.isnan(mean).all() and not np.allclose(counts, expected, atol=0.1):
            return f"the spikes of snapshot {number} are not those of its activity"
    return ""
