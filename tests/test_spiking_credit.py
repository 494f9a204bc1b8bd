"""Credit through spikes and time: forward and backward derivatives, windows, traces, e-prop.

The oracles are written out in numpy, step by step, from the equations of the papers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import (
    Gradients,
    batch,
    build,
    check_equal,
    gradients,
    opaque,
    scan,
    spiking,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

import biograd
from biograd.contracts import Objective, Plan, Round, Trace, Transport
from biograd.contracts.credit_paths import split
from biograd.engine import attach
from biograd.errors import CapabilityError
from biograd.estimators import Estimator, make
from biograd.estimators.eprop import EligibilityPropagation
from biograd.estimators.unitwise import UnitwiseGradient, measured_slope
from biograd.networks import Network
from biograd.neurons import Leaky, Neuron, Rate
from biograd.neurons.stepped import SteppedPopulation
from biograd.neurons.surrogate import spike
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.recording.observation import observe
from biograd.simulators.population import Population
from biograd.tasks.classes import LOSSES

Array = NDArray[np.float64]
STEPS = 20
NEURONS: dict[str, dict[str, Any]] = {
    "subtract": {},
    "zero": {"reset": "zero", "surrogate": "arctan"},
    "filter": {"synaptic_time_constant_ms": 4.0, "surrogate": "gaussian"},
    "filter zero": {"synaptic_time_constant_ms": 4.0, "reset": "zero"},
}
SIMULATED = [
    (simulator, neuron)
    for simulator in ("torch", "snntorch")
    for neuron in NEURONS
    if (simulator, neuron) != ("snntorch", "filter zero")  # Synaptic also resets its current
]
TIMED = [*SIMULATED, ("rate", "tanh")]


def leaky(neuron: str) -> Leaky:
    return Leaky(**({"resistance": 3.0} | NEURONS[neuron]))


def population(simulator: str, neuron: str, recurrent: bool = False) -> nn.Module:
    kind: Neuron = Rate(neuron) if simulator == "rate" else leaky(neuron)  # type: ignore[arg-type]
    return Population(kind, 5, STEPS, 1.0, "torch" if simulator == "rate" else simulator)  # type: ignore[arg-type]


def loop() -> nn.Linear:
    layer = nn.Linear(5, 5, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(normal(5, 5, name="loop"))
    return layer


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def currents(steps: int = STEPS, rows: int = 3) -> Tensor:
    return 1 + 2 * normal(rows, steps, 5, name="current")


# Forward and backward -----------------------------------------------------------------------------


def forward(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """Return the directional derivative, by forward-mode differentiation without a graph."""
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(at, along))).tangent
    assert tangent is not None
    return tangent


def check_transposed(
    ahead: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], at: Tensor
) -> None:
    """``<J u, v> = <u, J^T v>`` for random ``u`` and ``v``."""
    along = normal(*at.shape, name="u")
    start = at.clone().requires_grad_()
    end = back(start)
    cotangent = normal(*end.shape, name="v")
    (gradient,) = torch.autograd.grad(end, start, cotangent)
    one = float((forward(ahead, at, along) * cotangent).sum())
    other = float((gradient * along).sum())
    assert one != 0 and abs(one - other) < 1e-12 * max(1, abs(one)), f"{one} is not {other}"


@pytest.mark.parametrize("steps", [STEPS, 1])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), TIMED)
def test_the_forward_derivative_is_the_transpose_of_the_backward_one(
    simulator: str, neuron: str, recurrent: bool, window: int | None, steps: int
) -> None:
    part, layer = population(simulator, neuron, recurrent), loop()
    part.transport = Transport(window=window)
    if simulator == "rate" and not recurrent:
        nn.init.zeros_(layer.weight)
    arguments = (layer,) if recurrent or simulator == "rate" else ()
    check_transposed(lambda z: part(z, *arguments), lambda z: part(z, *arguments), currents(steps))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), TIMED)
def test_a_direction_that_is_not_transposed_is_noticed(
    simulator: str, neuron: str, recurrent: bool
) -> None:
    """A window on the way back alone."""
    part, layer = population(simulator, neuron, recurrent), loop()
    arguments = (layer,) if recurrent or simulator == "rate" else ()
    cut = copy.deepcopy(part)
    cut.transport = Transport(window=3)
    with pytest.raises(AssertionError, match="is not"):
        check_transposed(lambda z: part(z, *arguments), lambda z: cut(z, *arguments), currents())


@pytest.mark.parametrize("needs_graph", [False, True])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), SIMULATED)
def test_a_tangent_is_kept_with_and_without_a_graph(
    simulator: str, neuron: str, graph: bool, needs_graph: bool
) -> None:
    part, at, along = population(simulator, neuron), currents(), normal(3, STEPS, 5, name="u")
    expected = forward(part, at, along)
    with torch.set_grad_enabled(graph), forward_ad.dual_level():
        dual = forward_ad.make_dual(at.clone().requires_grad_(needs_graph), along)
        spikes, tangent = forward_ad.unpack_dual(part(dual))
    assert tangent is not None and torch.equal(tangent, expected) and expected.any()
    assert torch.equal(spikes, part(at)) and 0 < spikes.mean() < 1
    assert spikes.requires_grad == (graph and needs_graph)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), SIMULATED)
def test_rows_of_several_directions_do_not_mix(
    simulator: str, neuron: str, recurrent: bool
) -> None:
    """Four copies of three examples in one pass, each with a direction of its own."""
    part, layer = population(simulator, neuron, recurrent), loop()
    arguments = (layer,) if recurrent else ()
    at, along = currents(), normal(4, 3, STEPS, 5, name="u")
    together = forward(lambda z: part(z, *arguments), at.repeat(4, 1, 1), along.flatten(0, 1))
    alone = [forward(lambda z: part(z, *arguments), at, direction) for direction in along]
    assert (together.view(4, 3, STEPS, 5) - torch.stack(alone)).abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["current", "poisson"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), SIMULATED)
def test_slopes_of_a_spiking_network_are_those_of_its_gradient(
    simulator: str, neuron: str, recurrent: bool, kind: str
) -> None:
    """Three tangents at both hidden currents, frozen or one a step, through the substrate."""
    network = spiking(simulator, {"recurrent": recurrent}, NEURONS[neuron], {"kind": kind})
    engine = attach(network, make("backprop"))
    inputs, targets = batch()
    inputs = inputs * (3 if kind == "current" else 1)
    engine.prepare(inputs, targets)
    substrate, objective = engine.substrate, Objective(LOSSES["cross_entropy"])
    encoded = substrate.encode(inputs, generator(1))
    bins, time_bin = (1, None) if kind == "current" else (STEPS, 1)
    tangents = {
        name: normal(3, 8, bins, *engine._shapes[name].units, name=name) for name in engine.hidden
    }
    plan = Plan(tangents=tangents, time_bin=time_bin)
    trace = substrate.run(plan, encoded, targets, objective)
    assert trace.slopes is not None and trace.slopes.shape == (3, 8)
    expected = torch.zeros_like(trace.slopes)
    for name, tangent in tangents.items():
        visits = trace.sites[name].visits[0].outputs
        (gradient,) = torch.autograd.grad(trace.loss, visits, retain_graph=True)
        expected += 8 * (gradient * tangent).flatten(2).sum(2)
    assert expected.abs().max() > 1e-3
    assert (trace.slopes - expected).abs().max() < 1e-12 * expected.abs().max()


def test_spikes_cannot_be_differentiated_twice() -> None:
    """The surrogate has no second derivative that would mean anything: refused, not wrong."""
    distance = normal(5, name="u").requires_grad_()
    (once,) = torch.autograd.grad(spike(distance).sum(), distance, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(once.sum(), distance)


# How credit passes through a population -----------------------------------------------------------


def truncated(
    part: nn.Module, layer: nn.Module | None, current: Tensor, weights: Tensor, window: int
) -> Tensor:
    """Return the gradient by the current, window by window, the state between them given.

    The state at a window's start is found by a separate pass over all steps before it.
    """
    total = torch.zeros_like(current)
    arguments = () if layer is None else (layer,)
    for start in range(0, STEPS, window):
        stop = min(start + window, STEPS)
        given = current.detach().clone()
        inside = given[:, start:stop].clone().requires_grad_()
        pieces = (given[:, :start], inside, given[:, stop:])
        fired = part(torch.cat(pieces, 1), *arguments)
        (gradient,) = torch.autograd.grad((fired * weights)[:, start:stop].sum(), inside)
        total[:, start:stop] = gradient
    return total


@pytest.mark.parametrize("window", [1, 7, STEPS])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), TIMED)
def test_a_window_cuts_between_its_steps(
    simulator: str, neuron: str, recurrent: bool, window: int
) -> None:
    """Credit by the current: the steps of each window are differentiated by its own alone."""
    part, layer = population(simulator, neuron, recurrent), loop()
    if simulator == "rate" and not recurrent:
        nn.init.zeros_(layer.weight)
    fed = layer if recurrent or simulator == "rate" else None
    weights = normal(3, STEPS, 5, name="w")
    expected = truncated(part, fed, currents(), weights, window)
    part.transport = Transport(window=window)
    at = currents().requires_grad_()
    fired = part(at) if fed is None else part(at, fed)
    (found,) = torch.autograd.grad((fired * weights).sum(), at)
    assert (found - expected).abs().max() < 1e-12 < expected.abs().max()


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(("simulator", "neuron"), SIMULATED)
def test_another_derivative_takes_the_surrogate_s_place(
    simulator: str, neuron: str, recurrent: bool
) -> None:
    """A Gaussian one, against the population whose own surrogate it is."""
    part, layer = population(simulator, neuron, recurrent), loop()
    twin = copy.deepcopy(part)
    twin.neuron = dataclasses.replace(part.neuron, surrogate="gaussian", slope=2.0)
    part.transport = Transport(derivative=lambda u: torch.exp(-2 * u.square()))
    arguments = (layer,) if recurrent else ()
    found = []
    for each in (part, twin):
        at = currents().requires_grad_()
        (gradient,) = torch.autograd.grad(each(at, *arguments).square().sum(), at)
        along = forward(lambda z, each=each: each(z, *arguments), currents(), torch.ones_like(at))
        found.append((gradient, along))
    for one, other in zip(*found, strict=True):
        assert one.any() and (one - other).abs().max() < 1e-12


@pytest.mark.parametrize(("simulator", "neuron"), SIMULATED)
def test_two_ways_lead_to_weights_and_to_the_input(simulator: str, neuron: str) -> None:
    """Full credit to the weights, that of a window to the input; the values are those of one."""
    part = population(simulator, neuron)
    cut = copy.deepcopy(part)
    cut.transport = Transport(window=2)
    expected = []
    for each in (part, cut):
        at = currents().requires_grad_()
        expected.append(torch.autograd.grad(each(at).square().sum(), at)[0])
    by_weights, by_input = currents().requires_grad_(), (currents() - 0.3).requires_grad_()
    part.transport = Transport(window=2, traces=True)
    spikes = part(split(by_weights, by_input))
    assert torch.equal(spikes, cut(currents()))
    found = torch.autograd.grad(spikes.square().sum(), (by_weights, by_input))
    assert not torch.equal(*expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("simulator", ["torch", "snntorch"])
def test_a_current_that_lost_its_second_way_is_refused(simulator: str) -> None:
    part = population(simulator, "subtract")
    part.transport = Transport(window=1, traces=True)
    current = split(currents().requires_grad_(), currents().requires_grad_())
    part(current)
    part(2 * currents())  # no credit is asked for
    with pytest.raises(CapabilityError, match="straight from the layers of its own site"):
        part(2 * current)


@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_transport_acts_during_a_pass_alone(substrate: str) -> None:
    network = spiking(substrate)
    engine = attach(network, make("sltt"))
    inputs, targets = batch()
    engine(inputs, targets)
    for block in network.blocks:
        assert isinstance(block["activity"], SteppedPopulation)
        assert block["activity"].transport == Transport()


# The recurrent rate network -----------------------------------------------------------------------


def rate_network(hidden: tuple[int, ...] = (5, 4), kind: str = "current", **more: Any) -> Network:
    recipe = ModelRecipe(
        network=NetworkRecipe(
            recurrent=True, hidden=hidden, activation="tanh", dtype="float64", **more
        ),
        encoding=EncodingRecipe(kind=kind, duration_ms=6.0),  # type: ignore[arg-type]
    )
    return biograd.build(recipe, 6, 3)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["current", "poisson"])
def test_a_recurrent_rate_network_is_its_equation(kind: str) -> None:
    network = rate_network(kind=kind)
    keys = {f"blocks.{i}.{n}" for i in (0, 1) for n in ("synapse.weight", "synapse.bias")}
    keys |= {f"blocks.{i}.recurrent.weight" for i in (0, 1)} | {"readout.weight", "readout.bias"}
    assert set(network.state_dict()) == keys
    inputs, _ = batch()
    state = network.encode(inputs, generator(0, "forward")).expand(-1, 6, -1).numpy()
    hidden = {}
    for index in (0, 1):
        weight, bias, back = (
            network.get_parameter(f"blocks.{index}.{name}").detach().numpy()
            for name in ("synapse.weight", "synapse.bias", "recurrent.weight")
        )
        now, all_steps = np.zeros((8, len(weight))), []
        for step in range(6):
            now = np.tanh(state[:, step] @ weight.T + bias + now @ back.T)
            all_steps.append(now)
        state = np.stack(all_steps, 1)
        hidden[f"blocks.{index}.activity"] = state
    outputs = state[:, -1] @ network.readout.weight.detach().numpy().T
    assert np.abs(network(inputs).detach().numpy() - outputs).max() < 1e-12
    seen = network.activity(inputs)
    means = {name: one.values for name, one in observe(network, (), inputs).items()}
    assert set(seen) == set(means) == set(hidden)
    for name, value in hidden.items():
        assert np.abs(seen[name].numpy() - value).max() < 1e-12
        assert means[name].shape == (8, value.shape[-1])
        assert np.abs(means[name].numpy() - value.mean(1)).max() < 1e-12


@pytest.mark.parametrize(
    "made", [rate_network, spiking, lambda: spiking("snntorch", {"recurrent": True})]
)
def test_a_block_s_activity_is_the_whole_train(made: Callable[[], Network]) -> None:
    network = made()
    trace = traced(network, Plan())
    for index, site in enumerate(network.sites[:-1]):
        found = trace.sites[site.name].activity
        assert site.activity == f"blocks.{index}.activity" and found is not None
        assert found.shape == (8, network.steps, *trace.sites[site.name].shape.units)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_activity_of_a_rate_network_is_what_its_next_layer_sees(dropout: float) -> None:
    recipe = ModelRecipe(network=NetworkRecipe(hidden=(5, 4), dropout=dropout, dtype="float64"))
    network = biograd.build(recipe, 6, 3)
    assert isinstance(network, Network)
    trace = traced(network, Plan())
    names = [site.name for site in network.sites]
    for name, after in itertools.pairwise(names):
        found = trace.sites[name].activity
        assert found is not None
        assert torch.equal(found, trace.sites[after].visits[0].inputs[0])


def traced(network: nn.Module, plan: Plan) -> Trace:
    engine = attach(network, make("backprop"))
    inputs, targets = batch()
    engine.prepare(inputs, targets)
    encoded = engine.substrate.encode(inputs, generator(1))
    objective = Objective(LOSSES["cross_entropy"])
    return engine.substrate.run(plan, encoded, targets, objective, generator(2))


# Traces by hand -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Block:
    """One block of a spiking network and its trial, simulated in numpy step by step."""

    membrane: Any
    weight: Array
    bias: Array
    back: Array | None
    inputs: Array
    """``[B, T, units before]``."""

    def __post_init__(self) -> None:
        m, (rows, steps, _) = self.membrane, self.inputs.shape
        self.spikes = np.zeros((rows, steps, len(self.weight)))
        self.distance = np.zeros_like(self.spikes)
        filtered = potential = np.zeros_like(self.spikes[:, 0])
        for t in range(steps):
            current = self.inputs[:, t] @ self.weight.T + self.bias
            before = self.spikes[:, t - 1] if t else np.zeros_like(filtered)
            if self.back is not None:
                current = current + before @ self.back.T
            filtered = m.alpha * filtered + (1 - m.alpha) * current
            if m.reset == "zero":
                potential = m.beta * potential * (1 - before) + m.gain * filtered
            else:
                potential = m.beta * potential + m.gain * filtered - m.threshold * before
            self.distance[:, t] = potential - m.threshold
            self.spikes[:, t] = self.distance[:, t] > 0

    @property
    def surrogate(self) -> Array:
        """``psi[b, t, j]``, the surrogate derivative of each spike."""
        distance, k = self.distance, self.membrane.slope
        return {
            "fast_sigmoid": (1 + k * np.abs(distance)) ** -2,
            "arctan": 1 / (1 + (k * distance) ** 2),
            "gaussian": np.exp(-((k * distance) ** 2) / 2),
        }[self.membrane.surrogate]

    @property
    def before(self) -> Array:
        """Each unit's own spikes one step earlier."""
        return np.concatenate((np.zeros_like(self.spikes[:, :1]), self.spikes[:, :-1]), 1)

    def eligible(self, signal: Array, inputs: Array) -> Array:
        """Return ``sum_bt L[b,t,j] e[b,t,j,i]`` with ``e = psi eps``.

        The eligibility vector of a synapse is what its input left in the neuron's filter and
        membrane: ``g = alpha g + (1 - alpha) x``, ``eps = beta (1 - s[t-1]) eps + gain g``, the
        bracket with a reset to zero alone.
        """
        m, psi = self.membrane, self.surrogate
        rows, steps, units = psi.shape
        left_in_filter = np.zeros((rows, 1, inputs.shape[-1]))
        vector = np.zeros((rows, units, inputs.shape[-1]))
        total = np.zeros((units, inputs.shape[-1]))
        for t in range(steps):
            left_in_filter = m.alpha * left_in_filter + (1 - m.alpha) * inputs[:, t, None]
            if m.reset == "zero":
                vector = vector * (1 - self.before[:, t, :, None])
            vector = m.beta * vector + m.gain * left_in_filter
            trace = psi[:, t, :, None] * vector
            total += (signal[:, t, :, None] * trace).sum(0)
        return total

    def gradients(self, signal: Array, name: str) -> Gradients:
        """Return the gradients of the block for a learning signal ``L[b, t, j]``."""
        ones = np.ones((*self.inputs.shape[:2], 1))
        found = {
            f"{name}.synapse.weight": self.eligible(signal, self.inputs),
            f"{name}.synapse.bias": self.eligible(signal, ones)[:, 0],
        }
        if self.back is not None:
            found[f"{name}.recurrent.weight"] = self.eligible(signal, self.before)
        return {key: torch.from_numpy(value) for key, value in found.items()}


