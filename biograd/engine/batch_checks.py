"""What a step is given, and what of torch's own errors a first pass turns into a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from biograd.errors import BiogradError, CapabilityError, brief
from biograd.substrate.calling import culprit
from biograd.substrate.network import Network
from biograd.tasks import Task

FAULTS = (RuntimeError, ValueError, TypeError, IndexError)
"""What torch raises where shapes, types or derivatives are missing."""


def checked(task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the targets of a batch, whole numbers as int64 for a task that needs them.

    Raises:
        CapabilityError: no tensors, no example, or not as many targets as inputs; or torch records
            no gradients.
    """
    if not torch.is_grad_enabled():
        raise CapabilityError(
            "a step is called under torch.no_grad or torch.inference_mode, where nothing has a "
            "gradient: call it outside of that"
        )
    for name, values in (("inputs", inputs), ("targets", targets)):
        if not isinstance(values, Tensor) or not values.dim():
            kind = "a number" if isinstance(values, Tensor) else type(values).__name__
            raise CapabilityError(
                f"{name} must be a tensor with an example in each row, not {kind}: torch.as_tensor"
            )
    if not len(inputs):
        raise CapabilityError("the batch is empty: leave it out")
    if len(inputs) != len(targets):
        raise CapabilityError(
            f"{len(inputs)} inputs, {list(inputs.shape)}, for {len(targets)} targets, "
            f"{list(targets.shape)}: the first axis of both must be the examples"
        )
    return targets if targets.is_floating_point() or not task.whole else targets.long()


@contextmanager
def inputs_left_alone(network: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """Lend a network a copy of its inputs, and see whether it changes them.

    Raises:
        CapabilityError: it does, so that the next pass would see others.
    """
    copy = inputs.clone()
    yield copy
    if not isinstance(network, Network) and not torch.equal(copy, inputs):
        raise CapabilityError(
            f"{type(network).__name__} changes its inputs in place, so that a second pass, and the "
            "next epoch, would see others: let it work on a copy, as in inputs = inputs * 2 or "
            "nn.ReLU(inplace=False)"
        )


def check_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse a network whose layers are no longer those that the engine looks at.

    Raises:
        CapabilityError: with the layer's name.
    """
    for name, layer in layers.items():
        if network.get_submodule(name) is not layer:
            raise CapabilityError(f"{name} was replaced after attach: detach, and attach again")


def check_device(network: nn.Module, device: torch.device) -> None:
    """Refuse a network that has gone to another device than its engine's random streams.

    Raises:
        CapabilityError: it has.
    """
    now = next(network.parameters()).device
    if now != device:
        raise CapabilityError(
            f"the network was moved from {device} to {now} after attach: move it, then attach"
        )


@contextmanager
def refused(
    network: nn.Module, inputs: Tensor, targets: Tensor, rule: object = None
) -> Iterator[None]:
    """Say in one line where a first pass fails, and on what; an error of a rule's code stays.

    Raises:
        CapabilityError: it does.
    """
    try:
        yield
    except BiogradError:
        raise
    except FAULTS as error:
        if _raised_by(error, rule):
            raise
        where = culprit(error, network) or "the loss or the rule"
        given = f"inputs {list(inputs.shape)} {inputs.dtype}, targets {list(targets.shape)}"
        raise CapabilityError(
            f"{type(network).__name__} cannot take a step: {where}: {brief(str(error))} "
            f"({given} {targets.dtype})"
        ) from error


def _raised_by(error: BaseException, rule: object) -> bool:
    """Return whether the last place that an error passed is a method of the rule itself."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return rule is not None and last is not None and last.tb_frame.f_locals.get("self") is rule


@contextmanager
def forward_differentiated(network: nn.Module, rule: str) -> Iterator[None]:
    """Name the module that has no derivative in forward mode.

    Raises:
        CapabilityError: with the module and rules that need none.
    """
    try:
        yield
    except FAULTS as error:
        reason = str(error).partition("Please file an issue")[0].rstrip(" .\n")
        raise CapabilityError(
            f"{rule} differentiates forward, and {culprit(error, network) or 'the loss'} cannot "
            f"({brief(reason)}): give it a jvp, or take WeakGradient or NodePerturbation"
        ) from error
