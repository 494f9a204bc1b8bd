"""Recording in a loop of one's own, Lightning's included, into the file that trainings write."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biograd.engine import Engine
from biograd.errors import CapabilityError, DataError, RecipeError
from biograd.estimators import ESTIMATORS
from biograd.recipes import construct
from biograd.recipes.recording_recipe import RecordingRecipe
from biograd.recording.description import LONGEST, observed_layers
from biograd.recording.figures import log_spaced, parameter_measures
from biograd.recording.observation import Observed, neurons, observe
from biograd.recording.sampling import FEW, Sampled, Sampling
from biograd.runs.environment import environment
from biograd.runs.layout import Array, Probe
from biograd.runs.writer import RunWriter
from biograd.substrate.network import Network
from biograd.substrate.sites import Sites, find_sites

LAST = 10**9
"""Steps of a loop whose length is not told, for the snapshots at 1, 2, 5, 10, ..."""
WAIT = 10.0
"""Seconds after which numbers that wait are put on disk."""
ELSEWHERE = ("stimuli", "epochs", "best", "checkpoints")
"""Settings of ``[recording]`` that only a training of biograd can follow."""


def record(
    network: nn.Module | Engine,
    path: str | os.PathLike[str],
    stimuli: Tensor,
    targets: Tensor | None = None,
    *,
    steps: int | None = None,
    sites: Sites | None = None,
    notes: Mapping[str, Any] | None = None,
    force: bool = False,
    **recording: Any,
) -> LoopRecording:
    """Record a network while a loop of one's own trains it; the initial state is the first look.

    ``record(...) as run``, then ``run.step(step, loss=loss)`` after each update.  What was recorded
    can be read at once, by ``biograd.load(path)``, also while the loop goes on or after it died.

    Args:
        network: or its engine, which is needed for ``credit`` and ``gradients``.
        path: the run file.
        stimuli: what every snapshot shows to the network, ``[stimulus, ...]``.
        targets: of the stimuli; int64 ``[stimulus]``: their classes.
        steps: of the loop; needed for ``every``, to tell the size before it begins.
        sites: names of the layers, as in ``biograd.attach``; an engine has its own.
        notes: what else is to be known of the run, as JSON values.
        force: replace an existing run.
        recording: ``layers``, ``variables``, ``outputs``, ``weights``, ``gradients``, ``log``,
            ``every``, ``at``, ``limit_gb``, as in ``[recording]``.

    Raises:
        RecipeError: the run exists, a setting is not known, or the recording is too large.
        DataError: there are no stimuli, or targets of another number.
        CapabilityError: the network has no layer, or not what is asked for.
    """
    recipe = _recipe(recording, steps)
    _check_stimuli(stimuli, targets)
    engine = network if isinstance(network, Engine) else None
    if engine is not None and sites is not None:
        raise RecipeError("record: sites: the engine has its own: leave them out")
    module = network if isinstance(network, nn.Module) else network.network
    RunWriter.check(path, force=force)
    return LoopRecording(
        Path(path),
        _sampled(module, engine, sites, (stimuli, targets), recipe, steps),
        targets=targets,
        notes=notes or {},
        steps=steps,
        force=force,
    )


def _recipe(given: Mapping[str, Any], steps: int | None) -> RecordingRecipe:
    known = {field.name for field in dataclasses.fields(RecordingRecipe)}
    for name in given:
        if name in ELSEWHERE or name not in known:
            why = "is of a training of biograd" if name in known else "is no setting of recording"
            raise RecipeError(f"record: {name}: {why}: leave it out")
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v is not None}
    recipe = construct(RecordingRecipe, plain, "record")
    if recipe.every and steps is None:
        raise RecipeError("record: every: how many steps will there be? Give steps")
    return recipe


def _check_stimuli(stimuli: Tensor, targets: Tensor | None) -> None:
    if not isinstance(stimuli, Tensor) or not stimuli.dim() or not len(stimuli):
        raise DataError("record: stimuli: a tensor [stimulus, ...] with a stimulus at least")
    if targets is not None and len(targets) != len(stimuli):
        raise DataError(f"record: targets: {len(targets)} for {len(stimuli)} stimuli")


def _labels(targets: Tensor | None) -> Tensor | None:
    """Return the classes of the stimuli, if their targets are such."""
    whole = targets is not None and targets.dim() == 1 and not targets.is_floating_point()
    return targets if whole else None


def _sampled(
    network: nn.Module,
    engine: Engine | None,
    sites: Sites | None,
    shown: tuple[Tensor, Tensor | None],
    recipe: RecordingRecipe,
    steps: int | None,
) -> Sampled:
    found = find_sites(network, sites) if engine is None else engine.substrate.sites
    stimuli, targets = shown[0].detach().cpu(), shown[1]
    if targets is None:
        targets = torch.zeros(len(stimuli), dtype=torch.int64)
        if "credit" in recipe.variables or recipe.gradients:
            raise RecipeError("record: credit and gradients need the targets of the stimuli")

    def look(inputs: Tensor) -> Mapping[str, Observed]:
        devices = [inputs.device] if inputs.is_cuda else []
        with torch.random.fork_rng(devices):
            return observe(network, found, inputs)

    due = _due(recipe, LAST if steps is None else steps)
    return Sampled(
        network,
        look,
        engine,
        stimuli,
        targets.detach().cpu(),
        recipe,
        count=1 + len(due),
        classes=0,
    )


def _due(recipe: RecordingRecipe, steps: int) -> frozenset[int]:
    """Return the steps that are followed by a snapshot."""
    every = set(range(recipe.every, steps + 1, recipe.every)) if recipe.every else set()
    spaced = log_spaced(steps) if recipe.log else set()
    return frozenset(every | spaced | {step for step in recipe.at if step <= steps})


class LoopRecording:
    """A recording under way in a loop of one's own; as a context manager it closes itself.

    Attributes:
        writer: of the file; stands where a Lightning logger is expected.
        said: what is to be said of the size, "" if it is small.
    """

    def __init__(
        self,
        path: Path,
        subject: Sampled,
        *,
        targets: Tensor | None,
        notes: Mapping[str, Any],
        steps: int | None,
        force: bool,
    ) -> None:
        """Look for the first time, and begin the file."""
        network = subject.network
        seen = subject.observe(subject.inputs[:FEW])
        layers = observed_layers(network, seen, subject.recipe.layers)
        if not layers:
            raise CapabilityError(
                f"record: {type(network).__name__}: no activity between two layers: name its sites"
            )
        self._sampling, self._steps = Sampling(subject, layers), steps
        self.said = self._sampling.check()
        self._due = _due(subject.recipe, LAST if steps is None else steps)
        self._before: dict[str, Tensor] = {}
        self._at, self._committed = 0, time.monotonic()
        kinds = {one.kind for one in layers.values()}
        self.writer = RunWriter(
            path,
            config={"loop": {"steps": steps, "recording": dataclasses.asdict(subject.recipe)}},
            environment=environment(str(next(network.parameters()).device)),
            attributes=_attributes(network, subject.engine, "spiking" in kinds),
            probe=_probe(subject, targets),
            layers=layers,
            rows=self._sampling.rows,
            recording={**self._sampling.said(), "classes": _classes(self._sampling, targets)},
            force=force,
        )
        if notes:
            self.writer.log_hyperparams(dict(notes))
        self.snapshot(0)

    @property
    def path(self) -> Path:
        """The finished file."""
        return self.writer.path

    def step(self, step: int, epoch: int = 0, **numbers: float | Tensor) -> None:
        """Note that a step, counted from 1, is done, and look if a snapshot is due.

        Args:
            step: greater than that before.
            epoch: counted from 0.
            numbers: loss, accuracy and the like.

        Raises:
            RecipeError: the step is not after that before, or after the last that was announced.
        """
        if step <= self._at or (self._steps is not None and step > self._steps):
            last = "" if self._steps is None else f", of {self._steps}"
            raise RecipeError(f"record: step {step} after step {self._at}{last}")
        self._at = step
        values = _numbers(numbers)
        self.writer.scalars("train_step", step, epoch, values)
        if step in self._due:
            self.snapshot(step, epoch)
        elif time.monotonic() - self._committed > WAIT:
            self._commit(step)

    def epoch(self, epoch: int, **numbers: float | Tensor) -> None:
        """Note numbers of an epoch, counted from 0, such as ``test_accuracy``."""
        values = _numbers(numbers)
        self.writer.scalars("epoch", self._at, epoch, values)
        self._commit(self._at)

    def snapshot(self, step: int, epoch: int = 0) -> None:
        """Look at the network now: at an event that no schedule foresees."""
        activity, rows = self._sampling.look()
        self.writer.snapshot(
            step,
            epoch,
            {name: activity[name].numpy() for name in self._sampling.layers},
            parameter_measures(self._sampling.subject.network, self._before),
            {},
            rows,
        )
        self._commit(step)

    def _commit(self, step: int) -> None:
        self.writer.commit(step)
        self._committed = time.monotonic()

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()

    def __enter__(self) -> LoopRecording:
        """Return the recording."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close with the status that the exception, if any, calls for."""
        self.writer.__exit__(kind, error, None)


