"""Eligibility traces: what the states of a block remember of each of its synapses.

A trial runs in parts.  In a part the state ``s`` of a population begins as a leaf, and what enters
the block is cut from all other neurons, so that the states of a neuron depend on its own alone.
With ``E_u[b, j, i] = d s_u[b, j] / d w_ji`` at the beginning of the part and the inputs ``z`` of
the layer, autograd finds ``P_uv = d s_u(end) / d s_v(begin)`` and ``h_u[t] = d s_u(end) / d c[t]``,
both unit by unit.  They give the traces at the end of the part::

    E_u <- sum_v P_uv E_v + sum_t h_u[t] z[t]

and a loss whose derivative by the state at the beginning is ``q`` owes the weights ``sum q E``.
What a readout filters of the block's course is one more such state.  (Bellec et al. 2020; the form
by parts: HYPR, arXiv 2506.14464.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd.contracts import Trace, Visits
from biograd.contracts.trial_part import State

Synapses = dict[str, Tensor]
"""Name of a layer to a value for each of its weights and biases, ``[B, N, M + 1]``."""
End = tuple[Tensor, Tensor]
"""A value at the end of a part, and the direction in which it is differentiated."""


class Eligibility:
    """The traces of one block.

    Args:
        layers: those that lead into the block, by name; each has ``weight`` ``[N, M]``.
        sites: name of a layer to its site and its place there.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], sites: Mapping[str, tuple[str, int]]
    ) -> None:
        self.layers, self.sites = dict(layers), dict(sites)
        self._states: list[Synapses] = []
        self._read: list[Synapses] = []

    def credit(
        self, states: Sequence[Tensor | None], read: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter with its gradient through what was before the part.

        Args:
            states: derivative of the loss by each state at the beginning of the part, ``[B, N]``.
            read: the same by what a readout's filter held, ``[B, N]``, or of an output ``[B, 1]``.
        """
        given = list(zip(states, self._states, strict=False))
        given += zip(read, self._read, strict=False)
        for name, layer in self.layers.items():
            found = [
                torch.einsum("bn,bnm->nm", q.expand(trace[name].shape[:2]), trace[name])
                for q, trace in given
                if q is not None and name in trace
            ]
            if found:
                yield from _divided(layer, torch.stack(found).sum(0))

    def advance(
        self, trace: Trace, begun: State, ended: State, read: Sequence[End], kept: float
    ) -> None:
        """Take the traces from the beginning of a part to its end.

        Args:
            begun: leaves of the population's state; empty: at rest.
            read: what a readout's filter holds at the end, and of it the direction.
            kept: factor of what it held at the beginning.
        """
        visits = {name: trace.sites[site].visits[at] for name, (site, at) in self.sites.items()}
        ends = [(value, torch.ones_like(value)) for value in ended]
        states = [self._moved(end, begun, visits) for end in ends]
        found = [self._moved(end, begun, visits) for end in read]
        for new, old in zip(found, self._read, strict=False):
            for name, held in old.items():
                new[name] = new[name].add_(held, alpha=kept) if name in new else kept * held
        self._states, self._read = states, found

    def _moved(self, end: End, begun: State, visits: Mapping[str, Visits]) -> Synapses:
        """Return what a value at the end of a part owes to each synapse."""
        value, direction = end
        if not value.requires_grad:
            return {}
        currents = [current for seen in visits.values() for current in seen.outputs]
        sides = [getattr(current, "by_input", current) for current in currents]
        given = _gradients(value, direction, [*begun, *currents, *sides])
        before, behind = given[: len(begun)], given[len(begun) :]
        slopes, biases = behind[: len(currents)], behind[len(currents) :]
        moved: Synapses = {}
        for name, seen in visits.items():
            own = [(slopes.pop(0), biases.pop(0)) for _ in seen.outputs]
            if any(part is not None for both in own for part in both):
                moved[name] = _gathered(seen, own, getattr(self.layers[name], "bias", None))
            for p, trace in zip(before, self._states, strict=False):
                if p is not None and name in trace:
                    held = moved.setdefault(name, torch.zeros_like(trace[name]))
                    held.addcmul_(p.unsqueeze(2), trace[name])
        return moved


def _gradients(value: Tensor, direction: Tensor, wanted: list[Tensor]) -> list[Tensor | None]:
    """Return the derivative of a value along a direction by each of some tensors."""
    alive = [one for one in wanted if one.requires_grad]
    found = iter(
        torch.autograd.grad(value, alive, direction, retain_graph=True, allow_unused=True)
        if alive
        else ()
    )
    return [next(found) if one.requires_grad else None for one in wanted]


def _gathered(
    visits: Visits, given: Sequence[tuple[Tensor | None, Tensor | None]], bias: Tensor | None
) -> Tensor:
    """Return ``sum_t h[t] z[t]``, ``[B, N, M]``, and for the bias ``sum_t h[t]`` behind it."""
    slopes, biases = [
        _course(visits, [torch.zeros_like(v) if g is None else g
                         for v, g in zip(visits.outputs, one, strict=True)])
        for one in zip(*given, strict=True)
    ]  # fmt: skip
    inputs = visits.inputs[0] if visits.time else torch.stack(visits.inputs, 1)
    if bias is None:
        return slopes.transpose(1, 2) @ inputs
    found = slopes.transpose(1, 2) @ functional.pad(inputs, (0, 1))  # one array, always as large
    found[..., -1] = biases.sum(1)
    return found


def _course(visits: Visits, values: Sequence[Tensor]) -> Tensor:
    return values[0] if visits.time else torch.stack([*values], 1)


def _divided(layer: nn.Module, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what a layer learns of weight and bias with their parts of a gradient."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    if weight.requires_grad:
        yield weight, gradient[:, : weight.shape[1]]
    if bias is not None and bias.requires_grad:
        yield bias, gradient[:, -1]
