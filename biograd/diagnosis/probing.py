"""Probe an engine: compare the gradient that it would take with the true one, and leave no trace.

All draws see the same encoded examples and the same dropout masks, so that they differ in the
estimator's own noise alone and have one gradient to be compared with.  The network is run in the
mode in which it stands, and is not copied.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from biograd.contracts import Plan, Trace, bin_width, bins
from biograd.diagnosis import references
from biograd.diagnosis.activity import population
from biograd.diagnosis.findings import Layer, Neighbour
from biograd.diagnosis.quality import Sums, cosines, mean, quality
from biograd.diagnosis.references import Reference
from biograd.diagnosis.report import Diagnosis
from biograd.diagnosis.setup import Setup, gradients
from biograd.diagnosis.untouched import untouched
from biograd.engine import Engine, Result
from biograd.errors import RecipeError

Truths = dict[str, Tensor]


def probe(
    engine: Engine,
    inputs: Tensor,
    targets: Tensor,
    index: Tensor | None = None,
    *,
    draws: int = 16,
    reference: Reference = "auto",
    optimiser: torch.optim.Optimizer | None = None,
    neighbours: bool = True,
) -> Diagnosis:
    """Compare the estimated gradient with the true one at the present state of the network.

    Afterwards everything is as it was: parameters, ``.grad``, buffers, the random streams, the
    estimator, decorrelation and the optimiser.

    Args:
        inputs: ``[B, ...]``.
        targets: ``[B, ...]``.
        index: rows of the examples in the data set, as in a step.
        draws: how often the gradient is estimated; two at least.
        reference: "backpropagation" (through spikes: the surrogate gradient),
            "finite_difference", or a ``FiniteDifference``; "auto" takes the former where the
            substrate can.
        optimiser: a step of it is tried on a copy of the weights, to see how large it is.
        neighbours: also try noise of a quarter and of four times the size.

    Raises:
        CapabilityError: the substrate cannot provide that reference, or the engine is detached.
        RecipeError: fewer than two draws, or no such reference.

    >>> import biograd, torch
    >>> engine = biograd.attach(biograd.build("ann", 4, 3), biograd.Backpropagation())
    >>> found = probe(engine, torch.randn(8, 4), torch.arange(8) % 3)
    >>> print(found.overall.cosine, found.advice())
    1.00 []
    """
    if draws < 2:
        raise RecipeError(f"probe: draws = {draws}: at least two are needed")
    with untouched(engine):
        setup = Setup(engine, inputs, targets, index)
        difference = references.find(reference, engine)
        trace = setup.run(Plan())
        truths = references.truths(setup, trace, difference)
        drawn = _draw(setup, draws, truths)
        found = _describe(setup, trace, drawn, _updates(setup, optimiser, drawn.first))
        return dataclasses.replace(
            found,
            reference=references.words(setup, difference),
            neighbours=_neighbours(setup, drawn, truths) if neighbours else (),
        )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Many draws: their sums by site, the first estimate, the last result."""

    sums: dict[str, Sums]
    first: list[Tensor]
    last: Result
    informative: float
    draws: int


def _draw(setup: Setup, draws: int, truths: Truths) -> _Drawn:
    """Estimate the gradient again and again."""
    engine = setup.engine
    sums = {
        group.name: Sums(
            truths[group.name],
            sum(setup.parameters[place].numel() for place in group.places),
            draws,
        )
        for group in setup.groups
    }
    streams = {name: setup.stream(name) for name in engine.streams}
    first: list[Tensor] = []
    informative = 0.0
    for _ in range(draws):
        engine.streams = streams | {n: setup.stream(n) for n in ("encoding", "dropout")}
        result = engine(setup.inputs, setup.targets, setup.index)
        found = gradients(result.surrogate, setup.parameters)
        informative += result.informative / draws
        first = first or found
        for group in setup.groups:
            sums[group.name].add(group.vector(found))
    return _Drawn(sums, first, result, informative, draws)


def _neighbours(setup: Setup, drawn: _Drawn, truths: Truths) -> tuple[Neighbour, ...]:
    """Draw the same noise again, a quarter and four times as large."""
    engine, found = setup.engine, []
    sigma = _sigma(engine.estimator)
    if sigma is None or not setup.hidden:
        return ()
    here = cosines([drawn.sums[name] for name in setup.hidden])
    step = engine.step - drawn.draws
    for other in (sigma / 4, sigma * 4):
        engine.estimator.sigma, engine.step = other, step  # type: ignore[assignment]
        again = _draw(setup, drawn.draws, truths).sums
        there = cosines([again[name] for name in setup.hidden])
        found.append(Neighbour(other, mean(there), mean(there - here)))
    return tuple(found)


