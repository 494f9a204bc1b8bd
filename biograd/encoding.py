"""Encodings: how a datum becomes an input current or a spike train.

Shapes: inputs ``[B, *shape]`` become ``[B, steps, units]``, or ``[B, 1, units]`` when the same
current flows in every step; in the inputs' dtype and on their device.

Common random numbers: an encoding is called once, on the ``B`` clean examples, and whoever runs
several copies of a network repeats the result.  All copies then see the same spikes, and the
encoding's randomness drops out of their differences.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from biograd import parallel
from biograd.errors import DataError, RecipeError, nearest
from biograd.recipes import EncodingRecipe


class Encoding(ABC):
    """Turns inputs into a current or a spike train.

    Attributes:
        shape: of one input.
        units: number of input units.
        steps: time steps of a trial, ``duration_ms / dt_ms``.
        dt_ms: length of a time step in milliseconds.
        duration_ms: length of a trial in milliseconds.
        spikes: whether a datum becomes spikes, 0 or 1, and not a current.

    Raises:
        RecipeError: the trial is not a whole number of steps, or the encoding cannot represent
            what the recipe asks for.
    """

    spikes = False

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Count the steps and units of a trial."""
        self.recipe, self.shape = recipe, tuple(shape)
        self.dt_ms, self.duration_ms = recipe.dt_ms, recipe.duration_ms
        self.units = math.prod(self.shape)
        self.steps = _steps(recipe)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Encode ``[B, *shape]``; every random number comes from ``generator``.

        Raises:
            DataError: the inputs have another shape, or are not floating-point numbers.
        """
        if tuple(inputs.shape[1:]) != self.shape or not inputs.is_floating_point():
            raise DataError(
                f"encoding {self.recipe.kind!r} takes floating-point inputs of shape "
                f"{['B', *self.shape]}, found {inputs.dtype} {list(inputs.shape)}"
            )
        return self.encode(inputs, generator)

    @abstractmethod
    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Encode inputs whose shape has been checked."""


class Current(Encoding):
    """A constant current in every step, ``I = gain x``; ``[B, 1, units]``."""

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Scale the inputs; ``generator`` is not drawn from."""
        return self.recipe.gain * inputs.reshape(len(inputs), 1, self.units)


class Poisson(Encoding):
    """Independent spikes, each step with probability ``p = x max_rate dt`` within 0 and 1.

    Raises:
        RecipeError: ``max_rate dt > 1``; one step holds one spike at most.
    """

    spikes = True

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Check that one step can hold the spikes of the highest rate."""
        super().__init__(recipe, shape)
        self.most = recipe.max_rate_hz * recipe.dt_ms / 1000
        if self.most > 1 + 1e-9:
            raise RecipeError(
                f"encoding.max_rate_hz = {recipe.max_rate_hz:g} needs {self.most:g} spikes in a "
                f"step of encoding.dt_ms = {recipe.dt_ms:g}; a step holds one: lower either"
            )

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the spikes on the generator's device, the same in float32 and in float64."""
        shape, where = (self.steps, self.units), generator.device
        draws = parallel.rows(
            lambda count: torch.rand(
                count, *shape, generator=generator, device=where, dtype=torch.float32
            ),
            len(inputs),
        )
        chance = self.most * inputs.reshape(len(inputs), 1, self.units).float()
        return (draws.to(inputs.device) < chance).to(inputs.dtype)


