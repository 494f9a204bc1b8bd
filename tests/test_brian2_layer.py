"""A Brian2 population between torch layers: what lies in front of it learns through it."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks_for_tests import batch, gradients, scan
from torch import Tensor, nn
from torch.autograd import forward_ad

import biograd
from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.circuit.readouts import KINDS, Readout
from biograd.contracts import Plan, Round, Trace
from biograd.engine import attach
from biograd.errors import BiogradError, CapabilityError
from biograd.estimators import Estimator, make
from biograd.neurons import Leaky
from biograd.recipes import PopulationRecipe

STEPS = 20
LEAKY = PopulationRecipe(
    equations="dv/dt = (8 * I - v) / tau : 1\nI : 1",
    threshold="v > 1",
    reset="v = 0",
    method="exact",
    namespace={"tau": "10*ms"},
)
OPAQUE = PopulationRecipe(
    equations=LEAKY.equations,
    threshold="v > 1 or v < -9",
    reset="v = 0",
    method="exact",
    namespace={"tau": "10*ms"},
)


@pytest.fixture(autouse=True)
def no_compiler() -> None:
    import_brian2().prefs.codegen.target = "numpy"


def layer(recipe: PopulationRecipe = LEAKY, units: int = 5, steps: int = STEPS) -> Brian2Layer:
    return Brian2Layer(recipe, units, steps, dt_ms=1.0)


def bridge(recipe: PopulationRecipe = LEAKY) -> nn.Sequential:
    """A torch front end of two layers, a Brian2 population, and a readout of its spikes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 7),
        nn.Tanh(),
        nn.Linear(7, 5),
        layer(recipe),
        Readout("rate", STEPS),
        nn.Linear(5, 3),
    ).double()


def drive(rows: int = 8) -> Tensor:
    return 2 * torch.rand(rows, 5, generator=torch.Generator().manual_seed(1)).double()


# The population as a function ---------------------------------------------------------------------


def test_it_is_the_leaky_neuron_that_torch_integrates() -> None:
    """Spikes and surrogate gradient of ``neurons.scan``, whose reset is held constant too."""
    current = drive().unsqueeze(1).requires_grad_()
    weights = torch.randn(8, STEPS, 5, generator=torch.Generator().manual_seed(2)).double()
    expected = scan(Leaky(resistance=8.0, reset="zero"), current, STEPS)
    (truth,) = torch.autograd.grad((expected * weights).sum(), current)
    found = layer()(current)
    assert torch.equal(found, expected) and 0 < found.mean() < 1
    (gradient,) = torch.autograd.grad((found * weights).sum(), current)
    assert (gradient - truth).abs().max() < 1e-12 * truth.abs().max()


def test_a_current_of_one_value_for_the_trial_needs_no_time_axis() -> None:
    population = layer()
    assert torch.equal(population(drive()), population(drive().unsqueeze(1)))


def test_a_variable_can_be_passed_on_instead_of_spikes() -> None:
    recipe = PopulationRecipe(
        equations="dv/dt = (I - v) / (10*ms) : 1\nI : 1", output="v", method="exact"
    )
    current = drive().requires_grad_()
    found = layer(recipe)(current)
    time = torch.arange(1, STEPS + 1).double()[:, None]
    response = 1 - torch.exp(-time / 10)
    assert (found - current.unsqueeze(1) * response).abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(found.sum(), current)
    assert (gradient - response.sum()).abs().max() < 1e-12


@pytest.mark.parametrize("recipe", [LEAKY, OPAQUE], ids=["replayed", "forward only"])
def test_copies_and_pickles_simulate_the_same(recipe: PopulationRecipe) -> None:
    population = layer(recipe)
    expected = population(drive())
    for twin in (copy.deepcopy(population), pickle.loads(pickle.dumps(population))):
        assert torch.equal(twin(drive()), expected)
    assert expected.any()


def test_what_has_no_derivative_says_so() -> None:
    population = layer(OPAQUE)
    assert population.forward_only
    current = drive().requires_grad_()
    found = population(current)
    assert torch.equal(found, population(drive())) and found.any()
    with pytest.raises(CapabilityError, match="no derivative: population") as caught:
        found.sum().backward()
    assert "\n" not in str(caught.value)
    recurrent = nn.Linear(5, 5).double()
    with pytest.raises(CapabilityError, match="no derivative: population"):
        population(current.unsqueeze(1), recurrent).sum().backward()
    with forward_ad.dual_level(), pytest.raises(CapabilityError, match="no derivative"):
        population(forward_ad.make_dual(drive(), drive()))