@dataclasses.dataclass
class ByHand:
    """A spiking network, its trial, its error and the readout's gradient, in numpy."""

    blocks: list[Block]
    error: Array
    """``[B, classes]``, derivative of the mean loss."""
    readout: Array
    weights: Array
    """``c[t]``, the weight of a step in the readout."""
    final: Gradients

    @classmethod
    def of(cls, network: Network, inputs: Tensor, targets: Tensor, encoded: Tensor) -> ByHand:
        state = encoded.expand(-1, network.steps, -1).numpy()
        blocks = []
        for module in network.blocks:
            values = {name: p.detach().numpy() for name, p in module.named_parameters()}
            part = module["activity"]
            block = Block(
                SimpleNamespace(**vars(part.neuron) | vars(part.constants())),
                values["synapse.weight"],
                values["synapse.bias"],
                values.get("recurrent.weight"),
                state,
            )
            blocks.append(block)
            state = block.spikes
        weights = network.filtered.get_buffer("weights").numpy()
        features = np.einsum("t,btu->bu", weights, state)
        readout = network.readout.weight.detach().numpy()
        scores = features @ readout.T + network.readout.bias.detach().numpy()
        scores = np.exp(scores - scores.max(1, keepdims=True))
        error = scores / scores.sum(1, keepdims=True)
        error[np.arange(len(error)), targets.numpy()] -= 1
        error /= len(error)
        final = {"readout.weight": error.T @ features, "readout.bias": error.sum(0)}
        final = {key: torch.from_numpy(value) for key, value in final.items()}
        return cls(blocks, error, readout, weights, final)

    def exact(self) -> Array:
        """Return the derivative of the loss by the last block's spikes, ``[B, T, units]``."""
        return self.weights[None, :, None] * (self.error @ self.readout)[:, None]

    def broadcast(self, matrix: Tensor) -> Array:
        """Return the error sent by ``matrix``, steps as in the readout, the largest 1."""
        shares = self.weights / self.weights.max()
        return shares[None, :, None] * (self.error @ matrix.numpy())[:, None]