class Latency(Encoding):
    """One spike at most, the sooner the stronger the input.

    A constant input x charges a leaky membrane, which reaches the threshold θ after
    ``t = tau ln(x / (x - θ))``; the spike falls in the step that holds ``t``.  An input at or
    below the threshold never gets there, and one that does so after the trial is not seen.
    """

    spikes = True

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Place the spikes; ``generator`` is not drawn from."""
        x = inputs.reshape(len(inputs), self.units)
        step = (self.times(x) / self.dt_ms).floor().clamp(max=self.steps)
        # The step behind the trial collects what is never seen.
        spikes = x.new_zeros(len(x), self.steps + 1, self.units)
        spikes.scatter_(1, step.long().unsqueeze(1), 1)
        return spikes[:, : self.steps]

    def times(self, inputs: Tensor) -> Tensor:
        """Return the time of each spike in milliseconds, infinite where there is none."""
        above = inputs > self.recipe.threshold
        charged = torch.where(above, inputs, 2 * self.recipe.threshold)
        times = -self.recipe.time_constant_ms * torch.log1p(-self.recipe.threshold / charged)
        return torch.where(above, times, math.inf)


class RowEncoding(Encoding):
    """An encoding in which an image's height, or the first axis of ``(rows, features)``, is time.

    Step ``s`` belongs to row ``floor(s rows / steps)``.

    Raises:
        RecipeError: the inputs have no rows, or the trial has fewer steps than rows.
    """

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Check that the inputs have rows and that the trial has a step for each."""
        super().__init__(recipe, shape)
        if len(self.shape) not in (2, 3):
            raise RecipeError(
                f"encoding.kind = {recipe.kind!r} needs images of shape (channels, height, width), "
                f"not {self.shape}: use current, poisson or latency"
            )
        self.rows = self.shape[-2]
        self.features = self.units = math.prod(self.shape) // self.rows
        if self.steps < self.rows:
            raise RecipeError(
                f"encoding.duration_ms = {recipe.duration_ms:g} gives {self.steps} steps for "
                f"{self.rows} rows: at least {self.rows * recipe.dt_ms:g} are needed"
            )

    def by_row(self, inputs: Tensor) -> Tensor:
        """Return the inputs as ``[B, rows, features]``; channels lie side by side."""
        images = inputs if inputs.dim() == 4 else inputs.unsqueeze(1)
        return images.transpose(1, 2).flatten(2)


class Delta(RowEncoding):
    """Spikes where a row differs from the one before by more than the threshold.

    The first half of the units are ON (brighter), the second half OFF (darker); a spike falls in
    the first step of its row.  The first row has none before it, and gives none.
    """

    spikes = True

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Find the first step of every row."""
        super().__init__(recipe, shape)
        self.units = 2 * self.features
        self.starts = torch.tensor([-(-row * self.steps // self.rows) for row in range(self.rows)])

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Place the spikes; ``generator`` is not drawn from."""
        change = self.by_row(inputs).diff(dim=1)
        threshold = self.recipe.threshold
        spikes = inputs.new_zeros(len(inputs), self.steps, self.units)
        events = torch.cat([change > threshold, change < -threshold], -1)
        spikes[:, self.starts[1:].to(inputs.device)] = events.to(inputs.dtype)
        return spikes


class Rows(RowEncoding):
    """An image row by row as a current, ``I = gain x``; each row lasts ``duration / rows``."""

    def __init__(self, recipe: EncodingRecipe, shape: tuple[int, ...]) -> None:
        """Find the row of every step."""
        super().__init__(recipe, shape)
        self.row_of_step = torch.arange(self.steps) * self.rows // self.steps

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Hold each row for its steps; ``generator`` is not drawn from."""
        return self.recipe.gain * self.by_row(inputs)[:, self.row_of_step.to(inputs.device)]


ENCODINGS: dict[str, type[Encoding]] = {
    "current": Current,
    "poisson": Poisson,
    "latency": Latency,
    "delta": Delta,
    "rows": Rows,
}


def build(recipe: EncodingRecipe, shape: tuple[int, ...]) -> Encoding:
    """Return the encoding of a recipe for inputs ``[B, *shape]``.

    Raises:
        RecipeError: unknown kind, a trial that is not a whole number of steps, or a shape or
            rate that the encoding cannot represent.
    """
    if recipe.kind not in ENCODINGS:
        raise RecipeError(f"encoding.kind = {recipe.kind!r}: {nearest(recipe.kind, ENCODINGS)}")
    return ENCODINGS[recipe.kind](recipe, shape)


MOST_STEPS = 100_000


def _steps(recipe: EncodingRecipe) -> int:
    """Return the number of time steps of a trial."""
    ratio = recipe.duration_ms / recipe.dt_ms
    if ratio > MOST_STEPS:
        raise RecipeError(
            f"encoding.dt_ms = {recipe.dt_ms:g}: {recipe.duration_ms:g} ms would take {ratio:.0g} "
            f"steps, at most {MOST_STEPS} are possible"
        )
    steps = round(ratio)
    if steps < 1 or abs(ratio - steps) > 1e-9 * steps:
        raise RecipeError(
            f"encoding.duration_ms = {recipe.duration_ms:g} is not a multiple of "
            f"encoding.dt_ms = {recipe.dt_ms:g}"
        )
    return steps
