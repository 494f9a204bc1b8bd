"""Recipes of learning: the optimiser and its budget, decorrelation, local losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from biograd.checking import Checked, Count, Fraction, NotNegative, Positive, Range, Table
from biograd.recipes.schedules import RateRecipe

OPTIMISERS = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "asgd": "ASGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
    "sgd": "SGD",
}
"""Optimisers by name, and what torch.optim calls them.  Not here: LBFGS calls the loss several
times in a step, SparseAdam wants sparse gradients, Muon matrices alone, and Adafactor's state has
other shapes than its parameters."""


@dataclasses.dataclass(frozen=True)
class DecorrelationRecipe(Checked):
    """Decorrelation of every synaptic layer's input."""

    rule: str = "off"
    """``off``, or a name in ``decorrelation_rules.RULES``."""
    rate: Positive | Mapping[str, Positive] = 1e-3
    """One for all layers, or a table of one for each: ``{ "blocks.0.synapse" = 1e-3 }``."""
    kappa: Fraction = 0.5
    sample: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the clean rows whose correlations are measured in each step."""
    centre: bool = False


@dataclasses.dataclass(frozen=True)
class LocalRecipe(Checked):
    """Local losses: every block is trained by a loss of its own activity."""

    loss: str = "off"
    """``off``, or a name in ``local.objectives.LOCAL_LOSSES``."""
    cells: str = "block"
    """What has a loss of its own: a ``block``, or each ``patch`` of it, ``group`` of channels, or
    both, ``patch_group``."""
    groups: Count = 1
    sites: Literal["ends", "all"] | tuple[str, ...] = "ends"
    beta: Fraction = 0.99
    """Weight of similarity beside prediction (``predsim``)."""
    normalise: bool = False
    """Layer-normalise each group of channels before the head."""


@dataclasses.dataclass(frozen=True)
class TrainingRecipe(RateRecipe):
    """The optimiser and the budget."""

    epochs: Annotated[int, Range(0)] = 20
    passes: Count | None = None
    """Budget in forward passes, in place of ``epochs``: an example that goes once through the
    network in one copy counts one; backward passes do not count."""
    seconds: Positive | None = None
    """Budget in seconds of training steps, without evaluation and files, in place of ``epochs``;
    how many steps that is differs from run to run."""
    batch_size: Count = 32
    accumulate: Count = 1
    """Parts that a batch is run in, one after the other, for less memory: their gradients are
    averaged by rows."""
    optimiser: Annotated[str, OPTIMISERS] = "adam"
    learning_rate: Positive = 1e-3
    momentum: Annotated[float, Range(0, 0.999)] = 0.9
    """Of ``sgd``; other optimisers name theirs in ``optimiser_settings``."""
    weight_decay: NotNegative = 0.0
    optimiser_settings: Table = dataclasses.field(default_factory=dict)
    """Further arguments of torch's class: ``{ betas = [0.9, 0.99] }``."""
    clip: Positive | None = None
    """The norm of all gradients together that a step does not exceed."""
    stop_after: Count | None = None
    """Epochs without a better figure on the validation rows after which the training ends."""
    keep: Literal["last", "best"] = "last"
    """Which weights are measured in the end, and are the run's: those of the last step, or of the
    epoch that was best on the validation rows."""
    metrics: tuple[str, ...] = ()
    """Metrics beside the task's own, of every evaluation: names in ``METRICS``."""
    precision: Literal["full", "bfloat16"] = "full"
    """``bfloat16``: forward passes under ``torch.autocast``; parameters stay as they are."""
    loss: str | None = None
    """In place of the task's own: one of its losses by name ("cross_entropy" or "squared_error" of
    classes, "huber" of a regression), or one of ``torch.nn.functional`` ("l1_loss"); a function of
    one's own is given by ``--loss``, which then stands here by name."""
    outside: Literal["refuse", "freeze", "exact"] = "refuse"
    """What becomes of parameters that the rule does not credit (``attach``)."""
    start_rate: Annotated[float, Range(0, 0.9)] = 0.0
    """Spikes a unit and step to which each hidden layer's weights are scaled before the training,
    on ``START_EXAMPLES`` training rows (``tune_init``); 0: weights stay as they are drawn."""
    probe: Annotated[int, Range(0)] = 0
    """Draws, two at least, by which every snapshot measures the gradient estimate; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes is not None and self.seconds is not None:
            raise ValueError("passes and seconds are two budgets: give one of them")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate = {self.accumulate} parts of {self.batch_size} examples")

    @property
    def chooses(self) -> str:
        """The key that chooses by validation rows, "" if none does."""
        if self.stop_after is not None:
            return "stop_after"
        return "keep" if self.keep == "best" else "schedule" * (self.schedule == "plateau")

    @property
    def budget(self) -> tuple[Literal["epochs", "passes", "seconds"], float]:
        """What ends the training: a unit, and how many of it."""
        if self.passes is not None:
            return "passes", self.passes
        return ("epochs", self.epochs) if self.seconds is None else ("seconds", self.seconds)
