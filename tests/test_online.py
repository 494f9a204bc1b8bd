"""Credit while the trial runs: the gradients of whole trials, in parts of any length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from biograd import networks, tasks
from biograd.contracts import Trace
from biograd.contracts.trial_part import TrialPart, parted
from biograd.engine import Engine, attach
from biograd.engine.in_parts.eligibility import Eligibility
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import Backpropagation, Estimator
from biograd.estimators.direct_feedback import DirectFeedback
from biograd.estimators.eprop import EligibilityPropagation
from biograd.estimators.ottt import OnlineTrainingThroughTime
from biograd.estimators.sltt import SpatialLearningThroughTime
from biograd.recipes import ModelRecipe, construct
from biograd.substrate.torch_substrate import TorchSubstrate

STEPS, INPUTS, OUTPUTS = 23, 6, 3
NEURONS: dict[str, dict[str, Any]] = {
    "subtract": {"kind": "leaky", "reset": "subtract"},
    "zero": {"kind": "leaky", "reset": "zero", "synaptic_time_constant_ms": 4.0},
    "refractory": {"kind": "leaky", "reset": "zero", "refractory_ms": 2.0},
    "alif": {"kind": "adaptive_threshold", "adaptation_time_constant_ms": 30.0, "jump": 0.3},
    "adaptive": {"kind": "adaptive_current"},
}
RULES: dict[str, Callable[..., Estimator]] = {
    "symmetric": EligibilityPropagation,
    "random": lambda **given: EligibilityPropagation("random", **given),
    "direct_feedback": DirectFeedback,
    "shared": lambda **given: DirectFeedback(shared=True, **given),
    "ottt": OnlineTrainingThroughTime,
    "sltt": SpatialLearningThroughTime,
}
Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Let what a rule draws be of double precision, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def recipe(neuron: str = "subtract", /, **given: Any) -> ModelRecipe:
    """Return a small network's recipe."""
    network = {"kind": "spiking", "substrate": "torch", "hidden": [7, 6], **given}
    tables = {
        "network": network,
        "neuron": {"time_constant_ms": 8.0, "resistance": 9.0} | NEURONS[neuron],
        "encoding": {"kind": "given", "dt_ms": 1.0, "duration_ms": float(STEPS)},
        "decorrelation": {"rule": "off"},
    }
    return construct(ModelRecipe, tables, "test")


def batch(timed: bool) -> tuple[Tensor, Tensor]:
    """Return spikes, and classes or numbers of which some are missing."""
    stream = torch.Generator().manual_seed(3)
    inputs = (torch.rand(4, STEPS, INPUTS, generator=stream) < 0.4).double()
    if not timed:
        return inputs, torch.randint(0, OUTPUTS, (4,), generator=stream)
    targets = torch.randn(4, STEPS, OUTPUTS, generator=stream, dtype=torch.float64)
    targets[:, :5] = targets[1, 9:17] = float("nan")
    return inputs, targets


def made(timed: bool, neuron: str, **given: Any) -> torch.nn.Module:
    """Return a network in double precision."""
    return networks.build(recipe(neuron, **given), (INPUTS,), OUTPUTS, 1, timed=timed).double()


def credited(network: torch.nn.Module, rule: Estimator, timed: bool) -> tuple[Gradients, Engine]:
    """Return the gradients of a step, and whose they are."""
    task = tasks.Regression(OUTPUTS, timed=True) if timed else tasks.Classes(OUTPUTS)
    engine = attach(network, rule, task=task)
    engine(*batch(timed)).backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}, engine


