"""Feedback rules: identities with back-propagation, the unified view, what the feedback learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from networks_for_tests import (
    PLAIN,
    RANDOM,
    Gradients,
    autograd,
    batch,
    build,
    check_equal,
    drawn,
    gradients,
    opaque,
    spiking,
)
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd import data, experiment
from biograd.commands.manual import estimators
from biograd.contracts import Plan, Round, Trace
from biograd.data import Arrays
from biograd.diagnosis import probe
from biograd.engine import Engine, attach
from biograd.engine.engine import _tell
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import (
    ESTIMATORS,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    Kickback,
    KolenPollack,
    SignSymmetry,
    TargetProjection,
    WeightMirror,
    make,
)
from biograd.estimators.broadcast import Broadcast
from biograd.estimators.feedback import Feedback
from biograd.estimators.weight_mirror import mirrored
from biograd.local import LocalLosses
from biograd.randomness import generator
from biograd.recipes import TrainingRecipe
from biograd.training import Trainer, evaluate

FEEDBACK = [name for name, kind in ESTIMATORS.items() if issubclass(kind, Feedback)]
BROADCAST = [name for name, kind in ESTIMATORS.items() if issubclass(kind, Broadcast)]
TIGHT = 1e-12


def prepared(network: nn.Module, estimator: Estimator, **options: Any) -> Engine:
    engine = attach(network, estimator, **options)
    engine.prepare(*batch())
    return engine


def weight_of(engine: Engine, layer: str) -> Tensor:
    return engine.network.get_parameter(f"{layer}.weight").detach()


@torch.no_grad()
def symmetric(engine: Engine, factor: float = 1.0) -> Engine:
    """Make every feedback weight the layer's own."""
    estimator = engine.estimator
    assert isinstance(estimator, FeedbackAlignment) and estimator.keepers
    for name in set(estimator.keepers.values()):
        estimator.weights[name].copy_(factor * weight_of(engine, name))
    return engine


def plan_of(engine: Engine) -> Plan:
    inputs, targets = batch()
    return next(iter(engine.estimator.plans(engine._round(inputs, targets, None, generator(0)))))


def feedback_of(engine: Engine) -> dict[str, Tensor]:
    """Return the feedback weight of each layer as the next plan would have it."""
    feedback = plan_of(engine).transport.feedback
    return {name: weight.detach().clone() for name, weight in feedback.items()}


def angle(one: Tensor, other: Tensor) -> float:
    cosine = functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    return math.degrees(math.acos(float(cosine.clamp(-1, 1))))


# With the layer's own weight, feedback alignment is back-propagation ----------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_symmetric_feedback_is_backpropagation(name: str) -> None:
    inputs, targets = batch()
    engine = symmetric(prepared(build(name), FeedbackAlignment()))
    check_equal(gradients(engine, inputs, targets), autograd(build(name), inputs, targets), TIGHT)


@pytest.mark.parametrize("name", RANDOM)
def test_symmetric_feedback_with_normalisation_and_dropout(name: str) -> None:
    inputs, targets = batch()
    engine = symmetric(prepared(build(name), FeedbackAlignment()))
    reference = prepared(build(name), make("backprop"))
    expected = gradients(reference, inputs, targets)
    check_equal(gradients(engine, inputs, targets), expected, TIGHT)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_symmetric_feedback_through_spikes_and_time(substrate: str, recurrent: bool) -> None:
    def engine(estimator: Estimator) -> Engine:
        return prepared(spiking(substrate, {"recurrent": recurrent}), estimator)

    inputs, targets = batch()
    expected = gradients(engine(make("backprop")), 3 * inputs, targets)
    assert all(value.any() for name, value in expected.items() if "weight" in name)
    found = gradients(symmetric(engine(FeedbackAlignment())), 3 * inputs, targets)
    check_equal(found, expected, TIGHT)
    found = gradients(engine(FeedbackAlignment()), 3 * inputs, targets)
    with pytest.raises(AssertionError):
        check_equal(found, expected, 1e-6)


