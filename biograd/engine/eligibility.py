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

from biograd.contracts import Trace, Visits
from biograd.contracts.part import State

Synapses = dict[str, Tensor]
"""Name of a layer to a value for each of its weights and biases, ``[B, N, M + 1]``."""


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
        self._filtered: Synapses = {}

    def credit(
        self, states: Sequence[Tensor | None], filtered: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter with its gradient through what was before the part.

        Args:
            states: derivative of the loss by each state at the beginning of the part, ``[B, N]``.
            filtered: the same by what the readout's filter held.
        """
        traces = [*self._states, self._filtered]
        given = [*states, filtered] if self._states else [filtered]
        for name, layer in self.layers.items():
            found = [
                torch.einsum("bn,bnm->nm", q, trace[name])
                for q, trace in zip(given, traces, strict=True)
                if q is not None and name in trace
            ]
            if found:
                yield from _divided(layer, torch.stack(found).sum(0))

    def advance(
        self, trace: Trace, block: str, begun: State, ended: State, weights: Tensor, kept: float
    ) -> None:
        """Take the traces from the beginning of a part to its end.

        Args:
            block: name of the site whose activity is the block's.
            weights: of each step in what the readout's filter holds at the end, ``[steps]``.
            kept: factor of what it held at the beginning.
        """
        outputs = {
            name: trace.sites[site].visits[place] for name, (site, place) in self.sites.items()
        }
        inputs = {name: _with_one(outputs[name], layer) for name, layer in self.layers.items()}
        activity = trace.sites[block].output
        last = weights.to(activity).view(1, -1, *[1] * (activity.dim() - 2)).expand_as(activity)
        ends = [(value, torch.ones_like(value)) for value in ended] + [(activity, last)]
        found = [self._moved(*end, begun, outputs, inputs) for end in ends]
        for name, held in self._filtered.items():
            found[-1][name] = found[-1][name] + kept * held if name in found[-1] else kept * held
        self._states, self._filtered = found[:-1], found[-1]

    def _moved(
        self,
        end: Tensor,
        direction: Tensor,
        begun: State,
        outputs: Mapping[str, Visits],
        inputs: Mapping[str, Tensor],
    ) -> Synapses:
        """Return what a value at the end of a part owes to each synapse."""
        currents = [value for visits in outputs.values() for value in visits.outputs]
        if not end.requires_grad:
            return {}
        given = torch.autograd.grad(
            end, [*begun, *currents], direction, retain_graph=True, allow_unused=True
        )
        before, behind = given[: len(begun)], list(given[len(begun) :])
        moved: Synapses = {}
        for name, visits in outputs.items():
            own = [behind.pop(0) for _ in visits.outputs]
            parts = [
                torch.einsum("bn,bnm->bnm", p, trace[name])
                for p, trace in zip(before, self._states, strict=True)
                if p is not None and name in trace
            ] if begun else []  # fmt: skip
            if any(part is not None for part in own):
                parts.append(_gathered(visits, own, inputs[name]))
            if parts:
                moved[name] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        return moved


def _with_one(visits: Visits, layer: nn.Module) -> Tensor:
    """Return what a layer received, ``[B, steps, M]``, and a one for its bias."""
    inputs = visits.inputs[0] if visits.time else torch.stack(visits.inputs, 1)
    if getattr(layer, "bias", None) is None:
        return inputs
    return torch.cat((inputs, torch.ones_like(inputs[..., :1])), -1)


def _gathered(visits: Visits, given: Sequence[Tensor | None], inputs: Tensor) -> Tensor:
    """Return ``sum_t h[t] z[t]``, ``[B, N, M]``."""
    found = [torch.zeros_like(v) if g is None else g
             for v, g in zip(visits.outputs, given, strict=True)]  # fmt: skip
    slopes = found[0] if visits.time else torch.stack(found, 1)
    return slopes.transpose(1, 2) @ inputs


def _divided(layer: nn.Module, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a layer's weight and bias with their parts of a gradient."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    yield weight, gradient[:, : weight.shape[1]]
    if bias is not None:
        yield bias, gradient[:, -1]
