"""What a run file says before the first step: its stimuli, its attributes, its layers."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from biograd import data
from biograd.errors import RecipeError, nearest
from biograd.recording.observation import Observed, neurons, neurons_of
from biograd.recording.training_setup import Experiment
from biograd.runs.layout import LayerInfo, Probe
from biograd.substrate.network import Network

LONGEST = 20_000
"""Characters of the text of a module."""
STIMULI = 2**24
"""Bytes of stimuli that a run file takes; larger ones are found by their rows."""


def make_probe(dataset: data.Dataset, stimuli: int) -> Probe:
    """Return the fixed stimuli of all snapshots: the evaluated split, its groups in turn."""
    source = dataset.evaluated
    index = dataset.probes(source, stimuli)
    inputs = source.take(index).inputs
    targets = source.take(index).targets if source.targets is None else source.targets[index]
    strata = dataset.task.strata(targets)
    label = torch.zeros(len(index), dtype=torch.int64) if strata is None else strata
    return Probe(
        index=index.numpy(),
        label=label.cpu().numpy(),
        split=dataset.evaluated_on,
        input=inputs.numpy() if inputs.nbytes <= STIMULI else None,
        target=targets.numpy() if targets.nbytes <= STIMULI else None,
        source_row=data.original(source, index).numpy(),
    )


def attributes(experiment: Experiment, kinds: set[str]) -> dict[str, Any]:
    """Return what a run with layers of these kinds says of itself."""
    configuration, dataset = experiment.configuration, experiment.dataset
    kind, network = configuration.recipe.network.kind, experiment.network
    model_kind = "snn" if kind in ("spiking", "circuit") else "ann"
    found: dict[str, Any] = {}
    if configuration.module:
        model_kind = "snn" if "spiking" in kinds else "unknown"
        found |= {"network": str(network)[:LONGEST], "neurons": neurons(network)}
    if configuration.module and isinstance(network, Network) and network.encoding is not None:
        found["encoding"] = dataclasses.asdict(network.encoding.recipe)
    return {
        "seed": configuration.seed,
        "device": configuration.device,
        "dataset": configuration.dataset,
        "dataset_sha256": dataset.digest,
        **({"dataset_sha256_covers": dataset.covers} if dataset.covers else {}),
        "rule": configuration.estimator,
        "model": configuration.model,
        "headline": dataset.task.headline,
        "better": dataset.task.better,
        "model_kind": model_kind,
        **{name: value for name, value in found.items() if value},
    }


def geometry(layer: LayerInfo) -> str:
    """Return what rows of a layer depend on, in words."""
    shape = "x".join(map(str, layer.shape or (layer.n_units,)))
    time = f", {layer.n_steps} steps of {layer.dt_ms} ms" if layer.kind == "spiking" else ""
    return f"{layer.kind}, {shape} units{time}"


def layers(experiment: Experiment, probe: Probe) -> dict[str, LayerInfo]:
    """Return what each layer is, by what it does on the first stimuli."""
    inputs = experiment.dataset.evaluated.take(torch.as_tensor(probe.index[:2])).inputs
    patterns = experiment.configuration.recipe.recording.layers
    return observed_layers(experiment.network, experiment.observe(inputs), patterns)


def observed_layers(
    network: nn.Module, observed: Mapping[str, Observed], patterns: Sequence[str]
) -> dict[str, LayerInfo]:
    """Return what each layer is that patterns choose, by what it was seen to do."""
    known = neurons(network)
    encoding = network.encoding if isinstance(network, Network) else None
    found = {}
    for name, one in observed.items():
        spiking = one.kind == "spiking"
        found[name] = LayerInfo(
            kind=one.kind,
            n_units=one.values.shape[-1],
            shape=one.shape,
            dt_ms=encoding.dt_ms if spiking and encoding else None,
            n_steps=one.steps or None,
            neuron_params=neurons_of(name, known),
        )
    return {name: found[name] for name in chosen("layers", patterns, found)}


def chosen(key: str, patterns: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return the names that patterns match, in their order.

    Raises:
        RecipeError: a pattern matches none.
    """
    names = tuple(known)
    for pattern in patterns:
        if names and not fnmatch.filter(names, pattern):
            raise RecipeError(
                f"recording.{key}: {pattern!r} matches none: {nearest(pattern, names)}"
            )
    return tuple(n for n in names if any(fnmatch.fnmatchcase(n, one) for one in patterns))
