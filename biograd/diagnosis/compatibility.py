"""Which rule works on which network, simulated by whom: every cell is tried out, none is claimed.

A cell attaches the rule to a tiny network and takes a step.  It works if every hidden layer then
has a gradient that is finite and not zero; a rule that first has to learn something itself
(synthesisers start at zero) may take a few steps.  Otherwise the cell says what a user would read.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biograd.diagnosis import user_networks
from biograd.diagnosis.user_networks import USERS
from biograd.engine import Engine, attach
from biograd.errors import BiogradError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.local import LocalLosses
from biograd.networks import build
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, construct

Status = Literal["works", "refused", "no network", "broken"]
SUBSTRATES = ("torch", "snntorch", "brian2")
USER, OWN = "user", "yours"
"""Stands for a substrate where a user brings the network along (``user_networks``)."""
SPIKING: dict[str, Any] = {
    "network": {"kind": "spiking", "gain": 2.0},
    "neuron": {"resistance": 8.0},
    "encoding": {"duration_ms": 8.0},
}
LEAKY: dict[str, Any] = {
    "equations": "dv/dt = (30 * I - v) / (10 * ms) : 1\nI : 1",
    "threshold": "v > 1",
    "reset": "v = 0",
    "method": "exact",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "convolution": {"network": {"channels": (2,)}},
    "residual": {"network": {"hidden": (5, 5), "residual": True}},
    "recurrent": {"network": {"recurrent": True}, "encoding": {"duration_ms": 4.0}},
    "batch norm": {"network": {"normalisation": "batch"}, "training": {"outside": "freeze"}},
    "local losses": {"local": {"loss": "cross_entropy"}},
    "spiking": SPIKING,
    "spiking recurrent": {**SPIKING, "network": {**SPIKING["network"], "recurrent": True}},
    "spiking local": {**SPIKING, "local": {"loss": "cross_entropy"}},
    "event-driven": {
        **SPIKING,
        "neuron": {
            "method": "event",
            "reset": "zero",
            "synaptic_time_constant_ms": 5.0,
            "resistance": 8.0,
        },
    },
    "own equations": {
        "network": {**SPIKING["network"], "kind": "spiking"},
        "population": {
            "equations": "dv/dt = (30 * I - v) / (10 * ms) : 1\ndw/dt = -w / (20 * ms) : 1\nI : 1",
            "threshold": "v > 1 + w",
            "reset": "v = 0; w += 0.2",
            "method": "euler",
        },
        "encoding": {"duration_ms": 8.0},
    },
    "circuit": {
        "network": {**SPIKING["network"], "kind": "circuit"},
        "populations": {
            "first": {**LEAKY, "units": 5},
            "second": {**LEAKY, "units": 4},
        },
        "projections": {
            "drive": {"source": "input", "target": "first"},
            "onward": {"source": "first", "target": "second"},
            "back": {"source": "second", "target": "first", "kind": "masked", "density": 0.6},
        },
        "encoding": {"duration_ms": 8.0},
    },
    "no derivative": {
        "network": {**SPIKING["network"], "kind": "spiking"},
        "population": {**LEAKY, "threshold": "v > 1 or v < -9"},
        "encoding": {"duration_ms": 8.0},
    },
}
"""Recipes of tiny networks; the substrate and what is ``COMMON`` to a kind come on top."""
BRIAN2_ALONE = ("own equations", "circuit", "no derivative")
"""Networks that no other simulator has."""
COMMON: dict[str, dict[str, Any]] = {
    "rate": {"hidden": (5, 4), "activation": "tanh", "dtype": "float64"},
    "spiking": {"hidden": (5, 4), "dtype": "float64"},
    "circuit": {"dtype": "float64"},
}
SHAPE, CLASSES, ROWS = (1, 4, 4), 3, 12
STEPS = 8
"""After so many steps every hidden layer must have received credit."""


@dataclasses.dataclass(frozen=True)
class Compatibility:
    """What came out for one rule on one network.

    Attributes:
        status: "works"; "refused" with the one line that a user reads; "no network": nobody can
            build it; "broken": it fails in another way than it should.
        steps: that it took until every hidden layer had credit.
        gradients: norm by layer in that step.
    """

    rule: str
    substrate: str = ""
    network: str = ""
    status: Status = "works"
    reason: str = ""
    steps: int = 0
    gradients: Mapping[str, float] = dataclasses.field(default_factory=dict)


def columns() -> list[tuple[str, str]]:
    """Return all pairs of a substrate and a network, in the order in which they are shown.

    The substrate of what users bring along is ``USER``.
    """
    own = [(substrate, network) for substrate in SUBSTRATES for network in NETWORKS]
    return [*own, *((USER, network) for network in USERS)]


def fill(
    rules: Sequence[str] = (), watch: Callable[[Compatibility], None] = lambda cell: None
) -> list[Compatibility]:
    """Try every rule, or those that are named, on every network; return the cells rule by rule.

    Args:
        rules: names in ``ESTIMATORS``.
        watch: is shown every cell when it is done.

    Raises:
        RecipeError: no such rule.
    """
    check(rules)
    wanted, cells = list(rules or ESTIMATORS), []
    with _brian2_on_numpy():
        for column in columns():
            for cell in _fill_column(wanted, *column):
                cells.append(cell)
                watch(cell)
    return sorted(cells, key=lambda cell: wanted.index(cell.rule))


Rows = tuple[Tensor, Tensor, Tensor]
"""Inputs, targets and numbers of rows."""


def fill_own(
    rules: Sequence[str],
    begin: Callable[[str], tuple[Engine, Rows]],
    watch: Callable[[Compatibility], None] = lambda cell: None,
) -> list[Compatibility]:
    """Try every rule, or those that are named, on a network of the user's.

    Args:
        begin: makes the network anew and attaches a rule; with it come the rows to learn from.

    Raises:
        RecipeError: no such rule.
    """
    check(rules)
    cells = []
    for rule in rules or ESTIMATORS:
        cell = _tried(rule, functools.partial(begin, rule))
        cells.append(dataclasses.replace(cell, substrate=USER, network=OWN))
        watch(cells[-1])
    return cells


def check(rules: Sequence[str]) -> None:
    """Refuse a rule that there is not.

    Raises:
        RecipeError: with the nearest name.
    """
    for name in rules:
        ESTIMATORS.find(name, "estimator")


def _fill_column(rules: Sequence[str], substrate: str, network: str) -> Iterator[Compatibility]:
    """Try the rules on one network, which is given back to each as it was made."""
    if substrate == USER:
        for rule in rules:
            cell = try_out(rule, user_networks.make(network), ModelRecipe())
            yield dataclasses.replace(cell, substrate=substrate, network=network)
        return
    recipe = tiny(substrate, network)
    try:
        made = build(recipe, SHAPE, CLASSES)
    except BiogradError as error:
        for rule in rules:
            yield Compatibility(rule, substrate, network, "no network", str(error))
        return
    pristine = copy.deepcopy(made.state_dict())
    for rule in rules:
        made.load_state_dict(pristine)
        made.zero_grad()
        yield dataclasses.replace(try_out(rule, made, recipe), substrate=substrate, network=network)


def try_out(rule: str, network: nn.Module, recipe: ModelRecipe) -> Compatibility:
    """Attach a rule to a network and train it until every hidden layer has had credit."""

    def begin() -> tuple[Engine, Rows]:
        local = None if recipe.local.loss == "off" else LocalLosses(recipe.local.loss)
        outside = recipe.training.outside
        return attach(network, make(rule), local=local, outside=outside), batch()

    return _tried(rule, begin)


def _tried(rule: str, begin: Callable[[], tuple[Engine, Rows]]) -> Compatibility:
    """Begin and train until every hidden layer has had credit."""
    try:
        engine, rows = begin()
        try:
            steps, gradients = _train(engine, rows)
        finally:
            engine.detach()
    except RecipeError as error:
        return Compatibility(rule, status="refused", reason=" ".join(str(error).split()))
    except Exception as error:  # whatever it is: a table of what works must show it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Compatibility(rule, status="broken", reason=reason)
    idle = [name for name, norm in gradients.items() if not 0 < norm < math.inf]
    if idle:
        reason = f"{', '.join(idle)}: no gradient in {steps} steps"
        return Compatibility(rule, status="broken", reason=reason, steps=steps, gradients=gradients)
    return Compatibility(rule, steps=steps, gradients=gradients)


def tiny(substrate: str, network: str) -> ModelRecipe:
    """Return the recipe of a tiny network."""
    table = dict(NETWORKS[network])
    own = table.get("network", {})
    common = COMMON[own.get("kind", "rate")]
    table["network"] = {**common, **own, "substrate": substrate}
    return construct(ModelRecipe, table, network)


def batch() -> Rows:
    """Return inputs, targets and row numbers that every cell learns from."""
    stream = generator(0, "matrix")
    inputs = torch.rand(ROWS, *SHAPE, generator=stream, dtype=torch.float64)
    return inputs, torch.arange(ROWS) % CLASSES, torch.arange(ROWS)


def _train(engine: Engine, rows: Rows) -> tuple[int, dict[str, float]]:
    """Train until every layer that should learn does, return the steps and the last gradients."""
    inputs, targets, index = rows
    inputs = inputs.to(next(engine.network.parameters()).dtype)
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(engine.parameters(), 1e-2)
    step, gradients = 0, {"": 0.0}
    while step < STEPS and not all(gradients.values()):
        step += 1
        optimiser.zero_grad()
        engine(inputs, targets, index).backward()
        gradients = dict(_norms(engine))
        optimiser.step()
        engine.update()
    return step, gradients


def _norms(engine: Engine) -> Iterator[tuple[str, float]]:
    """Yield the norm of the gradient of every layer that the rule trains."""
    sites = engine.substrate.sites
    for site in sites if engine.estimator.learns_hidden else sites[-1:]:
        for name in site.modules:
            layer = engine.network.get_submodule(name)
            weights = [p for p in layer.parameters() if p.requires_grad and p.dim() > 1]
            if weights:
                yield name, sum(0.0 if p.grad is None else float(p.grad.norm()) for p in weights)


@contextmanager
def _brian2_on_numpy() -> Iterator[None]:
    """Let Brian2 run without compiling: for tiny networks the compiler takes longest."""
    from biograd.brian.import_brian2 import import_brian2

    codegen = import_brian2().prefs.codegen
    kept = codegen.target
    codegen.target = "numpy"
    try:
        yield
    finally:
        codegen.target = kept