def compared(
    network: Network, estimator: Estimator, kind: str
) -> tuple[Gradients, ByHand, tuple[Tensor, Tensor]]:
    """Return the engine's gradients and the same trial by hand."""
    inputs, targets = batch()
    inputs = inputs * (3 if kind == "current" else 1)
    engine = attach(network, estimator)
    engine.prepare(inputs, targets)
    seen: list[Tensor] = []
    encode = engine.substrate.encode

    def keep(inputs: Tensor, stream: torch.Generator) -> Tensor:
        seen.append(encode(inputs, stream))
        return seen[-1]

    engine.substrate.encode = keep  # type: ignore[method-assign]
    found = gradients(engine, inputs, targets)
    engine.detach()
    return found, ByHand.of(network, inputs, targets, seen[-1]), (inputs, targets)


SETTINGS = pytest.mark.parametrize(
    ("neuron", "recurrent", "kind"),
    [(n, r, k) for n in NEURONS for r in (False, True) for k in ("current", "poisson")],
)


def made(neuron: str, recurrent: bool, kind: str, hidden: tuple[int, ...] = (5, 4)) -> Network:
    return spiking(
        "torch", {"recurrent": recurrent, "hidden": hidden}, NEURONS[neuron], {"kind": kind}
    )


@SETTINGS
@pytest.mark.parametrize("feedback", ["symmetric", "random"])
def test_eprop_is_the_eligibility_traces(
    feedback: Any, neuron: str, recurrent: bool, kind: str
) -> None:
    """Two blocks; the first receives the error through a random matrix in any case."""
    estimator = EligibilityPropagation(feedback)
    found, hand, _ = compared(made(neuron, recurrent, kind), estimator, kind)
    first, last = hand.blocks
    assert 0.02 < first.spikes.mean() < 0.9 and 0.02 < last.spikes.mean() < 0.9
    matrices = estimator.matrices
    signal = (
        hand.exact() if feedback == "symmetric" else hand.broadcast(matrices["blocks.1.synapse"])
    )
    expected = first.gradients(hand.broadcast(matrices["blocks.0.synapse"]), "blocks.0")
    expected |= last.gradients(signal, "blocks.1") | hand.final
    check_equal(found, expected, 1e-10)
    assert all(value.any() for name, value in expected.items() if "weight" in name)


