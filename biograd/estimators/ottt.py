"""Online training through time (OTTT): credit at once, memory in presynaptic traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace, Transport
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators.estimator import Estimator, check_chunk
from biograd.estimators.within_steps import by_step, divided
from biograd.recipes import Count, validate


class OnlineTrainingThroughTime(Estimator):
    """Pass credit down the layers within a step, and to the weights through the membrane's past.

    ``grad W = sum_t delta[t] a[t]^T`` with the instantaneous credit
    ``delta_l[t] = phi'(v_l[t]) (1 - beta) R W_{l+1}^T delta_{l+1}[t]`` and the presynaptic trace
    ``a[t] = beta a[t-1] + x[t]``; the reset is held constant.  A bias has no trace, ``grad b =
    sum_t delta[t]``, as in the authors' code.  As published nothing of the past need be stored;
    here autograd stores every step.  With a reset to zero the trace ends at the neuron's own
    spikes, where the authors, whose neurons are reset by subtraction, let it run on; with a
    synaptic filter it passes through both memories.  Rate units have no memory of their own:
    without a membrane the credit is that of each step alone.

    Neurons of other libraries are not looked into: credit within a step is the derivative of what
    a block returns in it by the block's current in it, and the trace is all that the block's later
    outputs remember of the input.  Constants of such neurons have no credit.

    Args:
        window: number of steps in which credit to the layers below passes through time; 1: none.
        online: take credit while the trial runs and forget each part behind it: the same gradient,
            with memory for a trace of every synapse, example and output but not for the steps.
        chunk: number of steps of a part; None: 25.

    Raises:
        CapabilityError: a longer window in a recurrent network of neurons of another library.
    """

    needs = frozenset(("loss", "vjp"))
    reach = "blocks"
    blockwise = True
    divides_steps = True
    coincides = "in a network without time"
    divides = "examples"
    passes = "1 forward, 1 backward; every step is stored, online none"
    bias = (
        "credit through time between layers and through recurrent weights is missing; a reset to "
        "zero ends a trace"
    )
    reference = "Xiao et al. 2022, arXiv 2210.04195"

    def __init__(self, window: Count = 1, online: bool = False, chunk: Count | None = None) -> None:
        validate(OnlineTrainingThroughTime, locals())
        super().__init__()
        self.window, self.online, self.chunk = window, online, chunk
        check_chunk(self)
        if online and window > 1:
            raise RecipeError(
                f"OnlineTrainingThroughTime: window = {window}: online = true needs window = 1"
            )

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others, each with the reason."""
        return {} if given.get("online") else {"chunk": "with online = false"}

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: a clean pass whose credit takes two ways."""
        if not round.unrolled:
            return (Plan(transport=Transport(window=self.window, traces=True)),)
        plan = divided(round)
        if self.window > 1 and plan.detach:
            raise CapabilityError(
                f"window = {self.window}: {', '.join(sorted(plan.detach))} feed back in a loop of "
                "the module's own, where a window cannot be cut: take window = 1"
            )
        return (plan,)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the parameters of blocks that are not looked into; else autograd has done it."""
        if not round.unrolled:
            return
        for name, arrived, pairs in by_step(traces[0], round, self.window):
            layers = [round.layers[layer] for layer in round.site_layers[name]]
            own = dict(part for layer in layers for part in _parameters(layer))
            yield from _gradients([p for p, bias in own.items() if bias], pairs)
            output = traces[0].sites[name].output
            yield from _gradients([p for p, bias in own.items() if not bias], [(output, arrived)])


def _parameters(layer: torch.nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Yield what a layer learns, and whether it is a bias, which has no trace."""
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            yield parameter, name.rpartition(".")[2] == "bias"


def _gradients(
    parameters: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter with its gradient, given that of what depends on it."""
    live = [(value, credit.to(value.dtype)) for value, credit in pairs if value.requires_grad]
    if not live or not parameters:
        return
    values, credits = zip(*live, strict=True)
    found = torch.autograd.grad(
        values, list(parameters), credits, retain_graph=True, allow_unused=True
    )
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            yield parameter, gradient
