"""The weights with which a layer acts: a transform of its input folded in, or another weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def effective_parameters(
    layer: nn.Module, weight: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of ``layer``, with any attached input transform folded in.

    A simulator that does not call the layer at every step needs them before it starts.

    Args:
        layer: a synaptic layer.
        weight: stands in for the layer's own.
    """
    for hook in layer._forward_pre_hooks.values():
        effective = getattr(hook, "effective", None)
        if effective is not None:
            return effective(layer, weight)
    return layer.weight if weight is None else weight, layer.bias  # type: ignore[return-value]


def through(layer: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the response of ``layer`` with ``weight`` for its own, behind any input transform."""
    return respond(layer, effective_parameters(layer, weight)[0], inputs)


def respond(layer: nn.Module, weight: Tensor, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the response of ``layer`` with ``weight`` and ``bias`` for its own, no transform.

    No hook runs, so that nobody takes the call for one of the network.  The stand-in lies in the
    instance's dictionary, which attribute look-up reads before the module's parameters; what lay
    there comes back.
    """
    stand_in = {"weight": weight, "bias": bias}
    kept = {name: layer.__dict__[name] for name in stand_in if name in layer.__dict__}
    layer.__dict__.update(stand_in)
    try:
        response: Tensor = layer.forward(inputs.to(weight.dtype))
    finally:
        for name in stand_in:
            del layer.__dict__[name]
        layer.__dict__.update(kept)
    return response


def of_bias(layer: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return zeros in the shape of one row's response whose graph leads to the layer's bias.

    Args:
        inputs: what the layer receives; of it, shape and dtype.
    """
    bias = layer._parameters.get("bias")
    if bias is None or not bias.requires_grad:
        return None
    own = layer._parameters["weight"]
    assert own is not None
    response = respond(layer, own.detach(), torch.zeros_like(inputs[:1]), bias)
    return response - response.detach()
