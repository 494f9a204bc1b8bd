"""NIR files, damaged as bytes and as HDF5: values, shapes, formats, kinds, edges and links."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

from .harness import Target, said
from .mutators import damaged_bytes

GRAPHS = {
    "spiking": ["network.hidden=[6,5]"],
    "spiking_convolution": [
        "network.channels=[2]",
        "network.hidden=[5]",
        "network.normalisation=none",
    ],
    "spiking_recurrent": ["network.hidden=[6]", "network.substrate=torch"],
}
LEFT = (ValueError, TypeError, KeyError, OSError, RuntimeError, MemoryError)
"""What a damage raises of what an earlier one, such as a huge array, has left."""
NUMBERS = [0, -1, 1e-300, 1e300, np.nan, np.inf, -np.inf, 2**31, 2**62, 0.5]
FORMATS = [">f4", "f2", ">f8", "i1", "u8", ">i4", "c8", "?", "S4", "g", [("a", "f4")]]


def prepare(folder: Path) -> None:
    """Write graphs of biograd, and one of every node of NIR."""
    import nir

    import biograd
    from biograd.recipes import load_model

    for name, assignments in GRAPHS.items():
        short = [*assignments, "encoding.duration_ms=4"]
        shape = {"spiking": (8,), "spiking_recurrent": (1, 4, 4)}.get(name, (1, 8, 8))
        recipe = load_model(name, assignments=short)
        biograd.export_nir(biograd.build(recipe, shape, 3), folder / f"{name}.nir")
    one, half = np.ones(5), np.full(5, 0.5)
    nodes = {
        "input": nir.Input(np.array([4])),
        "first": nir.Affine(np.ones((5, 4)), one),
        "wait": nir.Delay(one * 1e-3),
        "cuba": nir.CubaLIF(one * 0.01, one * 0.02, one, one * 0, one, one * 0, one),
        "next": nir.Linear(np.ones((5, 5))),
        "cells": nir.IF(one, one, one * 0),
        "scale": nir.Scale(half),
        "last": nir.LIF(one * 0.01, one, one * 0, one, one * 0),
        "read": nir.Linear(np.ones((3, 5))),
        "leak": nir.LI(np.ones(3) * 0.02, np.ones(3), np.zeros(3)),
        "output": nir.Output(np.array([3])),
    }
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)), type_check=False)
    nir.write(folder / "all.nir", graph)


def mutate(stream: Random, folder: Path) -> str:
    """Damage one graph, which is called ``graph.nir``."""
    path = stream.choice(sorted(folder.glob("*.nir")))
    mutant = folder / "graph.nir"
    if stream.random() < 0.3:
        data, how = damaged_bytes(stream, path.read_bytes())
        mutant.write_bytes(data)
        return f"{path.stem} {how}"
    mutant.write_bytes(path.read_bytes())
    said = []
    with h5py.File(mutant, "r+") as file:
        for _ in range(stream.choice([1, 1, 1, 2, 4])):
            with contextlib.suppress(*LEFT):
                said.append(_damage(stream, file))
    return f"{path.stem} {', '.join(said)}"[:200]


def _damage(stream: Random, file: Any) -> str:
    tables: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            tables.append(name)

    file.visititems(visit)
    if not tables:
        return "nothing left"
    name, how = stream.choice(tables), stream.choice(list(WAYS))
    WAYS[how](stream, file, name)
    return f"{how} {name}"


def _replace(file: Any, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def _value(stream: Random, file: Any, name: str) -> None:
    values = np.array(file[name][()])
    if values.dtype.kind not in "fiu" or not values.size:
        return _replace(file, name, stream.choice(NUMBERS))
    values = values.astype(float)
    values.ravel()[stream.randrange(values.size)] = stream.choice(NUMBERS)
    return _replace(file, name, values)


def _shape(stream: Random, file: Any, name: str) -> None:
    values = np.array(file[name][()])
    if values.dtype.kind in "fiu":
        shapes = [values.ravel(), values[None], values.ravel()[:1], values.ravel()[:0], values.T]
        grown = np.concatenate([values.ravel()] * 2)
        values = stream.choice([*shapes, grown, values.ravel()[0] if values.size else 0])
        _replace(file, name, values)


def _format(stream: Random, file: Any, name: str) -> None:
    values, kind = np.array(file[name][()]), stream.choice(FORMATS)
    if values.dtype.kind in "fiu":
        made = np.zeros(values.shape, kind) if isinstance(kind, list) else values.astype(kind)
        _replace(file, name, made)


def _kind(stream: Random, file: Any, name: str) -> None:
    del file[name]
    made = stream.choice(["group", "empty", "text", "gone", "itself", "huge", "outside"])
    if made == "group":
        file.create_group(name)
    elif made == "empty":
        file[name] = h5py.Empty("f4")
    elif made == "text":
        file[name] = stream.choice(["", "a", "\x1b[2J", "x" * 9999, "LIF", "NIRGraph", "é"])
    elif made == "itself":
        file[name] = file["node"] if "node" in file else file
    elif made == "huge":
        file.create_dataset(name, (10**6, 10**6), "f8", chunks=(100, 100))
    elif made == "outside":
        file[name] = h5py.ExternalLink("/etc/passwd", "/a")


def _edges(stream: Random, file: Any, name: str) -> None:
    if not isinstance(file.get("node/edges"), h5py.Dataset) or "node/nodes" not in file:
        return
    given = np.array(file["node/edges"][()]).tolist()
    edges = [tuple(edge) for edge in given if isinstance(edge, list)]
    nodes = [key.encode() for key in file["node/nodes"]]
    for _ in range(stream.choice([1, 2, 5])):
        edges.append((stream.choice(nodes), stream.choice([*nodes, b"nowhere"])))
        if len(edges) > 1 and stream.random() < 0.5:
            edges.pop(stream.randrange(len(edges)))
    _replace(file, "node/edges", np.array(edges, dtype=h5py.string_dtype()))


def _rename(stream: Random, file: Any, name: str) -> None:
    node = name.rpartition("/")[0] or name
    new = stream.choice(["node/nodes/x", f"{node}_", "node/nodes/input", "odd\x1b\u202e"]) + "1"
    if node in file and node != "node" and new not in file:
        file.move(node, new)


WAYS: dict[str, Callable[[Random, Any, str], None]] = {
    "value": _value, "shape": _shape, "format": _format, "kind": _kind, "edges": _edges,
    "rename": _rename,
}  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Import a graph, and run the network that it is."""
    return said(lambda: _import(words[0]))


def _import(path: str) -> None:
    import torch

    import biograd

    network: Any = biograd.import_nir(path, dt_ms=1.0, duration_ms=4.0)
    encoding = network.encoding
    if encoding.units < 10**5:
        inputs = torch.zeros(2, *encoding.shape, dtype=next(network.parameters()).dtype)
        network(inputs)


TARGET = Target(prepare, mutate, (("{folder}/graph.nir",),), main=main)
