"""Calls of a network: what it returns, and which of its modules an error comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from biograd.errors import BiogradError, CapabilityError
from biograd.substrate.network import Network
from biograd.substrate.return_values import Outputs


def called(network: nn.Module, encoded: Tensor, form: Outputs | None = None) -> Tensor:
    """Return the outputs ``[rows, ...]`` of a network for encoded inputs ``[rows, ...]``.

    Args:
        form: what of its value the outputs are; None: the value itself.

    Raises:
        CapabilityError: it returns something else.
        BiogradError: a module found something wrong; with its name.
    """
    run = network.simulate if isinstance(network, Network) else network
    try:
        outputs = run(encoded)
    except CapabilityError:
        raise
    except BiogradError as error:
        raise BiogradError(f"{culprit(error, network)}: {error}") from error
    name = type(network).__name__
    outputs = outputs if form is None else form(outputs)
    if not isinstance(outputs, Tensor):
        first = next(iter(outputs), "") if isinstance(outputs, Mapping) else 0
        raise CapabilityError(
            f"{name} returned {type(outputs).__name__}: say which part the outputs are, "
            f"outputs=biograd.Outputs(part={first!r}), or wrap it in a module that returns that "
            "part alone"
        )
    if not outputs.dim() or len(outputs) != len(encoded):
        known = form is not None and form.time_first
        first = not known and outputs.dim() > 1 and outputs.shape[1] == len(encoded)
        raise CapabilityError(
            f"{name} returned outputs {list(outputs.shape)} for {len(encoded)} rows of inputs "
            f"{list(encoded.shape)}: the first axis must be the examples, "
            + (
                "not the steps: outputs=biograd.Outputs(time_first=True)"
                if first
                else "the last one the outputs"
            )
        )
    return outputs


def culprit(error: BaseException, network: nn.Module) -> str:
    """Return the name and kind of the innermost module that was running; "" if there is none.

    Args:
        error: caught on its way out of the network.
    """
    names = {id(module): name for name, module in network.named_modules()}
    found, place = "", error.__traceback__
    while place is not None:
        module = place.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            name, kind = names[id(module)], type(module).__name__
            found = f"{name} ({kind})" if name else kind
        place = place.tb_next
    return found


REENTRANT = "torch.utils.checkpoint, reentrant"
CALLERS = {
    "torch.utils.checkpoint": "torch.utils.checkpoint",
    "torch._functorch.apis": "torch.vmap or torch.func",
    "torch._functorch.eager_transforms": "torch.func",
}
"""What of torch calls modules otherwise than they stand, by the names of its modules."""


@contextmanager
def callers(network: nn.Module) -> Iterator[dict[str, set[str]]]:
    """Find who calls the modules of a network in the passes that are run meanwhile.

    Yields:
        Names of modules to values of ``CALLERS``, and ``REENTRANT``.
    """
    names = {id(module): name for name, module in network.named_modules()}
    found: dict[str, set[str]] = {}

    def look(module: nn.Module, _inputs: Any) -> None:
        frame = sys._getframe() if id(module) in names else None
        while frame is not None:
            caller = CALLERS.get(frame.f_globals.get("__name__", ""))
            if caller:
                kinds = found.setdefault(names[id(module)], set())
                again = "CheckpointFunction" in frame.f_code.co_qualname
                kinds.update({caller, REENTRANT} if again else {caller})
            frame = frame.f_back

    handle = register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()
