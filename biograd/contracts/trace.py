"""What a round of forward passes leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from biograd.contracts.activity_bounds import Priced
from biograd.contracts.plan import Credit, Objective, Plan, SiteShape, bin_lengths
from biograd.contracts.precision import widened


@dataclasses.dataclass
class Visits:
    """The outputs of one layer in the clean copy, in the order in which it was called.

    A layer that is called in fewer steps than its site has is called in the last ones: a recurrent
    layer may begin in the second step.

    Attributes:
        outputs: each ``[B, *U]``, or ``[B, time, *U]`` with ``time`` one of 1 (the same current
            in every step), ``K`` (the mean current of each bin) or the number of steps.
        inputs: what the layer received in each call, without a graph.
        received: the same with the graph, if the plan has slots.
        credited: whether something that is differentiated led to one of them.
    """

    time: bool
    outputs: list[Tensor] = dataclasses.field(default_factory=list)
    inputs: list[Tensor] = dataclasses.field(default_factory=list)
    received: list[Tensor] = dataclasses.field(default_factory=list)
    credited: bool = False

    def binned(self, steps: int, time_bin: int | None) -> Tensor:
        """Return the mean output in each bin, ``[B, K, *U]``."""
        lengths = bin_lengths(steps, time_bin)
        values = (
            self.outputs[0] if self.time else torch.stack(self._silent(steps) + self.outputs, 1)
        )
        if values.shape[1] == 1:
            return values.expand(-1, len(lengths), *values.shape[2:])
        if values.shape[1] == len(lengths):
            return values
        if len(lengths) == 1:
            return values.mean(1, keepdim=True)
        return torch.stack([part.mean(1) for part in _split(values, lengths)], 1)

    def _late(self, steps: int) -> int:
        """Return the number of steps before the first in which the layer is called."""
        return max(steps - len(self.outputs), 0)

    def _silent(self, steps: int) -> list[Tensor]:
        """Return the zero outputs of the steps in which the layer is not called."""
        return [torch.zeros_like(self.outputs[0])] * self._late(steps)

    def trial_mean(self, steps: int) -> Tensor:
        """Return the mean output of the whole trial, ``[B, *U]``."""
        once = not self.time and len(self.outputs) == 1 == steps
        return self.outputs[0] if once else self.binned(steps, None)[:, 0]

    def deliver(self, gradient: Tensor, steps: int, time_bin: int | None) -> Credit:
        """Pair every output with its share of ``gradient`` ``[B, K, *U]``.

        The derivative by an offset that acts throughout a bin is the sum of the derivatives in
        its steps; without more knowledge each step receives an equal share.
        """
        lengths = bin_lengths(steps, time_bin)
        if self.time:
            values = self.outputs[0]
            if values.shape[1] == 1:
                yield values, gradient.sum(1, keepdim=True)
            elif values.shape[1] == len(lengths):
                yield values, gradient
            else:
                count = torch.tensor(lengths, device=gradient.device)
                share = gradient / count.view(1, -1, *[1] * (gradient.dim() - 2))
                yield values, share.repeat_interleave(count, dim=1)
            return
        for visit, values in enumerate(self.outputs, self._late(steps)):
            index = min(visit // lengths[0], len(lengths) - 1)
            yield values, gradient[:, index] / lengths[index]


def _split(values: Tensor, lengths: list[int]) -> Iterable[Tensor]:
    return values[:, : sum(lengths)].split(lengths, dim=1)


@dataclasses.dataclass
class SiteTrace:
    """What a round left behind at one site.

    Attributes:
        visits: the clean outputs of the site's layers.
        noise: what was added in the noisy copies, ``[m, B, K, *U]``, or None.
        observed: mean currents of the noisy copies, ``[m, B, K, *U]``, or None.
        observed_activity: the block's output in the noisy copies, ``[m, B, ...]``, or None.
        received: what each of its layers received in the noisy copies, by call, ``[m B, ...]``;
            empty if the plan does not ask for it.
        activity: the block's output in the clean copy, ``[B, ...]``, with the plan's graph; the
            outputs of several calls are stacked, ``[B, time, ...]``.  None for the readout.
        stacked: whether it is that of several calls.
        slot: what followed saw in its place, a leaf; None if the plan asks for no slots.
        states: for every window of ``Transport.window`` but the last, if the plan's transport has
            slots: the population's state at its end with the graph, ``[B, P, *U]`` for ``P`` state
            variables, and the leaf that the next window started from.
        variables: ``P``, the number of state variables of the site's population; 0 without time.
    """

    shape: SiteShape
    visits: list[Visits]
    time_bin: int | None = None
    noise: Tensor | None = None
    observed: Tensor | None = None
    activity: Tensor | None = None
    stacked: bool = False
    slot: Tensor | None = None
    states: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    variables: int = 0
    observed_activity: Tensor | None = None
    received: list[list[Tensor]] = dataclasses.field(default_factory=list)

    @property
    def timed(self) -> bool:
        """Whether the activity has a time axis beside those of the units."""
        if self.stacked:
            return self.activity is not None
        steps = self.shape.steps > 1 or any(visits.time for visits in self.visits)
        axes = 2 + len(self.shape.units)
        return steps and self.activity is not None and self.activity.dim() == axes

    @property
    def output(self) -> Tensor:
        """The activity, of a site whose activity is known to be reached."""
        assert self.activity is not None
        return self.activity

    @property
    def leaf(self) -> Tensor:
        """The slot, of a site that is known to have one."""
        assert self.slot is not None
        return self.slot

    def current(self) -> Tensor:
        """Return the clean mean input current in each bin, ``[B, K, *U]``, without a graph."""
        parts = [visits.binned(self.shape.steps, self.time_bin) for visits in self.visits]
        return torch.stack([part.detach() for part in parts]).sum(0)

    def trial_mean(self) -> Tensor:
        """Return the clean mean input current of the whole trial, ``[B, *U]``, without a graph."""
        parts = [visits.trial_mean(self.shape.steps).detach() for visits in self.visits]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def deliver(self, gradient: Tensor) -> Credit:
        """Pair every clean output with its share of ``gradient`` ``[B, K, *U]``."""
        for visits in self.visits:
            yield from visits.deliver(gradient, self.shape.steps, self.time_bin)


@dataclasses.dataclass
class Trace:
    """What a round of forward passes left behind.

    Attributes:
        losses: ``[S, B]``, one loss per copy and example, without a graph.
        step_losses: ``[S, B, T]``, what each step adds to them, of a task in time; else None.
        alive: ``[S, B, T]``, whether a trial still went on in each step; None: all last to the end.
        loss: mean clean loss, local losses included; it carries the graph if the plan asked for
            one.
        outputs: clean outputs ``[B, ...]``, without a graph.
        targets: of the batch.
        objective: what was minimised.
        local: name of a site to its local losses ``[S, B, *cells]``, without a graph.
        slopes: ``[m, B]``, derivatives of the losses in the directions of the plan's tangents.
        local_slopes: the same of the local losses, ``[m, B, *cells]``.
        means: name of a site with a local loss, "" for the outputs, to the mean losses ``[m]`` of
            all noisy copies, if ranks have divided them; ``losses`` and ``local`` then hold those
            of this rank alone.
        price: what the activity of the clean copy costs, if it has bounds.
        peak: the weight of the step that weighs most in the trial, where the trace is of a part.
    """

    plan: Plan
    losses: Tensor
    loss: Tensor
    outputs: Tensor
    sites: dict[str, SiteTrace]
    targets: Tensor
    objective: Objective
    local: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    slopes: Tensor | None = None
    local_slopes: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    means: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    step_losses: Tensor | None = None
    alive: Tensor | None = None
    price: Priced | None = None
    peak: float | None = None

    def error(self) -> Tensor:
        """Return the derivative of the mean clean loss by the outputs, ``[B, ...]``."""
        with torch.enable_grad():
            outputs = widened(self.outputs).clone().requires_grad_()
            loss = self.objective.losses(outputs, self.targets).mean()
            return torch.autograd.grad(loss, outputs)[0]

    def signal(self) -> Tensor:
        """Return the derivative of the mean clean loss by the readout's current, ``[B, T|1, K]``.

        What lies behind the readout's layer, a leaky filter for instance, is passed exactly, so
        that each step has its own error; one step, where the layer is called once for the trial.
        """
        visits = list(self.sites.values())[-1].visits[0]
        found = torch.autograd.grad(self.loss, visits.outputs, retain_graph=True)
        values = found[0] if visits.time else torch.stack(found, 1)
        return widened(values.flatten(2))

    def shares(self, name: str) -> Tensor | None:
        """Return the weight of each step of a block in what the readout receives, ``[B, T]``.

        It is the derivative of what the readout's layer receives by the block's output, the mean
        over its units, relative to that of the step that weighs most: exact for every readout
        that weighs the steps alike for all units.  The plan must have slots.  None: the output
        has no steps, or the readout does not receive it.
        """
        site, slot = self.sites[name], self.sites[name].slot
        received = list(self.sites.values())[-1].visits[0].received
        if slot is None or not site.timed:
            return None
        ones = [torch.ones_like(part) for part in received]
        found = torch.autograd.grad(received, slot, ones, retain_graph=True, allow_unused=True)[0]
        if found is None:
            return None
        weights = found.flatten(2).mean(2)
        most = weights.gather(1, weights.abs().argmax(1, keepdim=True))
        if self.peak is not None:
            most = torch.full_like(most, self.peak)
        return torch.where(most == 0, torch.ones_like(weights), weights / most)

    def tails(self, steps: int, time_bin: int | None, decay: float = 1.0) -> Tensor | None:
        """Return the losses of the steps from each bin on, ``[S, B, K]``; None in a single bin.

        ``G[k] = sum_(t >= first step of k) (decay discount)^(t - first) L[t]``: noise in a bin acts
        on its own step and later ones, and on no loss before.  None also where the losses have no
        steps, or other steps than the site.

        Args:
            decay: factor by which the noise is remembered from step to step.
        """
        lengths = bin_lengths(steps, time_bin)
        if self.step_losses is None or len(lengths) == 1 or self.step_losses.shape[2] != steps:
            return None
        factor = decay * self.objective.discount
        if factor != 1.0:
            firsts = torch.tensor([0, *lengths[:-1]], device=self.losses.device).cumsum(0)
            return _discounted(self.step_losses, factor)[..., firsts]
        parts = torch.stack([part.sum(2) for part in self.step_losses.split(lengths, 2)], 2)
        return parts.flip(2).cumsum(2).flip(2)


def _discounted(losses: Tensor, factor: float) -> Tensor:
    """Return ``G[t] = L[t] + factor G[t + 1]``, ``[..., T]``."""
    total, found = torch.zeros_like(losses[..., 0]), []
    for value in losses.flip(-1).unbind(-1):
        total = value + factor * total
        found.append(total)
    return torch.stack(found[::-1], -1)
