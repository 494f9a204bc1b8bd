"""Synapses with delays: fixed, or learned with the weights.

A kernel over delays stands for each delay ``d``: what arrives is ``sum_k g_k(d) x[t-k]``, ``k = 0
.. D``.  It is a line between the two steps beside ``d`` ("linear", after which the derivative is
exact), a Gaussian whose width shrinks while the network learns ("gaussian"), or the nearest step
alone ("none", "rounded").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.circuit.projections import Masked, Sign, signed
from biograd.encoding import Encoding
from biograd.errors import RecipeError
from biograd.neurons.values import drawn
from biograd.recipes import DelayRecipe

NARROWEST = 0.23
"""Width, in steps, of a Gaussian that is one step to four digits."""


class Delayed(Masked):
    """A linear layer whose synapses have delays: ``I_i[t] = sum_jk w_ij g_k(d_ij) x_j[t-k] + b_i``.

    ``g_k = max(0, 1 - |k - d|)`` ("linear"), ``exp(-(k - d)^2 / (2 width^2))`` over its sum
    ("gaussian"; Hammouamri et al. 2024, arXiv 2306.17670), or 1 at the step nearest to ``d``.  A
    learned delay that leaves ``[0, D]`` is reflected.  "rounded" has no derivative: rules that
    perturb parameters learn it, no others.

    Args:
        layer: its weights: of a dense or a masked layer.
        recipe: of the delays.
        values: the delays at first, in steps: ``[1]``, ``[inputs]`` or ``[outputs, inputs]``.
        longest: D, in steps.
        width: of the Gaussian at first, in steps.

    Attributes:
        delays: what is learned of them, in units of ``recipe.pace`` steps; or the steps themselves.
        width: of the Gaussian now; a buffer.
        unlearned: names of parameters that act without a derivative.

    Raises:
        RecipeError: delays outside of ``[0, D]``.
    """

    delays: Tensor
    width: Tensor
    longest: int

    def __init__(
        self,
        layer: nn.Linear | Masked,
        recipe: DelayRecipe,
        values: Tensor,
        longest: int,
        width: float = NARROWEST,
    ) -> None:
        if bool((values < 0).any()) or bool((values > longest).any()):
            raise RecipeError(f"Delayed: delays outside of 0 to {longest} steps, the longest")
        mask = layer.mask if isinstance(layer, Masked) else torch.ones_like(layer.weight)
        sign: Sign = getattr(layer, "sign", "both")
        density = getattr(layer, "density", None)
        super().__init__(mask, layer.bias is not None, sign, density)
        self.recipe, self.longest, self.first_width = recipe, longest, float(width)
        if recipe.learned == "none":
            self.register_buffer("delays", values.round())
        else:
            self.delays = nn.Parameter(values / recipe.pace)
        self.unlearned = ("delays",) if recipe.learned == "rounded" else ()
        self.register_buffer("width", torch.tensor(self.first_width))

    @property
    def steps(self) -> Tensor:
        """The delays in steps, within ``[0, D]``; with the graph that leads to what is learned."""
        if self.recipe.learned == "none":
            return self.delays
        return reflected(self.delays * self.recipe.pace, max(self.longest, 1))

    def kernel(self) -> Tensor:
        """Return what each delay takes of every step past, ``[*delays, D + 1]``."""
        steps = self.steps.unsqueeze(-1)
        past = torch.arange(self.longest + 1, dtype=steps.dtype, device=steps.device)
        if self.recipe.learned == "linear":
            return functional.relu(1 - (past - steps).abs())
        if self.recipe.learned == "gaussian":
            return torch.softmax(-((past - steps) ** 2) / (2 * self.width**2), -1)
        return (past == steps.detach().round()).to(steps.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the currents of a course, or of its last step.

        Args:
            inputs: ``[rows, T, inputs]``: the answer is ``[rows, T, outputs]``; or the last D + 1
                steps of every row one behind the other, ``[rows, (D + 1) inputs]``: that of the
                last, ``[rows, outputs]``.
        """
        units = self.mask.shape[1]
        course = inputs if inputs.dim() == 3 else inputs.unflatten(1, (-1, units))
        weight, kernel = signed(self.weight, self.sign) * self.mask, self.kernel()
        lead = self.longest if inputs.dim() == 3 else 0
        padded = functional.pad(course.mT, (lead, 0))
        if self.recipe.per == "synapse":
            found = functional.conv1d(padded, (weight.unsqueeze(-1) * kernel).flip(-1))
        else:
            taps = kernel.expand(units, -1).flip(-1).unsqueeze(1)
            arriving = functional.conv1d(padded, taps, groups=units)
            found = weight @ arriving
        found = found.mT if inputs.dim() == 3 else found[..., 0]
        return found if self.bias is None else found + self.bias

    def narrow(self, progress: float) -> None:
        """Give the Gaussian the width that it has after a share of the training.

        It shrinks by one factor in every step, from its start to ``NARROWEST``, and stays there
        after ``recipe.narrowing`` of the training.
        """
        if self.recipe.learned == "gaussian":
            share = min(1.0, progress / self.recipe.narrowing)
            start = max(self.first_width, NARROWEST)
            self.width.fill_(start * (NARROWEST / start) ** share)

    @torch.no_grad()
    def settle(self) -> Tensor:
        """Round the delays to steps for good, and return them; nothing lies between steps then."""
        steps = self.steps.round()
        if self.recipe.learned != "none":
            self.delays.copy_(steps / self.recipe.pace)
        self.width.fill_(1e-2)
        return steps

    def describe_delays(self) -> dict[str, Any]:
        """Return what the delays are, in steps, as JSON values."""
        with torch.no_grad():
            found = self.steps.double()
        return {"per": self.recipe.per, "learned": self.recipe.learned, "steps": found.tolist()}

    def extra_repr(self) -> str:
        """Return sizes and kind of delays for ``print``."""
        kind = f"per={self.recipe.per!r}, learned={self.recipe.learned!r}"
        return f"{super().extra_repr()}, {kind}, longest={self.longest}"


