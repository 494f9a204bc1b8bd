"""Data that have a time axis already, as spikes or as a current."""

from __future__ import annotations

import torch
from torch import Tensor

from biograd.encoding.encoding import Encoding
from biograd.errors import DataError


class Given(Encoding):
    """Spikes or currents as they are, ``I[t] = gain x[t]``, from ``[B, T, *shape]``.

    A trial that ends before ``duration_ms`` is followed by silence.

    Raises:
        DataError: the data last longer than ``duration_ms``.
    """

    timed = True
    reads = frozenset(("gain",))

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Scale the inputs and add the silence; ``generator`` is not drawn from."""
        current = self.recipe.gain * inputs.flatten(2)
        check_duration(inputs.shape[1], self.steps, self.dt_ms)
        return torch.nn.functional.pad(current, (0, 0, 0, self.steps - inputs.shape[1]))


def check_duration(given: int, steps: int, dt_ms: float, alike: bool = False) -> None:
    """Refuse data of more steps than a trial has; ``alike``: also of fewer.

    Raises:
        DataError: with the duration that they need.
    """
    if given > steps or (alike and given < steps):
        raise DataError(
            f"encoding.duration_ms = {steps * dt_ms:g}: the data last {given} steps of "
            f"{dt_ms:g} ms: set encoding.duration_ms = {given * dt_ms:g}"
        )
