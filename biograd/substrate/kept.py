"""What a user's modules keep from one pass to the next: attributes, buffers, random streams.

A first look at a network runs it several times and must leave no trace; a rule of several passes
needs each to begin in the same state.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from biograd.errors import CapabilityError, nearest

TORCHS = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every module, which are torch's own."""
UNSEEN = (
    "where no attribute of a module shows it: a closure, a global, an object that is called, or a "
    "source of random numbers beside torch's, numpy's and Python's own"
)
"""Stands for a state that makes passes differ and that cannot be put back."""
Back = Callable[[], Any]
"""Puts the contents of an object back and returns it."""


class Keepsake:
    """The state of a network's modules and of the global random streams, as it is now."""

    def __init__(self, network: nn.Module) -> None:
        self.parts = [
            (name, module, _shape(module), {key: _keep(v, 0) for key, v in _own(module).items()})
            for name, module in network.named_modules()
            if not _lazy(module)
        ]
        self.keep_weights(network)
        self._signs = self.signs()
        self._held = [_own(module) for _, module, _, _ in self.parts]  # so that no id comes back
        self._streams = (torch.get_rng_state(), random.getstate(), numpy.random.get_state())
        self._generators = [v for own in self._held for v in own.values() if _drawing(v)]
        self._drawn = [generator.get_state() for generator in self._generators]

    def restore(self) -> None:
        """Put everything back, but not what modules have made of themselves meanwhile."""
        self.rewind()
        for weight, copy in self._weights:  # a network may learn by itself, in its forward pass
            if not torch.equal(weight.detach(), copy):
                weight.data.copy_(copy)
        for _, module, shape, kept in self.parts:
            if shape != _shape(module):
                continue
            for key in _own(module).keys() - kept.keys():
                del vars(module)[key]
            for key, back in kept.items():
                home = module._buffers if key in module._buffers else vars(module)
                home[key] = back()

    def keep_weights(self, network: nn.Module) -> None:
        """Keep the weights as they are now."""
        self._weights = [
            (p, p.detach().clone()) for p in network.parameters() if not nn.parameter.is_lazy(p)
        ]

    def rewind(self) -> None:
        """Let the random streams draw again what they drew since."""
        torch.set_rng_state(self._streams[0])
        random.setstate(self._streams[1])
        numpy.random.set_state(self._streams[2])
        for generator, state in zip(self._generators, self._drawn, strict=True):
            generator.set_state(state)

    def signs(self) -> dict[str, Any]:
        """Return what tells whether an attribute has changed, by its dotted name."""
        return {
            f"{name}.{key}" if name else key: _sign(value, 0)
            for name, module, _, _ in self.parts
            for key, value in {**_own(module), **module._parameters}.items()
            if not isinstance(module, nn.modules.batchnorm._NormBase) and not _drawing(value)
        }

    def changed(self) -> list[str]:
        """Return the names of the attributes that are another than they were."""
        now = self.signs()
        return [n for n in {**self._signs, **now} if self._signs.get(n) != now.get(n)]


def _own(module: nn.Module) -> dict[str, Any]:
    """Return buffers and attributes; of biograd's modules, which keep none, the buffers alone."""
    ours = type(module).__module__.startswith("biograd.") and not getattr(module, "stateful", False)
    names = [n for n in vars(module) if n not in TORCHS and (n == "training" or not ours)]
    return {**{name: vars(module)[name] for name in names}, **module._buffers}


def _shape(module: nn.Module) -> tuple[list[str], ...]:
    return list(module._parameters), list(module._buffers), list(module._modules)


def _lazy(module: nn.Module) -> bool:
    own = (*module._parameters.values(), *module._buffers.values())
    return any(nn.parameter.is_lazy(v) for v in own if v is not None)


def _drawing(value: object) -> bool:
    return isinstance(value, torch.Generator)


def _deep(value: object, depth: int) -> bool:
    """Return whether an object is one of the user's own, with attributes that may change."""
    known = ("torch", "biograd", "builtins", "numpy", "functools", "weakref", "types", "typing")
    own = hasattr(value, "__dict__") and type(value).__module__.split(".")[0] not in known
    return own and depth < 4 and not isinstance(value, (nn.Module, type)) and not callable(value)


def _keep(value: Any, depth: int) -> Back:
    if isinstance(value, Tensor):
        return _keep_tensor(value)
    if isinstance(value, numpy.ndarray):
        return _refill(value, value.copy())
    if isinstance(value, (list, deque, tuple)):
        parts = [_keep(part, depth + 1) for part in value]
        return _back_list(value, parts)
    if isinstance(value, dict) or _deep(value, depth):
        into = value if isinstance(value, dict) else vars(value)
        return _back_mapping(value, into, {k: _keep(v, depth + 1) for k, v in into.items()})
    return lambda: value