def test_a_simulation_that_blows_up_says_so() -> None:
    recipe = PopulationRecipe(
        equations="dv/dt = (v**3 + I) / ms : 1\nI : 1", output="v", method="euler"
    )
    with pytest.raises(BiogradError, match="v of 40 of 40 neurons is not finite") as caught:
        layer(recipe)(10 * drive() + 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "recipe",
    [
        LEAKY,
        OPAQUE,
        PopulationRecipe(
            equations="v : 1\nI : 1", threshold="v > 1", reset="v = 0", update="v = 0.9*v + I"
        ),
    ],
    ids=["replayed", "forward only", "discrete"],
)
def test_a_current_that_is_not_finite_is_not_taken_for_silence(recipe: PopulationRecipe) -> None:
    """``NaN > 1`` is false: the neuron would never spike again, and the loss stay finite."""
    current, recurrent = drive(), nn.Linear(5, 5, dtype=torch.float64)
    layer(recipe)(current.unsqueeze(1), recurrent)
    current[3, 2] = math.nan
    for options in ((), (recurrent,)):
        with pytest.raises(BiogradError, match=r"population: \w of \d of 40 .*not finite"):
            layer(recipe)(current.unsqueeze(1), *options)


def test_threads_take_turns() -> None:
    """A trial of one thread must not move the neurons of another's."""
    population = layer(steps=1000)
    currents = [
        2 * torch.rand(4, 1000, 5, generator=torch.Generator().manual_seed(seed))
        for seed in range(8)
    ]
    alone = [credit(population, current) for current in currents]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(functools.partial(credit, population), currents))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    for twin in (copy.deepcopy(population), pickle.loads(pickle.dumps(population))):
        assert twin._turn is not population._turn
        assert torch.equal(credit(twin, currents[0]), alone[0])


def credit(population: Brian2Layer, current: Tensor) -> Tensor:
    """Return the spikes of a current and the gradient of their number, in one row."""
    current = current.clone().requires_grad_()
    spikes = population(current)
    spikes.sum().backward()
    assert current.grad is not None
    return torch.cat((spikes.detach().flatten(), current.grad.flatten()))


# Where every neuron begins -----------------------------------------------------------------------


def begun(initial: object) -> Brian2Layer:
    """Squares: what a current does depends on where the neuron is."""
    recipe = PopulationRecipe(
        equations="dv/dt = (I - v * v) / (10*ms) : 1\nI : 1",
        output="v",
        method="euler",
        initial={"v": initial},  # type: ignore[dict-item]
    )
    return layer(recipe)


@pytest.mark.parametrize("initial", [(0.1, 0.3, "0.5", 0.7, 0.9), "uniform(0.1, 0.9)"])
def test_neurons_that_begin_apart_are_replayed(initial: object) -> None:
    population, current = begun(initial), drive(2).requires_grad_()
    start = torch.from_numpy(population.model.initial(5)["v"])
    found = population(current)
    assert len(set(start.tolist())) == 5
    assert (found[:, 0] - (start + (current - start**2) / 10)).abs().max() < 1e-12
    weights = torch.linspace(1, 2, STEPS).double()[:, None]
    (gradient,) = torch.autograd.grad((found * weights).sum(), current)
    differences = torch.zeros_like(gradient)
    for place in range(current.numel()):
        step = torch.zeros(current.numel(), dtype=torch.float64)
        step[place] = 1e-6
        moved = step.view_as(current)
        ends = [population((current + sign * moved).detach()) for sign in (1, -1)]
        differences.view(-1)[place] = ((ends[0] - ends[1]) * weights).sum() / 2e-6
    assert (gradient - differences).abs().max() < 1e-8 * gradient.abs().max()
    equal = begun(0.5)(current)
    (other,) = torch.autograd.grad((equal * weights).sum(), current)
    assert (gradient - other).abs().max() > 1e-3
    nothing = nn.Linear(5, 5, bias=False).double()
    nn.init.zeros_(nothing.weight)
    stepped = population(current.unsqueeze(1), nothing)  # as Brian2 goes, step by step
    assert (stepped - found).abs().max() < 1e-12
    (again,) = torch.autograd.grad((stepped * weights).sum(), current)
    assert (again - gradient).abs().max() < 1e-12 * gradient.abs().max()


# Noise --------------------------------------------------------------------------------------------

