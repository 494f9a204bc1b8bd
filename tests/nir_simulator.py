"""A second reader of NIR files: HDF5 and NumPy only, from the equations of the nodes.

In a step what flows is constant, and every node solves its own equation exactly for it.  A node
belongs to the first population, in the order that the file gives, to which it leads; what comes
from that population or one behind it is that of the step before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Simulator:
    """A file as it is simulated, one trial at a time."""

    def __init__(self, path: Path, dt_ms: float | None = None, order: list[str] | None = None):
        with h5py.File(path) as file:
            root = file["node"]
            self.edges = [(text(a), text(b)) for a, b in root["edges"][()]]
            self.nodes = {name: _members(node) for name, node in root["nodes"].items()}
            notes = _members(root["metadata"]) if "metadata" in root else {}
        self.dt = (dt_ms or float(notes["dt_ms"])) / 1000
        self.read = text(notes.get("read", "mean"))
        self.order = order or json.loads(text(notes["order"]))
        self.before: dict[str, list[str]] = {name: [] for name in self.nodes}
        for one, two in self.edges:
            self.before[two].append(one)

    def output(self, course: Array) -> Array:
        """Return what is read of the output of a trial."""
        values = np.array(self.run(course)["output"])
        if self.read == "steps":
            return values
        if self.read == "last":
            return values[-1]
        return values.sum(0) if self.read == "sum" else values.mean(0)

    def run(self, course: Array) -> dict[str, list[Array]]:
        """Return what each node passes on in every step, for a course ``[steps, units]``."""
        self.states: dict[str, dict[str, Any]] = {name: {} for name in self.nodes}
        self.course: dict[str, list[Array]] = {name: [] for name in self.nodes}
        (stop,) = (name for name, node in self.nodes.items() if node["type"] == "Output")
        for now in course:
            self.done: dict[str, Array] = {}
            for rank, name in enumerate([*self.order, stop]):
                self.value(name, rank, now, first=True)
            for name, value in self.done.items():
                self.course[name].append(value)
        return self.course | {"output": self.course[stop]}

    def value(self, name: str, rank: int, now: Array, first: bool = False) -> Array:
        node = self.nodes[name]
        if name in self.order and not first:
            if self.order.index(name) < rank:
                return self.done[name]
            past = self.course[name]
            return past[-1] if past else np.zeros(self.size(name))
        if name not in self.done:
            if node["type"] == "Input":
                self.done[name] = now.reshape(node["shape"])
            else:
                arriving = [self.value(one, rank, now) for one in self.before[name]]
                self.done[name] = self.step(name, node, sum(arriving[1:], arriving[0]))
        return self.done[name]

    def size(self, name: str) -> tuple[int, ...]:
        node = self.nodes[name]
        return np.shape(node["threshold" if node["type"] == "Threshold" else "r"])

    def step(self, name: str, node: dict[str, Any], x: Array) -> Array:
        kind = node["type"]
        if kind == "Output":
            return x
        if kind == "Affine":
            return node["weight"] @ x + node["bias"]
        if kind == "Linear":
            return node["weight"] @ x
        if kind == "Scale":
            return node["scale"] * x
        if kind == "Threshold":
            return (x > node["threshold"]).astype(float)
        if kind == "Flatten":
            return x.reshape(-1)
        if kind in ("SumPool2d", "AvgPool2d"):
            return pooled(x, node["kernel_size"], node["stride"], kind == "AvgPool2d")
        if kind == "Delay":
            past = self.states[name].setdefault("past", [])
            past.append(x)
            back = round(float(node["delay"].flat[0]) / self.dt)
            return past[-1 - back] if len(past) > back else np.zeros_like(x)
        if kind == "Conv2d":
            return (
                convolved(x, node["weight"], int(node["stride"][0]), int(node["padding"][0]))
                + (node["bias"][:, None, None])
            )
        return self.neuron(self.states[name], node, x)

    def neuron(self, state: dict[str, Any], node: dict[str, Any], x: Array) -> Array:
        """Take a step of LI, I, LIF, IF, CubaLI or CubaLIF."""
        leak = node.get("v_leak", 0.0)
        if "tau_syn" in node:
            alpha = np.exp(-self.dt / node["tau_syn"])
            x = alpha * state.get("i", 0.0) + (1 - alpha) * node["w_in"] * x
            state["i"] = x
        v = state.get("v", leak + np.zeros_like(x))
        if "tau" in node or "tau_mem" in node:
            beta = np.exp(-self.dt / node.get("tau", node.get("tau_mem")))
            v = leak + beta * (v - leak) + (1 - beta) * node["r"] * x
        else:
            v = v + self.dt * node["r"] * x
        subtracts = text(node.get("metadata", {}).get("reset", "")) == "subtract"
        if subtracts and "s" in state:
            v = v - node["v_threshold"] * state["s"]
        state["v"] = v
        if "v_threshold" not in node:
            return v
        state["s"] = spikes = (v > node["v_threshold"]).astype(float)
        if not subtracts:
            state["v"] = np.where(spikes > 0, node["v_reset"], v)
        return spikes


def convolved(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Return a convolution ``[out, height, width]``, written out."""
    side = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return np.einsum("oikl,ihwkl->ohw", weight, patches[:, ::stride, ::stride])


def pooled(x: Array, size: Array, stride: Array, mean: bool) -> Array:
    """Return the sum or mean of windows of a grid, written out."""
    (high, wide), (down, along) = size.astype(int), stride.astype(int)
    rows = range(0, x.shape[1] - high + 1, down)
    columns = range(0, x.shape[2] - wide + 1, along)
    sums = [[x[:, i : i + high, j : j + wide].sum((1, 2)) for j in columns] for i in rows]
    return np.moveaxis(np.array(sums), 2, 0) / (high * wide if mean else 1)


def _members(group: Any) -> dict[str, Any]:
    found = {}
    for name, item in group.items():
        value = _members(item) if isinstance(item, h5py.Group) else item[()]
        found[name] = text(value) if isinstance(value, bytes) else value
    return found