def reflected(values: Tensor, longest: float) -> Tensor:
    """Return what lies outside of ``[0, longest]`` reflected into it.

    >>> reflected(torch.tensor([-1.0, 2.0, 6.0]), 5.0)
    tensor([1., 2., 4.])
    """
    return longest - (longest - values % (2 * longest)).abs()


def delayed(
    layer: nn.Module, recipe: DelayRecipe | None, encoding: Encoding, lag: int, where: str
) -> nn.Module:
    """Return a layer with the delays of a recipe; None: the layer itself.

    Args:
        encoding: of it, the steps.
        lag: steps that pass beside the delays.
        where: the key of the table; it opens every message.

    Raises:
        RecipeError: what no such layer can do, or that does not fit into a trial.
    """
    if recipe is None:
        return layer
    if not isinstance(layer, nn.Linear | Masked):
        raise RecipeError(
            f"{where}: {type(layer).__name__} has no delay for each connection: take delay_ms, or "
            "kind = 'dense' or 'masked'"
        )
    if recipe.learned == "exact":
        raise RecipeError(
            f"{where}.learned = 'exact': needs neuron.kind = 'event_driven'; in steps take "
            "'linear', 'gaussian' or 'rounded'"
        )
    dt_ms, key = encoding.dt_ms, f"{where}.longest_ms"
    longest = _whole(recipe.longest_ms, dt_ms, key)
    if longest + lag >= encoding.steps:
        raise RecipeError(
            f"{key} = {recipe.longest_ms:g}: nothing would arrive in a trial of "
            f"{encoding.duration_ms:g}"
        )
    shape = {"projection": (1,), "axon": layer.weight.shape[1:], "synapse": layer.weight.shape}
    if recipe.learned == "none" and not isinstance(recipe.start_ms, str):
        for each in given(recipe.start_ms):
            _whole(each, dt_ms, f"{where}.start_ms")
    values = starting(recipe, tuple(shape[recipe.per]), where) / dt_ms
    width = (recipe.width_ms or recipe.longest_ms / 2) / dt_ms
    return Delayed(layer, recipe, values, longest, width)


def given(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """Return one value or several as several."""
    return value if isinstance(value, tuple) else (value,)


def starting(recipe: DelayRecipe, shape: Sequence[int], where: str) -> Tensor:
    """Return the delays at first in milliseconds, in this shape.

    Raises:
        RecipeError: another number of values, or one that is longer than the longest.
    """
    key, count = f"{where}.start_ms", math.prod(shape)
    if isinstance(recipe.start_ms, str):
        values = drawn(recipe.start_ms, count, key, where, zero=True)
    else:
        values = torch.tensor(given(recipe.start_ms), dtype=torch.float64)
        if len(values) not in (1, count):
            raise RecipeError(f"{key}: {len(values)} values for {count} delays")
    if float(values.max()) > recipe.longest_ms:
        raise RecipeError(
            f"{key} = {float(values.max()):g}: longer than {where}.longest_ms = "
            f"{recipe.longest_ms:g}"
        )
    return values.expand(count).reshape(*shape).float()


def _whole(value_ms: float, dt_ms: float, where: str) -> int:
    steps = value_ms / dt_ms
    if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
        raise RecipeError(f"{where} = {value_ms:g}: no multiple of encoding.dt_ms = {dt_ms:g}")
    return round(steps)


def narrowing(network: nn.Module) -> list[Delayed]:
    """Return the layers of a network whose kernels shrink while it learns."""
    return [
        one
        for one in network.modules()
        if isinstance(one, Delayed) and one.recipe.learned == "gaussian"
    ]