NOISY = PopulationRecipe(
    equations="dv/dt = (I - v) / tau + sigma * sqrt(2 / tau) * xi : 1\nI : 1",
    output="v",
    namespace={"tau": "10*ms", "sigma": 0.5},
    method="euler",
)


def test_noise_has_the_variance_of_the_equation() -> None:
    """Euler's Ornstein-Uhlenbeck process: ``var = sigma^2 / (1 - dt / (2 tau))`` at last."""
    found = Brian2Layer(NOISY, 400, 400, dt_ms=1.0)(torch.zeros(20, 1, 400).double())
    late = found[:, 100:]
    expected = 0.25 / (1 - 1 / 20)
    assert late.var().item() == pytest.approx(expected, rel=0.03)
    lag = (late[:, 10:] * late[:, :-10]).mean() / late.var()
    assert lag.item() == pytest.approx((1 - 1 / 10) ** 10, abs=0.03)


def test_all_copies_of_an_example_receive_the_same_noise() -> None:
    network = nn.Sequential(
        nn.Linear(6, 5), layer(NOISY), Readout("potential", STEPS), nn.Linear(5, 3)
    ).double()
    inputs, targets = batch()
    engine = attach(network, make("weak"), sites=["0", "3"])
    substrate = engine.substrate
    nothing = torch.zeros(3, len(inputs), 1, 5, dtype=torch.float64)
    losses = []
    for seed in (1, 2):
        stream = torch.Generator().manual_seed(seed)
        plan = Plan(noise={"0": nothing})
        trace = substrate.run(plan, inputs, targets, engine.objective, stream)
        assert (trace.losses[1:] - trace.losses[:1]).abs().max() < 1e-12
        losses.append(trace.losses[0])
    assert not torch.equal(*losses)


# A front end --------------------------------------------------------------------------------------


class Given(Estimator):
    """Deliver a given gradient of the population's current."""

    needs = frozenset(("loss", "cut"))  # type: ignore[arg-type]

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def plans(self, round: Round) -> Sequence[Plan]:
        return (Plan(cut=frozenset(round.hidden)),)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        yield from traces[0].sites["2"].deliver(self.value.unsqueeze(1))


@pytest.mark.parametrize("recipe", [LEAKY, OPAQUE], ids=["replayed", "forward only"])
def test_the_front_end_receives_what_the_population_s_current_receives(
    recipe: PopulationRecipe,
) -> None:
    inputs, targets = batch()
    network = bridge(recipe)
    value = torch.randn(8, 5, generator=torch.Generator().manual_seed(3)).double()
    found = gradients(attach(network, Given(value), sites=["2", "5"]), inputs, targets)
    front = copy.deepcopy(network[:3])
    front(inputs).backward(value)
    for name, parameter in front.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-12, atol=1e-14)
        assert parameter.grad.any()


def learned(network: nn.Module, estimator: Estimator, sites: list[str] | None) -> float:
    inputs, _ = batch(60)
    targets = inputs[:, :3].argmax(1)
    engine = biograd.attach(network, estimator, sites=sites)
    optimiser = torch.optim.Adam(engine.parameters(), 0.02)
    for _ in range(60):
        result = engine(inputs, targets)
        optimiser.zero_grad()
        result.backward()
        optimiser.step()
    engine.detach()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(network(inputs), targets))


@pytest.mark.parametrize("recipe", [LEAKY, OPAQUE], ids=["replayed", "forward only"])
def test_a_front_end_learns_through_a_population(recipe: PopulationRecipe) -> None:
    """Beside the control whose front end stays as it is."""
    weak = learned(bridge(recipe), make("weak", {"copies": 17, "sigma": 0.2}), ["2", "5"])
    control = learned(bridge(recipe), make("frozen_hidden"), ["2", "5"])
    assert weak < 0.7 * control


def test_backpropagation_passes_through() -> None:
    assert learned(bridge(), make("backprop"), None) < 0.7 * learned(
        bridge(), make("frozen_hidden"), ["2", "5"]
    )


# Learned constants --------------------------------------------------------------------------------

TRAINABLE = PopulationRecipe(
    equations=LEAKY.equations,
    threshold="v > 1",
    reset="v = 0",
    method="exact",
    namespace={"tau": "10*ms"},
    trainable={"tau": (0.2, 5.0)},
)


