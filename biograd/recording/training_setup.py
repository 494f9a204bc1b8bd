"""Network, engine and trainer of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from biograd import data, decorrelation, estimators, local, networks, tasks
from biograd.configuration import Configuration, OwnParts
from biograd.diagnosis import Diagnosis, Reference, probe
from biograd.encoding import check_duration
from biograd.engine import Account, Engine
from biograd.environments import Episodes
from biograd.errors import RecipeError
from biograd.recipes import TrainingRecipe
from biograd.recording.observation import Observed, observe
from biograd.tasks.further_metrics import chosen
from biograd.training import StepRecord, Trainer, evaluate, placed
from biograd.training.starting_rates import tune_init

START_EXAMPLES = 256
"""Training rows by which ``training.start_rate`` is measured."""


class Experiment:
    """The parts of one run, assembled from its configuration.

    Args:
        estimator: None: that of the configuration.
        fresh: the training begins; else other weights will be loaded.
    """

    def __init__(
        self,
        configuration: Configuration,
        dataset: data.Dataset,
        parts: OwnParts | None = None,
        estimator: str | None = None,
        *,
        fresh: bool = True,
    ) -> None:
        parts, configuration = parts or OwnParts(), configuration.here()
        self.configuration, self.dataset = configuration, dataset
        recipe = configuration.recipe
        name = estimator or configuration.estimator
        settings = (
            configuration.settings
            if name == configuration.estimator
            else (recipe.estimators.get(name, {}))
        )
        own = parts.network(recipe.module.arguments, configuration.seed)
        built = networks.build(
            recipe if own is None else own,
            dataset.shape,
            dataset.task.outputs,
            configuration.seed,
            dataset.task.timed and dataset.environment is None,
        )
        check_time(built, dataset)
        check_choice(recipe.training, dataset)
        self.network = in_environment(built, dataset).to(configuration.device)
        if fresh:
            self._start(parts)
        self.engine = Engine(
            self.network,
            estimators.make(name, settings, configuration.model),
            decorrelation.make(recipe.decorrelation, configuration.model),
            local.make(recipe.local, configuration.model),
            task=self._task(parts),
            seed=configuration.seed,
            outside=recipe.training.outside,
            sites=_within(configuration.sites, dataset),
            activity=recipe.activity,
            **self._ways(parts),
        )
        try:
            asked = {name: name for name in recipe.training.metrics} | dict(parts.metrics)
            self.metrics = chosen(asked, self.engine.task)
            self.trainer = Trainer(self.engine, recipe.training, dataset.train, configuration.seed)
        except BaseException:
            self.engine.detach()
            raise

    def _task(self, parts: OwnParts) -> tasks.Task:
        told, asked = self.configuration.data.task.get("loss"), self.configuration.recipe.training
        return tasks.learned(self.dataset.task, asked.loss, told, parts.loss)

    def _ways(self, parts: OwnParts) -> dict[str, Any]:
        """Return how the network is run."""
        return {
            "reset": parts.reset or self.configuration.recipe.module.reset or None,
            "outputs": parts.outputs or self.configuration.outputs,
        }

    def _start(self, parts: OwnParts) -> None:
        """Scale the weights to the rate that is asked for, if one is."""
        rate = self.configuration.recipe.training.start_rate
        if not rate:
            return
        batch = self.dataset.shown(self.dataset.train, START_EXAMPLES)
        inputs, targets = placed(self.network, batch.inputs, batch.targets)
        sites = _within(self.configuration.sites, self.dataset)
        given = {"task": self._task(parts), "sites": sites, **self._ways(parts)}
        tune_init(self.network, inputs, targets, rate, **given)

    @property
    def account(self) -> Account:
        """Who credits each parameter."""
        assert self.engine.account is not None  # the trainer has prepared it
        return self.engine.account

    def evaluate(self, split: data.Source) -> dict[str, float]:
        """Return all metrics and the loss of a split."""
        return evaluate(self.engine, split, metrics=self.metrics)

    def records(self) -> Iterator[StepRecord]:
        """Train without a run file, choosing by the validation rows as a run does."""
        trainer = self.trainer
        for record in trainer.steps():
            if record.last and trainer.recipe.chooses:
                judged = evaluate(self.engine, self.dataset.evaluated)
                trainer.judge(judged[self.engine.task.headline])
            yield record
        trainer.take_best()

    def observe(self, inputs: Tensor) -> dict[str, Observed]:
        """Return the activity that goes into the run file, by layer."""
        return observe(self.network, self.engine.substrate.sites, inputs)

    def diagnose(
        self,
        examples: int = 64,
        *,
        draws: int = 16,
        reference: Reference = "auto",
        thorough: bool = True,
    ) -> Diagnosis:
        """Return how good the gradient estimate is now, on training data by turns.

        Args:
            thorough: also try noise of other sizes, and a step of the optimiser at the full
                learning rate (a schedule may have ended at zero).
        """
        batch = self.dataset.shown(self.dataset.train, examples)
        inputs, targets = placed(self.network, batch.inputs, batch.targets)
        self.network.train()
        with _full_rate(self.trainer) as optimiser:
            return probe(
                self.engine,
                inputs,
                targets,
                batch.index,
                draws=draws,
                reference=reference,
                optimiser=optimiser if thorough else None,
                neighbours=thorough,
            )


def in_environment(network: nn.Module, dataset: data.Dataset) -> nn.Module:
    """Return the network, in its environment if the data are one.

    Raises:
        RecipeError: it runs a trial of its own for every observation.
    """
    if dataset.environment is None:
        return network
    if isinstance(network, networks.Network) and network.encoding is not None:
        raise RecipeError(
            f"{dataset.name}: is an environment, which waits for an action in every step, and the "
            "network runs a whole trial for each: take a rate network without time (ann), or a "
            "module of yours that hands its state on, forward(observation, state)"
        )
    assert isinstance(dataset.task, tasks.Decisions)
    return Episodes(network, dataset.environment, dataset.task)


def _within(
    sites: Mapping[str, tuple[str, ...]] | None, dataset: data.Dataset
) -> Mapping[str, tuple[str, ...]] | None:
    """Return sites by the names that their layers have in an environment."""
    if sites is None or dataset.environment is None:
        return sites
    return {
        f"policy.{name}": tuple(f"policy.{layer}" for layer in layers)
        for name, layers in sites.items()
    }


def check_time(network: nn.Module, dataset: data.Dataset) -> None:
    """Refuse data with a time axis for a network of biograd that would flatten or cut it.

    Raises:
        RecipeError: the network has no time, or its encoding gives the data one.
        DataError: a trial of the data is longer than one of the network.
    """
    if not dataset.train.timed or not isinstance(network, networks.Network):
        return
    where = f"{dataset.name}: the data have a time axis"
    encoding = network.encoding
    if encoding is None:
        raise RecipeError(f"{where}, the network has none: take a spiking or a recurrent one")
    if not encoding.timed:
        kind = encoding.recipe.kind
        raise RecipeError(f"{where}, encoding.kind = {kind!r} gives them one: set it to 'given'")
    check_duration(dataset.steps, encoding.steps, encoding.dt_ms, dataset.task.timed)


def check_choice(recipe: TrainingRecipe, dataset: data.Dataset) -> None:
    """Refuse a training that would choose by the test rows.

    Raises:
        RecipeError: there are no validation rows.
    """
    if recipe.chooses and dataset.validation is None:
        value = getattr(recipe, recipe.chooses)
        raise RecipeError(
            f"training.{recipe.chooses} = {value!r}: {dataset.name} has no validation rows to "
            "choose by, and the test rows are not for that: --set dataset.validation=0.1"
        )


@contextmanager
def _full_rate(trainer: Trainer) -> Iterator[torch.optim.Optimizer]:
    optimiser: torch.optim.Optimizer = trainer.optimiser
    kept = [group["lr"] for group in optimiser.param_groups]
    try:
        for group in optimiser.param_groups:
            group["lr"] = trainer.recipe.learning_rate
        yield optimiser
    finally:
        for group, rate in zip(optimiser.param_groups, kept, strict=True):
            group["lr"] = rate


def frozen_hidden(
    configuration: Configuration, dataset: data.Dataset, parts: OwnParts | None = None
) -> float:
    """Return the headline metric of the control: the same run, with only the readout trained.

    Args:
        parts: the user's own, a module as it was before the training.
    """
    experiment = Experiment(configuration, dataset, parts, "frozen_hidden")
    for _record in experiment.records():
        pass
    found = evaluate(experiment.engine, dataset.open_test() or dataset.evaluated)
    experiment.engine.detach()
    return found[experiment.engine.task.headline]
