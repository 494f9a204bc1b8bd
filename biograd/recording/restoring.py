"""Bring a training back to a checkpoint, of which only its digest is known to be right."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Set
from typing import Any

from torch import Tensor

from biograd.errors import BiogradError, RunFileError, brief, natural
from biograd.recording.figures import EpochSums
from biograd.recording.training_setup import Experiment
from biograd.training.trainer import BEST, KEPT, Trainer

NUMBERS = (int, float)
OPTIMISER, SNAPSHOT = "optimiser.", "snapshot."
NOT_NEGATIVE = ("step", "sum", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta")
"""What optimisers count, or take the root of."""


def restore(
    experiment: Experiment,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    where: object,
    moved: bool = False,
) -> None:
    """Bring the trainer of an experiment to a checkpoint.

    Args:
        moved: it is of a device of another kind, whose random numbers cannot go on here: those of
            the seed take their place.

    Raises:
        RunFileError: the checkpoint is not one of this network and trainer.
    """
    trainer = experiment.trainer
    if moved:
        own = {f"engine.stream.{k}": s.get_state() for k, s in trainer.engine.streams.items()}
        tensors = {name: own.get(name, value) for name, value in tensors.items()}
    with _matching(where):
        _counts(
            {"step": meta["step"], "passes": meta.get("passes", 0)},
            {"training_seconds": meta.get("training_seconds", 0.0)},
        )
        _groups(trainer.optimiser.state_dict()["param_groups"], meta["param_groups"])
        _check_tensors(_expected(trainer, tensors, meta["options"]), tensors)
        learned = {n for n, p in experiment.network.named_parameters() if p.requires_grad}
        _check_values(tensors, meta["step"], learned)
        trainer.restore(tensors, meta)


def _expected(
    trainer: Trainer, tensors: Mapping[str, Tensor], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return a tensor like each that a checkpoint must have; its optimiser's settings are checked.

    A parameter that had no gradient yet has no state in the optimiser.
    """
    own = {n: v for n, v in trainer.checkpoint()[0].items() if not n.startswith(OPTIMISER)}
    for name in (name for name in tensors if name.startswith(SNAPSHOT)):
        if (value := own.get(f"network.{name.removeprefix(SNAPSHOT)}")) is not None:
            own[name] = value
    if any(name.startswith(BEST) for name in tensors):
        own |= {BEST + name: own[name] for name in own if name.startswith(KEPT)}
    kept = trainer.optimiser_state()
    begun = {name.split(".")[1] for name in tensors if name.startswith(OPTIMISER)}
    for number in begun | options.keys():
        mine, given = kept.get(number, {}), options.get(number, {})
        like = {name: value for name, value in mine.items() if isinstance(value, Tensor)}
        own |= {f"{OPTIMISER}{number}.{name}": value for name, value in like.items()}
        if given.keys() != mine.keys() - like.keys():
            raise ValueError(f"options of {OPTIMISER}{number} are {sorted(given)}")
    return own


def _check_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Check names, types and shapes; the network's own names are checked when it loads them."""
    for name in sorted(own.keys() ^ given.keys(), key=natural):
        if not name.startswith("network."):
            raise ValueError(f"{name} {'is missing' if name in own else 'has no place in it'}")
    for name in own.keys() & given.keys():
        mine, other = own[name], given[name]
        grows = len(mine.shape) == len(other.shape) > 0 == mine.shape[0]  # a row for each example
        _alike(name, mine[:0] if grows else mine, other[:0] if grows else other)


def _check_values(tensors: Mapping[str, Tensor], step: int, learned: Set[str]) -> None:
    """Check what else would fail, or go wrong, in the steps that follow.

    Args:
        learned: names of the network's parameters; its other tensors may hold anything.
    """
    for name, value in tensors.items():
        if name.startswith("network.") and name.removeprefix("network.") not in learned:
            continue
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite")
        if name.startswith(OPTIMISER):
            last = name.rpartition(".")[2]
            if (last == "step" and value > step) or (last in NOT_NEGATIVE and (value < 0).any()):
                raise ValueError(f"{name} is out of range")
        elif name.startswith("engine.scale.") and value <= 0:
            raise ValueError(f"{name} is not positive")
    if tensors["engine.step"] != step:
        raise ValueError(f"engine.step is {int(tensors['engine.step'])}, not {step}")


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
    except RunFileError:
        raise
    except (
        BiogradError,
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