def test_symmetric_feedback_through_exact_spike_times() -> None:
    def engine(estimator: Estimator) -> Engine:
        neuron = {"kind": "event_driven", "synaptic_time_constant_ms": 4.0, "resistance": 20.0}
        network = spiking("torch", neuron=neuron, encoding={"kind": "latency"})
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 if parameter.dim() > 1 else 0.02)  # it shall spike
        return prepared(network, estimator)

    expected = gradients(engine(make("backprop")), *batch())
    assert all(value.any() for value in expected.values())
    check_equal(gradients(symmetric(engine(FeedbackAlignment())), *batch()), expected, TIGHT)
    with pytest.raises(AssertionError):
        check_equal(gradients(engine(FeedbackAlignment()), *batch()), expected, 1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_other_feedback_is_not_backpropagation(name: str) -> None:
    """The negative control of the identities: a factor, and the rule's own random draw."""
    inputs, targets = batch()
    expected = autograd(build(name), inputs, targets)
    for engine in (
        symmetric(prepared(build(name), FeedbackAlignment()), 1.001),
        prepared(build(name), FeedbackAlignment()),
    ):
        with pytest.raises(AssertionError):
            check_equal(gradients(engine, inputs, targets), expected, 1e-6)


def test_every_layer_but_the_first_has_feedback() -> None:
    def layers(network: nn.Module) -> set[str]:
        estimator = FeedbackAlignment()
        prepared(network, estimator)
        return set(estimator.keepers)

    assert layers(build("mlp")) == {"2", "4"}
    assert layers(build("residual")) == {"inner", "readout"}
    assert layers(spiking("torch", {"recurrent": True})) == {
        "blocks.0.recurrent",
        "blocks.1.synapse",
        "blocks.1.recurrent",
        "readout",
    }


def test_layers_that_share_a_weight_share_the_feedback() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    estimator = KolenPollack()
    prepared(drawn(nn.Sequential(nn.Linear(6, 6), first, second, nn.Linear(6, 3))), estimator)
    assert estimator.keepers == {"1": "1", "2": "1", "3": "3"}
    assert set(estimator.weights) == {"1", "3"}


# Against the equations by hand ------------------------------------------------------------------


def by_hand(network: nn.Module, feedback: dict[str, Tensor]) -> Gradients:
    """Return the gradients of ``mlp`` from ``delta_l = phi'(z_l) * delta_{l+1} B_{l+1}``."""
    inputs, targets = batch()
    w = dict(network.named_parameters())
    with torch.no_grad():
        first = torch.tanh(inputs @ w["0.weight"].T + w["0.bias"])
        current = first @ w["2.weight"].T + w["2.bias"]
        second = current.clamp_min(0)
        outputs = second @ w["4.weight"].T + w["4.bias"]
        error = (outputs.softmax(1) - functional.one_hot(targets, 3)) / len(inputs)
        upper = (error @ feedback["4"]) * (current > 0)
        lower = (upper @ feedback["2"]) * (1 - first.square())
    return {
        "0.weight": lower.T @ inputs,
        "0.bias": lower.sum(0),
        "2.weight": upper.T @ first,
        "2.bias": upper.sum(0),
        "4.weight": error.T @ second,
        "4.bias": error.sum(0),
    }


@pytest.mark.parametrize("name", FEEDBACK)
def test_feedback_equals_the_equation(name: str) -> None:
    settings = {"decay": 0.0} if name == "kolen_pollack" else {}
    if name == "sign_symmetry":
        settings = {"magnitudes": "fixed"}
    engine = prepared(build("mlp"), make(name, settings))
    feedback = feedback_of(engine)
    assert set(feedback) == {"2", "4"} and not feedback["4"].equal(weight_of(engine, "4"))
    check_equal(gradients(engine, *batch()), by_hand(engine.network, feedback), TIGHT)


@pytest.mark.parametrize("name", ["mlp", "grouped_convolution", "recurrent_cell", "tied"])
def test_a_feedback_parameter_receives_the_gradient_of_the_weight(name: str) -> None:
    estimator = KolenPollack(decay=0.0)
    found = gradients(prepared(build(name), estimator), *batch())
    for layer in set(estimator.keepers.values()):
        gradient = estimator.weights[layer].grad
        expected = found.get(f"{layer}.weight")
        assert gradient is not None and gradient.any()
        assert expected is not None and (gradient - expected).abs().max() < TIGHT


@pytest.mark.parametrize("kind", [FeedbackAlignment, KolenPollack])
def test_decorrelating_matrices_stay_in_the_feedback(kind: type[Feedback]) -> None:
    """``B R`` in place of ``W R``: as in the folded network with folded feedback."""
    decorrelate, stream = biograd.Decorrelation(), generator(0, "matrices")
    estimator = make("kolen_pollack", {"decay": 0.0}) if kind is KolenPollack else kind()
    engine = prepared(build("mlp"), estimator, decorrelate=decorrelate)
    feedback, matrices, folded = feedback_of(engine), {}, build("mlp")
    with torch.no_grad():
        for name, matrix in decorrelate.matrices.items():
            matrix += 0.3 * torch.randn(matrix.shape, generator=stream, dtype=torch.float64)
            matrices[name] = matrix[0].clone()
            weight = folded.get_parameter(f"{name}.weight")
            weight.copy_(weight @ matrices[name])
    expected = by_hand(folded, {name: b @ matrices[name] for name, b in feedback.items()})
    for name, matrix in matrices.items():  # dL/dW = dL/d(W R) R^T
        expected[f"{name}.weight"] = expected[f"{name}.weight"] @ matrix.T
    check_equal(gradients(engine, *batch()), expected, TIGHT)
    if isinstance(estimator, KolenPollack):
        for name in feedback:
            gradient = estimator.weights[name].grad
            assert gradient is not None
            assert (gradient - expected[f"{name}.weight"]).abs().max() < TIGHT


# The unified view: every rule as a module of synthetic gradients --------------------------------


def tower() -> nn.Module:
    return drawn(
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    )


def lopsided(outputs: Tensor, targets: Tensor) -> Tensor:
    """A cross-entropy with a penalty, whose errors do not sum to zero over the outputs."""
    return functional.cross_entropy(outputs, targets, reduction="none") + outputs[:, 0] ** 2


def conspiring(matrices: dict[str, Tensor], target: str) -> Gradients:
    """Return the gradients of the systems around a module ``SG(h) = h A`` behind each block.

    A module's loss is ``-<SG(h), t>`` with a constant ``t``: minus the derivative of the loss by
    the block's own "activity", by the "outputs", or by the "next" block's current as it was
    delivered there.
    """
    inputs, targets = batch()
    network = tower()
    layers = dict(network.named_children())
    first = torch.tanh(layers["0"](inputs))
    activities = {"0": first, "2": torch.tanh(layers["2"](first))}
    loss = lopsided(layers["4"](activities["2"]), targets).mean()
    whole = dict(zip(activities, derivatives(loss, activities.values()), strict=True))
    # from here on the two systems of each block are apart
    outputs = layers["4"](activities["2"].detach())
    loss = lopsided(outputs, targets).mean()
    (error,) = (following,) = derivatives(loss, [outputs])
    keep(loss, layers["4"])
    for name, below in (("2", first.detach()), ("0", inputs)):
        current = layers[name](below)
        arriving = {"activity": whole[name], "outputs": error, "next": following}[target]
        synthetic = torch.tanh(current) @ matrices[name]
        loss = -(synthetic * -arriving.detach()).sum()
        (following,) = derivatives(loss, [current])
        keep(loss, layers[name])
    return {name: part.grad for name, part in network.named_parameters() if part.grad is not None}


def derivatives(loss: Tensor, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(tensors), retain_graph=True)


def keep(loss: Tensor, layer: nn.Module) -> None:
    parameters = list(layer.parameters())
    for parameter, gradient in zip(parameters, derivatives(loss, parameters), strict=True):
        parameter.grad = gradient


UNIFIED: dict[str, tuple[Callable[[], Estimator], str]] = {
    "backprop": (lambda: make("backprop"), "activity"),
    "FA": (FeedbackAlignment, "next"),
    "DFA": (DirectFeedback, "outputs"),
    "DFA, shared": (lambda: DirectFeedback(shared=True), "outputs"),
    "kickback": (lambda: Kickback("sum", influence=False), "outputs"),
    "kickback, turns": (lambda: Kickback(influence=False), "outputs"),
}


def modules_of(name: str, estimator: Estimator) -> dict[str, Tensor]:
    """Return the matrix ``A`` of each block's module."""
    if name == "backprop":
        return {"0": torch.eye(5).double(), "2": torch.eye(4).double()}
    if name == "kickback":
        return {"0": torch.ones(5, 3).double(), "2": torch.ones(4, 3).double()}
    if isinstance(estimator, FeedbackAlignment):
        return {"0": estimator.weights["2"].T, "2": estimator.weights["4"].T}
    assert isinstance(estimator, Broadcast)
    return {site: estimator.matrix(site).T for site in ("0", "2")}


@pytest.mark.parametrize("name", UNIFIED)
def test_every_rule_is_a_module_of_synthetic_gradients(name: str) -> None:
    new, target = UNIFIED[name]
    engine = prepared(tower(), new(), loss=lopsided)
    found = gradients(engine, *batch())
    modules = modules_of(name, engine.estimator)
    check_equal(found, conspiring(modules, target), TIGHT)
    with pytest.raises(AssertionError):  # the negative control: another module
        check_equal(found, conspiring({k: 1.01 * a for k, a in modules.items()}, target), 1e-6)


def test_kickback_with_one_output_is_the_same_in_both_forms() -> None:
    def regression() -> nn.Module:
        return drawn(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)))

    inputs, targets = batch()[0], batch(seed=1)[0][:, :1]
    found = [
        gradients(attach(regression(), Kickback(form), loss="squared_error"), inputs, targets)
        for form in ("sum", "turns")
    ]
    check_equal(found[0], found[1], TIGHT)