def _numbers(given: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {n: float(v.detach() if isinstance(v, Tensor) else v) for n, v in given.items()}


def _attributes(network: nn.Module, engine: Engine | None, spiking: bool) -> dict[str, Any]:
    known = neurons(network)
    own = isinstance(network, Network)
    return {
        "model": type(network).__name__,
        "model_kind": "snn" if spiking else "ann" if own else "unknown",
        "network": str(network)[:LONGEST],
        **({"neurons": known} if known else {}),
        **({} if engine is None else {"rule": _rule(engine)}),
    }


def _rule(engine: Engine) -> str:
    """Return the name of an engine's rule, or of its class if it has no other."""
    kind = type(engine.estimator)
    return next((name for name, one in ESTIMATORS.items() if one is kind), kind.__name__)


def _probe(subject: Sampled, targets: Tensor | None) -> Probe:
    count, labels = len(subject.inputs), _labels(targets)
    return Probe(
        index=np.arange(count),
        label=np.zeros(count, np.int64) if labels is None else labels.cpu().numpy(),
        split="test",
        input=_array(subject.inputs),
        target=None if targets is None else _array(subject.targets),
    )


def _array(values: Tensor) -> Array:
    """Return values as an array; NumPy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _classes(sampling: Sampling, targets: Tensor | None) -> list[str]:
    """Return the classes that the outputs tell apart, if the targets are such."""
    labels, row = _labels(targets), sampling.rows.get("outputs/value")
    if labels is None or row is None or len(row.shape) not in (2, 3):
        return []
    width = row.shape[-1]
    known = bool((labels >= 0).all()) and int(labels.max()) < width
    return [str(number) for number in range(width)] if known else []
