"""What the nodes of a NIR graph hold, checked before a network is made of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from biograd.data.files.unpacking import check_dataset
from biograd.disk.stored_sizes import has_endless_heap
from biograd.errors import DataError, RecipeError

SNNTORCH_MS = 0.1
"""The step for which snnTorch writes its graphs, whatever the network's is: r is tau by it."""
BESIDES = ("metadata", "input_type", "output_type", "nodes", "edges")
MOST_UNITS, DEEPEST = 2**28, 30


def check_values(nodes: Mapping[str, Any]) -> None:
    """Refuse what is no number, or not finite, in a node.

    Raises:
        RecipeError: with the node and what it calls the value.
    """
    for name, node in nodes.items():
        for key, value in vars(node).items():
            if key in BESIDES or value is None or isinstance(value, (str, bytes)):
                continue
            _check_array(np.asarray(value), f"node {name!r}: {key}")
        for key in ("input_type", "output_type"):
            check_shape(dict(getattr(node, key, None) or {}).values(), f"node {name!r}: its shape")


def _check_array(values: np.ndarray[Any, Any], where: str) -> None:
    if values.dtype.kind in "OSU":  # a tuple of paddings, say
        if not all(isinstance(each, (int, float, str, bytes)) for each in values.ravel().tolist()):
            raise RecipeError(f"{where}: is {values.dtype}: must be numbers")
    elif values.dtype.kind not in "biuf":
        raise RecipeError(f"{where}: is {values.dtype}: must be real numbers")
    elif not values.size:
        raise RecipeError(f"{where}: has no values (shape {list(values.shape)})")
    elif not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise RecipeError(f"{where}: {count} of {values.size} values are not finite")


def check_shape(shapes: Any, where: str) -> None:
    """Refuse shapes that are none.

    Raises:
        RecipeError: no whole numbers from 1, or more units than a network can have.
    """
    for shape in shapes:
        sizes = np.ravel(shape).tolist() if shape is not None else []
        whole = all(isinstance(n, (int, float)) and n == n // 1 and n >= 1 for n in sizes)
        if not whole or math.prod(sizes) > MOST_UNITS:
            raise RecipeError(f"{where} is {sizes}: must be whole numbers, of {MOST_UNITS} at most")


def check_file(path: Path) -> None:
    """Refuse a file whose data sets exceed what is stored, or whose groups hold themselves.

    Raises:
        RecipeError: it is made to fill the memory, or leads elsewhere.
    """
    with h5py.File(path, "r", locking="best-effort") as file:
        if has_endless_heap(file):
            raise RecipeError(f"{path}: is damaged (HDF5 would read it for ever)")
        try:
            _check_group(file, (), str(path))
        except DataError as error:
            raise RecipeError(str(error)) from error


def _check_group(group: h5py.Group, within: tuple[int, ...], where: str) -> None:
    own = h5py.h5o.get_info(group.id).addr
    if own in within or len(within) > DEEPEST:
        raise RecipeError(f"{where}: {group.name}: groups within each other without end")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise RecipeError(f"{where}: {group.name}/{name}: is a link to elsewhere")
        item = group[name]
        if isinstance(item, h5py.Group):
            _check_group(item, (*within, own), where)
        elif isinstance(item, h5py.Dataset):
            check_dataset(item, f"{where}: {item.name}")


def check_step(nodes: Mapping[str, Any], dt_ms: float) -> None:
    """Warn if a graph is read in other steps than those that snnTorch wrote it for.

    NIR says nothing of steps.  snnTorch's constants are those of steps of 0.1 ms: in others, its
    neurons leak and integrate by another factor in each step.
    """
    spiking = {name: node for name, node in nodes.items() if hasattr(node, "v_threshold")}
    if (
        spiking
        and all(map(_is_of_snntorch, spiking.values()))
        and not math.isclose(dt_ms, SNNTORCH_MS)
    ):
        warnings.warn(
            f"node {next(iter(spiking))!r}: r = tau / {SNNTORCH_MS:g} ms, as snnTorch writes it: "
            f"its graphs are for dt_ms = {SNNTORCH_MS:g}, and dt_ms = {dt_ms:g} is asked for: "
            "neurons will fire otherwise than there",
            stacklevel=4,
        )


def _is_of_snntorch(node: Any) -> bool:
    tau = np.asarray(getattr(node, "tau_mem", getattr(node, "tau", math.nan)), float)
    r = np.asarray(node.r, float)
    same = r.shape == tau.shape and np.allclose(r * SNNTORCH_MS / 1000, tau, rtol=1e-5, atol=0)
    return bool(same and np.any(r != 1))