def balduzzi(network: nn.Sequential, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return ``e tau`` for two ReLU layers and one output, unit by unit, as published."""
    first, second, readout = (network[place] for place in (0, 2, 4))
    with torch.no_grad():
        one = first(inputs).clamp(min=0)
        two = second(one).clamp(min=0)
        error = (readout(two) - targets) / len(inputs)
        tau_two = readout.weight.expand(len(inputs), -1)
        tau_one = torch.stack(
            [
                sum(second.weight[k] * float(row[k] > 0) for k in range(len(row)))  # type: ignore[misc]
                for row in two
            ]
        )
        delta_one, delta_two = error * tau_one * (one > 0), error * tau_two * (two > 0)
        return {"0.weight": delta_one.T @ inputs, "2.weight": delta_two.T @ one}


@pytest.mark.parametrize("outputs", ["sum", "turns"])
def test_kickback_is_error_times_influence(outputs: Any) -> None:
    network = drawn(
        nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 1))
    )
    inputs, targets = batch()[0], batch(seed=1)[0][:, :1]
    found = gradients(attach(network, Kickback(outputs), loss="squared_error"), inputs, targets)
    expected = balduzzi(network, inputs, targets)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=TIGHT, atol=TIGHT), name
    plain = Kickback(outputs, influence=False)
    other = gradients(attach(network, plain, loss="squared_error"), inputs, targets)["0.weight"]
    assert torch.cosine_similarity(other.flatten(), expected["0.weight"].flatten(), 0) < 0.9


def test_influence_passes_a_convolution_with_pooling() -> None:
    """A unit's influence is the sum of the kernel over the places above that are active."""
    network = drawn(
        nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)),
        )
    )
    inputs, targets = torch.randn(4, 1, 4, 4).double(), torch.randn(4, 1).double()
    found = gradients(attach(network, Kickback(), loss="squared_error"), inputs, targets)
    with torch.no_grad():
        error = (network(inputs) - targets) / 4
        above = network[3](network[:3](inputs))  # one place for each of three channels
        tau = torch.einsum("bk,kchw->bchw", (above > 0)[:, :, 0, 0].double(), network[3].weight)
    activity = network[:3](inputs)
    cotangent = error.view(4, 1, 1, 1) * tau
    (expected,) = torch.autograd.grad(activity, network[0].weight, cotangent)
    assert torch.allclose(found["0.weight"], expected, rtol=1e-10)
    assert expected.any()


