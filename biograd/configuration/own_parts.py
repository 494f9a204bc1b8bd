"""What a user brings to a call and no file brings back: module, data, loss, reset, metrics."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from biograd import user_code
from biograd.errors import CapabilityError, RecipeError, word
from biograd.randomness import seeded_globals
from biograd.substrate.kept import Reset
from biograd.substrate.return_values import Outputs
from biograd.user_code import Located, UserCode

METRIC = "metric."
"""Begins the name of a part that is a metric."""
Metrics = Sequence[str] | Mapping[str, Any]
"""Names, or by a name of the user's what ``tasks.further_metrics.chosen`` takes."""
_made: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that came of a call: the same may not come twice."""


@dataclasses.dataclass(frozen=True)
class OwnParts:
    """Objects of the user's, and where those come from that code made.

    Attributes:
        model: a module, or the class or function that makes one; None: a recipe does.
        data: whatever a data set can be; text names a file or a function.
        loss: function of outputs and targets.
        reset: takes the network, or is the name of a method.
        outputs: what of the module's return value its outputs are.
        metrics: beside the task's, by name: functions, objects, or names of biograd's.
        code: what is known of those that are code, by ``model``, ``loss``, ``reset`` and
            ``metric.NAME``.
    """

    model: nn.Module | Callable[..., Any] | None = None
    data: Any = None
    loss: Callable[..., Any] | None = None
    reset: Reset | None = None
    outputs: Outputs | None = None
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    code: Mapping[str, Located] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any = None,
        data: Any = None,
        loss: Any = None,
        reset: Any = None,
        outputs: Outputs | None = None,
        metrics: Metrics = (),
    ) -> OwnParts:
        """Return the parts of a call, code that text names loaded.

        Raises:
            RecipeError: it is not there, fails, or is no module, class or function.
        """
        things, code = dict[str, Any](), dict[str, Located]()
        for part, given in {"model": model, "loss": loss, "reset": reset}.items():
            things[part], located = _part(part, given)
            if located is not None:
                code[part] = located
                _check(part, things[part], f"--{part}", str(located.code))
        measured = dict[str, Any]()
        for name, given in user_code.named_metrics(metrics).items():
            measured[name], located = _part(f"{METRIC}{name}", given)
            if located is not None:
                measured[name] = _made_metric(measured[name], f"metrics: {name}")
                code[f"{METRIC}{name}"] = located
        return cls(things["model"], data, things["loss"], things["reset"], outputs, measured, code)

    @property
    def known(self) -> dict[str, UserCode]:
        """What a run file says of the code."""
        return {part: located.code for part, located in self.code.items()}

    @property
    def texts(self) -> dict[str, dict[str, str]]:
        """The text of the files of the code, by part and file."""
        return {part: dict(located.texts) for part, located in self.code.items()}

    @property
    def repeats(self) -> bool:
        """Whether the module can be made anew as it was."""
        return self.model is not None and not isinstance(self.model, nn.Module)

    def network(self, arguments: Mapping[str, Any], seed: int) -> nn.Module | None:
        """Return the module, made with arguments under a seed; one that was given as it is."""
        if self.model is None or isinstance(self.model, nn.Module):
            return self.model
        said = f"--model {self.code['model'].code}"
        with seeded_globals(seed, "module"):
            found = user_code.called(self.model, copy.deepcopy(dict(arguments)), said)
        if not isinstance(found, nn.Module):
            raise RecipeError(f"{said}: returns {type(found).__name__}, not a torch.nn.Module")
        if found in _made:
            raise RecipeError(
                f"{said}: returns the same module twice: make a new one in every call"
            )
        _made.add(found)
        return found

    def another(self) -> OwnParts:
        """Return the parts with a copy of a module that was given, so that it can be trained."""
        if not isinstance(self.model, nn.Module):
            return self
        return dataclasses.replace(self, model=copy.deepcopy(self.model))


def typed(part: str, code: object) -> str:
    """Return the option that brings code back, as it is typed."""
    if part.startswith(METRIC):
        return f"--metric {word(f'{part.removeprefix(METRIC)}={code}')}"
    return f"--{part} {word(str(code))}"


def _part(part: str, given: Any) -> tuple[Any, Located | None]:
    """Return what was given, loaded if text names it, and where it is from if it is code."""
    given = str(given) if isinstance(given, Path) else given
    metric = part.startswith(METRIC)
    if user_code.is_named(given):
        wanted = nn.Module if part == "model" else None
        loaded = user_code.load(given, "--metric" if metric else f"--{part}", wanted)
        return loaded.thing, loaded
    if given is None or (isinstance(given, str) and not metric):  # of a recipe, or a method's
        return (given if part == "reset" else None), None
    if isinstance(given, str):
        alias = part != f"{METRIC}{given}"
        return given, Located(UserCode(given, "<biograd>"), {}, None) if alias else None
    module = part == "model" and isinstance(given, nn.Module)
    return given, None if module else user_code.of_object(given)


def _made_metric(thing: Any, said: str) -> Any:
    """Return a metric, of a class an object of it.

    Raises:
        RecipeError: the class wants arguments, or fails.
    """
    if not isinstance(thing, type):
        return thing
    try:
        with user_code.named(said):
            return thing()
    except TypeError as error:
        raise RecipeError(
            f"{said}: is a class that is made without arguments: {user_code.words(error)}: give an "
            "object of it"
        ) from error


def _check(part: str, thing: Any, option: str, name: str) -> None:
    """Refuse what cannot be the part.

    Raises:
        RecipeError: with what it is.
    """
    if part == "model" and isinstance(thing, nn.Module):
        raise RecipeError(
            f"{option} {name}: is a module that is made already: name its class, or a function "
            "that returns a new one"
        )
    wrong_class = part == "model" and isinstance(thing, type) and not issubclass(thing, nn.Module)
    if wrong_class or not callable(thing):
        due = {
            "model": "a torch.nn.Module, or a function that returns one",
            "loss": "a function of outputs and targets",
            "reset": "a function of the network",
        }
        kind = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
        raise RecipeError(f"{option} {name}: is {kind}, not {due[part]}")
    if part == "loss" and isinstance(thing, type):
        raise CapabilityError(f"{option} {name}: is a class: name a function, or what it makes")
