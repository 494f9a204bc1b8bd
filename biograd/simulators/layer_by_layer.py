"""A user's own snnTorch network, run layer by layer in place of step by step.

Every layer takes all steps at once, so that its product is one, and neurons that are linear between
their spikes run a whole trial in one scan (``neurons.scan``); other neurons take their own steps,
as snnTorch wrote them.  Values, gradients and parameters are the network's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from biograd.errors import CapabilityError
from biograd.neurons.coefficients import Coefficients
from biograd.neurons.scan import Trial, scan
from biograd.simulators.gathered import gathered

ALIKE: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Identity, nn.Flatten),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU),
)
"""Layers that treat every row by itself, so that steps can be rows."""


def fuse(module: nn.Module) -> LayerByLayer:
    """Return a network of snnTorch that runs layer by layer; parameters are shared.

    In place of the loop over the steps, call it once: ``fuse(net)(spikes)`` for inputs
    ``[T, B, ...]``, ``fuse(net)(current, steps=T)`` for a current ``[B, ...]`` that stays.  It
    returns what the loop would stack, ``[T, B, ...]``, for every value that the network returns; a
    trial begins at rest, and the state that the network keeps stays as it is.

    Args:
        module: ``nn.Sequential`` of layers and of neurons with ``init_hidden = True``.

    Raises:
        CapabilityError: a part that cannot run layer by layer, or no neuron that would gain.
    """
    return LayerByLayer(module)


class LayerByLayer(nn.Module):
    """The network that ``fuse`` returns.

    Attributes:
        module: the user's network.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._names = [name for name, _ in _parts(module)]
        reasons = [
            f"{name} ({type(part).__name__}): {stepped(part)}"
            for name, part in _parts(module)
            if _fires(part)
        ]
        if not reasons or not any(reason.endswith(": ") for reason in reasons):
            why = reasons[0] if reasons else f"{type(module).__name__} holds no neurons of snnTorch"
            raise CapabilityError(f"fuse: nothing to gain: {why}")

    def forward(self, inputs: Tensor, steps: int | None = None) -> Any:
        """Return what the network returns in every step, ``[T, B, ...]`` each.

        Args:
            inputs: ``[T, B, ...]``; with ``steps`` ``[B, ...]``, the same in every step.
        """
        course: Any = inputs.transpose(0, 1) if steps is None else inputs.unsqueeze(1)
        steps = course.shape[1] if steps is None else steps
        for name in self._names:
            part = self.module.get_submodule(name) if name else self.module
            if not _fires(part):
                course = _folded(part, course)
            elif stepped(part):
                course = _by_itself(part, course, steps)
            else:
                course = _scanned(part, course, steps)
        if isinstance(course, tuple):
            return tuple(values.transpose(0, 1) for values in course)
        return course.expand(-1, steps, *course.shape[2:]).transpose(0, 1)


