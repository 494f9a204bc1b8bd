"""The recipe of recording: what a run keeps of the network, of which stimuli, and when."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from biograd.checking import Checked, Count, Positive, Range

Variable = Literal["potential", "synaptic_current", "adaptation", "credit"]


@dataclasses.dataclass(frozen=True)
class RecordingRecipe(Checked):
    """What is kept at snapshots, beside the activity and spikes of every layer."""

    stimuli: Count = 200
    """How many of the evaluated rows every snapshot shows, their classes in turn."""
    layers: tuple[str, ...] = ("*",)
    """Names or patterns (``blocks.*``) of the layers that are recorded."""
    variables: tuple[Variable, ...] = ()
    """Of these layers: ``potential``, ``synaptic_current``, ``adaptation`` in every step of the
    trial; ``credit``, what the rule delivers to their input current."""
    outputs: bool = True
    """The outputs of the network on the stimuli."""
    weights: tuple[str, ...] | None = None
    """Names or patterns of parameters; by default all if they take 32 MiB at most."""
    gradients: bool = False
    """The rule's gradient of the loss on the stimuli, of the parameters in ``weights``."""
    log: bool = True
    """A snapshot after the steps 1, 2, 5, 10, ... of the first epoch."""
    every: Count | None = None
    """A snapshot after every so many steps."""
    at: tuple[Annotated[int, Range(1)], ...] = ()
    """A snapshot after these steps."""
    epochs: Literal["log", "all", "none"] = "log"
    """A snapshot at the end of the first 20 epochs, then 50, 100, 200, ...; of all; of the last."""
    best: bool = False
    """A snapshot at the end of each epoch that is the best so far on the validation rows."""
    checkpoints: Literal["last", "best", "snapshots"] = "last"
    """Which states of the training stay in the finished file: the last; beside it that of the best
    epoch; or those of all epochs that end with a snapshot."""
    limit_gb: Positive = 2.0
    """The training is refused if more than this, before compression, would be recorded."""
