"""The weights with which a layer acts: a transform of its input folded in, or another weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import grad


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


class _Further(NamedTuple):
    """What a layer was given beside its input; the input's name, if it came by one."""

    rest: tuple[Any, ...]
    named: Mapping[str, Any]
    key: str


_FURTHER: WeakKeyDictionary[nn.Module, _Further] = WeakKeyDictionary()
"""Of the last call of layers that were given more than an input by its place."""


def note_call(layer: nn.Module, rest: tuple[Any, ...], named: Mapping[str, Any], key: str) -> None:
    """Keep how a layer is called, so that ``respond`` calls it in the same way.

    Args:
        rest: arguments by place behind the input.
        named: arguments by name, without the input.
        key: name of the input; "": it comes by its place.
    """
    if rest or named or key:
        _FURTHER[layer] = _Further(rest, named, key)
    elif _FURTHER:
        _FURTHER.pop(layer, None)


def _forward(layer: nn.Module, inputs: Tensor) -> Any:
    further = _FURTHER.get(layer)
    if further is None:
        return layer.forward(inputs)
    if further.key:
        return layer.forward(**{further.key: inputs}, **further.named)
    return layer.forward(inputs, *further.rest, **further.named)


def respond(layer: nn.Module, weight: Tensor, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the response of ``layer`` with ``weight`` and ``bias`` for its own, no transform.

    No hook runs, so that nobody takes the call for one of the network; what else the layer was
    given in its last call, it is given again.  The stand-in lies in the
    instance's dictionary, which attribute look-up reads before the module's parameters; what lay
    there comes back.
    """
    stand_in = {"weight": weight, "bias": bias}
    kept = {name: layer.__dict__[name] for name in stand_in if name in layer.__dict__}
    layer.__dict__.update(stand_in)
    try:
        response: Tensor = _forward(layer, inputs.to(weight.dtype))
    finally:
        for name in stand_in:
            del layer.__dict__[name]
        layer.__dict__.update(kept)
    return response


def with_feedback(layer: nn.Module, weight: Tensor, output: Tensor, inputs: Tensor) -> Tensor:
    """Return a layer's output with a way back to its inputs, through ``weight`` for its own.

    Linear layers and convolutions answer when credit comes; others compute their response twice.
    """
    if not (inputs.requires_grad or weight.requires_grad) or not torch.is_grad_enabled():
        return output
    alike = output.dtype == weight.dtype == inputs.dtype
    if not alike or weight.requires_grad or not _answers(layer):
        via = through(layer, weight, inputs)
        return output + (via - via.detach())  # adds zero, and the way back
    matrix = _on_rows(layer, inputs)
    weight = effective_parameters(layer, weight)[0] if matrix is None else weight
    return cast(Tensor, _Feedback.apply(layer, output, inputs, weight.detach(), matrix))


def _answers(layer: nn.Module) -> bool:
    """Return whether the gradient by the input of a layer is known without calling it."""
    kind = type(layer)
    if kind in CONVOLUTIONS:
        padded = isinstance(layer.padding, str) or layer.padding_mode != "zeros"
        return not padded
    return kind is nn.Linear


def _on_rows(layer: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return the matrix by which an attached transform multiplies these inputs, if it does."""
    hooks = layer._forward_pre_hooks.values()
    found = (hook.on_rows(layer, inputs) for hook in hooks if hasattr(hook, "on_rows"))
    return next(found, None)


CONVOLUTIONS: dict[type, Callable[..., Tensor]] = {
    nn.Conv1d: grad.conv1d_input,
    nn.Conv2d: grad.conv2d_input,
    nn.Conv3d: grad.conv3d_input,
}


class _Feedback(torch.autograd.Function):
    """Hands credit to a layer's weights as it comes, and to its inputs through another weight."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: nn.Module,
        output: Tensor,
        inputs: Tensor,
        weight: Tensor,
        matrix: Tensor | None,
    ) -> Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        ctx.save_for_backward(weight, *(() if matrix is None else (matrix,)))
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        weight, *matrices = ctx.saved_tensors
        back = _input_gradient(ctx.layer, ctx.shape, weight, gradient)
        for matrix in matrices:
            back = back @ matrix
        return None, gradient, back, None, None


def _input_gradient(layer: Any, shape: torch.Size, weight: Tensor, gradient: Tensor) -> Tensor:
    if type(layer) is nn.Linear:
        return gradient @ weight
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    unbatched = len(shape) < weight.dim()
    sizes = (1, *shape) if unbatched else tuple(shape)
    gradient = gradient.unsqueeze(0) if unbatched else gradient
    found = CONVOLUTIONS[type(layer)](sizes, weight, gradient, *geometry)
    return found.view(shape)


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
