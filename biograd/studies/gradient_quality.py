"""A study of gradients: how well each rule's estimate agrees with the exact gradient.

One network is trained by a teacher for some epochs; at its beginning and at its end every cell's
estimate is compared with back-propagation, on the same weights and the same examples.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from biograd import data, experiment
from biograd.configuration import OwnParts
from biograd.diagnosis import Diagnosis, probe
from biograd.experiment import Configuration, Experiment
from biograd.networks import build
from biograd.progress import Progress
from biograd.recipes import Count, Table, construct
from biograd.studies import Place, Report
from biograd.training import placed

Weights = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class QualityCell:
    """One row of the table."""

    estimator: str
    set: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GradientQuality:
    """The settings of a study of gradients."""

    cells: Table
    description: str = ""
    model: str = "ann"
    dataset: str = "digits"
    teacher: str = "backprop"
    """The rule that trains the network in between."""
    epochs: int = 5
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    examples: Count = 32
    draws: Count = 16


def run(settings: GradientQuality, place: Place, progress: Progress) -> Report:
    """Compare every cell with back-propagation, before and after the teacher's training."""
    cells = {
        name: construct(QualityCell, table, "study", f"cells.{name}")
        for name, table in settings.cells.items()
    }
    found: dict[str, list[tuple[Diagnosis, Diagnosis]]] = {name: [] for name in cells}
    for seed in settings.seeds:
        begin, end = _teach(settings, place, seed, progress)
        for name, cell in cells.items():
            progress.note(f"{name}, seed {seed}")
            configuration, own = _configuration(settings, place, seed, cell.estimator, cell.set)
            dataset = configuration.read(own.data)
            both = [_compare(settings, configuration, dataset, own, w) for w in (begin, end)]
            found[name].append((both[0], both[1]))
    rows = [{"cell": name, **_row(pairs)} for name, pairs in found.items()]
    columns = {
        "cell": "",
        "begin": "cosine at the beginning",
        "end": f"after {settings.epochs} epochs",
        "norm": "norm ratio",
        "sign": "equal signs",
        "copies": "copies",
        "dimensions": "dimensions",
    }
    note = (
        f"hidden layers' weights, one draw against back-propagation; {settings.examples} examples, "
        f"mean of {settings.draws} draws and {len(settings.seeds)} seeds"
    )
    return Report(columns, rows, [note])


def _configuration(
    settings: GradientQuality, place: Place, seed: int, estimator: str, assignments: Sequence[str]
) -> tuple[Configuration, OwnParts]:
    request = experiment.TrainingRequest(
        model=place.model(settings.model),
        dataset=settings.dataset,
        own=place.data(settings.dataset),
        allow_code=place.allow_code,
        estimator=estimator,
        epochs=settings.epochs,
        seed=seed,
        device="cpu",
        common=settings.set,
        assignments=tuple(assignments),
        data_dir=place.data_dir,
        offline=place.offline,
    )
    return experiment.configure(request), request.parts()


def _teach(
    settings: GradientQuality, place: Place, seed: int, progress: Progress
) -> tuple[Weights, Weights]:
    """Return the weights before and after the teacher's training."""
    configuration, parts = _configuration(settings, place, seed, settings.teacher, ())
    made = Experiment(configuration, configuration.read(parts.data), parts)
    begin = {name: value.clone() for name, value in made.network.state_dict().items()}
    progress.begin(made.trainer.total, f"{settings.teacher}, seed {seed}")
    for record in made.records():
        progress.step({"loss": record.loss, **record.metrics})
    end = {name: value.clone() for name, value in made.network.state_dict().items()}
    made.engine.detach()
    return begin, end


def _compare(
    settings: GradientQuality,
    configuration: Configuration,
    dataset: data.Dataset,
    parts: OwnParts,
    weights: Weights,
) -> Diagnosis:
    task = dataset.task
    own = parts.network(configuration.recipe.module.arguments, configuration.seed)
    if own is None:
        own = build(
            configuration.recipe, dataset.shape, task.outputs, configuration.seed, task.timed
        )
    own.load_state_dict(weights)  # first: the noise is scaled by the currents that it finds
    made = Experiment(configuration, dataset, dataclasses.replace(parts, model=own))
    batch = dataset.train.take(torch.arange(min(settings.examples, len(dataset.train))))
    inputs, targets = placed(made.network, batch.inputs, batch.targets)
    made.network.train()
    index = torch.arange(len(inputs))
    found = probe(made.engine, inputs, targets, index, draws=settings.draws, neighbours=False)
    made.engine.detach()
    return found


def _row(pairs: list[tuple[Diagnosis, Diagnosis]]) -> dict[str, Any]:
    def mean(which: int, what: str) -> float:
        return statistics.mean(_hidden(pair[which], what) for pair in pairs)

    return {
        "begin": mean(0, "cosine"),
        "end": mean(1, "cosine"),
        "norm": mean(1, "norm_ratio"),
        "sign": mean(1, "sign_agreement"),
        "copies": pairs[0][1].copies,
        "dimensions": pairs[0][1].dimensions,
    }


def _hidden(diagnosis: Diagnosis, what: str) -> float:
    assert diagnosis.hidden is not None
    return float(getattr(diagnosis.hidden, what).value)