def _fires(part: nn.Module) -> bool:
    import snntorch

    return isinstance(part, snntorch.SpikingNeuron)


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers and neurons in their order.

    Raises:
        CapabilityError: a part of another kind.
    """
    where = f"fuse: {path or 'the network'} ({type(module).__name__})"
    if type(module) is nn.Sequential:
        parts = list(module.named_children())
        for place, (name, part) in enumerate(parts):
            if _fires(part) and getattr(part, "output", False) and place + 1 < len(parts):
                raise CapabilityError(f"{where}: {name} returns its state, which {place + 1} takes")
            yield from _parts(part, f"{path}.{name}" if path else name)
    elif _fires(module):
        if not getattr(module, "init_hidden", False):
            raise CapabilityError(f"{where}: its state is handed on by hand: init_hidden=True")
        yield path, module
    elif type(module) in ALIKE and getattr(module, "start_dim", 1) == 1:
        yield path, module
    else:
        raise CapabilityError(
            f"{where}: may mix steps or rows, or has a loop of its own: give an nn.Sequential of "
            "layers and neurons with init_hidden=True"
        )


def _folded(part: nn.Module, course: Tensor) -> Tensor:
    """Return what a layer makes of every step, ``[B, T or 1, ...]``."""
    if type(part) is nn.Linear and not part._forward_hooks and not part._forward_pre_hooks:
        return gathered(course, part.weight, part.bias)
    found: Tensor = part(course.flatten(0, 1))
    return found.unflatten(0, course.shape[:2])


def _by_itself(part: Any, course: Tensor, steps: int) -> Any:
    """Return what neurons return that take their own steps, ``[B, T, ...]`` each.

    The state that they had comes back: a trial leaves none behind, nor its graph.
    """
    homes = (part._buffers, vars(part))
    kept = [dict(home) for home in homes]
    try:
        part.reset_mem()
        found = [part(now) for now in course.expand(-1, steps, *course.shape[2:]).unbind(1)]
    finally:
        for home, before in zip(homes, kept, strict=True):
            home.clear()
            home.update(before)
    if isinstance(found[0], tuple):
        return tuple(torch.stack(values, 1) for values in zip(*found, strict=True))
    return torch.stack(found, 1)


def stepped(part: Any) -> str:
    """Return why neurons take their own steps; "": they run in one scan."""
    import snntorch

    kinds = {snntorch.Leaky: "zero", snntorch.Synaptic: "none", snntorch.Alpha: ""}
    reset, factor = part._reset_mechanism, getattr(part, "graded_spikes_factor", torch.ones(()))
    learned = [name for name, one in part.named_parameters() if one.requires_grad]
    if type(part) not in kinds:
        return "no kind of neuron that is known"
    if learned:
        return f"learns {', '.join(learned)}"
    if part.output:
        return "returns its state"
    if type(part) is snntorch.Alpha and reset != "none":
        return f"reset_mechanism = {reset!r} also takes away the current"
    if type(part) is snntorch.Synaptic and reset == "zero":
        return "reset_mechanism = 'zero' also takes away the current"
    if part.inhibition or part.state_quant or not getattr(part, "reset_delay", True):
        return "inhibition, state_quant or reset_delay is set"
    if bool((factor != 1).any()):
        return "its spikes are graded"
    if part.surrogate_disable or part._forward_hooks or part._forward_pre_hooks:
        return "surrogate_disable is set, or it has hooks"
    edge = part.spike_grad(torch.tensor([-1.0, 0.0, 1.0])).tolist()
    return "" if edge == [0.0, 0.0, 1.0] else "its spike_grad fires elsewhere than above 0"


class _Scanned:
    """What a scan asks of a neuron, for one of snnTorch."""

    ports, spiking = ("I",), True

    def __init__(self, cell: Any, names: tuple[str, ...]) -> None:
        self.cell, self.variables = cell, names

    def derivative(self, distance: Tensor) -> Tensor:
        """Return the slope of the cell's own surrogate."""
        with torch.enable_grad():
            at = distance.detach().requires_grad_()
            return torch.autograd.grad(self.cell.spike_grad(at).sum(), at)[0]


def _scanned(part: Any, course: Tensor, steps: int) -> Tensor:
    k = coefficients_of(part)
    trial = Trial(_Scanned(part, k.names), 1.0, steps, {})  # type: ignore[arg-type]
    return scan(trial, k, {"I": course})


def coefficients_of(part: Any) -> Coefficients:
    """Return the coefficients of a step of ``Leaky``, ``Synaptic`` or ``Alpha``.

    The reset is a step late: ``v[t] = b v[t-1] + I[t] - theta s[t-1]``, and holds no credit.
    """
    import snntorch

    threshold, b = _number(part.threshold), _number(part.beta.clamp(0, 1))
    reset = -threshold if part._reset_mechanism == "subtract" else 0.0
    gate = -b if part._reset_mechanism == "zero" else 0.0
    if type(part) is snntorch.Leaky:
        one = ([[b]], [[gate]], [0.0], [reset], [[1.0]], [0.0], [1.0], -threshold, ("mem",))
        return Coefficients(*one)
    a = _number(part.alpha.clamp(0, 1))
    if type(part) is snntorch.Synaptic:
        A, names = [[a, 0.0], [a, b]], ("syn", "mem")
        nothing = [[0.0, 0.0], [0.0, 0.0]]
        B, d, H = [[1.0], [1.0]], [0.0, 1.0], [0.0, reset]
        return Coefficients(A, nothing, [0.0] * 2, H, B, [0.0] * 2, d, -threshold, names)
    alpha, beta = part.alpha.clamp(0, 1), part.beta.clamp(0, 1)
    tau = _number(alpha.log() / (beta.log() - alpha.log()) + 1)
    A, B = [[a, 0.0], [0.0, b]], [[1.0], [-1.0]]
    nothing, names = [[0.0, 0.0], [0.0, 0.0]], ("syn_exc", "syn_inh")
    return Coefficients(
        A, nothing, [0.0] * 2, [0.0] * 2, B, [0.0] * 2, [tau] * 2, -threshold, names
    )


def _number(values: Tensor) -> Any:
    """Return a constant as a number where all neurons share it."""
    return values.item() if values.numel() == 1 else values.detach()
