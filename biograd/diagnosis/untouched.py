"""Give an engine back as it was, whatever happened to it in between."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from biograd.engine import Engine


@contextmanager
def untouched(engine: Engine) -> Iterator[None]:
    """Give back an engine, its network and all that learns with it as they were."""
    learners = [m for m in (engine.estimator, engine.decorrelate, engine.local) if m is not None]
    owners: list[Any] = [engine, engine.substrate]
    owners += [part for learner in learners for part in learner.modules()]
    held = [_Held(owner) for owner in owners]
    buffers = _kept(engine.network.buffers())
    streams = [(stream, stream.get_state()) for stream in engine.streams.values()]
    device, withheld = streams[0][0].device, list(engine.withheld.parameters)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            engine.withheld.take(withheld)
            for part in held:
                part.restore()
            _restore(buffers)
            for stream, state in streams:
                stream.set_state(state)


class _Held:
    """The attributes of an object, and what its own containers hold, tensors by their values."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.attributes = owner, dict(vars(owner))
        self.contents = {
            name: copy.copy(value)
            for name, value in self.attributes.items()
            if isinstance(value, dict | list | set | deque)
        }
        dictionaries = [
            c for c in (self.attributes, *self.contents.values()) if isinstance(c, dict)
        ]
        self.tensors = _kept(value for content in dictionaries for value in content.values())

    def restore(self) -> None:
        """Put everything back; the containers stay the objects that they were."""
        vars(self.owner).clear()
        vars(self.owner).update(self.attributes)
        for name, content in self.contents.items():
            container = self.attributes[name]
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)
        _restore(self.tensors)


def _kept(values: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
    return [(value, value.detach().clone()) for value in values if isinstance(value, Tensor)]


def _restore(kept: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in kept:
        tensor.data.copy_(value)  # past autograd: a graph may still wait for its backward
