"""Some of the steps of a trial, run from given states to states that are given back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

State = tuple[Tensor, ...]
"""The variables that a module carries from one step to the next, each ``[rows, *U]``."""


@dataclasses.dataclass
class TrialPart:
    """What a module that runs through time knows of the part of a trial that it runs.

    Attributes:
        first: number of its first step in the trial.
        steps: number of its steps.
        trial: number of steps of the trial.
        begun: the state in which it begins; empty: that in which a trial begins.
        ended: the state in which it ended, with its graph.
    """

    first: int
    steps: int
    trial: int
    begun: State = ()
    ended: State = ()

    @property
    def last(self) -> bool:
        """Whether the trial ends with it."""
        return self.first + self.steps == self.trial


@contextmanager
def parted(
    network: nn.Module, first: int, steps: int, trial: int, begun: Mapping[str, State]
) -> Iterator[dict[str, TrialPart]]:
    """Let passes of a network run a part of a trial; yield the parts by the modules' names.

    Args:
        begun: name of a module to the state in which it begins.
    """
    having = {name: one for name, one in network.named_modules() if hasattr(one, "part")}
    parts = {name: TrialPart(first, steps, trial, begun.get(name, ())) for name in having}
    try:
        for name, module in having.items():
            module.__dict__["part"] = parts[name]
        yield parts
    finally:
        for module in having.values():
            module.__dict__.pop("part", None)
