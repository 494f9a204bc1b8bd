"""Which module of a network an error comes from."""

from __future__ import annotations

from torch import nn


def culprit(error: BaseException, network: nn.Module) -> str:
    """Return the name and kind of the innermost module that was running; "" if there is none.

    Args:
        error: caught on its way out of the network.
    """
    names = {id(module): name for name, module in network.named_modules() if name}
    found, place = "", error.__traceback__
    while place is not None:
        module = place.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            found = f"{names[id(module)]} ({type(module).__name__})"
        place = place.tb_next
    return found