@pytest.mark.parametrize("missing", ["filter", "recurrent input"])
def test_traces_without_one_of_their_parts_are_noticed(missing: str) -> None:
    found, hand, _ = compared(
        made("filter", True, "poisson", (5,)), EligibilityPropagation(), "poisson"
    )
    (block,) = hand.blocks
    if missing == "filter":
        block.membrane.alpha = 0.0
    else:
        block.spikes = np.zeros_like(block.spikes)
    with pytest.raises(AssertionError, match="weight"):
        check_equal(found, block.gradients(hand.exact(), "blocks.0") | hand.final, 1e-3)


@pytest.mark.parametrize("kind", ["current", "poisson"])
@pytest.mark.parametrize(("simulator", "neuron"), SIMULATED)
def test_eprop_of_one_block_without_recurrence_is_backpropagation(
    simulator: str, neuron: str, kind: str
) -> None:
    inputs, targets = batch()
    inputs = inputs * (3 if kind == "current" else 1)
    for recurrent in (False, True):
        shape = {"hidden": (7,), "recurrent": recurrent}
        found, expected = (
            gradients(
                attach(spiking(simulator, shape, NEURONS[neuron], {"kind": kind}), make(name)),
                inputs,
                targets,
            )
            for name in ("eprop", "backprop")
        )
        if not recurrent:
            check_equal(found, expected, 1e-12)
            continue
        with pytest.raises(AssertionError):
            check_equal(found, expected, 1e-3)