def difference(found: Gradients, expected: Gradients) -> float:
    """Return the largest difference, relative to the largest value of each tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n] - e).abs().max() / e.abs().max().clamp_min(1e-9))
        for n, e in expected.items()
    )


CASES = [
    (neuron, recurrent, timed, readout)
    for neuron in NEURONS
    for recurrent in (False, True)
    for timed, readout in ((False, "membrane"), (False, "filtered_rate"), (True, "membrane"))
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("neuron", "recurrent", "timed", "readout"), CASES)
def test_gradients_are_those_of_whole_trials(
    rule: str, neuron: str, recurrent: bool, timed: bool, readout: str
) -> None:
    """In parts of one step, of some that do not divide the trial, and of more than it has."""
    build = lambda: made(timed, neuron, recurrent=recurrent, readout=readout)  # noqa: E731
    expected, _ = credited(build(), RULES[rule](), timed)
    assert float(expected["blocks.0.synapse.weight"].abs().max()) > 1e-7  # it is not silent
    for chunk in (1, 5, 50):
        found, _ = credited(build(), RULES[rule](online=True, chunk=chunk), timed)
        assert difference(found, expected) < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_rate_units_that_answer_at_the_end(rule: str) -> None:
    """They have no memory of their own, and the readout hears the last step alone."""
    tables = {
        "network": {"kind": "rate", "hidden": [6], "recurrent": True},
        "encoding": {"kind": "given", "dt_ms": 1.0, "duration_ms": float(STEPS)},
        "decorrelation": {"rule": "off"},
    }
    found = []
    for given in ({}, {"online": True, "chunk": 4}):
        network = networks.build(construct(ModelRecipe, tables, "test"), (INPUTS,), OUTPUTS, 1)
        found.append(credited(network.double(), RULES[rule](**given), False)[0])
    assert difference(found[1], found[0]) < 1e-10


@pytest.mark.parametrize("rule", RULES)
def test_layers_that_do_not_learn(rule: str) -> None:
    """A weight is frozen beside its bias, then learns; the batch shrinks; classes for all steps."""
    inputs, targets = batch(True)[0], torch.tensor([0, 1, 2, tasks.MISSING])
    results: list[list[Gradients]] = []
    for given in ({}, {"online": True, "chunk": 4}):
        network = made(True, "alif", recurrent=True)
        weight = network.get_parameter("blocks.0.synapse.weight").requires_grad_(False)
        task = tasks.Classes(OUTPUTS, timed=True)
        engine, own = attach(network, RULES[rule](**given), task=task), []
        for rows in (slice(4), slice(2)):
            network.zero_grad()
            engine(inputs[rows], targets[rows]).backward()
            own.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
            assert (weight.grad is None) != weight.requires_grad
            weight.requires_grad_(True)
        results.append(own)
    for expected, found in zip(*results, strict=True):
        assert difference(found, expected) < 1e-10


@pytest.mark.parametrize("rule", ["symmetric", "random", "ottt"])
@pytest.mark.parametrize("timed", [False, True])
def test_without_traces_it_is_another_gradient(
    monkeypatch: pytest.MonkeyPatch, rule: str, timed: bool
) -> None:
    expected, _ = credited(made(timed, "alif"), RULES[rule](), timed)
    monkeypatch.setattr(Eligibility, "credit", lambda *_: iter(()))
    found, _ = credited(made(timed, "alif"), RULES[rule](online=True, chunk=5), timed)
    assert difference(found, expected) > 1e-2


@pytest.mark.parametrize("simulator", ["torch", "snntorch"])
@pytest.mark.parametrize("rule", ["symmetric", "sltt"])
def test_results_are_those_of_whole_trials(rule: str, simulator: str) -> None:
    """Loss and outputs too, of every step, and a second step draws as it would have."""
    results = []
    for given in ({}, {"online": True, "chunk": 4}):
        network = made(True, "subtract", substrate=simulator)
        engine = attach(network, RULES[rule](**given), task=tasks.Regression(OUTPUTS, timed=True))
        engine(*batch(True))
        results.append((engine(*batch(True)), network))
    (one, network), (other, _) = results
    assert torch.allclose(one.outputs, other.outputs, rtol=0, atol=1e-12)
    assert torch.allclose(one.losses, other.losses, rtol=1e-10)
    assert one.outputs.shape == (4, STEPS, OUTPUTS)
    assert torch.allclose(network(batch(True)[0]), one.outputs, atol=1e-12)  # no part is left


def reference() -> dict[str, Any]:
    """Return a network and its gradients, which two programs found independently of each other."""
    with numpy.load(Path(__file__).parent / "data" / "online_gradients.npz") as held:
        return {name: held[name] for name in held.files}


def of_reference(data: dict[str, Any], kind: str) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """Return the network of the reference, its inputs and its targets."""
    c = json.loads(str(data["constants"]))
    decay = lambda factor: -1.0 / numpy.log(factor)  # noqa: E731
    neuron: dict[str, Any] = {"kind": "leaky", "reset": "subtract"}
    if kind == "alif":
        neuron = {"kind": "adaptive_threshold", "reset": "subtract", "jump": c["gamma"]}
        neuron["adaptation_time_constant_ms"] = decay(c["rho"])
    neuron |= {"time_constant_ms": decay(c["beta"]), "resistance": 1.0, "threshold": c["theta"]}
    neuron |= {"surrogate": "fast_sigmoid", "slope": c["k"]}
    network = {"kind": "spiking", "substrate": "torch", "hidden": [c["N"]], "recurrent": True}
    network |= {"readout": "membrane", "readout_time_constant_ms": 1e-3}  # no memory
    tables = {"network": network, "neuron": neuron, "decorrelation": {"rule": "off"}}
    tables["encoding"] = {"kind": "given", "dt_ms": 1.0, "duration_ms": float(c["T"])}
    built = networks.build(
        construct(ModelRecipe, tables, "test"), (c["I"],), c["K"], 0, timed=True
    ).double()
    names = {"W": "blocks.0.synapse.weight", "b": "blocks.0.synapse.bias"}
    names |= {"V": "blocks.0.recurrent.weight", "O": "readout.weight", "o": "readout.bias"}
    with torch.no_grad():
        for key, name in names.items():
            built.get_parameter(name).copy_(torch.from_numpy(data[f"param/{key}"]))
    targets = torch.from_numpy(data["y"]).transpose(0, 1).clone()
    targets[:, torch.from_numpy(data["mask"]) == 0] = float("nan")
    return built, torch.from_numpy(data["x"]).transpose(0, 1).contiguous(), targets


@pytest.mark.parametrize("kind", ["lif", "alif"])
@pytest.mark.parametrize(
    ("of", "rule"),
    [
        ("eprop", lambda: EligibilityPropagation(online=True, chunk=7)),
        ("bptt", lambda: Backpropagation(recompute=True, chunk=7)),
        ("rtrl", lambda: Backpropagation(recompute=True, chunk=6)),
        ("tbptt_1", lambda: Backpropagation(window=1, recompute=True)),
        ("tbptt_5", lambda: Backpropagation(window=5, recompute=True)),
        ("tbptt_10", lambda: Backpropagation(window=10, recompute=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reference_gradients(kind: str, of: str, rule: Callable[[], Estimator]) -> None:
    """Those of other programs; exact forward-mode learning (RTRL) is back-propagation."""
    data = reference()
    network, inputs, targets = of_reference(data, kind)
    engine = attach(network, rule(), task=tasks.Regression(OUTPUTS, timed=True))
    result = engine(inputs, targets)
    result.backward()
    assert abs(float(result.loss) - float(data[f"{kind}/loss"])) < 1e-9
    for key, name in (("W", "synapse.weight"), ("V", "recurrent.weight"), ("b", "synapse.bias")):
        found = network.get_parameter(f"blocks.0.{name}").grad
        expected = torch.from_numpy(data[f"{kind}/{of}/{key}"])
        assert found is not None and float(expected.abs().max()) > 1e-3
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_no_pass_runs_a_whole_trial(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """From the first look at the network on: nothing is compared with a whole trial's gradient."""
    run, longest = TorchSubstrate.run, [0]

    def watched(self: TorchSubstrate, *given: Any, **named: Any) -> Trace:
        trace = run(self, *given, **named)
        seen = [one.activity.shape[1] for one in trace.sites.values() if one.activity is not None]
        longest[0] = max(longest[0], *seen, 0)
        return trace

    monkeypatch.setattr(TorchSubstrate, "run", watched)
    for timed in (False, True):
        credited(made(timed, "subtract"), RULES[rule](online=True, chunk=5), timed)
    assert longest[0] == 5
    credited(made(False, "subtract"), RULES[rule](), False)
    assert longest[0] == STEPS


