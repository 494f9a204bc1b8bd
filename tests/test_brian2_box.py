"""A Brian2 network as a box: what Brian2 itself gives, and what can be learned around and in it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import batch
from torch import Tensor, nn

from biograd.brian.box import Brian2Box
from biograd.brian.import_brian2 import import_brian2
from biograd.contracts import Plan
from biograd.engine import attach
from biograd.errors import BiogradError, CapabilityError, RecipeError
from biograd.estimators import make

b2 = import_brian2()


@pytest.fixture(autouse=True)
def no_compiler() -> None:
    b2.prefs.codegen.target = "numpy"


def network(two_clocks: bool = False, noise: float = 0.0) -> Any:
    """Return five driven neurons that excite four others; a short-term depression between them."""
    clock = b2.Clock(dt=1 * b2.ms)
    first = b2.NeuronGroup(
        5,
        "dv/dt = (4 * I - v) / (10 * ms) + sigma * xi / sqrt(10 * ms) : 1\nI : 1\nsigma : 1",
        threshold="v > 1",
        reset="v = 0",
        method="euler",
        clock=clock,
        name="first",
    )
    first.sigma = noise
    second = b2.NeuronGroup(
        4,
        "dv/dt = -v / (20 * ms) : 1",
        threshold="v > 1",
        reset="v = 0",
        method="exact",
        clock=clock,
        name="second",
    )
    synapses = b2.Synapses(
        first,
        second,
        "w : 1\ndx/dt = (1 - x) / (50 * ms) : 1 (event-driven)",
        on_pre="v_post += w * x\nx *= 0.6",
        clock=clock,
        name="synapses",
    )
    synapses.connect()
    synapses.x = 1
    synapses.w = np.linspace(0.05, 0.9, 20)
    parts = [first, second, synapses]
    if two_clocks:
        slow = b2.NeuronGroup(1, "dz/dt = 1 * Hz : 1", dt=5 * b2.ms, method="euler", name="slow")
        parts.append(slow)
    return b2.Network(*parts)


def box(**options: Any) -> Brian2Box:
    made = network(options.pop("two_clocks", False), options.pop("noise", 0.0))
    settings = {"input": ("first", "I"), "output": ("second", "spikes"), "duration_ms": 60}
    return Brian2Box(made, **settings | options)  # type: ignore[arg-type]


def drive(rows: int = 3) -> Tensor:
    return 2 * torch.rand(rows, 5, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("two_clocks", [False, True])
def test_it_gives_what_brian2_gives(two_clocks: bool) -> None:
    found = box(two_clocks=two_clocks)(drive())
    for row, current in zip(found, drive(), strict=True):
        plain = network(two_clocks)
        group = next(thing for thing in plain.objects if thing.name == "first")
        last = next(thing for thing in plain.objects if thing.name == "second")
        monitor = b2.SpikeMonitor(last)
        plain.add(monitor)
        group.I = current.numpy()
        plain.run(60 * b2.ms, namespace={"ms": b2.ms})
        assert np.array_equal(row.numpy(), np.asarray(monitor.count))
    assert found.sum() > 5


def test_every_trial_starts_from_the_same_state() -> None:
    made = box()
    first = made(drive())
    made(3 * drive())
    assert torch.equal(made(drive()), first)
    assert torch.equal(made(drive()[:1]), first[:1])


def test_the_mean_of_a_variable_can_come_out() -> None:
    found = box(output=("first", "v"))(0.2 * torch.ones(2, 5).double())
    time = torch.arange(60).double()  # a monitor looks before the step
    expected = 0.8 * (1 - (1 - 1 / 10) ** time).mean()
    assert (found - expected).abs().max() < 1e-12


def test_copies_of_an_example_share_brian2_s_random_numbers() -> None:
    torch.manual_seed(0)  # weights with which something spikes
    layers = nn.Linear(6, 5), box(noise=0.5, output=("first", "spikes")), nn.Linear(5, 3)
    engine = attach(nn.Sequential(*layers).double(), make("weak", {"copies": 3}), sites=["0", "2"])
    inputs, targets = batch(4)
    nothing = torch.zeros(2, 4, 1, 5, dtype=torch.float64)
    found = []
    for seed in (1, 2):
        plan = Plan(noise={"0": nothing})
        stream = torch.Generator().manual_seed(seed)
        trace = engine.substrate.run(plan, inputs, targets, engine.objective, stream)
        assert (trace.losses[1:] - trace.losses[:1]).abs().max() < 1e-12
        found.append(trace.losses[0])
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    ("rule", "sites"), [("weak", ["0", "2"]), ("node_perturbation", ["0", "2"])]
)
def test_what_lies_in_front_learns(rule: str, sites: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), box(), nn.Linear(4, 3)).double()
    nn.init.ones_(model[0].bias)
    engine = attach(model, make(rule, {"copies": 5}), sites=sites)
    engine(*batch(4)).backward()
    assert model[0].weight.grad.any() and model[2].weight.grad.any()


def test_its_synapses_learn_by_perturbation() -> None:
    """The loss falls although the depression between the neurons has no derivative here."""
    torch.manual_seed(0)
    made = box(trainable=("synapses.w",))
    model = nn.Sequential(made, nn.Linear(4, 3)).double()
    model[1].requires_grad_(False)
    inputs, targets = drive(4), torch.tensor([0, 1, 2, 0])
    estimator = make("weight_perturbation", {"copies": 9, "sigma": 0.1})
    engine = attach(model, estimator)
    optimiser = torch.optim.Adam(engine.parameters(), 0.05)
    losses = []
    for _ in range(12):
        result = engine(inputs, targets)
        losses.append(float(result.loss))
        optimiser.zero_grad()
        result.backward()
        assert made.values["synapses_w"].grad.any()
        optimiser.step()
    assert min(losses[-3:]) < losses[0] - 0.1


def test_a_derivative_is_refused_in_one_line() -> None:
    model = nn.Sequential(nn.Linear(6, 5), box(), nn.Linear(4, 3)).double()
    with pytest.raises(CapabilityError, match=r"needs vjp.*Brian2Box") as caught:
        attach(model, make("backprop"))
    assert "\n" not in str(caught.value)
    with pytest.raises(CapabilityError, match="no derivative: a Brian2Box"):
        model(batch(2)[0]).sum().backward()


def test_measured_gains_need_the_neurons_that_the_current_goes_into() -> None:
    model = nn.Sequential(nn.Linear(6, 5), box(), nn.Linear(4, 3)).double()
    with pytest.raises(
        CapabilityError, match=r"1 \(Brian2Box\) takes .* first .* second"
    ) as caught:
        attach(model, make("gain"), sites=["0", "2"])
    assert "\n" not in str(caught.value)
    in_front = nn.Sequential(box(), nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    model = nn.Sequential(nn.Linear(6, 5), box(output=("first", "spikes")), nn.Linear(5, 3))
    for network, inputs, sites in ((in_front, drive(4), ["1", "3"]), (model, None, ["0", "2"])):
        engine = attach(network.double(), make("gain"), sites=sites)
        engine(batch(4)[0] if inputs is None else inputs, torch.tensor([0, 1, 2, 0])).backward()
        assert network.get_submodule(sites[0]).weight.grad.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": ("frist", "I")}, "no object 'frist' in the network: did you mean 'first'"),
        ({"input": ("first", "J")}, "first has no variable 'J' that can be set"),
        ({"output": ("second", "u")}, "second has no variable 'u'"),
        ({"trainable": ["synapses.q"]}, "synapses has no variable 'q'"),
        ({"trainable": ["synapses"]}, "write OBJECT.VARIABLE"),
        ({"duration_ms": 0.0}, "must be > 0"),
        ({"duration_ms": 0.05}, "no multiple of the network's step of 1 ms"),
        ({"input": "first.I"}, r"write \(object, variable\)"),
        ({"output": ("synapses", "spikes")}, "synapses does not spike"),
    ],
)
def test_wrong_names(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        box(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("current", [drive()[:, :4], drive()[0], drive()[:0]])
def test_a_current_of_another_size(current: Tensor) -> None:
    with pytest.raises(
        BiogradError, match=r"first\.I has 5 values, the current \[rows, units\] is"
    ):
        box()(current)


def test_a_current_that_is_not_finite() -> None:
    with pytest.raises(BiogradError, match="not finite"):
        box()(drive() * float("nan"))


def test_numpy_s_random_numbers_go_on() -> None:
    made = box(noise=0.3)
    np.random.seed(3)
    expected = np.random.rand(4)
    np.random.seed(3)
    found = np.random.rand(2)
    made(drive())
    assert np.array_equal(np.concatenate((found, np.random.rand(2))), expected)


def test_it_cannot_be_copied() -> None:
    with pytest.raises(CapabilityError, match="cannot be copied or pickled"):
        copy.deepcopy(box())


def test_rules_that_know_nothing_of_its_values_leave_them_be() -> None:
    made = box(trainable="synapses.w")
    model = nn.Sequential(nn.Linear(6, 5), made, nn.Linear(4, 3)).double()
    nn.init.ones_(model[0].bias)
    rule, sites = make("weak", {"copies": 5}), ["0", "2"]
    with pytest.raises(CapabilityError, match=r"does not credit 1\.values\.synapses_w"):
        attach(model, rule, sites=sites)(*batch(4))
    attach(model, rule, sites=sites, outside="freeze")(*batch(4)).backward()
    assert model[0].weight.grad.any() and made.values["synapses_w"].grad is None