def test_eprop_of_a_recurrent_rate_network_is_the_credit_of_its_last_step() -> None:
    """No membrane, so nothing is left of earlier steps but what passes between units."""
    network = rate_network((5,))
    inputs, targets = batch()
    found = gradients(attach(network, make("eprop")), inputs, targets)
    hidden = network.activity(inputs)["blocks.0.activity"]
    encoded = network.encode(inputs, generator(0)).expand(-1, 6, -1)
    error = (network(inputs).softmax(1) - nn.functional.one_hot(targets, 3)) / 8
    delta = ((1 - hidden[:, -1] ** 2) * (error @ network.readout.weight)).detach()
    expected = {
        "blocks.0.synapse.weight": delta.T @ encoded[:, -1],
        "blocks.0.synapse.bias": delta.sum(0),
        "blocks.0.recurrent.weight": delta.T @ hidden[:, -2],
        "readout.weight": error.detach().T @ hidden[:, -1],
        "readout.bias": error.detach().sum(0),
    }
    check_equal(found, expected, 1e-12)


def test_eprop_of_a_static_network_is_broadcast_below_its_last_block() -> None:
    network, (inputs, targets) = build("mlp"), batch()
    estimator = EligibilityPropagation()
    found = gradients(attach(network, estimator), inputs, targets)
    plain = gradients(attach(build("mlp"), make("backprop")), inputs, targets)
    for key in ("2.weight", "2.bias", "4.weight", "4.bias"):
        assert (found[key] - plain[key]).abs().max() < 1e-12
    hidden = torch.tanh(network[0](inputs))
    error = (network(inputs).softmax(1) - nn.functional.one_hot(targets, 3)) / 8
    delta = (error @ estimator.matrices["0"]) * (1 - hidden**2)
    assert (found["0.weight"] - delta.T @ inputs).abs().max() < 1e-12 < delta.abs().max()


