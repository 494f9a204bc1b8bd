"""Bring a training back to a checkpoint, of which only its digest is known to be right."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from biograd.errors import BiogradError, RunFileError, brief
from biograd.recording.figures import EpochSums
from biograd.recording.training_setup import Experiment
from biograd.training.trainer import BEST, KEPT

NUMBERS = (int, float)
SCALE, SNAPSHOT = "engine.scale.", "snapshot."


def restore(
    experiment: Experiment, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: object
) -> None:
    """Bring the trainer of an experiment to a checkpoint.

    Raises:
        RunFileError: the checkpoint is not one of this network and trainer.
    """
    trainer = experiment.trainer
    with _matching(where):
        own, known = trainer.checkpoint()
        for name, value in own.items():
            if name.startswith("network.") and name in tensors:
                _alike(name, value, tensors[name])
            elif name in tensors and value.dtype != tensors[name].dtype:  # a store may grow
                raise ValueError(f"{name} is {tensors[name].dtype}, not {value.dtype}")
        for name, value in tensors.items():
            if name.startswith("optimiser.") and not value.is_floating_point():
                raise ValueError(f"{name} is {value.dtype}")
        for name in (name for name in tensors if name.startswith(SNAPSHOT)):
            _alike(name, own[f"network.{name.removeprefix(SNAPSHOT)}"], tensors[name])
        best = {name.removeprefix(BEST): tensors[name] for name in tensors if name.startswith(BEST)}
        for name, value in best.items():
            _alike(BEST + name, own[name], value)
        if best and (lacking := {name for name in own if name.startswith(KEPT)} - set(best)):
            raise ValueError(f"{BEST}{min(lacking)} is missing")
        scaled = {name.removeprefix(SCALE) for name in tensors if name.startswith(SCALE)}
        lacking = set(trainer.engine.hidden) - scaled
        if scaled and lacking:
            raise ValueError(f"{SCALE}{min(lacking)} is missing")
        _counts(
            {"step": meta["step"], "passes": meta.get("passes", 0)},
            {"training_seconds": meta.get("training_seconds", 0.0)},
        )
        _groups(known["param_groups"], meta["param_groups"])
        trainer.restore(tensors, meta)
        for group in trainer.optimiser.param_groups:
            for parameter in group["params"]:
                for name, value in trainer.optimiser.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.numel() != 1:
                        _alike(f"optimiser.{name}", parameter.detach(), value)


def epoch_sums(meta: Mapping[str, Any], batch: int, where: object) -> tuple[EpochSums, float, int]:
    """Return the sums of the epoch, its seconds and the peak of the memory, of a checkpoint.

    Raises:
        RunFileError: the checkpoint does not have them.
    """
    with _matching(where):
        sums = EpochSums.of(meta["sums"], batch)
        memory = meta.get("peak_memory_bytes", 0)
        _counts({"steps": sums.steps, "peak_memory_bytes": memory}, {"seconds": meta["seconds"]})
        if type(sums.loss) not in NUMBERS:
            raise TypeError(f"sums: {sums.loss!r} is not a number")
        for rows in sums.totals.values():
            for number in (number for row in rows for number in row):
                if type(number) not in NUMBERS:
                    raise TypeError(f"sums: {number!r} is not a number")
        return sums, float(meta["seconds"]), memory


@contextlib.contextmanager
def _matching(where: object) -> Iterator[None]:
    """Turn whatever a checkpoint that does not fit lets fail into one error."""
    try:
        yield
    except BiogradError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise RunFileError(
            f"{where}: its checkpoint does not fit its configuration ({brief(str(error))})"
        ) from error


def _alike(name: str, own: Tensor, given: Tensor) -> None:
    if own.shape != given.shape or own.dtype != given.dtype:
        raise ValueError(
            f"{name} is {given.dtype} {tuple(given.shape)}, not {own.dtype} {tuple(own.shape)}"
        )


def _counts(whole: Mapping[str, Any], real: Mapping[str, Any]) -> None:
    """Check the numbers of a checkpoint: those that count, and finite seconds."""
    for name, value in whole.items():
        if type(value) is not int or not 0 <= value < 2**53:
            raise ValueError(f"{name} is {value!r}")
    for name, value in real.items():
        if type(value) not in NUMBERS or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}")


def _groups(own: Any, given: Any) -> None:
    """Check that an optimiser's settings are those of the configuration, but the rate of now."""
    if not isinstance(given, list) or len(given) != len(own):
        raise ValueError("param_groups are not those of the optimiser")
    for mine, other in zip(own, given, strict=True):
        for name in mine.keys() & other.keys() - {"lr"}:
            if _listed(mine[name]) != _listed(other[name]):
                raise ValueError(f"param_groups: {name} is {other[name]!r}, not {mine[name]!r}")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
