"""Episodes of an environment as rows: each is a seed, from which all its chance follows."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from biograd.checking import Checked, Range, construct
from biograd.data.digests import update
from biograd.data.request import Parts, Request, Rows
from biograd.data.source import FIXED, Batch, Key
from biograd.environments import ENVIRONMENTS, RANGES, TESTED, Environment, taken
from biograd.environments.chance import uniform
from biograd.errors import RecipeError
from biograd.randomness import derive_seed

WATCHED, STEPS = 8, 50
"""Episodes, and steps of each, by which an environment is known again."""


@dataclasses.dataclass(frozen=True)
class EpisodeSettings(Checked):
    """How many episodes there are.

    Attributes:
        train_rows: of an epoch; every epoch and seed of a run has others.
        validation_rows: to choose by; 0: none.
        test_rows: of evaluations, the same in every run.
        seed: of all of them.
    """

    train_rows: Rows = 256
    validation_rows: Annotated[int, Range(0, 10**7)] = 0
    test_rows: Rows = 256
    seed: Annotated[int, Range(0)] = 0


class Seeds:
    """Rows that are seeds of episodes, ``[B, 1]``; targets are the episodes' conditions.

    Args:
        environment: knows the conditions, if there are any.
        count: rows of an epoch.
        split: of which they are.
        seed: of all.
        known: by which the environment is known again; "": it does not repeat.
    """

    shape, timed, steps = (1,), False, 1
    targets: Tensor | None = None

    def __init__(
        self, environment: Environment, count: int, split: str, seed: int, known: str
    ) -> None:
        self.environment, self.count, self.split, self.seed = environment, count, split, seed
        self.digest = known and hashlib.sha256(f"{known}{count}{split}{seed}".encode()).hexdigest()
        self.covers = f"{WATCHED} episodes" if known else ""

    def __len__(self) -> int:
        return self.count

    def take(self, index: Tensor, key: Key = FIXED) -> Batch:
        """Return episodes; those to learn from are others in every epoch."""
        fresh = key if self.split == "train" else FIXED
        start = derive_seed(self.seed, self.split, *fresh) % 2**40
        low, high = RANGES[self.split]
        seed = low + (uniform(index + start, "seed", 0, 1)[:, 0] * (high - low)).long()
        condition = getattr(self.environment, "condition", torch.zeros_like)(seed)
        return Batch(seed[:, None].double(), condition.long()[:, None], index)


def parts(given: Any, request: Request, where: str) -> Parts:
    """Return the rows of an environment of the user's.

    Raises:
        RecipeError: it lacks something.
    """
    own, rest = _divided(request)
    steps = rest.pop("steps", 0)
    if rest or type(steps) is not int or steps < 0:
        key = next(iter(rest), "steps")
        raise RecipeError(f"dataset {request.name}: settings.{key}: unknown, or no whole number")
    return _rows(taken(given, steps, where), own)


def reader(name: str) -> Callable[[Request], Parts]:
    """Return the source of an environment of ``ENVIRONMENTS``."""

    def read(request: Request) -> Parts:
        request.without_files()
        own, rest = _divided(request)
        made = construct(ENVIRONMENTS[name], rest, f"dataset {request.name}", "settings")
        return _rows(made, own)

    read.__doc__ = f"Return seeds of episodes of the environment {name!r}, ``[N, 1]``."
    vars(read)["Settings"] = _listed(ENVIRONMENTS[name])
    return read


def _listed(make: Callable[..., Environment]) -> type:
    """Return a dataclass with all the settings that such rows have, for those who list them."""
    known = [field.name for field in dataclasses.fields(EpisodeSettings)]
    own = [name for name in inspect.signature(make).parameters if name not in known]
    return dataclasses.make_dataclass("Listed", [*own, *known])


def _divided(request: Request) -> tuple[EpisodeSettings, dict[str, Any]]:
    """Return how many episodes there are, and the settings of the environment itself."""
    names = {field.name for field in dataclasses.fields(EpisodeSettings)}
    given = request.recipe.settings
    own = {key: value for key, value in given.items() if key in names}
    settings = construct(EpisodeSettings, own, f"dataset {request.name}", "settings")
    return settings, {key: value for key, value in given.items() if key not in names}


def _rows(environment: Environment, settings: EpisodeSettings) -> Parts:
    known = known_by(environment)
    counts = {
        "train": settings.train_rows,
        "validation": settings.validation_rows,
        "test": settings.test_rows,
    }
    sources = {
        split: Seeds(environment, count, split, settings.seed, known)
        for split, count in counts.items()
        if count
    }
    classes = environment.actions
    return Parts(sources, classes=classes, task="decisions", environment=environment)


def known_by(environment: Environment) -> str:
    """Return the SHA-256 of some episodes under actions at random; "": they do not repeat."""
    found = _watched(environment)
    return found if found == _watched(environment) else ""


def _watched(environment: Environment) -> str:
    seed = torch.arange(WATCHED) + TESTED
    seen, total = environment.reset(seed)[0], hashlib.sha256()
    over = torch.zeros(WATCHED, dtype=torch.bool)
    for time in range(min(environment.horizon, STEPS)):
        update(total, seen[~over])
        draws = uniform(seed, "watched", time, environment.actions)
        action = 2 * draws - 1 if environment.continuous else draws.argmax(1)
        seen, reward, terminated, truncated, _ = environment.step(action)
        update(total, reward[~over])
        over = over | terminated | truncated
    return total.hexdigest()