# Broadcast: convolutions, time, targets, parts of one matrix ------------------------------------


def error_of(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return (network(inputs).softmax(1) - functional.one_hot(targets, 3)) / len(inputs)


def test_direct_feedback_in_convolutions() -> None:
    inputs, targets = batch()
    engine = prepared(build("grouped_convolution"), DirectFeedback())
    found = gradients(engine, inputs, targets)
    network = build("grouped_convolution")
    assert isinstance(network, nn.Sequential) and isinstance(engine.estimator, DirectFeedback)
    error, below = error_of(network, inputs, targets), network[0](inputs)
    for name in ("1", "3"):
        activity = torch.tanh(network[int(name)](below))
        matrix = engine.estimator.matrix(name)
        received = (error @ matrix.flatten(1)).view_as(activity)
        (gradient,) = torch.autograd.grad(activity, network[int(name)].weight, received)
        assert gradient.any() and (found[f"{name}.weight"] - gradient).abs().max() < TIGHT
        below = activity.detach()


class Detached(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer

    def forward(self, inputs: Tensor) -> Tensor:
        answer: Tensor = self.__dict__["layer"](inputs.detach())
        return answer


@pytest.mark.parametrize("through_time", [False, True])
@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
def test_the_signal_reaches_every_step(substrate: str, through_time: bool) -> None:
    """The credit of a block is that of ``<sum over the trial of its spikes, e B>``."""
    inputs, targets = batch()
    inputs = 3 * inputs
    network = spiking(substrate, {"recurrent": True})
    engine = prepared(network, DirectFeedback(through_time=through_time))
    assert isinstance(engine.estimator, DirectFeedback)
    found = gradients(engine, inputs, targets)
    error = error_of(network, inputs, targets)
    below = network.encode(inputs, generator(0))
    for number in range(2):
        block = network.get_submodule(f"blocks.{number}")
        assert isinstance(block, nn.ModuleDict)
        recurrent = block["recurrent"] if through_time else Detached(block["recurrent"])
        spikes = block["activity"](block["synapse"](below), recurrent)
        matrix = engine.estimator.matrix(f"blocks.{number}.synapse")
        assert matrix.shape == (3, *spikes.shape[2:])
        parameters = dict(block.named_parameters(prefix=f"blocks.{number}"))
        credit = (spikes.sum(1) * (error @ matrix)).sum()
        expected = dict(zip(parameters, derivatives(credit, parameters.values()), strict=True))
        check_equal({name: found[name] for name in expected}, expected, TIGHT)
        below = spikes.detach()


def test_the_shared_matrix_serves_every_block_with_its_leading_part() -> None:
    engine = prepared(build("mlp"), DirectFeedback(shared=True))
    assert isinstance(engine.estimator, DirectFeedback)
    assert list(engine.estimator.state_dict()) == ["matrices.shared"]
    wide, narrow = engine.estimator.matrix("0"), engine.estimator.matrix("2")
    assert wide.shape == (3, 5) and narrow.shape == (3, 4)
    assert torch.allclose(wide[:, :4] * math.sqrt(5), narrow * math.sqrt(4), rtol=1e-14)


def test_target_projection_takes_the_target_for_the_error() -> None:
    inputs, targets = batch()
    engine = prepared(build("mlp"), TargetProjection())
    assert isinstance(engine.estimator, TargetProjection)
    found = gradients(engine, inputs, targets)
    network, below = build("mlp"), inputs
    for name, activation in (("0", torch.tanh), ("2", torch.relu)):
        layer = network.get_submodule(name)
        activity = activation(layer(below))
        received = -functional.one_hot(targets, 3).double() @ engine.estimator.matrix(name)
        weight = layer.get_parameter("weight")
        (gradient,) = torch.autograd.grad(activity, weight, received / len(inputs))
        assert gradient.any() and (found[f"{name}.weight"] - gradient).abs().max() < TIGHT
        below = activity.detach()
    exact = autograd(network, inputs, targets)
    assert (found["4.weight"] - exact["4.weight"]).abs().max() < TIGHT


def test_target_projection_of_vectors() -> None:
    inputs, targets = batch()
    vectors = functional.one_hot(targets, 3).double()
    found = [
        gradients(attach(build("mlp"), TargetProjection(), loss="squared_error"), inputs, wanted)
        for wanted in (targets, vectors)
    ]
    check_equal(found[0], found[1], TIGHT)


@pytest.mark.parametrize("name", BROADCAST)
def test_credit_stops_behind_every_block(name: str) -> None:
    assert plan_of(prepared(build("mlp"), make(name))).boundaries == {"0", "2"}


def test_target_projection_does_not_look_above() -> None:
    """What lies above a block leaves its gradient as it is, to the bit."""
    changed = build("mlp")
    with torch.no_grad():
        changed.get_parameter("2.weight").mul_(-3)
        changed.get_parameter("4.weight").mul_(-3)
    one, two = (
        gradients(prepared(network, TargetProjection()), *batch())
        for network in (build("mlp"), changed)
    )
    assert one["0.weight"].equal(two["0.weight"]) and not one["2.weight"].equal(two["2.weight"])


def test_a_block_of_several_sites_is_differentiated_as_a_whole() -> None:
    inputs, targets = batch()
    engine = prepared(build("residual"), DirectFeedback(sites=("inner",)))
    assert isinstance(engine.estimator, DirectFeedback)
    found = gradients(engine, inputs, targets)
    network = build("residual")
    first, inner = network.get_submodule("first"), network.get_submodule("inner")
    current = first(inputs)
    activity = torch.tanh(current + inner(torch.tanh(current)))
    received = error_of(network, inputs, targets) @ engine.estimator.matrix("inner")
    parameters = {f"first.{n}": p for n, p in first.named_parameters()}
    parameters |= {f"inner.{n}": p for n, p in inner.named_parameters()}
    credit = derivatives((activity * received).sum(), parameters.values())
    expected = dict(zip(parameters, credit, strict=True))
    check_equal({name: found[name] for name in expected}, expected, TIGHT)


# Local losses -----------------------------------------------------------------------------------


def test_symmetric_feedback_with_local_losses() -> None:
    def engine(estimator: Estimator, *sites: str) -> Engine:
        return prepared(build("mlp"), estimator, local=LocalLosses(sites=sites))

    for sites in (("0",), ("2",), ("0", "2")):
        expected = gradients(engine(make("backprop"), *sites), *batch())
        found = gradients(symmetric(engine(FeedbackAlignment(), *sites)), *batch())
        check_equal(found, expected, TIGHT)


def test_the_signal_leaves_to_a_local_loss_what_it_trains() -> None:
    """The first block has a loss of its own; the second receives the error."""
    local = LocalLosses(sites=("0",))
    engine = prepared(build("mlp"), DirectFeedback(), local=local)
    assert set(engine.estimator.state_dict()) == {"matrices.2"}
    found = gradients(engine, *batch())
    reference = prepared(build("mlp"), make("backprop"), local=LocalLosses(sites=("0",)))
    exact = gradients(reference, *batch())
    plain = gradients(prepared(build("mlp"), DirectFeedback()), *batch())
    for name in ("0.weight", "0.bias", "4.weight", "4.bias"):
        assert (found[name] - exact[name]).abs().max() < TIGHT
    assert not torch.allclose(found["0.weight"], plain["0.weight"])
    assert not torch.allclose(found["2.weight"], exact["2.weight"])


# Sign symmetry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitudes", ["uniform", "batch", "fixed"])
def test_signs_follow_the_weights(magnitudes: Any) -> None:
    layers = [nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 3)]
    network = drawn(nn.Sequential(*layers))
    engine = prepared(network, SignSymmetry(magnitudes, scale=0.5))
    weight = network.get_parameter("2.weight")
    first = feedback_of(engine)["2"]
    size = float(weight.detach().square().mean().sqrt())
    assert first.sign().equal(weight.detach().sign())
    assert float(first.square().mean().sqrt()) == pytest.approx(0.5 * size, rel=0.02)
    assert (len(first.abs().unique()) == 1) == (magnitudes == "uniform")
    with torch.no_grad():
        weight.mul_(-2)
    turned = feedback_of(engine)["2"]
    assert turned.sign().equal(weight.detach().sign()) and turned.abs().equal(first.abs())


def test_batch_magnitudes_are_drawn_in_every_step_and_others_are_not() -> None:
    def moves(magnitudes: Any) -> bool:
        engine = prepared(build("mlp"), SignSymmetry(magnitudes))
        one, two = (gradients(engine, *batch()) for _ in range(2))
        assert one["4.weight"].equal(two["4.weight"])
        return not one["0.weight"].equal(two["0.weight"])

    assert moves("batch") and not moves("uniform") and not moves("fixed")


# Feedback that learns ---------------------------------------------------------------------------


def distances(engine: Engine) -> dict[str, float]:
    """Return how far each feedback weight is from the forward weight."""
    return {
        name: float((weight - weight_of(engine, name)).norm())
        for name, weight in feedback_of(engine).items()
    }


def angles_of(engine: Engine) -> dict[str, float]:
    return {name: angle(b, weight_of(engine, name)) for name, b in feedback_of(engine).items()}


def train(engine: Engine, optimiser: torch.optim.Optimizer, steps: int) -> None:
    inputs, targets = batch(32)
    for _ in range(steps):
        engine(inputs, targets).backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["mlp", "tied", "grouped_convolution", "recurrent_cell"])
