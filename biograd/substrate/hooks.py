"""The hooks by which a substrate looks at the layers of a network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from biograd.contracts import Site
from biograd.substrate.effective import note_call


class Hook:
    """A hook that leads back to its substrate; a copy of the network alone runs without it."""

    def __init__(self, substrate: Any, site: Site, place: int = 0) -> None:
        self.substrate: Any = substrate
        self.site, self.place = site, place

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        copy = object.__new__(type(self))
        copy.substrate, copy.site, copy.place = memo.get(id(self.substrate)), self.site, self.place
        memo[id(self)] = copy
        return copy

    @property
    def now(self) -> Any:
        """The pass under way; None: there is none."""
        return None if self.substrate is None else self.substrate._pass


class Enter(Hook):
    """Looks at what a site's layer receives."""

    def __call__(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        """Act, if the substrate still holds the network; an input may come by its name."""
        if self.substrate is None:
            return None
        key = "" if inputs or not named else next(iter(named))
        if self.substrate.recording:
            further = {name: value for name, value in named.items() if name != key}
            note_call(module, tuple(inputs[1:]), further, key)
        if not key:
            found = self.substrate.enter(self.site, self.place, inputs)
            return None if found is None else (found, named)
        found = self.substrate.enter(self.site, self.place, (named[key],))
        return None if found is None else ((), named | {key: found[0]})


class Bend(Hook):
    """Changes the way back through a site's layer."""

    def __call__(self, module: nn.Module, _inputs: object, output: Any) -> Tensor | None:
        """Act, if the substrate still holds the network."""
        if self.substrate is None:
            return None
        return self.substrate.bend(self.site, self.place, module, output)


class Leave(Hook):
    """Records, perturbs or cuts a site's current."""

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> Tensor | None:
        """Act, if the substrate still holds the network."""
        return self.substrate.leave(self.site, self.place, output) if self.substrate else None


class Through(Hook):
    """Both at once, where the layer's output is the current: a hook has its price."""

    def __call__(self, module: nn.Module, _inputs: object, output: Any) -> Tensor | None:
        """Act, if the substrate still holds the network."""
        if self.substrate is None or self.substrate._pass is None:
            return None
        bent = self.substrate.bend(self.site, self.place, module, output)
        return self.substrate.leave(self.site, self.place, bent)


class Reach(Hook):
    """Records or cuts what leaves a block."""

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> Any:
        """Act, if the substrate still holds the network."""
        return self.substrate.reach(self.site, output) if self.substrate else None


def takes_whole(layer: nn.Module) -> bool:
    """Return whether all who look at a layer take one call for a trial in place of one a step."""
    hooks: list[Any] = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
    own = [hook for hook in hooks if isinstance(hook, Hook)]
    if len(own) < len(hooks) or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    return all(one.now is None or one.now.takes_whole(one.site, one.place) for one in own)


def announce_whole(layer: nn.Module, credited: bool) -> bool:
    """Say to all who look at a layer that a whole trial comes; return whether there is any.

    Args:
        credited: whether something that is differentiated led to what the layer receives.
    """
    hooks: list[Any] = list(layer._forward_hooks.values())
    looking = [one for one in hooks if isinstance(one, Hook) and one.now is not None]
    for one in looking:
        one.now.expect_whole(one.site, one.place, credited)
    return bool(looking)