def _sigma(estimator: nn.Module) -> float | None:
    sigma = getattr(estimator, "sigma", None)
    return float(sigma) if isinstance(sigma, float | int) else None


def _describe(setup: Setup, trace: Trace, drawn: _Drawn, updates: dict[str, float]) -> Diagnosis:
    engine, sums, copies = setup.engine, drawn.sums, len(drawn.last.losses)
    norms = [part for part in setup.network.modules() if isinstance(part, _BatchNorm)]
    return Diagnosis(
        estimator=type(engine.estimator).__name__,
        substrate=engine.substrate.name,
        draws=drawn.draws,
        examples=len(setup.targets),
        step=engine.step - drawn.draws,
        loss=float(drawn.last.loss),
        informative=drawn.informative,
        copies=copies,
        dimensions=_dimensions(setup, trace) if copies > 1 else 0,
        sigma=_sigma(engine.estimator),
        method=str(getattr(engine.estimator, "method", "")),
        learns_hidden=engine.estimator.learns_hidden,
        caveat=engine.estimator.caveat,
        batch_norm=any(part.training for part in norms),
        layers=_layers(setup, trace, sums, updates),
        **_noise(setup, trace),
        hidden=quality([sums[name] for name in setup.hidden]) if setup.hidden else None,
        overall=quality(list(sums.values())),
        credit=tuple(engine.account.lines()) if engine.account else (),
    )


def _noise(setup: Setup, trace: Trace) -> dict[str, Any]:
    """Return in how many steps noise, or tangents, act on the currents, and on which together."""
    engine = setup.engine
    if not engine.estimator.needs & {"perturb_site", "jvp_site"}:
        return {}
    sites = [site for site in engine.substrate.sites[:-1] if site.name in trace.sites]
    return {
        "steps": max((trace.sites[site.name].shape.steps for site in sites), default=1),
        "time_bin": bin_width(_time_bin(engine), engine.timed or engine.varying),
        "shared": {site.name: site.modules for site in sites if len(site.modules) > 1},
    }


def _time_bin(engine: Engine) -> Any:
    return getattr(engine.estimator, "time_bin", None)


def _dimensions(setup: Setup, trace: Trace) -> int:
    """Return in how many dimensions the estimator looks for each example's gradient."""
    estimator = setup.engine.estimator
    if "perturb_parameter" in estimator.needs:
        return sum(parameter.numel() for parameter in setup.parameters)
    chosen = getattr(estimator, "sites", "all")
    noisy = [*setup.engine.hidden, *setup.engine.scales]  # without a graph the readout, too
    names = tuple(dict.fromkeys(noisy)) if isinstance(chosen, str) else tuple(chosen)
    width = bin_width(_time_bin(setup.engine), setup.engine.timed or setup.engine.varying)
    shapes = [trace.sites[name].shape for name in names]
    sizes = [bins(shape.steps, width) * math.prod(shape.units) for shape in shapes]
    return max(sizes) if chosen == "round_robin" else sum(sizes)


def _layers(
    setup: Setup, trace: Trace, sums: dict[str, Sums], updates: dict[str, float]
) -> dict[str, Layer]:
    layers = {}
    for group in setup.groups:
        facts: dict[str, Any] = {}
        site = trace.sites.get(group.name)
        if site is not None and site.activity is not None and group.kind == "hidden":
            facts = population(site.activity.detach(), group.layer, setup.spiking)
        layers[group.name] = Layer(
            group.kind,
            quality([sums[group.name]]),
            setup.weight_norm(group),
            update=updates.get(group.name),
            **facts,
        )
    return layers


def _updates(
    setup: Setup, optimiser: torch.optim.Optimizer | None, found: list[Tensor]
) -> dict[str, float]:
    """Return how far a step with these gradients moves each site's weights, relatively."""
    if optimiser is None:
        return {}
    twin = copy.deepcopy(optimiser)
    places = {id(parameter): place for place, parameter in enumerate(setup.parameters)}
    moved: dict[int, Tensor] = {}
    for group, twins in zip(optimiser.param_groups, twin.param_groups, strict=True):
        for original, other in zip(group["params"], twins["params"], strict=True):
            place = places.get(id(original))
            other.grad = None if place is None else found[place].clone()
            if place is not None:
                moved[place] = other
    type(twin).step(twin)  # not the instance's: a scheduler may have wrapped the original's
    ratios = {}
    for part in setup.groups:
        chosen = [place for place in part.places if place in moved and moved[place].dim() > 1]
        changes = [moved[place].detach() - setup.parameters[place].detach() for place in chosen]
        size = setup.weight_norm(part)
        if changes and size > 0:
            squares = sum(float(change.double().square().sum()) for change in changes)
            ratios[part.name] = math.sqrt(squares) / size
    return ratios