def test_kolen_pollack_converges_geometrically(name: str, own: bool) -> None:
    """The difference shrinks by ``1 - rate decay`` in every step, by the decay of either."""
    rate, decay, steps = 0.1, 0.5, 20
    engine = prepared(build(name), KolenPollack(decay=decay if own else 0.0))
    parameters = list(engine.parameters())
    optimiser = torch.optim.SGD(parameters, lr=rate, weight_decay=0.0 if own else decay)
    before = distances(engine)
    assert before and min(before.values()) > 0.1
    for times in (1, 2):
        train(engine, optimiser, steps)
        shrunk = (1 - rate * decay) ** (times * steps)
        expected = {layer: shrunk * distance for layer, distance in before.items()}
        assert distances(engine) == pytest.approx(expected, rel=1e-9)
    train(engine, optimiser, 300)
    assert max(distances(engine).values()) < 1e-6


def test_kolen_pollack_without_decay_keeps_the_difference() -> None:
    engine = prepared(build("mlp"), KolenPollack(decay=0.0))
    before = distances(engine)
    train(engine, torch.optim.SGD(list(engine.parameters()), lr=0.1), 40)
    assert distances(engine) == pytest.approx(before, rel=1e-9)


def test_equal_gradients_make_equal_steps_of_adam() -> None:
    engine = prepared(build("mlp"), KolenPollack(decay=0.0))
    before = distances(engine)
    optimiser = torch.optim.AdamW(list(engine.parameters()), lr=0.01, weight_decay=2.0)
    train(engine, optimiser, 100)
    expected = {name: distance * 0.98**100 for name, distance in before.items()}
    assert distances(engine) == pytest.approx(expected, rel=1e-6)


