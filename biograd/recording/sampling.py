"""What a snapshot takes of a network: activity, and what the recipe of recording asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biograd.engine import Engine
from biograd.errors import CapabilityError, RecipeError, RunFileError
from biograd.recipes.recording_recipe import RecordingRecipe
from biograd.recording import description
from biograd.recording.description import chosen
from biograd.recording.moments import SnapshotSchedule
from biograd.recording.observation import Observed
from biograd.recording.training_setup import Experiment
from biograd.recording.variables import by_layer, check_variables, credited, followed
from biograd.runs.layout import Array, LayerInfo, Probe
from biograd.runs.schema.row_info import RowInfo
from biograd.tasks import Classes
from biograd.training import placed

WEIGHTS = 32 * 2**20
"""Bytes of weights, of all snapshots together, that are kept without being asked for."""
SAID = 16 * 2**20
"""Bytes of a recording that are worth a word before the training."""
SPIKE = 20
"""Bytes of a spike."""
FEW = 2
"""Stimuli that tell what shapes there are."""
KERNEL = ("to", "from")


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What is looked at, whoever trains it.

    Attributes:
        network: of which activity, outputs and weights are taken.
        observe: returns the activity of its layers on inputs.
        engine: which computes its gradients; None: credit and gradients cannot be asked for.
        inputs, targets: the stimuli of every snapshot, and what is asked for on them.
        recipe: what is kept.
        count: snapshots at most.
        classes: how many the outputs tell apart, 0 if they are no classes.
    """

    network: nn.Module
    observe: Callable[[Tensor], Mapping[str, Observed]]
    engine: Engine | None
    inputs: Tensor
    targets: Tensor
    recipe: RecordingRecipe
    count: int
    classes: int

    @classmethod
    def of(cls, experiment: Experiment, probe: Probe) -> Sampled:
        """Return what an experiment trains.

        Raises:
            RecipeError: the best epoch is asked for, and nothing chooses it.
        """
        recipe, trainer = experiment.configuration.recipe.recording, experiment.trainer
        if recipe.best and not trainer.recipe.chooses:
            raise RecipeError("recording.best: needs training.stop_after or training.keep = 'best'")
        batch = experiment.dataset.evaluated.take(torch.as_tensor(probe.index))
        unit, amount = trainer.recipe.budget
        moments, task = SnapshotSchedule(recipe, trainer.per_epoch), experiment.dataset.task
        return cls(
            experiment.network,
            experiment.observe,
            experiment.engine,
            batch.inputs,
            batch.targets,
            recipe,
            moments.count(int(amount) if unit == "epochs" else None),
            task.outputs if isinstance(task, Classes) and not task.timed else 0,
        )