@pytest.mark.parametrize("kind", ["membrane", "rate", "filtered_rate"])
def test_the_share_of_a_step_is_its_weight_in_the_readout(kind: str) -> None:
    recipe = {"kind": "spiking", "hidden": (6,)}
    network = biograd.build(
        ModelRecipe(
            network=NetworkRecipe(**recipe, readout=kind),  # type: ignore[arg-type]
            neuron=Leaky(resistance=3.0),
            encoding=EncodingRecipe(duration_ms=12.0),
        ),
        inputs=4,
        classes=3,
    ).double()
    engine = attach(network, EligibilityPropagation(feedback="random"))
    inputs, targets = batch()
    engine.prepare(inputs[:, :4].abs(), targets)
    encoded = engine.substrate.encode(inputs[:, :4].abs(), generator(0))
    name = engine.hidden[-1]
    plan = Plan(boundaries=frozenset((name,)), slots=True)
    trace = engine.substrate.run(plan, encoded, targets, engine.objective)
    left = torch.arange(12, 0, -1, dtype=torch.float64)
    decay = math.exp(-1 / 20)
    expected = {"rate": left**0, "filtered_rate": decay ** (left - 1), "membrane": 1 - decay**left}
    found = trace.shares(name)
    assert found is not None
    torch.testing.assert_close(found, (expected[kind] / expected[kind].max()).expand(8, -1))


def test_blocks_of_eprop_can_be_named() -> None:
    """One block of two recurrent layers: exact but for what passes through recurrent weights."""
    inputs, targets = batch()
    network = made("subtract", True, "poisson")
    estimator = make("eprop", {"sites": ("blocks.1.synapse",)})
    found = gradients(attach(network, estimator), inputs, targets)
    twin = made("subtract", True, "poisson")
    for block in twin.blocks:  # the same values, behind which no credit flows
        block["recurrent"].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    check_equal(found, gradients(attach(twin, make("backprop")), inputs, targets), 1e-12)


