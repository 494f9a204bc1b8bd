"""Synthetic gradients: exact where the synthesiser is, and the rules that they unify."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from networks_for_tests import (
    Gradients,
    autograd,
    batch,
    build,
    check_equal,
    drawn,
    gradients,
    linear_stack,
    mlp,
    spiking,
)
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd.contracts import Plan, Round, Trace
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import Estimator, make
from biograd.estimators.synthesisers import (
    SYNTHESISERS,
    Interface,
    LinearSynthesiser,
    SigmoidSynthesiser,
    Synthesiser,
    conspiring_signal,
)
from biograd.estimators.synthetic_gradient import SyntheticGradient, labels
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe

STATIC = ("mlp", "tied", "grouped_convolution", "convolution_1d", "batch_norm")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"sites": "middle"},
    {"back_propagated": 1.0},
    {"back_propagated": 0.3, "conspiring": 0.7},
    {"condition": "label", "synthesiser": "mlp", "conspiring": 0.7},
]


def opposition(prediction: Tensor, target: Tensor) -> Tensor:
    """Return ``-<prediction, target>``, summed over all but the rows."""
    return -(prediction * target).flatten(1).sum(1)


class FixedProjection(Synthesiser):
    """``SG(h, y) = hA`` with a given matrix that is not trained (see the module's table)."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        return activity @ self.matrix


class Known(Synthesiser):
    """Returns what it was given, times a factor."""

    def __init__(self, gradient: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        self.gradient, self.factor = gradient, factor

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        return self.factor * self.gradient + 0 * activity


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - functional.one_hot(targets, 3)).square().sum(1)


def true_gradients(network: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return dL/dh of every example behind every hidden site, by back-propagation."""
    engine = attach(network, make("backprop"))
    engine.prepare(inputs, targets)
    encoded = engine.substrate.encode(inputs, generator(0, "unused"))
    trace = engine.substrate.run(Plan(), encoded, targets, engine.objective, None)
    engine.detach()
    activities = [trace.sites[name].activity for name in engine.hidden]
    found = torch.autograd.grad(trace.loss, activities)  # type: ignore[arg-type]
    return {
        name: len(inputs) * gradient for name, gradient in zip(engine.hidden, found, strict=True)
    }


def synthetic(
    network: nn.Module, inputs: Tensor, targets: Tensor, /, **settings: Any
) -> tuple[Engine, SyntheticGradient]:
    """Return a prepared engine and its estimator."""
    loss = settings.pop("loss", "cross_entropy")
    estimator = SyntheticGradient(**settings)
    engine = attach(network, estimator, loss=loss)
    engine.prepare(inputs, targets)
    return engine, estimator


def perfect(
    make_network: Callable[[], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    factor: float = 1.0,
    **settings: Any,
) -> Engine:
    """Return an engine whose synthesisers know the true gradients (times a factor)."""
    known = true_gradients(make_network(), inputs, targets)
    engine, estimator = synthetic(make_network(), inputs, targets, **settings)
    for key in estimator.synthesisers:
        site = key.replace("/", ".")
        gradient = known[site]
        timed = gradient.dim() == 2 + len(engine._shapes[site].units)
        estimator.synthesisers[key] = Known(gradient.flatten(1 + timed), factor)
    return engine


def drawn_synthesisers(estimator: SyntheticGradient, size: float = 0.3) -> None:
    stream = generator(5, "synthesisers")
    with torch.no_grad():
        for parameter in estimator.parameters():
            draw = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
            parameter.copy_(size * draw)


# A perfect synthesiser is back-propagation --------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", STATIC)
def test_a_perfect_synthesiser_is_backpropagation(name: str, settings: dict[str, Any]) -> None:
    inputs, targets = batch()
    engine = perfect(lambda: build(name), inputs, targets, **settings)
    assert engine.estimator.synthesisers
    check_equal(gradients(engine, inputs, targets), autograd(build(name), inputs, targets), 1e-12)


@pytest.mark.parametrize("name", STATIC)
def test_an_imperfect_synthesiser_is_not(name: str) -> None:
    inputs, targets = batch()
    engine = perfect(lambda: build(name), inputs, targets, 1.001)
    with pytest.raises(AssertionError):
        check_equal(
            gradients(engine, inputs, targets), autograd(build(name), inputs, targets), 1e-12
        )


@pytest.mark.parametrize("settings", [{}, {"back_propagated": 0.5, "conspiring": 1.0}], ids=str)
def test_linear_layers_and_squared_error_have_an_exact_linear_synthesiser(
    settings: dict[str, Any],
) -> None:
    """A layer (W, b) before L = |hW' + b - y|^2 / 2 has dL/dh = hW'W - yW + bW."""
    inputs, targets = batch()
    network = drawn(linear_stack())
    engine, estimator = synthetic(network, inputs, targets, loss="squared_error", **settings)
    weight, bias = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for name in ("1", "0"):
            layer = network.get_submodule(str(int(name) + 1))
            weight, bias = weight @ layer.weight, weight @ layer.bias + bias
            found = estimator.synthesiser_of(name)
            found.activity_weight.copy_(weight.T @ weight)
            found.label_weight.copy_(-weight)
            found.bias.copy_(bias @ weight)
    expected = autograd(drawn(linear_stack()), inputs, targets, squared_error)
    check_equal(gradients(engine, inputs, targets), expected, 1e-12)
    losses = [p.grad.abs().max().item() for p in estimator.parameters() if p.grad is not None]
    assert len(losses) == 6 and max(losses) < 1e-12


def test_the_sigmoid_synthesiser_is_exact_for_two_classes() -> None:
    """dL/dh of the cross-entropy of two classes behind any linear layer; a line is not."""
    stream = generator(3, "two classes")
    draw = lambda *shape: torch.randn(shape, generator=stream, dtype=torch.float64)  # noqa: E731
    activity, weight, bias = (6 * draw(50, 4)).requires_grad_(), draw(2, 4), draw(2)
    targets = torch.arange(50) % 2
    functional.cross_entropy(activity @ weight.T + bias, targets, reduction="sum").backward()
    one_hot = functional.one_hot(targets, 2).double()
    made = SigmoidSynthesiser(Interface(4, 2), stream, torch.float64)
    difference = weight[0] - weight[1]
    with torch.no_grad():
        made.activity_weight.copy_(difference[:, None].expand(4, 4))
        made.bias.fill_(bias[0] - bias[1])
        made.scale.copy_(difference)
        made.offset[0] = -difference
        found = made(activity, one_hot)
        seen = torch.cat([activity, one_hot], 1)
        fitted = seen @ torch.linalg.lstsq(seen, activity.grad).solution
    assert (found - activity.grad).abs().max() < 1e-12
    assert (fitted - activity.grad).abs().max() > 0.05


# A synthesiser that has learned nothing -----------------------------------------------------------


@pytest.mark.parametrize("condition", ["label", "activity", "both"])
@pytest.mark.parametrize("kind", SYNTHESISERS)
@pytest.mark.parametrize("name", ["mlp", "grouped_convolution"])
def test_the_first_step_trains_only_the_readout(name: str, kind: str, condition: str) -> None:
    inputs, targets = batch()
    settings = {"synthesiser": kind, "condition": condition, "conspiring": 1.0}
    if kind == "mlp":
        settings["hidden"] = (7, 5)
    engine = attach(build(name), SyntheticGradient(**settings))
    frozen = gradients(attach(build(name), make("frozen_hidden")), inputs, targets)
    check_equal(gradients(engine, inputs, targets), frozen, 1e-14)
    trained = [p for p in engine.estimator.parameters() if p.grad is not None and p.grad.any()]
    assert trained


@pytest.mark.parametrize("kind", SYNTHESISERS)
def test_the_condition_decides_what_is_seen(kind: str) -> None:
    stream = generator(1, "seen")
    activity, labels = (torch.randn(4, n, generator=stream, dtype=torch.float64) for n in (5, 3))
    for condition in ("label", "activity", "both"):
        made = SYNTHESISERS[kind](Interface(5, 3, condition, (4,)), stream, torch.float64)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(generator=stream)
        first = made(activity, labels)
        assert first.shape == (4, 5)
        assert torch.equal(first, made(activity + 1, labels)) == (condition == "label")
        assert torch.equal(first, made(activity, labels + 1)) == (condition == "activity")


# Targets and regression ---------------------------------------------------------------------------


def trace_of(engine: Engine, inputs: Tensor, targets: Tensor) -> tuple[Trace, Round]:
    engine(inputs, targets)
    assert engine._last is not None
    traces, round = engine._last
    return traces[0], round


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_targets_follow_the_recursion(share: float) -> None:
    """Layers W1, W2 above h0: G1 = dL/dh1 = dL/do W2, G0 = ((1-s) SG1 + s G1) W1."""
    inputs, targets = batch()
    network = drawn(linear_stack())
    engine, estimator = synthetic(network, inputs, targets, back_propagated=share)
    drawn_synthesisers(estimator)
    trace, round = trace_of(engine, inputs, targets)
    one_hot = labels(trace)
    assert torch.equal(one_hot, functional.one_hot(targets, 3).double())
    with torch.no_grad():
        activity = network[1](network[0](inputs))
        top = (torch.softmax(network[2](activity), 1) - one_hot) @ network[2].weight
        model = estimator.synthesiser_of("1")
        predicted = activity @ model.activity_weight + one_hot @ model.label_weight + model.bias
        below = ((1 - share) * predicted + share * top) @ network[1].weight
    crossings = estimator.crossings(trace, round)
    seen = [place.synthesiser(place.seen, place.labels).detach() for place in crossings]
    found = estimator.targets(trace, crossings, seen)
    assert torch.allclose(seen[1], predicted, rtol=0, atol=1e-13)
    assert torch.allclose(found[1], top, rtol=0, atol=1e-13)
    assert torch.allclose(found[0], below, rtol=0, atol=1e-13)
    if share == 1.0:
        known = true_gradients(network, inputs, targets)
        assert torch.allclose(found[0], known["0"], rtol=0, atol=1e-13)


def test_signals_and_regression_by_hand() -> None:
    """Delivered: SG/B + alpha 2 (SG - G) A' / B; learned: dloss/dA = 2 h'(SG - G) / B and so on."""
    inputs, targets = batch()
    network, alpha = drawn(linear_stack()), 0.4
    engine, estimator = synthetic(network, inputs, targets, conspiring=alpha)
    drawn_synthesisers(estimator)
    found = gradients(engine, inputs, targets)
    network.zero_grad()
    trace, round = trace_of(engine, inputs, targets)
    crossings = estimator.crossings(trace, round)
    with torch.no_grad():
        predicted = [place.synthesiser(place.seen, place.labels) for place in crossings]
    goal = estimator.targets(trace, crossings, predicted)
    for depth, before in enumerate((inputs, crossings[0].seen)):
        place, model = crossings[depth], crossings[depth].synthesiser
        error = 2 * (predicted[depth] - goal[depth]) / len(inputs)
        signal = predicted[depth] / len(inputs) + alpha * error @ model.activity_weight.T
        check_equal({"w": found[f"{depth}.weight"]}, {"w": signal.T @ before}, 1e-12)
        expected = {
            "activity_weight": place.seen.T @ error,
            "label_weight": place.labels.T @ error,
            "bias": error.sum(0),
        }
        check_equal({key: getattr(model, key).grad for key in expected}, expected, 1e-12)


def test_without_the_prediction_only_the_conspiring_signal_is_left() -> None:
    inputs, targets = batch()
    parts = []
    for settings in ({"prediction": False}, {"conspiring": 0.0}, {}):
        engine, estimator = synthetic(
            build("mlp"), inputs, targets, **{"conspiring": 2.0} | settings
        )
        drawn_synthesisers(estimator)
        parts.append(gradients(engine, inputs, targets)["0.weight"])
    assert parts[0].any() and torch.allclose(parts[0] + parts[1], parts[2], rtol=0, atol=1e-13)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_gradient_is_the_mean_of_its_halves(settings: dict[str, Any]) -> None:
    """Of the network and of the synthesisers."""
    inputs, targets = batch()
    engine, estimator = synthetic(build("mlp"), inputs, targets, **settings)
    drawn_synthesisers(estimator)

    def all_gradients(part: slice) -> Gradients:
        estimator.zero_grad()
        found = gradients(engine, inputs[part], targets[part])
        own = estimator.named_parameters()
        return found | {name: p.grad.clone() for name, p in own if p.grad is not None}

    whole, first, second = (all_gradients(slice(*ends)) for ends in ((0, 8), (0, 4), (4, 8)))
    assert len(whole) > 6
    check_equal(whole, {key: (first[key] + second[key]) / 2 for key in whole}, 1e-12)


# Rules that are regressions of a synthesiser which is not trained ---------------------------------


class Regressed(Estimator):
    """Deliver the derivative of ``-<SG(h), target>`` by ``h``; targets from above, by rule."""

    needs = frozenset(("loss", "cut", "local_vjp"))
    may_equal = True  # with the matrices of back-propagation

    def __init__(self, rule: str, matrices: dict[str, Tensor], factor: float = 1.0) -> None:
        super().__init__()
        self.rule, self.matrices, self.factor = rule, matrices, factor

    def plans(self, round: Round) -> Sequence[Plan]:
        return (Plan(boundaries=frozenset(round.hidden), slots=True),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        (trace,) = traces
        outputs = (*round.hidden, round.readout)
        arrived = trace.error()  # by the current of the next site
        for place in reversed(range(len(round.hidden))):
            site = trace.sites[outputs[place]]
            activity, slot = site.activity, site.slot
            assert activity is not None and slot is not None
            if self.rule in ("direct", "kickback"):
                arrived = trace.error()
            if self.rule == "backprop":  # the target is what arrives, not what arrives above
                above = trace.sites[outputs[place + 1]].visits[0].outputs[0]
                arrived = torch.autograd.grad(above, slot, arrived, retain_graph=True)[0]
            model = FixedProjection(self.factor * self.matrices[outputs[place]])
            target = -round.batch * arrived
            signal = conspiring_signal(model, activity, labels(trace), target, opposition)
            yield activity, signal
            current = site.visits[0].outputs[0]
            arrived = torch.autograd.grad(activity, current, signal, retain_graph=True)[0]


def by_hand(rule: str, matrices: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Gradients:
    """Return the gradients of the rule in ``mlp``, from its formula: tanh, ReLU, readout."""
    network = drawn(mlp())
    first, second, readout = network[0], network[2], network[4]
    with torch.no_grad():
        one, two = torch.tanh(first(inputs)), second(torch.tanh(first(inputs)))
        hidden = two.clamp(min=0)
        error = (readout(hidden) - functional.one_hot(targets, 3)) / len(inputs)
        at_two = (error @ matrices["2"].T) * (two > 0)
        back = at_two if rule == "alignment" else error
        at_one = (back @ matrices["0"].T) * (1 - one.square())
        return {
            "0.weight": at_one.T @ inputs,
            "0.bias": at_one.sum(0),
            "2.weight": at_two.T @ one,
            "2.bias": at_two.sum(0),
            "4.weight": error.T @ hidden,
            "4.bias": error.sum(0),
        }


def rule_matrices(rule: str) -> dict[str, Tensor]:
    """Return A for the two hidden layers of ``mlp``, 5 and 4 units; outputs 3."""
    stream = generator(2, "feedback")
    shapes = {"0": (5, 4 if rule == "alignment" else 3), "2": (4, 3)}
    if rule == "backprop":
        return {"0": torch.eye(5, dtype=torch.float64), "2": torch.eye(4, dtype=torch.float64)}
    if rule == "kickback":
        return {name: torch.ones(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return {
        name: torch.randn(shape, generator=stream, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def regressed(rule: str, factor: float = 1.0) -> tuple[Gradients, Gradients]:
    inputs, targets = batch()
    matrices = rule_matrices(rule)
    # of the cross-entropy the outputs' errors add up to zero, and kickback would deliver nothing
    estimator = Regressed(rule, matrices, factor)
    engine = attach(drawn(mlp()), estimator, loss="squared_error")
    found = gradients(engine, inputs, targets)
    if rule == "backprop":
        return found, autograd(drawn(mlp()), inputs, targets, squared_error)
    return found, by_hand(rule, matrices, inputs, targets)


@pytest.mark.parametrize("rule", ["backprop", "direct", "alignment", "kickback"])
def test_the_rule_is_a_regression(rule: str) -> None:
    found, expected = regressed(rule)
    check_equal(found, expected, 1e-12)
    assert expected["0.weight"].any()


@pytest.mark.parametrize("rule", ["backprop", "direct", "alignment", "kickback"])
def test_another_matrix_is_another_rule(rule: str) -> None:
    with pytest.raises(AssertionError):
        check_equal(*regressed(rule, 1.001), 1e-12)


REGISTERED: dict[str, tuple[str, dict[str, Any]]] = {
    "direct": ("direct_feedback", {}),
    "kickback": ("kickback", {"outputs": "sum", "influence": False}),
    "alignment": ("feedback_alignment", {}),
}


@pytest.mark.parametrize("rule", REGISTERED)
def test_the_regression_is_the_registered_estimator(rule: str) -> None:
    inputs, targets = batch()
    estimator = make(*REGISTERED[rule])
    expected = gradients(attach(drawn(mlp()), estimator, loss="squared_error"), inputs, targets)
    if rule == "alignment":  # the weight beside the next layer's, of its shape
        matrices = {"0": estimator.weights["2"].T, "2": estimator.weights["4"].T}
    else:
        matrices = {name: estimator.matrix(name).T for name in ("0", "2")}
    regression = attach(drawn(mlp()), Regressed(rule, matrices), loss="squared_error")
    check_equal(gradients(regression, inputs, targets), expected, 1e-12)


# The implied loss ---------------------------------------------------------------------------------


def symmetric_synthesiser(units: int = 4, classes: int = 3) -> LinearSynthesiser:
    stream = generator(4, "implied")
    made = LinearSynthesiser(Interface(units, classes), stream, torch.float64)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=stream)
        made.activity_weight.copy_(made.activity_weight + made.activity_weight.T)
    return made


def test_predictions_are_the_gradient_of_the_implied_loss() -> None:
    made, stream = symmetric_synthesiser(), generator(6, "points")
    activity = torch.randn(7, 4, generator=stream, dtype=torch.float64)
    given = functional.one_hot(torch.arange(7) % 3, 3).double()
    value = made.implied_loss(activity, given)
    expected = 0.5 * torch.einsum("bi,ij,bj->b", activity, made.activity_weight, activity)
    expected += ((given @ made.label_weight + made.bias) * activity).sum(1)
    assert torch.allclose(value, expected, rtol=0, atol=1e-12)
    step = 1e-5
    for unit in range(4):
        offset = step * functional.one_hot(torch.tensor(unit), 4).double()
        ahead, behind = (made.implied_loss(activity + s * offset, given) for s in (1, -1))
        slope = (ahead - behind) / (2 * step)
        assert torch.allclose(slope, made(activity, given)[:, unit], rtol=0, atol=1e-8)


def test_the_quadrature_is_exact_for_a_linear_synthesiser() -> None:
    made, stream = symmetric_synthesiser(), generator(7, "points")
    activity = torch.randn(2, 5, 4, generator=stream, dtype=torch.float64)
    given = torch.randn(2, 1, 3, generator=stream, dtype=torch.float64)
    by_quadrature = Synthesiser.implied_loss(made, activity, given)
    assert torch.allclose(by_quadrature, made.implied_loss(activity, given), rtol=0, atol=1e-12)
    coarse = Synthesiser.implied_loss(made, activity + 3, given, points=1)
    assert coarse.shape == (2, 5)


def test_the_implied_loss_of_two_classes_is_the_cross_entropy() -> None:
    """p - y at the outputs integrates to log(1 + exp(h0 - h1)) - y0 (h0 - h1), up to a constant."""
    stream = generator(8, "points")
    made = SigmoidSynthesiser(Interface(2, 2), stream, torch.float64)
    with torch.no_grad():
        made.activity_weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        made.scale.fill_(1.0)
        made.offset.copy_(-torch.eye(2))
    activity = 3 * torch.randn(9, 2, generator=stream, dtype=torch.float64)
    targets = torch.arange(9) % 2
    given = functional.one_hot(targets, 2).double()
    losses = functional.cross_entropy(activity, targets, reduction="none")
    expected = losses - torch.log(torch.tensor(2.0, dtype=torch.float64))
    assert torch.allclose(made.implied_loss(activity, given), expected, rtol=0, atol=1e-10)


# Activity over time -------------------------------------------------------------------------------


@pytest.mark.parametrize("substrate", ["torch", "snntorch"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_perfect_over_time(substrate: str, recurrent: bool, settings: dict[str, Any]) -> None:
    inputs, targets = batch()

    def network() -> nn.Module:
        return spiking(substrate, {"recurrent": recurrent})

    engine = perfect(network, 3 * inputs, targets, **settings)
    expected = autograd(network(), 3 * inputs, targets)
    check_equal(gradients(engine, 3 * inputs, targets), expected, 1e-12)
    assert expected["blocks.0.synapse.weight"].any()


def test_one_synthesiser_serves_all_steps() -> None:
    """Predictions are those of each step by itself; the losses of the steps add up."""
    inputs, targets = batch()
    engine, estimator = synthetic(spiking(), 3 * inputs, targets)
    drawn_synthesisers(estimator)
    place = estimator.crossings(*trace_of(engine, 3 * inputs, targets))[0]
    activity, given, model = place.seen, place.labels, place.synthesiser
    assert activity.shape == (8, 20, 5) and given.shape == (8, 1, 3)
    assert model is estimator.synthesiser_of(engine.hidden[0])
    each = torch.stack([model(activity[:, t], given[:, 0]) for t in range(20)], 1)
    assert torch.allclose(model(activity, given), each, rtol=0, atol=1e-13)
    assert model.activity_weight.shape == (5, 5)


# Windows of time ----------------------------------------------------------------------------------


class Looked(Synthesiser):
    """Returns, times a factor, the gradient that was noted for an activity."""

    def __init__(self, notes: list[tuple[Tensor, Tensor]], factor: float) -> None:
        super().__init__()
        self.notes, self.factor = notes, factor

    def forward(self, activity: Tensor, labels: Tensor) -> Tensor:
        (found,) = (g for a, g in self.notes if a.shape == activity.shape and a.equal(activity))
        return self.factor * found + 0 * activity


def recurrent_network(kind: str) -> nn.Module:
    if kind != "rate":
        return spiking(kind, {"recurrent": True}, {"synaptic_time_constant_ms": 4.0})
    recipe = ModelRecipe(
        network=NetworkRecipe(kind="rate", recurrent=True, hidden=(5, 4), dtype="float64"),
        encoding=EncodingRecipe(duration_ms=20.0),
    )
    return drawn(biograd.build(recipe, 6, 3))


WINDOWS: list[dict[str, Any]] = [
    {"sites": ()},
    {"sites": "all"},
    {"sites": "middle", "back_propagated": 0.4, "conspiring": 0.5},
]


def windowed(kind: str, factor: float, **settings: Any) -> tuple[Gradients, Gradients]:
    """Return the gradients with synthesisers that know all, and those through all of time."""
    inputs, targets = batch()
    inputs, settings = 3 * inputs, {"window": 6} | settings
    engine, estimator = synthetic(recurrent_network(kind), inputs, targets, **settings)
    kept, estimator.back_propagated = estimator.back_propagated, 1.0
    crossings = estimator.crossings(*(seen := trace_of(engine, inputs, targets)))
    zeros = [torch.zeros_like(place.seen) for place in crossings]
    true = estimator.targets(seen[0], crossings, zeros)
    notes = [(place.seen, gradient) for place, gradient in zip(crossings, true, strict=True)]
    estimator.back_propagated = kept
    states = [place for place in crossings if place.labels.dim() == 2]
    assert len(states) == 2 * 3  # two populations, 20 steps in windows of 6
    assert all(gradient.any() for gradient in true)
    for made in (estimator.synthesisers, estimator.state_synthesisers):
        for key in made:
            made[key] = Looked(notes, factor)
    expected = autograd(recurrent_network(kind), inputs, targets)
    return gradients(engine, inputs, targets), expected


@pytest.mark.parametrize("settings", WINDOWS, ids=str)
@pytest.mark.parametrize("kind", ["rate", "torch", "snntorch"])
def test_perfect_between_windows_is_all_of_time(kind: str, settings: dict[str, Any]) -> None:
    found, expected = windowed(kind, 1.0, **settings)
    check_equal(found, expected, 1e-12)
    assert expected["blocks.0.recurrent.weight"].any()


@pytest.mark.parametrize("kind", ["rate", "torch", "snntorch"])
def test_imperfect_between_windows_is_not(kind: str) -> None:
    with pytest.raises(AssertionError):
        check_equal(*windowed(kind, 1.01, sites=()), 1e-6)


@pytest.mark.parametrize("kind", ["rate", "torch", "snntorch"])
def test_before_it_has_learned_time_is_truncated(kind: str) -> None:
    inputs, targets = batch()
    engine, _ = synthetic(recurrent_network(kind), 3 * inputs, targets, sites=(), window=6)
    truncated = attach(recurrent_network(kind), make("backprop", {"window": 6}))
    expected = gradients(truncated, 3 * inputs, targets)
    check_equal(gradients(engine, 3 * inputs, targets), expected, 1e-13)
    whole = autograd(recurrent_network(kind), 3 * inputs, targets)
    with pytest.raises(AssertionError):
        check_equal(expected, whole, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rate", "torch"])
def test_learned_predictions_restore_what_truncation_loses(kind: str) -> None:
    """With the network held, the credit of 4-step windows turns towards that of all 20 steps."""
    inputs, targets = batch(64)
    inputs = 3 * inputs - 1

    def likeness(found: Gradients) -> float:
        hidden = [name for name in whole if name.startswith("blocks")]
        vectors = [torch.cat([of[n].flatten() for n in hidden]) for of in (found, whole)]
        return functional.cosine_similarity(*vectors, dim=0).item()

    whole = autograd(recurrent_network(kind), inputs, targets)
    truncated = attach(recurrent_network(kind), make("backprop", {"window": 4}))
    before = likeness(gradients(truncated, inputs, targets))
    engine, estimator = synthetic(recurrent_network(kind), inputs, targets, sites=(), window=4)
    optimiser = torch.optim.Adam(estimator.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        engine(inputs, targets).backward()
        optimiser.step()
        engine.update()
    assert before < 0.95 and likeness(gradients(engine, inputs, targets)) > 0.97


# Learning -----------------------------------------------------------------------------------------


def test_a_linear_network_reaches_the_global_optimum() -> None:
    """Squared error is convex in what a linear stack computes; its optimum is in closed form."""
    stream = generator(0, "regression")
    inputs = torch.randn(40, 6, generator=stream, dtype=torch.float64)
    targets = torch.randint(3, (40,), generator=stream)
    network = drawn(linear_stack())
    engine, _ = synthetic(network, inputs, targets, loss="squared_error", sites="middle")
    design = torch.cat([inputs, torch.ones(40, 1, dtype=torch.float64)], 1)
    fitted = design @ torch.linalg.lstsq(design, functional.one_hot(targets, 3).double()).solution
    optimum = squared_error(fitted, targets).mean().item()
    optimiser = torch.optim.Adam(engine.parameters(), 0.03)
    steps = 1500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        result = engine(inputs, targets)
        if step == 0:
            assert result.loss.item() > optimum + 0.05
        result.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        engine.update()
    assert abs(engine(inputs, targets).loss.item() - optimum) < 1e-6


def test_state_survives() -> None:
    inputs, targets = batch()
    settings = {"synthesiser": "mlp", "hidden": (4,), "conspiring": 0.5}
    engine, estimator = synthetic(build("mlp"), inputs, targets, **settings)
    drawn_synthesisers(estimator)
    expected = gradients(engine, inputs, targets)
    other, _ = synthetic(build("mlp"), inputs, targets, **settings)
    other.load_state(engine.state())
    check_equal(gradients(other, inputs, targets), expected, 1e-15)
    assert len(list(engine.parameters())) == 6 + 8


def test_the_engine_trains_a_recipe(tmp_path: Any) -> None:
    run = biograd.train(
        "ann",
        "digits",
        estimator="synthetic_gradient",
        epochs=1,
        device="cpu",
        path=tmp_path / "run.h5",
        settings=["estimators.synthetic_gradient.conspiring=1.0"],
    )
    assert run.attributes["rule"] == "synthetic_gradient"


# Refusals -----------------------------------------------------------------------------------------


def test_refusals() -> None:
    inputs, targets = batch()
    with pytest.raises(CapabilityError, match="no site 'first'"):
        attach(build("mlp"), SyntheticGradient(sites=("first",)))
    with pytest.raises(CapabilityError, match="nothing to predict"):
        attach(nn.Linear(6, 3), SyntheticGradient()).prepare(inputs.float(), targets)
    with pytest.raises(CapabilityError, match="no hidden site '4'"):
        attach(build("mlp"), SyntheticGradient(sites=("4",))).prepare(inputs, targets)
    with pytest.raises(CapabilityError, match="no neurons of biograd's run"):
        attach(build("mlp"), SyntheticGradient(window=3)).prepare(inputs, targets)
    with pytest.raises(CapabilityError, match="no synthesiser at '0'"):
        SyntheticGradient().synthesiser_of("0")
    for wrong in ({"conspiring": -1.0}, {"back_propagated": 1.5}, {"synthesiser": "cubic"}):
        with pytest.raises(RecipeError):
            SyntheticGradient(**wrong)  # type: ignore[arg-type]


def test_a_block_with_a_local_loss_needs_no_synthesiser() -> None:
    """The other's target is the gradient of the local loss above it."""
    inputs, targets = batch()
    local = biograd.LocalLosses(sites=("2",))
    estimator = SyntheticGradient()
    engine = attach(build("mlp"), estimator, local=local)
    engine.prepare(inputs, targets)
    assert set(estimator.synthesisers) == {"0"}
    trace, round = trace_of(engine, inputs, targets)
    places = estimator.crossings(trace, round)
    (found,) = estimator.targets(trace, places, [torch.zeros_like(places[0].seen)])
    network = engine.network
    activity = torch.tanh(network[0](inputs)).detach().requires_grad_()
    head = engine.objective.local["2"]
    head(torch.relu(network[2](activity)), targets).sum().backward()
    assert activity.grad is not None and activity.grad.any()
    assert torch.allclose(found, activity.grad, rtol=0, atol=1e-13)


def test_where_the_interfaces_are() -> None:
    inputs, targets = batch()
    for sites, expected in (("all", {"0", "2"}), ("middle", {"0"}), (("2",), {"2"})):
        _, estimator = synthetic(build("mlp"), inputs, targets, sites=sites)
        assert set(estimator.synthesisers) == expected
