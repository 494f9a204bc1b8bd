"""Back-propagation: the exact gradient, through spikes the surrogate gradient.

On an event-driven network (``neuron.method = "event"``) spikes need no surrogate, and this is
EventProp (Wunderlich & Pehle 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, SiteTrace, Trace, Transport
from biograd.errors import RecipeError
from biograd.estimators.estimator import Estimator, check_chunk
from biograd.ranks import parallel
from biograd.recipes import Count, NotNegative, validate


class Backpropagation(Estimator):
    """Reverse-mode differentiation; through spikes and time with a surrogate derivative.

    ``delta_l = phi'(z_l) * W_{l+1}^T delta_{l+1}``, with ``phi'`` the recipe's surrogate at a
    threshold.  The reference that every other rule is measured against.

    Args:
        window: number of time steps after which credit through time is cut, so that no more than
            so many need be stored (truncated back-propagation through time); None: never.  A
            network without time has nothing to cut.
        arousal: gradient ``-arousal`` of the current of hidden units that no example of the batch
            gives any credit: a silent unit, which an exact derivative never wakes.
        recompute: run the trial twice and store one part of it at a time, beside the states
            between parts: the same gradient, with memory for no more steps than that.
        chunk: number of steps of a part; None: ``window``, or 25.

    Raises:
        CapabilityError: a window, but the network runs through time by itself.
    """

    needs = frozenset(("loss", "vjp"))
    exact = True
    reach = "parameters"
    divides = "examples"
    passes = "1 forward, 1 backward"
    bias = (
        "none; the surrogate's through spikes; with a window, credit beyond it is missing; with "
        "arousal, a pull on silent units"
    )
    reference = (
        "Rumelhart, Hinton & Williams 1986; Neftci, Mostafa & Zenke 2019; window: Williams & "
        "Peng 1990"
    )

    def __init__(
        self,
        window: Count | None = None,
        arousal: NotNegative = 0.0,
        recompute: bool = False,
        chunk: Count | None = None,
    ) -> None:
        validate(Backpropagation, locals())
        super().__init__()
        self.window, self.arousal = window, arousal
        self.recompute, self.chunk = recompute, chunk
        check_chunk(self)
        if recompute and arousal:
            raise RecipeError("Backpropagation: recompute = true cannot tell who is silent: "
                              "arousal must be 0")  # fmt: skip
        if recompute and window is not None and (chunk or window) != window:
            raise RecipeError(f"Backpropagation: chunk = {chunk}: with window = {window} a part "
                              "is a window: leave chunk out")  # fmt: skip

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others, each with the reason."""
        return {} if given.get("recompute") else {"chunk": "with recompute = false"}

    @property
    def part_steps(self) -> int:
        """The number of steps of a part."""
        return self.chunk or self.window or 25

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass with its graph."""
        return (Plan(transport=Transport(window=self.window)),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pull on silent units, if asked for; all other credit is autograd's.

        It is a gradient of the units' own weights alone: what they receive stays as it is.
        """
        if not self.arousal:
            return
        (trace,) = traces
        for name in round.hidden:
            layers = [round.layers[layer] for layer in round.site_layers[name]]
            own = [p for layer in layers for p in layer.parameters() if p.requires_grad]
            if own:
                yield from zip(own, self._pull(trace.loss, trace.sites[name], own), strict=True)

    def _pull(self, loss: Tensor, site: SiteTrace, own: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the gradient that wakes a site's silent units for each of its parameters."""
        outputs = [output for visits in site.visits for output in visits.outputs]
        credit = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
        units, batch = site.shape.units, len(outputs[0])
        credited = torch.zeros(units, dtype=loss.dtype, device=loss.device)
        for part in credit:
            if part is not None:
                credited += (part != 0).reshape(-1, *units).any(0)
        silent = parallel.total(credited) == 0
        pull = silent.to(loss.dtype) * (-self.arousal / batch)
        pulls = [cotangent for _, cotangent in site.deliver(pull.expand(batch, 1, *units))]
        found = torch.autograd.grad(outputs, own, pulls, retain_graph=True, allow_unused=True)
        for parameter, part in zip(own, found, strict=True):
            yield torch.zeros_like(parameter) if part is None else part