def instantaneous(hand: ByHand) -> list[Array]:
    """Return every block's ``dL/ds[t]``, passed down the blocks within each step."""
    signals = [hand.exact()]
    for block in reversed(hand.blocks[1:]):
        scale = block.membrane.gain * (1 - block.membrane.alpha)
        signals.append((signals[-1] * block.surrogate * scale) @ block.weight)
    return signals[::-1]


@SETTINGS
def test_ottt_is_presynaptic_traces_and_instantaneous_credit(
    neuron: str, recurrent: bool, kind: str
) -> None:
    network = made(neuron, recurrent, kind, (6, 5, 4))
    found, hand, _ = compared(network, make("ottt"), kind)
    expected = hand.final
    for index, (block, signal) in enumerate(zip(hand.blocks, instantaneous(hand), strict=True)):
        expected = expected | block.gradients(signal, f"blocks.{index}")
        delta = signal * block.surrogate * block.membrane.gain * (1 - block.membrane.alpha)
        bias = torch.from_numpy(delta.sum((0, 1)))  # no trace, as in the authors' code
        name = f"blocks.{index}.synapse.bias"
        traced, expected[name] = expected[name], bias
        assert (traced - bias).norm() > 0.01 * bias.norm()
    check_equal(found, expected, 1e-10)


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_trace_of_ottt_belongs_to_the_presynaptic_neuron(recurrent: bool) -> None:
    """Reset by subtraction: ``grad W = sum_t delta[t] a[t]^T``, ``a[t] = beta a[t-1] + x[t]``."""
    found, hand, _ = compared(made("subtract", recurrent, "poisson"), make("ottt"), "poisson")
    for index, (block, signal) in enumerate(zip(hand.blocks, instantaneous(hand), strict=True)):
        trace, total = np.zeros_like(block.inputs[:, 0]), np.zeros_like(block.weight)
        delta = signal * block.surrogate * block.membrane.gain
        for t in range(STEPS):
            trace = block.membrane.beta * trace + block.inputs[:, t]
            total += delta[:, t].T @ trace
        error = np.abs(found[f"blocks.{index}.synapse.weight"].numpy() - total).max()
        assert error < 1e-12 < np.abs(total).max()


@SETTINGS
def test_sltt_forgets_the_past(neuron: str, recurrent: bool, kind: str) -> None:
    """``grad W = sum_t delta[t] x[t]^T``."""
    found, hand, (inputs, targets) = compared(made(neuron, recurrent, kind), make("sltt"), kind)
    expected = dict(hand.final)
    for index, (block, signal) in enumerate(zip(hand.blocks, instantaneous(hand), strict=True)):
        delta = signal * block.surrogate * block.membrane.gain * (1 - block.membrane.alpha)
        seen = {"synapse.weight": block.inputs} | (
            {"recurrent.weight": block.before} if recurrent else {}
        )
        for name, before in seen.items():
            total = np.einsum("btj,bti->ji", delta, before)
            expected[f"blocks.{index}.{name}"] = torch.from_numpy(total)
        expected[f"blocks.{index}.synapse.bias"] = torch.from_numpy(delta.sum((0, 1)))
    check_equal(found, expected, 1e-10)
    engine = attach(made(neuron, recurrent, kind), make("backprop", {"window": 1}))
    check_equal(gradients(engine, inputs, targets), found, 0.0)


