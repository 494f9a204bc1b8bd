"""Leaky integrate-and-fire neurons in continuous time: exact spike times and their derivatives.

A neuron with a constant current ``I`` and input spikes of weight ``w``, from rest::

    tau_s dg/dt = I - g                tau dv/dt = R g - v
    at an input spike: g <- g + w      at v = threshold: a spike, v <- v - threshold = 0

This is the limit of the step equation (``neurons.leaky``) for ever shorter steps.  There a spike
lasts one step and brings ``(1 - exp(-dt/tau_s)) w``, less for shorter steps; here it brings ``w``.
Between two events, with ``T`` the end of the trial,

    v(t) = A exp((T-t)/tau) + B exp((T-t)/tau_s) + R I

has one extremum at most, so that a crossing is bracketed in closed form and found to machine
precision.  The amplitudes change at events alone: with ``gamma = tau_s / (tau - tau_s)`` an input
spike at ``t_e`` adds ``R gamma w exp(-(T-t_e)/tau)`` to ``A`` and ``-R gamma w
exp(-(T-t_e)/tau_s)`` to ``B``, an own spike at ``t_k`` adds ``-threshold exp(-(T-t_k)/tau)`` to
``A``.

Derivatives are those of the spike times themselves, without a surrogate (EventProp: Wunderlich &
Pehle 2021, Sci. Rep. 11, 12829).  Credit runs backward through the own spikes: the one at ``t_k``
passes ``dL/dv = -(dL/dt_k) / v'(t_k)`` to all that the potential depends on, and ``dL/dt_k`` itself
holds ``-(threshold/tau) exp(-(T-t_k)/tau) dL/dA`` of the spikes behind it.  In these amplitudes the
adjoint variables are constant between spikes, ``dL/dv = exp(-(T-t)/tau) dL/dA``, so that no
equation need be integrated.  A spike that appears or vanishes has no derivative.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from biograd.encoding import Encoding
from biograd.errors import BiogradError, RecipeError
from biograd.neurons import EventDriven

MOST_SPIKES = 1000
"""A neuron that spikes more often in one trial stops the simulation."""


@dataclasses.dataclass(frozen=True)
class EventMembrane:
    """The constants of the equations.

    Attributes:
        time_constant: ``tau`` in ms.
        synaptic: ``tau_s`` in ms, not equal to ``tau``.
        duration: ``T`` in ms.
    """

    time_constant: float
    synaptic: float
    resistance: float
    threshold: float
    duration: float

    @classmethod
    def of(cls, neuron: EventDriven, encoding: Encoding) -> EventMembrane:
        """Return the constants of a recipe.

        Raises:
            RecipeError: there is no synaptic filter, or its time constant is the membrane's.
        """
        membrane, synaptic = neuron.time_constant_ms, neuron.synaptic_time_constant_ms
        if synaptic == 0 or abs(membrane - synaptic) < 1e-3 * membrane:
            raise RecipeError(
                f"neuron.synaptic_time_constant_ms = {synaptic:g}: exact spike times need one "
                f"above zero that differs from neuron.time_constant_ms = {membrane:g}"
            )
        return cls(
            time_constant=membrane,
            synaptic=synaptic,
            resistance=neuron.resistance,
            threshold=neuron.threshold,
            duration=encoding.duration_ms,
        )

    def slow(self, times: Tensor) -> Tensor:
        """Return ``exp((T-t)/tau)``."""
        return torch.exp((self.duration - times) / self.time_constant)

    def fast(self, times: Tensor) -> Tensor:
        """Return ``exp((T-t)/tau_s)``."""
        return torch.exp((self.duration - times) / self.synaptic)

    def amplitudes(
        self, current: Tensor, slow: Tensor, fast: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``A`` and ``B`` after each event ``[..., E + 1]`` and ``R I``; a linear map.

        Args:
            current: ``I [..., 1]``.
            slow: ``w exp(-(T-t_e)/tau)`` of the events in their order, ``[..., E]``.
            fast: the same with ``tau_s``.
        """
        to_slow, to_fast, gain = self._factors
        after_slow = torch.cat([to_slow * current, gain * slow], -1).cumsum(-1)
        after_fast = torch.cat([to_fast * current, -gain * fast], -1).cumsum(-1)
        return after_slow, after_fast, self.resistance * current

    def transposed(
        self, slow: Tensor, fast: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cotangents of the arguments of ``amplitudes`` for those of its results."""
        to_slow, to_fast, gain = self._factors
        slow, fast = (values.flip(-1).cumsum(-1).flip(-1) for values in (slow, fast))
        current = to_slow * slow[..., :1] + to_fast * fast[..., :1] + self.resistance * offset
        return current, gain * slow[..., 1:], -gain * fast[..., 1:]

    @property
    def _factors(self) -> tuple[float, float, float]:
        """From ``I`` to ``A`` and to ``B`` at the start, at rest; from an event to ``A``."""
        gain = self.resistance * self.synaptic / (self.time_constant - self.synaptic)
        to_slow = -(self.resistance + gain) * math.exp(-self.duration / self.time_constant)
        return to_slow, gain * math.exp(-self.duration / self.synaptic), gain


@dataclasses.dataclass
class _Stretch:
    """One stretch between events for each of ``n`` neurons, or many, ``[n, E + 1]``."""

    membrane: EventMembrane
    slow: Tensor
    fast: Tensor
    offset: Tensor

    def at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``v - threshold`` and ``dv/dt``."""
        membrane = self.membrane
        slow, fast = self.slow * membrane.slow(times), self.fast * membrane.fast(times)
        slope = slow / -membrane.time_constant - fast / membrane.synaptic
        return slow + fast + (self.offset - membrane.threshold), slope

    def bracket(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where ``v`` rises in a stretch, and whether it crosses the threshold there.

        The extremum is where ``A exp((T-t)/tau) / tau = -B exp((T-t)/tau_s) / tau_s``.
        """
        membrane = self.membrane
        rate = 1 / membrane.synaptic - 1 / membrane.time_constant
        ratio = -self.slow / self.fast * (membrane.synaptic / membrane.time_constant)
        extremum = membrane.duration - ratio.log() / rate  # not a number: there is none
        inside = (extremum > start) & (extremum < end)
        peak = self.fast * rate < 0
        lower = torch.where(inside & ~peak, extremum, start)
        upper = torch.where(inside & peak, extremum, end)
        return lower, upper, (self.at(upper)[0] > 0) & (start < end)

    def root(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the crossing between two times: Newton's method, halving where it leaves them."""
        times = 0.5 * (lower + upper)
        for _ in range(100):
            distance, slope = self.at(times)
            below = distance < 0
            lower, upper = torch.where(below, times, lower), torch.where(below, upper, times)
            new = times - distance / slope
            new = torch.where((new >= lower) & (new <= upper), new, 0.5 * (lower + upper))
            moved = (new - times).abs().max()
            times = new
            if moved <= 1e-12 * self.membrane.duration:
                break
        return times


@torch.no_grad()
def _simulate(
    membrane: EventMembrane, slow: Tensor, fast: Tensor, offset: Tensor, events: Tensor, /
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the times of all spikes, the slopes ``dv/dt`` there and the events before each.

    Args:
        slow: ``A`` after each event, ``[n, E + 1]``.
        fast: ``B``.
        offset: ``R I``, ``[n, 1]``.
        events: their times in order ``[n, E]``, ``T`` where there is none.

    Returns:
        Three times ``[n, K]``; where there is no spike ``T``, 1 and 0.

    Raises:
        BiogradError: more than ``MOST_SPIKES`` spikes of one neuron.
    """
    start = torch.cat([torch.zeros_like(offset), events], 1)
    end = torch.cat([events, torch.full_like(offset, membrane.duration)], 1)
    count, number = len(slow), torch.arange(len(slow), device=slow.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def column(values: Tensor, fill: float) -> Tensor:
        return values.new_full((count, 1), fill).index_copy(0, number, values)

    while True:
        lower, upper, crosses = _Stretch(membrane, slow, fast, offset).bracket(start, end)
        alive = crosses.any(1).nonzero().squeeze(1)
        if not len(alive):
            break
        if len(found) == MOST_SPIKES:
            raise BiogradError(
                f"a neuron spikes more than {MOST_SPIKES} times in a trial of "
                f"{membrane.duration:g} ms: lower neuron.resistance, network.gain or the inputs"
            )
        place = crosses[alive].int().argmax(1, keepdim=True)  # the first
        lower, upper = (part[alive].gather(1, place) for part in (lower, upper))
        number, slow, fast, offset = (part[alive] for part in (number, slow, fast, offset))
        here = _Stretch(membrane, slow.gather(1, place), fast.gather(1, place), offset)
        times = here.root(lower, upper)
        slopes = here.at(times)[1]
        found.append((column(times, membrane.duration), column(slopes, 1), column(place, 0)))
        slow = slow - membrane.threshold / membrane.slow(times)
        start, end = start[alive].maximum(times), end[alive]
    if not found:
        return slow[:, :0], slow[:, :0], slow[:, :0].long()
    times, slopes, places = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return times, slopes, places


class _Respond(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        slow: Tensor,
        fast: Tensor,
        events: Tensor,
        membrane: EventMembrane,
    ) -> Tensor:
        shape, stretches = slow.shape[:2], slow.shape[2] + 1
        parts = (*membrane.amplitudes(current, slow, fast), events.unsqueeze(1))
        flat = (part.expand(*shape, -1).flatten(0, 1) for part in parts)
        found = _simulate(membrane, *flat)
        kept = [part.view(*shape, part.shape[1]) for part in found]
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)
        ctx.membrane, ctx.stretches = membrane, stretches
        return kept[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        times, slopes, places = ctx.saved_tensors
        membrane: EventMembrane = ctx.membrane
        spiked, slow, fast = times < membrane.duration, membrane.slow(times), membrane.fast(times)
        reset = membrane.threshold / membrane.time_constant / slow
        credit = torch.zeros_like(gradient)  # dL/dv before each spike
        behind = torch.zeros_like(gradient[..., :1])  # dL/dA of the spikes behind
        for k in reversed(range(times.shape[-1])):
            here = slice(k, k + 1)
            total = gradient[..., here] - reset[..., here] * behind
            credit[..., here] = torch.where(spiked[..., here], -total / slopes[..., here], 0)
            behind = behind + credit[..., here] * slow[..., here]
        blank = gradient.new_zeros(*gradient.shape[:2], ctx.stretches)
        by_slow = blank.scatter_add(-1, places, credit * slow)
        by_fast = blank.scatter_add(-1, places, credit * fast)
        found = membrane.transposed(by_slow, by_fast, credit.sum(-1, keepdim=True))
        return *found, None, None

    @staticmethod
    def jvp(ctx: Any, current: Tensor, slow: Tensor, fast: Tensor, *_: Any) -> Tensor:
        times, slopes, places = ctx.saved_tensors
        membrane: EventMembrane = ctx.membrane
        by_slow, by_fast, offset = membrane.amplitudes(current, slow, fast)
        fixed = by_slow.gather(-1, places) * membrane.slow(times)
        fixed = fixed + by_fast.gather(-1, places) * membrane.fast(times) + offset
        found, reset = [], torch.zeros_like(offset)  # dA of the spikes before
        for k in range(times.shape[-1]):
            here = slice(k, k + 1)
            now = membrane.slow(times[..., here])
            moved = -(fixed[..., here] + reset * now) / slopes[..., here]
            found.append(torch.where(times[..., here] < membrane.duration, moved, 0))
            reset = reset - found[-1] * (membrane.threshold / membrane.time_constant) / now
        return torch.cat(found, -1) if found else torch.zeros_like(times)


def respond(
    membrane: EventMembrane, current: Tensor, slow: Tensor, fast: Tensor, events: Tensor
) -> Tensor:
    """Return the times of all spikes ``[rows, U, K]``, ``T`` where there is none; differentiable.

    Args:
        current: constant current ``I [rows, U, 1]``, in double precision as all arguments.
        slow: ``w exp(-(T-t_e)/tau)`` of each event ``[rows, U, E]``.
        fast: the same with ``tau_s``.
        events: times of the input spikes in order ``[rows, E]``, ``T`` where there is none; their
            derivative passes through ``slow`` and ``fast``.

    Raises:
        BiogradError: more than ``MOST_SPIKES`` spikes of one neuron.
    """
    return cast(Tensor, _Respond.apply(current, slow, fast, events.detach(), membrane))


def arrivals(membrane: EventMembrane, times: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a synaptic layer receives, and the times of the events in order.

    A layer that is linear in its input serves as it is: what it makes of a zero row is the
    constant current, and of a row with one entry the effect of one input spike.

    Args:
        times: of the input spikes ``[rows, inputs, K]``, ``T`` or later where there is none.

    Returns:
        ``[rows, 1 + 2 E, inputs]``: a row of zeros, for each event the trace that it leaves at the
        end of the trial, ``exp(-(T-t)/tau)``, and again with ``tau_s``; and times ``[rows, E]``.
    """
    rows, inputs, most = times.shape
    flat = times.flatten(1)
    most_events = int((flat < membrane.duration).sum(1).max()) if flat.numel() else 0
    order = flat.detach().argsort(dim=1, stable=True)[:, :most_events]
    events = flat.gather(1, order)
    there = events < membrane.duration
    events = torch.where(there, events, membrane.duration)
    source = (order // max(most, 1)).unsqueeze(-1)
    blank = times.new_zeros(rows, most_events, inputs)
    traces = [
        blank.scatter(2, source, (there / decay(events)).unsqueeze(-1))
        for decay in (membrane.slow, membrane.fast)
    ]
    return torch.cat([times.new_zeros(rows, 1, inputs), *traces], 1), events


def divided(currents: Tensor, events: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first three arguments of ``respond`` for a layer's answer to ``arrivals``.

    Args:
        currents: ``[rows, 1 + 2 E, U]``.
        events: ``[rows, E]``.
    """
    constant, count = currents[:, :1], events.shape[1]
    effects = (currents[:, 1:] - constant).mT.double()
    return constant.mT.double(), effects[..., :count], effects[..., count:]
