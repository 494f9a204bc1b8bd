"""Search: settings chosen for every cell alike, on a part of the training data that is held out.

::

    ranges -> Optuna proposes -> a training without the held-out part -> its result there -> ...

Each cell has the same number of trials, so that none is favoured by its defaults; the test split is
dropped before anything looks at it.  The trials stand in a journal or a storage that Optuna reads;
a search that was killed goes on as if it had not been, since each proposal follows from the trials
before it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from biograd import experiment, user_code
from biograd.configuration import Configuration, OwnParts
from biograd.data import Dataset
from biograd.errors import BiogradError, RecipeError
from biograd.experiment import Experiment, TrainingRequest
from biograd.metrics import DEFAULT, is_share
from biograd.recipes import Fraction, Range, Table
from biograd.runs.json_text import value_of
from biograd.studies.trial_storage import SearchTrials, open_trials, optuna_here, reaching
from biograd.training import evaluate

if TYPE_CHECKING:
    import optuna

WAIT = 0.5
"""Seconds between two looks at the trials that other processes do."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The range of a setting: numbers from ``low`` to ``high``, or ``choices``.

    Two whole numbers make a range of whole numbers.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """Proposed evenly in the logarithm."""
    choices: tuple[str | int | float | bool, ...] = ()

    def check(self, key: str) -> None:
        """Refuse a range that holds nothing.

        Raises:
            RecipeError: with the key.
        """
        where = f"tune: {key}"
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise RecipeError(f"{where}: give choices, or low and high")
            if len({*map(repr, self.choices)}) < max(2, len(self.choices)):
                raise RecipeError(f"{where}: choices: give at least two different ones")
        elif self.low is None or self.high is None:
            raise RecipeError(f"{where}: give low and high, or choices")
        elif not self.low < self.high:
            raise RecipeError(f"{where}: low = {self.low} is not below high = {self.high}")
        elif self.log and self.low <= 0:
            raise RecipeError(f"{where}: low = {self.low}: a logarithmic range is above 0")

    @property
    def first(self) -> str | int | float | bool | None:
        """One end of the range."""
        return self.choices[0] if self.choices else self.low

    def propose(self, key: str, trial: optuna.Trial) -> str | int | float | bool | None:
        """Return what Optuna proposes."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


@dataclasses.dataclass(frozen=True)
class Search:
    """How a study searches: ranges, trials of every cell, share that is held out."""

    parameters: Mapping[str, Parameter]
    trials: Annotated[int, Range(1)] = 20
    validation: Fraction = 0.2
    seed: Annotated[int, Range(0)] = 0
    """Of the proposals and of every trial's training."""

    def check(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            RecipeError: no range, an impossible one, or one over the data.
            MissingExtraError: Optuna is not installed.
        """
        optuna_here()
        if not self.parameters:
            raise RecipeError("tune: no parameters: give at least one range")
        for key, parameter in self.parameters.items():
            if key.startswith("dataset."):
                raise RecipeError(f"tune: {key}: the data are not searched over")
            parameter.check(key)

    def corner(self) -> tuple[str, ...]:
        """Return ``KEY=VALUE`` of one corner of the ranges, which must be valid settings."""
        return tuple(f"{key}={_written(one.first)}" for key, one in self.parameters.items())


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a search found.

    Attributes:
        assignments: ``KEY=VALUE`` of the best trial.
        metric: the task's headline metric.
        value: of it on the held-out part.
        trials: number of trials.
    """

    assignments: tuple[str, ...]
    metric: str
    value: float
    trials: int


def parse(text: str) -> tuple[str, Table]:
    """Return key and range of ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=A|B|C``.

    >>> parse("training.learning_rate=0.001..0.1:log")
    ('training.learning_rate', {'low': 0.001, 'high': 0.1, 'log': True})
    >>> parse("training.optimiser=adam|sgd")
    ('training.optimiser', {'choices': ['adam', 'sgd']})

    Raises:
        RecipeError: it is none of these.
    """
    key, equals, given = text.partition("=")
    words = f"--tune {text!r}: write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A|B"
    if not equals or not key.strip():
        raise RecipeError(words)
    if "|" in given:
        return key.strip(), {"choices": [_value(part.strip()) for part in given.split("|")]}
    limits, _, kind = given.partition(":")
    low, dots, high = limits.partition("..")
    numbers = [_value(part.strip()) for part in (low, high)]
    if not dots or kind not in ("", "log") or any(isinstance(n, (str, bool)) for n in numbers):
        raise RecipeError(words)
    table: Table = {"low": numbers[0], "high": numbers[1]}
    return key.strip(), table | ({"log": True} if kind else {})


def _value(text: str) -> str | int | float | bool:
    found = value_of(text)
    return found if isinstance(found, (str, int, float, bool)) else text


def run(search: Search, request: TrainingRequest, journal: Path, storage: str = "") -> Chosen:
    """Search, or go on with the search that a journal or a storage holds; return the best settings.

    Args:
        request: of the cell; its seed is replaced by the search's.
        storage: URL of a database, in which other processes may search, too; "": the journal.

    Raises:
        MissingExtraError: Optuna is not installed.
        RecipeError: a setting is not valid, or the journal is of another search.
        BiogradError: the storage does not answer.
    """
    search.check()
    title, asked = _asked(search, request)
    with reaching(storage):
        trials = open_trials(journal, storage, title, asked)
        while len(trials.complete()) < search.trials:
            trials.give_up_lost()
            if trials.begun() < search.trials:
                _try(search, request, trials)
            else:  # others do what is left, or die
                time.sleep(WAIT)
        done = trials.complete()[: search.trials]
    # of equally good ones the first
    best = max(done, key=lambda trial: (trial.value, -trial.number))
    metric, better = best.user_attrs.get("metric", [DEFAULT, "higher"])
    value = best.value if better == "higher" else -best.value
    return Chosen(tuple(best.user_attrs["assignments"]), metric, float(value), search.trials)


def _try(search: Search, request: TrainingRequest, trials: SearchTrials) -> None:
    """Do one trial, unless others have begun those that are left meanwhile."""
    trial = trials.study.ask()
    with trials.alive(trial):
        place = trials.place(trial)
        if place >= search.trials:
            trials.drop(trial)
            return
        # a sampler of its own: the proposal must not depend on what this process drew before
        trials.study.sampler = optuna_here().samplers.TPESampler(seed=1000 * search.seed + place)
        given = {key: one.propose(key, trial) for key, one in search.parameters.items()}
        assignments = [f"{key}={_written(value)}" for key, value in given.items()]
        trial.set_user_attr("assignments", assignments)
        metric, goal = _judged(search, request, assignments)
        trial.set_user_attr("metric", metric)
    trials.study.tell(trial, goal)


def _written(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _asked(search: Search, request: TrainingRequest) -> tuple[str, str]:
    """Return what a search is called, and what it is about, so that no two of them mix."""
    own = dataclasses.replace(request, seed=search.seed, out=None)
    configuration = experiment.configure(own)
    ranges = dataclasses.asdict(search)
    del ranges["trials"]  # more of them may follow
    parts = (configuration.model, configuration.dataset, configuration.estimator)
    asked = {"configuration": configuration.table(), "search": ranges}
    return "-".join(parts), json.dumps(asked, sort_keys=True)


def _judged(
    search: Search, request: TrainingRequest, assignments: list[str]
) -> tuple[tuple[str, str], float]:
    """Return the metric of a trial and which values are better, and what is to be maximised.

    A share of 0, or minus infinity, if its training diverges.
    """
    held_out = f"dataset.validation={search.validation}"
    trial = dataclasses.replace(
        request,
        seed=search.seed,
        out=None,
        common=(*request.common, *assignments),
        assignments=(*request.assignments, held_out),
    )
    configuration = experiment.configure(trial)
    parts = trial.parts().another()
    task = trial_data(configuration, parts.data).task
    metric = task.headline, task.better
    try:
        with user_code.named(configuration.model):
            value = validate(configuration, parts)
    except RecipeError:
        raise
    except BiogradError:  # the loss is not finite
        return metric, 0.0 if is_share(task.headline) else -math.inf
    return metric, value if task.better == "higher" else -value


def validate(configuration: Configuration, parts: OwnParts | None = None) -> float:
    """Train without a run file and return the headline metric on the held-out part.

    Args:
        parts: the user's own.

    Raises:
        BiogradError: nothing is held out: the metric would be that of the test split.
    """
    parts = parts or OwnParts()
    dataset = trial_data(configuration, parts.data)
    trained = Experiment(configuration, dataset, parts)
    try:
        for _record in trained.records():
            pass
        found = evaluate(trained.engine, dataset.evaluated)
    finally:
        trained.engine.detach()
    return found[dataset.task.headline]


def trial_data(configuration: Configuration, own: Any = None) -> Dataset:
    """Return the data of a trial, some of them held out.

    Raises:
        BiogradError: nothing is held out.
    """
    dataset = configuration.read(own)
    if dataset.evaluated_on != "validation":
        raise BiogradError(
            f"{configuration.dataset}: a search must not look at the test split: set "
            "dataset.validation"
        )
    return dataset