def test_a_part_knows_where_it_stands() -> None:
    network = made(False, "subtract")
    with parted(network, 20, 3, STEPS, {}) as parts:
        assert parts[""] == TrialPart(20, 3, STEPS) and parts[""].last
        assert network.part is parts[""]
    assert network.part is None
    assert not TrialPart(0, 3, STEPS).last


@pytest.mark.parametrize(
    ("given", "settings", "named"),
    [
        ({"recurrent": True, "readout": "first_spike"}, {}, "first_spike"),
        ({"normalisation": "batch"}, {}, "normalise"),
        ({"normalisation": "layer"}, {}, "normalise"),
        ({"dropout": 0.2}, {}, "dropout"),
        ({"residual": True, "hidden": [6, 6]}, {}, "around a population"),
        ({"substrate": "brian2"}, {}, "Brian2"),
        ({}, {"activity": True}, "activity.weight"),
        ({}, {"outside": "exact"}, "outside"),
        ({}, {"decorrelate": True}, "decorrelation.rule"),
    ],
    ids=str,
)
def test_what_no_trace_passes_is_refused(
    given: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    from biograd.contracts import ActivityBounds
    from biograd.decorrelation import Decorrelation

    objects = {
        "activity": ActivityBounds(weight=1.0, upper=0.5),
        "decorrelate": Decorrelation("kappa"),
    }
    settings = {n: objects[n] if v is True else v for n, v in settings.items()}
    network = networks.build(recipe("subtract", **given), (INPUTS,), OUTPUTS, 1)
    with pytest.raises(CapabilityError, match="online = true") as refused:
        attach(network, EligibilityPropagation(online=True), **settings)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_modules_and_static_networks_are_refused() -> None:
    with pytest.raises(CapabilityError, match="runs through time by itself"):
        attach(torch.nn.Linear(3, 2), EligibilityPropagation(online=True))
    static = networks.build(construct(ModelRecipe, {"network": {"kind": "rate"}}, "t"), (4,), 3, 0)
    with pytest.raises(CapabilityError, match="no time"):
        attach(static, EligibilityPropagation(online=True))


def test_weights_made_of_others_and_own_sites_are_refused() -> None:
    network = made(False, "subtract")
    with pytest.raises(CapabilityError, match="sites of your own"):
        attach(network, EligibilityPropagation(online=True), sites=["blocks.0.synapse", "readout"])
    torch.nn.utils.parametrizations.weight_norm(network.get_submodule("blocks.1.synapse"))
    with pytest.raises(CapabilityError, match="makes its weight of other parameters"):
        attach(network, EligibilityPropagation(online=True))
    expected, _ = credited(network, Backpropagation(), False)
    network.zero_grad()
    found, _ = credited(network, Backpropagation(recompute=True, chunk=4), False)
    assert difference(found, expected) < 1e-9


def test_learned_constants_are_refused() -> None:
    tables = {
        "network": {"kind": "spiking", "substrate": "torch", "hidden": [4]},
        "neuron": {"kind": "leaky", "trainable": {"time_constant_ms": [0.5, 2.0]}},
    }
    network = networks.build(construct(ModelRecipe, tables, "test"), (INPUTS,), OUTPUTS, 1)
    with pytest.raises(CapabilityError, match="learns constants"):
        attach(network, EligibilityPropagation(online=True))


@pytest.mark.parametrize("timed", [False, True])
def test_a_task_without_parts_is_refused(timed: bool) -> None:
    """A loss that is no sum over its steps' own losses, in time; none is needed at the end."""
    network = made(timed, "subtract")
    squares = lambda outputs, targets: outputs.flatten(1).square().sum(1)  # noqa: E731
    task = tasks.OwnLoss(OUTPUTS, timed=timed, loss=squares) if timed else None
    if timed:
        with pytest.raises(CapabilityError, match="no mean of"):
            attach(network, EligibilityPropagation(online=True), task=task)
        with pytest.raises(CapabilityError, match="a task in time"):
            attach(network, EligibilityPropagation(online=True), loss=squares)
    else:
        engine = attach(network, EligibilityPropagation(online=True, chunk=5), loss=squares)
        assert engine(*batch(False)).losses.shape == (1, 4)


@pytest.mark.parametrize("rule", RULES)
def test_settings_that_nothing_reads_are_refused(rule: str) -> None:
    with pytest.raises(RecipeError, match="chunk = 5"):
        RULES[rule](chunk=5)
    assert "chunk" in type(RULES[rule]()).unread({"online": False, "chunk": 5})


def test_a_longer_window_is_refused() -> None:
    with pytest.raises(RecipeError, match="window = 3"):
        OnlineTrainingThroughTime(window=3, online=True)
    with pytest.raises(RecipeError, match="through_time"):
        DirectFeedback(through_time=True, online=True)
    with pytest.raises(RecipeError, match="sites"):
        EligibilityPropagation(sites=("blocks.0.synapse",), online=True)