def test_kolen_pollack_with_adam_and_its_own_decay() -> None:
    engine = prepared(build("mlp"), KolenPollack())
    before, angles = distances(engine), angles_of(engine)
    train(engine, torch.optim.Adam(list(engine.parameters()), lr=0.01), 400)
    assert min(angles.values()) > 60 and max(angles_of(engine).values()) < 20
    assert all(distance < before[name] for name, distance in distances(engine).items())


@pytest.mark.parametrize("name", PLAIN)
def test_the_mirrored_correlation_is_the_weight_on_average(name: str) -> None:
    """Padding, strides, groups, dilation: every entry has its own number of products."""
    engine, stream, samples = prepared(build(name), WeightMirror()), generator(0, "noise"), 20_000
    trace = engine.substrate.run(Plan(), *batch(), engine.objective, generator(0))
    assert trace.sites
    for site, left in trace.sites.items():
        noise = torch.randn(
            samples, *left.visits[0].inputs[0].shape[1:], generator=stream, dtype=torch.float64
        )
        weight = weight_of(engine, site)
        found = mirrored(engine.network.get_submodule(site), weight, noise)
        weight = weight * (found != 0)  # the margins of a kernel larger than the image see nothing
        # y_i x_j has the variance |w_i|^2 + w_ij^2 at most 2 |w_i|^2, a mean over a patch less
        errors = 2 * weight.flatten(1).norm(dim=1).max() / math.sqrt(samples)
        assert (found - weight).abs().max() < 4 * errors
        with pytest.raises(AssertionError):
            assert (found - 1.3 * weight).abs().max() < 4 * errors


@pytest.mark.parametrize("name", ["mlp", "grouped_convolution", "recurrent_cell", "tied"])
def test_the_mirror_turns_towards_the_weights(name: str) -> None:
    engine = prepared(build(name), WeightMirror(rate=0.05, samples=64))
    optimiser = torch.optim.SGD(list(engine.network.parameters()), lr=0.01)
    before = angles_of(engine)
    train(engine, optimiser, 20)
    halfway = angles_of(engine)
    train(engine, optimiser, 180)
    assert min(before.values()) > 45 and max(angles_of(engine).values()) < 15
    assert all(halfway[layer] < before[layer] for layer in before)


def test_the_mirror_of_a_spiking_network() -> None:
    network = spiking("torch", {"recurrent": True})
    engine = prepared(network, WeightMirror(rate=0.05, samples=64))
    train(engine, torch.optim.SGD(list(network.parameters()), lr=0.001), 150)
    assert max(angles_of(engine).values()) < 15


def test_the_mirror_shows_the_weight_and_not_the_decorrelated_one() -> None:
    decorrelate, stream = biograd.Decorrelation(), generator(0, "matrices")
    engine = prepared(build("mlp"), WeightMirror(rate=0.05, samples=64), decorrelate=decorrelate)
    with torch.no_grad():
        for matrix in decorrelate.matrices.values():
            matrix += 0.7 * torch.randn(matrix.shape, generator=stream, dtype=torch.float64)
    engine(*batch())
    assert engine._last is not None
    for _ in range(200):
        engine.estimator.after(*engine._last)
    assert max(angles_of(engine).values()) < 15
    folded = {name: weight_of(engine, name) @ m[0] for name, m in decorrelate.matrices.items()}
    assert all(angle(b, folded[name]) > 20 for name, b in feedback_of(engine).items())