class Sampling:
    """What is taken of a network at every snapshot.

    Attributes:
        layers: those that are recorded.
        rows: data sets beside those that every run has.
        left_out: why the weights are not among them, "" if they are.
    """

    def __init__(self, subject: Sampled, layers: Mapping[str, LayerInfo]) -> None:
        self.subject, self.recipe, self.count = subject, subject.recipe, subject.count
        self.layers, self._infos = tuple(layers), layers
        check_variables(subject.network, self.layers, self.recipe.variables)
        self.left_out, self.weights = "", self._weights()
        activity, rows = self.look(FEW)
        stimuli = len(subject.inputs)
        self.rows = {name: _info(name, row, layers, stimuli) for name, row in rows.items()}
        spiking = [n for n, info in layers.items() if info.kind == "spiking"]
        fired = sum(float(activity[name].sum()) for name in spiking)
        self._spikes = int(SPIKE * fired * stimuli / min(FEW, stimuli))

    def _weights(self) -> tuple[str, ...]:
        found = dict(self.subject.network.named_parameters())
        if self.recipe.weights is not None:
            return chosen("weights", self.recipe.weights, found)
        total = self.count * 4 * sum(value.numel() for value in found.values())
        if total <= WEIGHTS:
            return tuple(found)
        self.left_out = (
            f"the weights would take {total / 2**20:.0f} MiB at {self.count} snapshots: "
            "recording.weights = ['*'] keeps them"
        )
        return ()

    def look(self, stimuli: int | None = None) -> tuple[dict[str, Tensor], dict[str, Array]]:
        """Return the activity of all layers, and a row of each further data set.

        Args:
            stimuli: show only so many; None: all.
        """
        subject, answers = self.subject, list[Any]()
        given = subject.inputs[:stimuli], subject.targets[:stimuli]
        self._given = placed(subject.network, *given)

        def keep(_part: Any, _given: Any, output: Any) -> None:
            answers.append(output)

        handle = subject.network.register_forward_hook(keep)
        try:
            with followed(subject.network, self.layers, self.recipe.variables) as courses:
                activity = subject.observe(self._given[0])
        finally:
            handle.remove()
        rows = {f"layers/{one}/{name}": v for (one, name), v in courses.items()}
        rows |= self._outputs(answers) | self._values() | self._credit()
        plain = {name: row.detach().float().cpu().numpy() for name, row in rows.items()}
        return {name: one.values for name, one in activity.items()}, plain

    def _outputs(self, answers: Sequence[Any]) -> dict[str, Tensor]:
        """Return the outputs, if they are a tensor with a row for each stimulus."""
        form = getattr(getattr(self.subject.engine, "substrate", None), "outputs", None)
        if not self.recipe.outputs or not answers:
            return {}
        found = answers[-1] if form is None else form(answers[-1])
        tells = isinstance(found, Tensor) and found.dim() and len(found) == len(self._given[0])
        return {"outputs/value": found} if tells else {}

    def _values(self) -> dict[str, Tensor]:
        known = dict(self.subject.network.named_parameters())
        return {f"weights/{name}/value": known[name] for name in self.weights}

    def _credit(self) -> dict[str, Tensor]:
        """Return credit and gradients, if they are asked for."""
        if "credit" not in self.recipe.variables and not self.recipe.gradients:
            return {}
        if (engine := self.subject.engine) is None:
            raise CapabilityError(
                "recording: credit and gradients are those of a rule: record the engine"
            )
        credit, gradients = credited(engine, *self._given)
        rows = {}
        if "credit" in self.recipe.variables:
            found = by_layer(credit, engine, self.layers)
            rows = {f"layers/{name}/credit": one for name, one in found.items()}
        if self.recipe.gradients:
            named = {name: gradients[name] for name in self.weights if name in gradients}
            rows |= {f"weights/{name}/gradient": one for name, one in named.items()}
        return rows

    @property
    def nbytes(self) -> int:
        """Bytes that all snapshots will take at most before compression, spikes as now."""
        stimuli = len(self.subject.inputs)
        units = sum(len(self._infos[name].units) for name in self.layers)
        further = sum(row.nbytes for row in self.rows.values())
        return self.count * (4 * stimuli * units + 16 * units + further + self._spikes)

    def check(self) -> str:
        """Return what is to be said of the size, "" if it is small.

        Raises:
            RecipeError: it is larger than the recipe's limit.
        """
        size = self.nbytes
        text = f"{self.count} snapshots take up to {size / 1e6:.0f} MB before compression"
        if size > self.recipe.limit_gb * 1e9:
            raise RecipeError(
                f"recording: {text}, more than recording.limit_gb = {self.recipe.limit_gb:g}: "
                "record less (stimuli, layers, variables, weights, every), or raise the limit"
            )
        return f"recording: {text}" if size > SAID else ""

    def fits(self, known: Mapping[str, Sequence[int]], where: object) -> None:
        """Check that a run to go on with has data sets that its configuration makes.

        Raises:
            RunFileError: it has not.
        """
        for name, shape in known.items():
            if name not in self.rows or list(self.rows[name].shape) != list(shape):
                due = list(self.rows[name].shape) if name in self.rows else "none such"
                raise RunFileError(
                    f"{where}: /{name} has rows of {list(shape)}, but the run's configuration "
                    f"makes {due}: it is damaged"
                )

    def said(self) -> dict[str, Any]:
        """Return what the run file says of the recording, as JSON values."""
        return {
            "snapshots_at_most": self.count,
            "bytes_at_most": self.nbytes,
            "classes": [str(number) for number in range(self.subject.classes)],
            **({"weights_left_out": self.left_out} if self.left_out else {}),
        }


def fitting_sampling(
    experiment: Experiment,
    probe: Probe,
    layers: Mapping[str, object],
    rows: Mapping[str, Sequence[int]],
    where: object,
) -> Sampling:
    """Return the sampling of a run to go on with.

    Args:
        experiment: of its configuration.
        probe: its stimuli.
        layers: what the run says of their geometry.
        rows: and of the rows of its further data sets.
        where: opens every message.

    Raises:
        RunFileError: its configuration makes others.
    """
    found = description.layers(experiment, probe)
    for name, layer in sorted(found.items()):
        if name not in layers:
            raise RunFileError(f"{where}: has no layer {name}, which its network has: damaged")
        if layers[name] != (due := description.geometry(layer)):
            raise RunFileError(
                f"{where}: layer {name} is {layers[name]}, but the run's configuration makes it "
                f"{due}: it is damaged"
            )
    sampling = Sampling(Sampled.of(experiment, probe), found)
    sampling.fits(rows, where)
    return sampling


def _info(name: str, row: Array, layers: Mapping[str, LayerInfo], stimuli: int) -> RowInfo:
    """Return what the run says of a data set, by a row of it for few stimuli."""
    top, *rest = name.split("/")
    if top == "weights":
        more = [f"kernel_{k}" for k in range(max(0, row.ndim - 2))]
        return RowInfo(row.shape, (*KERNEL, *more)[: row.ndim])
    shape = (stimuli, *row.shape[1:])
    if top == "outputs":
        known = {2: ("output",), 3: ("time", "output")}
        dims = known.get(row.ndim, tuple(f"output_{k}" for k in range(row.ndim - 1)))
        return RowInfo(shape, ("probe", *dims))
    info = layers[rest[0]]
    timed = row.ndim >= 3 and row.shape[1] == (info.n_steps or 0)
    inner = row.shape[2:] if timed else row.shape[1:]
    whole = len(inner) == 1 and inner[0] == info.n_units
    axes = ("unit",) if whole else tuple(f"unit_{k}" for k in range(len(inner)))
    return RowInfo(shape, ("probe", *(("time",) if timed else ()), *axes))