@pytest.mark.parametrize("network", ["spiking", "rate"])
@pytest.mark.parametrize("name", ["backprop", "ottt"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_window_of_the_whole_trial_cuts_nothing(network: str, name: str, recurrent: bool) -> None:
    inputs, targets = batch()

    def fresh() -> Network:
        return rate_network() if network == "rate" else made("filter zero", recurrent, "poisson")

    expected = gradients(attach(fresh(), make("backprop")), inputs, targets)
    for window, same in ((STEPS, True), (2, False)):
        found = gradients(attach(fresh(), make(name, {"window": window})), inputs, targets)
        if same:
            check_equal(found, expected, 1e-12)
        else:
            with pytest.raises(AssertionError):
                check_equal(found, expected, 1e-3)


@pytest.mark.parametrize("name", ["eprop", "ottt", "sltt"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("neuron", ["subtract", "zero", "filter"])
def test_snntorch_gives_the_same_credit(neuron: str, recurrent: bool, name: str) -> None:
    inputs, targets = batch()
    shape = {"recurrent": recurrent}
    found, expected = (
        gradients(
            attach(spiking(simulator, shape, NEURONS[neuron]), make(name)), 3 * inputs, targets
        )
        for simulator in ("snntorch", "torch")
    )
    check_equal(found, expected, 1e-10)


@pytest.mark.parametrize("name", ["ottt", "sltt", "unitwise", "eprop"])
def test_without_time_and_spikes_there_is_nothing_to_cut(name: str) -> None:
    inputs, targets = batch()
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    twin = copy.deepcopy(network)
    found = gradients(attach(network, make(name)), inputs, targets)
    check_equal(found, gradients(attach(twin, make("backprop")), inputs, targets), 1e-12)


def test_windows_of_a_loop_of_ones_own_cannot_be_cut() -> None:
    engine = attach(build("recurrent_cell"), make("backprop", {"window": 2}))
    with pytest.raises(CapabilityError, match="no neurons of biograd's run over time"):
        engine(*batch())


@pytest.mark.parametrize("name", ["eprop", "ottt", "sltt", "unitwise"])
def test_a_population_without_derivative(name: str) -> None:
    with pytest.raises(CapabilityError, match="vjp"):
        attach(opaque(), make(name))


# Unit-wise slopes ---------------------------------------------------------------------------------


def gaussian(distance: Tensor, sigma: float) -> Tensor:
    return torch.exp(-0.5 * (distance / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


def check_slopes(
    slopes: Callable[[Tensor, torch.Generator], Tensor], sigma: float, trials: int = 4000
) -> None:
    """The mean is the Gaussian within 4 standard errors, and its slope on it 1 within 0.05."""
    distance = torch.linspace(-3 * sigma, 3 * sigma, 25, dtype=torch.float64)
    stream = generator(0, "slopes")
    samples = slopes(distance.expand(trials, -1), stream)
    mean, error = samples.mean(0), samples.std(0) / math.sqrt(trials)
    truth = gaussian(distance, sigma)
    assert ((mean - truth).abs() <= 4 * error + 1e-12).all(), "beyond 4 standard errors"
    assert abs(float(mean @ truth / (truth @ truth)) - 1) < 0.05, "slope"


@pytest.mark.parametrize("sigma", [0.1, 0.4])
@pytest.mark.parametrize("draws", [2, 5, 16])
def test_measured_slopes_are_a_gaussian_surrogate(draws: int, sigma: float) -> None:
    check_slopes(lambda u, stream: measured_slope(u, sigma, draws, stream), sigma)


def test_slopes_of_another_width_are_noticed() -> None:
    with pytest.raises(AssertionError):
        check_slopes(lambda u, stream: measured_slope(u, 0.11, 16, stream), 0.1)
    with pytest.raises(AssertionError):
        check_slopes(lambda u, stream: 1.1 * measured_slope(u, 0.1, 16, stream), 0.1)


class GaussianSurrogate(Estimator):
    """Back-propagation with the surrogate that unit-wise slopes are a measurement of."""

    needs = frozenset(("loss", "vjp"))

    def plans(self, round: Round) -> Sequence[Plan]:
        return (Plan(transport=Transport(derivative=lambda u: gaussian(u, 1.0))),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ()


@pytest.mark.parametrize("simulator", ["torch", "snntorch"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_unitwise_gradients_are_unbiased(simulator: str, recurrent: bool) -> None:
    """Slopes are drawn apart for every unit and step, so that their products are unbiased, too."""
    inputs, targets = batch()
    inputs = 3 * inputs

    def fresh() -> Network:
        return spiking(simulator, {"recurrent": recurrent}, {}, {"duration_ms": 8.0})

    truth = gradients(attach(fresh(), GaussianSurrogate()), inputs, targets)
    flat = torch.cat([value.flatten() for value in truth.values()])
    engine = attach(fresh(), UnitwiseGradient(draws=8, sigma=1.0))
    samples = torch.stack(
        [
            torch.cat([value.flatten() for value in gradients(engine, inputs, targets).values()])
            for _ in range(150)
        ]
    )
    mean, error = samples.mean(0), samples.std(0) / math.sqrt(150)
    rare = 1e-3 * flat.abs().max()  # of a threshold many sigma away that no draw has reached
    assert ((mean - flat).abs() <= 4 * error + rare).all()
    assert abs(float(mean @ flat / (flat @ flat)) - 1) < 0.05
    assert samples.std(0).max() > 0


def test_unitwise_noise_comes_from_the_engine_s_own_stream() -> None:
    inputs, targets = batch()
    engines = [attach(spiking(), make("unitwise"), seed=seed) for seed in (0, 0, 1)]
    before = torch.random.get_rng_state()
    found = [gradients(engine, inputs, targets) for engine in engines]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, again, other = (value["blocks.0.synapse.weight"] for value in found)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_slopes_are_measured_once_for_every_derivative_of_a_pass() -> None:
    """A gradient that is taken twice from one pass is the same; the clean spikes see no noise."""
    neuron, stream = leaky("subtract"), generator(0)
    at = currents().requires_grad_()
    train = scan(neuron, at, STEPS, derivative=lambda u: measured_slope(u, 0.3, 4, stream))
    first, again = (torch.autograd.grad(train.sum(), at, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again) and first.any()
    assert torch.equal(train, scan(neuron, currents(), STEPS))