def test_a_learned_constant_starts_at_its_value_and_stays_within_its_bounds() -> None:
    population = layer(TRAINABLE)
    assert torch.allclose(population.constants()["tau"], torch.tensor(0.01), rtol=1e-6)
    assert torch.equal(population(drive().float()), layer()(drive().float()))
    with torch.no_grad():
        population.factors["tau"].copy_(torch.tensor([-90.0, -1.0, 0.0, 1.0, 90.0]))
    found = population.constants()["tau"].detach()
    assert found[0] == pytest.approx(0.002) and found[-1] == pytest.approx(0.05)
    assert found.diff().gt(0).all()


def test_the_gradient_of_a_time_constant_is_that_of_finite_differences() -> None:
    """Below the threshold the replay is exact."""
    recipe = PopulationRecipe(
        equations=LEAKY.equations,
        output="v",
        method="exact",
        namespace={"tau": "10*ms"},
        trainable={"tau": (0.2, 5.0)},
    )
    population = layer(recipe).double()
    factors = population.factors["tau"]
    with torch.no_grad():
        factors.add_(torch.linspace(-1, 1, 5))
    weights = torch.randn(8, STEPS, 5, generator=torch.Generator().manual_seed(4)).double()
    (found,) = torch.autograd.grad((population(drive()) * weights).sum(), factors)
    for unit in range(5):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                factors[unit] += sign * 1e-6
                ends.append(float((population(drive()) * weights).sum()))
                factors[unit] -= sign * 1e-6
        slope = (ends[0] - ends[1]) / 2e-6
        assert float(found[unit]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("rule", ["backprop", "weight_perturbation", "forward_gradient_weight"])
def test_rules_train_time_constants(rule: str) -> None:
    network = nn.Sequential(
        nn.Linear(6, 5), layer(TRAINABLE), Readout("rate", STEPS), nn.Linear(5, 3)
    ).double()
    found = gradients(attach(network, make(rule)), *batch())
    assert found["1.factors.tau"].any()


def test_the_control_trains_no_constants() -> None:
    network = nn.Sequential(
        nn.Linear(6, 5), layer(TRAINABLE), Readout("rate", STEPS), nn.Linear(5, 3)
    ).double()
    nn.init.ones_(network[0].bias)
    found = gradients(attach(network, make("frozen_hidden")), *batch())
    assert found["3.weight"].any()
    assert not any(value.any() for name, value in found.items() if not name.startswith("3."))


@pytest.mark.parametrize(
    "shape", [(8, 4), (8, 7, 5), (8, STEPS, 4), (5,), (2, 8, STEPS, 5)], ids=str
)
def test_currents_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(CapabilityError, match="5 units and 20 steps, not") as caught:
        layer()(torch.zeros(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"units": 0}, "units = 0: must be >= 1"),
        ({"units": 2.5}, "units = 2.5: must be a whole number"),
        ({"steps": "a"}, "steps = 'a'"),
        ({"dt_ms": -1.0}, "dt_ms = -1.0: must be > 0"),
        ({"surrogate": "boxcar"}, "surrogate = 'boxcar'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(BiogradError, match=words):
        Brian2Layer(**{"recipe": LEAKY, "units": 5, "steps": 3, "dt_ms": 1.0} | arguments)


# Readouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_readouts_by_hand(kind: str) -> None:
    train = torch.zeros(1, 4, 3, dtype=torch.float64)
    train[0, 1, 0] = train[0, 3, 0] = train[0, 0, 1] = 1
    decay = torch.exp(torch.tensor(-0.5)).double()
    reach = 1 - decay ** torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
    reach = reach / reach.mean()
    expected = {
        "rate": [2, 1, 0],
        "potential": [0.5, 0.25, 0],
        "first_spike": [0.75, 1, 0],
        "filtered_rate": [float(decay**2 + 1), float(decay**3), 0],
        "membrane": [float(reach[1] + reach[3]), float(reach[0]), 0],
    }[kind]
    found = Readout(kind, 4, dt_ms=1.0, time_constant_ms=2.0)(train)
    assert torch.allclose(found, torch.tensor([expected]).double(), rtol=1e-6)


def test_a_first_spike_has_a_derivative() -> None:
    """Another spike before the first would bring it forward, one behind it changes nothing."""
    train = torch.tensor([0.0, 0.0, 1.0, 0.0]).double().view(1, 4, 1).requires_grad_()
    Readout("first_spike", 4)(train).sum().backward()
    assert torch.allclose(train.grad.flatten(), torch.tensor([0.5, 0.25, 0.5, 0.0]).double())


def test_a_readout_that_does_not_exist() -> None:
    with pytest.raises(BiogradError, match="did you mean 'rate'"):
        Readout("rates")