# Learning: the weights align with the feedback --------------------------------------------------


def task(rows: int = 256) -> tuple[Tensor, Tensor]:
    """Classes of a teacher that a linear readout of random features does not get right."""
    stream = generator(0, "teacher")
    inputs = torch.randn(rows, 6, generator=stream, dtype=torch.float64)
    directions = torch.randn(6, 3, generator=stream, dtype=torch.float64)
    return inputs, (inputs @ directions).abs().argmax(1)


def student() -> nn.Module:
    layers = [nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)]
    return drawn(nn.Sequential(*layers))


def learn(estimator: Estimator, steps: int = 300) -> tuple[float, list[float]]:
    """Return the final loss, and ten angles on the way between the hidden layers' gradients."""
    inputs, targets = task()
    engine = attach(student(), estimator, seed=1)
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(list(engine.parameters()), lr=0.01)
    angles = []
    for number in range(steps):
        if number % (steps // 10) == 0:
            exact = autograd(engine.network, inputs, targets)
            angles.append(angle(hidden(gradients(engine, inputs, targets)), hidden(exact)))
        optimiser.zero_grad()
        engine(inputs, targets).backward()
        optimiser.step()
        engine.update()
    return float(engine(inputs, targets).loss), angles


def hidden(found: Gradients) -> Tensor:
    return torch.cat([value.flatten() for name, value in found.items() if name[0] != "4"])


@pytest.fixture(scope="module")
def control() -> float:
    """The loss that the readout reaches alone."""
    return learn(make("frozen_hidden"))[0]


@pytest.mark.parametrize("name", ["feedback_alignment", "direct_feedback"])
def test_the_angle_to_backpropagation_shrinks(name: str, control: float) -> None:
    loss, angles = learn(make(name))
    assert angles[0] > 60 and max(angles[3:]) < min(80, angles[0])
    assert sum(angles[5:]) / 5 < angles[0] - 15
    assert loss < 0.5 * control


@pytest.mark.parametrize("name", [*FEEDBACK, "kickback"])
def test_hidden_layers_learn(name: str, control: float) -> None:
    assert learn(make(name))[0] < 0.6 * control


def test_target_projection_lets_hidden_layers_learn(control: float) -> None:
    assert learn(make("target_projection", {"scale": 0.1}))[0] < 0.9 * control


class Alternating(DirectFeedback):
    """A broken rule: the sign of the feedback turns in every step, so nothing can align to it."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        for tensor, delta in super().credit(traces, round):
            yield tensor, delta * (-1) ** round.step


class AntiSymmetric(SignSymmetry):
    """A broken rule: the feedback has the opposite signs."""

    def feedback(self, name: str, weight: Tensor, round: Round) -> Tensor:
        return -super().feedback(name, weight, round)


@pytest.mark.parametrize("broken", [Alternating, AntiSymmetric])
def test_broken_feedback_does_not_teach_the_hidden_layers(
    broken: type[Estimator], control: float
) -> None:
    loss, angles = learn(broken())
    assert loss > 0.9 * control and max(angles) > 85


# State ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FEEDBACK, *BROADCAST])
def test_feedback_follows_the_seed_and_survives_a_checkpoint(name: str) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        return prepared(build("mlp"), make(name), seed=seed).state()

    one, same, other = state(0), state(0), state(1)
    kept = [key for key in one if key.startswith("estimator.")]
    assert kept and all(one[key].equal(same[key]) for key in kept)
    if name not in ("kickback", "sign_symmetry"):
        assert not any(one[key].equal(other[key]) for key in kept)
    engine = prepared(build("mlp"), make(name), seed=0)
    train(engine, torch.optim.SGD(list(engine.parameters()), lr=0.1), 3)
    saved, weights = engine.state(), engine.network.state_dict()
    again = prepared(build("mlp"), make(name), seed=1)
    again.network.load_state_dict(weights)
    again.load_state(saved)
    check_equal(gradients(again, *batch()), gradients(engine, *batch()), 0.0)


@pytest.mark.parametrize("name", [*FEEDBACK, *BROADCAST])
def test_a_restored_trainer_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    inputs, targets = batch(64)
    split = Arrays(inputs, targets)
    recipe = TrainingRecipe(epochs=2, batch_size=16)

    def trainer(seed: int) -> Trainer:
        made = Trainer(attach(build("mlp"), make(name), seed=seed), recipe, split, seed=0)
        return made

    whole, second = trainer(0), trainer(1)
    for step, _record in enumerate(whole.steps()):
        if step == 2:
            second.restore(*whole.checkpoint())
    for _record in second.steps():
        pass
    one, two = (t.checkpoint()[0] for t in (whole, second))
    assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)


@pytest.mark.parametrize("name", [*FEEDBACK, *BROADCAST])
def test_the_network_is_left_as_it_was_found(name: str) -> None:
    network = build("mlp")
    keys, hooks = list(network.state_dict()), _hooks(network)
    engine = prepared(network, make(name))
    engine(*batch()).backward()
    engine.update()
    assert engine.detach() is network
    assert list(network.state_dict()) == keys and _hooks(network) == hooks
    assert all(set(layer.__dict__) == set(nn.Linear(1, 1).__dict__) for layer in _linear(network))


def _linear(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def _hooks(network: nn.Module) -> int:
    parts = list(network.modules())
    return sum(len(p._forward_hooks) + len(p._forward_pre_hooks) for p in parts)


# What does not fit is said in one line ----------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("feedback_alignment", {"scale": 0.0}, "scale = 0.0: must be > 0"),
    ("direct_feedback", {"shared": 1}, "shared = 1: must be true or false"),
    ("direct_feedback", {"scales": 1.0}, "unknown key estimators.direct_feedback.scales"),
    ("sign_symmetry", {"magnitudes": "random"}, "magnitudes = 'random'"),
    ("kickback", {"outputs": "ones"}, "outputs = 'ones'"),
    ("target_projection", {"scale": -1.0}, "scale = -1.0: must be > 0"),
    ("weight_mirror", {"rate": 1.5}, "rate = 1.5: must be > 0 and <= 1"),
    ("weight_mirror", {"samples": 0}, "samples = 0: must be >= 1"),
    ("kolen_pollack", {"decay": -0.1}, "decay = -0.1: must be >= 0"),
]


@pytest.mark.parametrize(("name", "settings", "reason"), BAD)
def test_bad_settings(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError) as raised:
        make(name, settings)
    assert reason in str(raised.value) and "\n" not in str(raised.value)


def test_the_sum_of_the_errors_of_a_cross_entropy_is_refused() -> None:
    with pytest.raises(CapabilityError, match="zero with this loss") as raised:
        prepared(build("mlp"), Kickback("sum"))
    assert "\n" not in str(raised.value)


def test_targets_that_cannot_be_projected() -> None:
    inputs, targets = batch()
    engine = attach(build("mlp"), TargetProjection(), loss=lambda o, t: (o - t).square().sum(1))
    with pytest.raises(CapabilityError, match="needs targets of the outputs' shape") as raised:
        engine(inputs, targets[:, None].double())
    assert "\n" not in str(raised.value)


def test_layers_without_a_weight() -> None:
    network = drawn(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    sites = ["0", "1", "2"]
    with pytest.raises(CapabilityError, match="has no weight matrix") as raised:
        prepared(network, FeedbackAlignment(), sites=sites)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [*FEEDBACK, *BROADCAST])
def test_a_population_without_derivative(name: str) -> None:
    with pytest.raises(CapabilityError, match="vjp"):
        attach(opaque(), make(name))


def test_a_site_that_does_not_exist() -> None:
    with pytest.raises(CapabilityError, match="no site 'iner'"):
        attach(build("residual"), DirectFeedback(sites=("iner",)))


@pytest.mark.parametrize("name", BROADCAST)
def test_a_skip_past_a_block_is_refused(name: str) -> None:
    with pytest.raises(CapabilityError, match="passes by the activity"):
        prepared(build("residual"), make(name))


# What was measured against a rule ---------------------------------------------------------------


def test_a_caveat_is_told_once_at_attach_by_a_probe_and_in_the_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _tell.cache_clear()
    rules = [TargetProjection(), TargetProjection(), DirectFeedback()]
    engines = [attach(build("mlp"), rule) for rule in rules]
    assert [record.getMessage() for record in caplog.records] == [
        f"TargetProjection: {TargetProjection.caveat}"
    ]
    said = " ".join(str(probe(engines[0], *batch(), draws=2)).split())
    assert TargetProjection.caveat in said
    assert TargetProjection.caveat in estimators()
    assert not DirectFeedback.caveat


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_caveat_of_target_projection_holds() -> None:
    """Digits, ``ann``, 10 epochs, one seed: 62 % without decorrelation, 74 % frozen, 92 % with."""

    def trained(rule: str, decorrelation: str) -> float:
        settings = ("training.epochs=10", f"decorrelation.rule={decorrelation}")
        asked = experiment.TrainingRequest(
            model="ann", estimator=rule, device="cpu", assignments=settings
        )
        configuration = experiment.configure(asked)
        dataset = data.load(configuration.data, name="digits")
        run = experiment.Experiment(configuration, dataset)
        for _step in run.trainer.steps():
            pass
        found = evaluate(run.engine, dataset.test)["accuracy"]  # with the decorrelating matrices
        run.engine.detach()
        return found

    plain, frozen = trained("target_projection", "off"), trained("frozen_hidden", "off")
    assert plain < frozen - 0.05 < trained("target_projection", "kappa") - 0.15


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_feedback_is_as_large_as_the_weights_that_exist(density: float) -> None:
    from biograd.estimators.feedback import size_of

    draw = torch.Generator().manual_seed(0)
    weight = 3.0 * torch.randn(200, 200, generator=draw)
    mask = torch.rand(200, 200, generator=draw) < density
    assert size_of(weight * mask) == pytest.approx(3.0, rel=0.03)
    assert size_of(torch.zeros(5, 4)) == 0.5
