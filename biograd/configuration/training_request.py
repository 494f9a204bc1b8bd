"""What a user asks for: of a training, before anything of it is looked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from biograd import recipes
from biograd.configuration.own_parts import Metrics, OwnParts
from biograd.substrate.kept import Reset


@dataclasses.dataclass(frozen=True)
class TrainingRequest:
    """What the user asked for; None means the recipe's value."""

    model: str | nn.Module | Callable[..., Any] = "spiking"
    """A shipped name, a TOML file, the name of code, a module, or what makes one."""
    dataset: str = "digits"
    estimator: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    """See ``devices.named``; whether it is there is asked when the training begins."""
    out: Path | None = None
    force: bool = False
    assignments: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    """Assignments before the others, of several runs: here they need not have an effect."""
    data_dir: Path | None = None
    offline: bool = False
    control: bool = False
    own: Any = None
    """Own data in place of ``dataset``: arrays, Datasets, or typed text that names code."""
    task: str | Mapping[str, Any] | None = None
    repeatable: bool = False
    """Refuse data that do not repeat."""
    laid: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Tables laid over the recipe, by the arguments that they came in."""
    loss: str | Callable[..., Any] | None = None
    """A name, that of code, or a function."""
    reset: Reset | None = None
    """A method's name, that of code, or a function."""
    metrics: Metrics = ()
    """Beside the task's own; see ``OwnParts``."""
    allow_code: bool = False
    """Let a recipe's file name code that is run."""

    def __post_init__(self) -> None:
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))

    @property
    def code(self) -> str:
        """The name of the code that makes the module; "": none does, or an object was given.

        Raises:
            RecipeError: a file names it and may not.
        """
        if not isinstance(self.model, str):
            return ""
        table = recipes.model_table(self.model)[0].get("module")
        source = table.get("source") if isinstance(table, dict) else None
        if not isinstance(source, str):
            return ""
        recipes.check_consent(source, self.model, self.allow_code)
        return source

    def parts(self) -> OwnParts:
        """Return the user's own parts, code that was named loaded."""
        model = self.model if not isinstance(self.model, str) else self.code or None
        return OwnParts.of(model, self.own, self.loss, self.reset, metrics=self.metrics)