def _keep_tensor(value: Tensor) -> Back:
    copy = value.detach().clone()

    def back() -> Tensor:
        if not torch.equal(value.detach(), copy):  # batch normalisation counts no versions
            value.data.copy_(copy)
        return value

    return back


def _refill(value: Any, copy: Any) -> Back:
    def back() -> Any:
        value[...] = copy
        return value

    return back


def _back_list(value: Any, parts: Iterable[Back]) -> Back:
    def back() -> Any:
        found = [part() for part in parts]
        if not isinstance(value, tuple):
            value.clear()
            value.extend(found)
        return value

    return back


def _back_mapping(value: Any, into: Any, parts: Mapping[Any, Back]) -> Back:
    def back() -> Any:
        found = {key: part() for key, part in parts.items()}
        into.clear()
        into.update(found)
        return value

    return back


def _sign(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, (list, deque, tuple)):
        return [_sign(part, depth + 1) for part in value]
    if isinstance(value, dict) or _deep(value, depth):
        into = value if isinstance(value, dict) else vars(value)
        return {str(key): _sign(part, depth + 1) for key, part in into.items()}
    if isinstance(value, numpy.ndarray):
        return value.tobytes()
    return value if isinstance(value, (int, float, str, bool)) else id(value)


def place_of(network: nn.Module, tensor: Tensor) -> str:
    """Return the dotted name of the attribute in which a tensor lies; "": in none."""
    for name, module in network.named_modules():
        for key, value in _own(module).items():
            if _holds(value, tensor, 0):
                return f"{name}.{key}" if name else key
    return ""


def _holds(value: Any, tensor: Tensor, depth: int) -> bool:
    if isinstance(value, nn.Module):
        return any(one is tensor for one in value.parameters())
    if isinstance(value, (list, deque, tuple)) and depth < 4:
        return any(_holds(part, tensor, depth + 1) for part in value)
    if isinstance(value, dict) or _deep(value, depth):
        into = value if isinstance(value, dict) else vars(value)
        return any(_holds(part, tensor, depth + 1) for part in into.values())
    return value is tensor


def graph_held(network: nn.Module) -> list[str]:
    """Return the names of the attributes that are part of a graph."""
    return [
        f"{name}.{key}" if name else key
        for name, module in network.named_modules()
        for key, value in _own(module).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]


@contextmanager
def graph_ended(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Name the state by which a step leads back into the graph of one before.

    Args:
        names: of the attributes in which the network keeps a state; empty: it keeps none.

    Raises:
        CapabilityError: torch cannot go back there.
    """
    try:
        yield
    except RuntimeError as error:
        held = [name for name in names if name in graph_held(network)]
        if not held:
            raise
        raise CapabilityError(
            f"the network keeps a state with its graph from step to step ({', '.join(held[:3])}), "
            f"which is gone: detach it in forward, or {way_out(network, held)}"
        ) from error


Reset = str | Callable[[nn.Module], object]
"""Puts a network where a trial begins: takes the network, or is a method of its modules."""


class ResetBefore:
    """A hook that resets a network before every pass.

    Args:
        reset: takes the network; or the name of a method of its modules (snnTorch's "reset_mem",
            SpikingJelly's "reset").

    Raises:
        CapabilityError: no module has such a method.
    """

    def __init__(self, network: nn.Module, reset: Reset) -> None:
        self.reset = reset
        if callable(reset):
            return
        if not any(callable(getattr(module, reset, None)) for module in network.modules()):
            raise CapabilityError(
                f"reset = {reset!r}: no module has such a method: "
                f"{nearest(reset, methods(network.modules()))}"
            )

    def __call__(self, network: nn.Module, _inputs: object = None) -> None:
        """Reset the network, or each of its modules that has the method."""
        if callable(self.reset):
            self.reset(network)
            return
        for module in network.modules():
            own = getattr(module, self.reset, None)
            if callable(own):
                own()


def methods(modules: Iterable[nn.Module]) -> set[str]:
    """Return the names of methods that reset modules."""
    return {
        name
        for module in modules
        for name in dir(type(module))
        if name.startswith("reset") and name != "reset_parameters"
    }


def way_out(network: nn.Module, names: Iterable[str], door: str = "attach") -> str:
    """Return how a network that keeps a state can be reset before every pass."""
    homes = [network.get_submodule(name.rpartition(".")[0]) for name in names]
    known = sorted(methods(homes)) or sorted(methods([network]))
    by = repr(known[0]) if known else "a function of the network"
    return f"reset it in forward, or before every pass by {door}(..., reset={by})"
