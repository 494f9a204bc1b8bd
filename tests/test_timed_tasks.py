"""Tasks with targets in every step: the signal of each step, and what the rules make of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import biograd
from biograd.circuit.circuit import Circuit
from biograd.circuit.readouts import LeakyReadout
from biograd.circuit.sugar import Layers
from biograd.contracts import Plan
from biograd.encoding import Encoding
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import Estimator, make
from biograd.neurons import Leaky
from biograd.randomness import generator
from biograd.recipes import EncodingRecipe, ModelRecipe, NetworkRecipe
from biograd.substrate.network import initialise
from biograd.tasks import Classes, Regression, TimeSeries, summed

STEPS, INPUTS, UNITS, OUTPUTS, ROWS = 12, 5, 7, 2, 4


class Given(Encoding):
    """Data that have a time axis already."""

    def __init__(self, steps: int, units: int, dt_ms: float) -> None:
        super().__init__(EncodingRecipe(dt_ms=dt_ms, duration_ms=steps * dt_ms), (steps, units))
        self.units = units

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs


def timed_spiking(
    steps: int = STEPS,
    units: int = UNITS,
    dt_ms: float = 1.0,
    inputs: int = INPUTS,
    outputs: int = OUTPUTS,
) -> Circuit:
    """Return recurrent spiking neurons whose readout answers in every step."""
    recipe = ModelRecipe(
        network=NetworkRecipe(
            kind="spiking", hidden=(units,), recurrent=True, readout_time_constant_ms=30.0
        ),
        neuron=Leaky(resistance=12.0, time_constant_ms=30.0, slope=3.0),
    )
    return Layers(recipe, (inputs,), Given(steps, inputs, dt_ms), outputs, timed=True).circuit()


class Plain(nn.Module):
    """A user's own network over time."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.readout = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, OUTPUTS)
        self.trace = LeakyReadout(1.0, 5.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.trace(self.readout(torch.tanh(self.hidden(inputs))))


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def data() -> tuple[Tensor, Tensor]:
    inputs = normal(ROWS, STEPS, INPUTS, name="x")
    targets = normal(ROWS, STEPS, OUTPUTS, name="y")
    targets[0, 8:] = float("nan")
    return inputs, targets


def spiking() -> Circuit:
    network = timed_spiking().double()
    initialise(network, 0, 1.0, "readout")
    return network


def plain() -> Plain:
    torch.manual_seed(0)
    return Plain().double()


def attached(network: nn.Module, rule: Estimator) -> Engine:
    return attach(network, rule, task=TimeSeries(OUTPUTS))


def gradients(engine: Engine) -> dict[str, Tensor]:
    engine(*data()).backward()
    found = {name: p.grad.clone() for name, p in engine.network.named_parameters()}  # type: ignore[union-attr]
    engine.network.zero_grad()
    return found


# The signal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [spiking, plain])
def test_the_signal_is_the_difference_of_the_loss_by_each_steps_current(network: object) -> None:
    module = network()  # type: ignore[operator]
    engine = attached(module, biograd.Backpropagation())
    inputs, targets = data()
    engine.prepare(inputs, targets)
    encoded = engine.substrate.encode(inputs, generator(0))
    trace = engine.substrate.run(Plan(), encoded, targets, engine.objective)
    signal = trace.signal()
    assert signal.shape == (ROWS, STEPS, OUTPUTS)
    engine.detach()
    for place in ((0, 3, 1), (2, 11, 0), (3, 0, 1)):
        found = []
        for step in (1e-5, -1e-5):
            change = torch.zeros(ROWS, STEPS, OUTPUTS, dtype=torch.float64)
            change[place] = step
            handle = module.readout.register_forward_hook(lambda _m, _i, o, c=change: o + c)
            found.append(engine.task.losses(module(inputs), targets).mean().item())
            handle.remove()
        assert float(signal[place]) == pytest.approx((found[0] - found[1]) / 2e-5, rel=1e-6)
    assert not signal[0, 8:].any()  # steps without a target, and none behind them


def test_direct_feedback_delivers_each_step_its_own_error() -> None:
    rule = biograd.DirectFeedback()
    engine = attached(plain(), rule)
    found = gradients(engine)
    module = plain()
    inputs, targets = data()
    current = module.readout(torch.tanh(module.hidden(inputs))).detach().requires_grad_()
    loss = TimeSeries(OUTPUTS).losses(module.trace(current), targets).mean()
    (signal,) = torch.autograd.grad(loss, current)
    slope = 1 - torch.tanh(module.hidden(inputs)).square()
    delta = (signal @ rule.matrices["hidden"]) * slope
    assert torch.allclose(found["hidden.weight"], torch.einsum("btu,bti->ui", delta, inputs))
    truth = gradients(attached(plain(), biograd.Backpropagation()))
    assert torch.allclose(found["readout.weight"], truth["readout.weight"])


BROADCAST = {
    "direct_feedback": {},
    "kickback": {},
    "target_projection": {},
    "eprop": {"feedback": "random"},
}


@pytest.mark.parametrize("rule", BROADCAST)
def test_what_is_broadcast_in_a_step_comes_from_it_and_later_ones(rule: str) -> None:
    """The error of a step that is not there cannot reach the neurons' input behind it."""
    inputs, targets = data()
    targets[:, 5:] = float("nan")
    module = spiking()
    engine = attached(module, make(rule, BROADCAST[rule]))
    engine.prepare(inputs, targets)
    result = engine(inputs, targets)
    assert engine._last is not None
    current = engine._last[0][0].sites["blocks.0.synapse"].visits[0].outputs[0]
    (delivered,) = torch.autograd.grad(result.surrogate, current)
    assert delivered.shape == (ROWS, STEPS, UNITS)
    assert delivered[:, :5].any() and not delivered[:, 5:].any()


def test_an_untimed_output_keeps_one_error_for_the_trial() -> None:
    network = biograd.build("spiking", inputs=4, classes=3)
    engine = attach(network, biograd.DirectFeedback())
    engine(torch.rand(5, 4), torch.arange(5) % 3)
    assert not engine.timed
    assert engine._last is not None
    trace = engine._last[0][0]
    assert trace.signal().shape == (5, 1, 3)
    assert torch.equal(trace.signal()[:, 0], trace.error())


# The readout --------------------------------------------------------------------------------------


def test_the_leaky_readout_is_its_equation() -> None:
    module, current = LeakyReadout(2.0, 10.0), normal(3, 9, 2, name="i")
    decay, state = math.exp(-0.2), torch.zeros(3, 2, dtype=torch.float64)
    for step, found in zip(current.unbind(1), module(current).unbind(1), strict=True):
        state = decay * state + (1 - decay) * step
        assert torch.allclose(found, state, rtol=1e-12)
    assert LeakyReadout.of(NetworkRecipe(readout_time_constant_ms=10.0), 2.0).decay == decay
    with pytest.raises(RecipeError, match="readout = 'first_spike': one value of a trial"):
        LeakyReadout.of(NetworkRecipe(readout="first_spike"), 1.0)


# Noise in bins ------------------------------------------------------------------------------------


def estimated(rule: str, settings: dict[str, object], draws: int) -> tuple[float, float]:
    """Return cosine and length of the mean estimate relative to back-propagation's gradient."""
    engine = attached(plain(), make(rule, settings))
    found = torch.stack([gradients(engine)["hidden.weight"] for _ in range(draws)]).mean(0)
    truth = gradients(attached(plain(), biograd.Backpropagation()))["hidden.weight"]
    cosine = nn.functional.cosine_similarity(found.flatten(), truth.flatten(), 0)
    return float(cosine), float(found.norm() / truth.norm())


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("node_perturbation", {"copies": 33, "sigma": 0.05}),
        ("node_perturbation", {"copies": 33, "sigma": 0.05, "activity": "measured"}),
        ("likelihood_ratio", {"copies": 33, "sigma": 0.05, "baseline": "clean"}),
        ("weak", {"copies": 33, "sigma": 0.05, "method": "ridge"}),
        ("weak", {"copies": 33, "sigma": 0.05, "method": "antithetic"}),
        ("weak", {"copies": 200, "sigma": 0.01, "method": "least_squares"}),
    ],
)
def test_bins_of_one_step_find_the_gradient_and_a_trial_does_not(
    rule: str, settings: dict[str, object]
) -> None:
    draws = 2 if settings["copies"] == 200 else 60
    cosine, _ = estimated(rule, settings, draws)
    assert cosine > 0.93
    assert estimated(rule, {**settings, "time_bin": "trial"}, draws)[0] < cosine - 0.1


def test_losses_of_later_steps_alone_make_the_estimate_sharper() -> None:
    """Against the same draws, credited with the whole loss."""

    class Whole(biograd.NodePerturbation):
        def estimates(self, trace: biograd.contracts.Trace, round: object) -> dict[str, Tensor]:  # type: ignore[name-defined]
            trace.step_losses = None
            return super().estimates(trace, round)  # type: ignore[arg-type]

    truth = gradients(attached(plain(), biograd.Backpropagation()))["hidden.weight"].flatten()
    cosines = []
    for kind in (biograd.NodePerturbation, Whole):
        engine = attached(plain(), kind(copies=33, sigma=0.05))
        found = [gradients(engine)["hidden.weight"].flatten() for _ in range(20)]
        cosines.append(
            float(torch.stack([nn.functional.cosine_similarity(f, truth, 0) for f in found]).mean())
        )
    assert cosines[0] > cosines[1] + 0.05


def test_ridge_weights_of_bins_are_the_regressions_own() -> None:
    from biograd.estimators.loss_regression import METHODS, binned

    directions, losses = normal(9, 3, 8, name="u"), normal(10, 3, 2, name="L")
    for method in ("ridge", "baseline", "least_squares", "leave_one_out"):
        found = binned(method, losses, directions, 2, 6, 0.1)
        for k in range(2):
            expected = METHODS[method][1](losses[:, :, k], directions, 0.1)
            assert torch.allclose(found[:, 3 * k : 3 * k + 3], expected[:, 2 + 3 * k : 5 + 3 * k])


# Networks and tasks that do not fit ---------------------------------------------------------------


def test_a_task_and_a_network_of_another_shape_are_refused() -> None:
    for task, message in (
        (Regression(OUTPUTS), r"outputs \[examples, 2\], the network returns \[4, 12, 2\]"),
        (TimeSeries(3), r"outputs \[examples, steps, 3\]"),
    ):
        with pytest.raises(CapabilityError, match=message):
            attach(plain(), biograd.Backpropagation(), task=task).prepare(*data())
    with pytest.raises(CapabilityError, match="not both"):
        attach(plain(), biograd.Backpropagation(), task=TimeSeries(2), loss="squared_error")


def test_a_users_loss_of_steps_is_a_task_in_time() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(2)

    inputs, targets = data()
    engine = attach(plain(), biograd.NodePerturbation(copies=5), loss=loss)
    result = engine(inputs, targets.nan_to_num())
    assert engine.timed and result.losses.shape == (5, ROWS)
    assert engine._last is not None
    assert engine._last[0][0].sites["hidden"].noise.shape == (4, ROWS, STEPS, UNITS)
    assert engine._last[0][0].step_losses.shape == (5, ROWS, STEPS)  # type: ignore[union-attr]


def test_classes_in_every_step_reach_every_rule_that_takes_them() -> None:
    inputs = data()[0]
    classes = torch.arange(ROWS * STEPS).view(ROWS, STEPS) % OUTPUTS
    classes[1, 3] = -100
    for rule in ("backprop", "direct_feedback", "target_projection", "weak", "synthetic_gradient"):
        engine = attach(plain(), make(rule), task=Classes(OUTPUTS, timed=True))
        engine(inputs, classes).backward()
        grad = engine.network.get_submodule("hidden").weight.grad
        assert grad is not None and grad.isfinite().all()
        assert grad.any() or rule == "synthetic_gradient"  # whose predictions begin at zero


# Learning ----------------------------------------------------------------------------------------


def pattern(seed: int, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Return a frozen Poisson input and a sum of sinusoids of 1, 2, 3 and 5 periods."""
    stream = torch.Generator().manual_seed(seed)
    inputs = (torch.rand(1, steps, 4 * INPUTS, generator=stream) < 0.2).float()
    time = torch.arange(steps) / steps
    course = torch.zeros(steps)
    for periods in (1, 2, 3, 5):
        size, phase = torch.rand(2, generator=stream)
        course += (0.5 + 1.5 * size) * torch.sin(2 * math.pi * (periods * time + phase))
    return inputs, (course / course.std())[None, :, None]


def error(rule: Estimator, seed: int, steps: int, rate: float) -> float:
    """Return the mean squared error relative to the target's variance after training."""
    inputs, targets = pattern(seed)
    network = timed_spiking(100, 100, 10.0, 4 * INPUTS, 1)
    initialise(network, seed, 1.0, "readout")
    engine = attach(network, rule, task=TimeSeries(1), seed=seed)
    engine.prepare(inputs, targets)
    optimiser = torch.optim.Adam(engine.parameters(), rate)
    for _ in range(steps):
        result = engine(inputs, targets)
        result.backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
    return float(2 * result.losses[0].mean() / targets.var(correction=0))


@pytest.mark.slow
def test_eprop_with_random_feedback_learns_a_pattern_better_than_the_readout_alone() -> None:
    found = {
        name: [error(rule(), seed, 150, 5e-3) for seed in range(4)]
        for name, rule in {
            "eprop": lambda: biograd.EligibilityPropagation(feedback="random"),
            "control": biograd.FrozenHidden,
        }.items()
    }
    assert sum(found["eprop"]) < 0.7 * sum(found["control"])


class Loop(nn.Module):
    """A user's own recurrent network, stepped in Python: leaky tanh units."""

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.recurrent = nn.Linear(4 * INPUTS, 64), nn.Linear(64, 64, bias=False)
        self.readout = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        state, outputs = inputs.new_zeros(len(inputs), 64), []
        for now in inputs.unbind(1):
            state = 0.8 * state + 0.2 * torch.tanh(self.feed(now) + self.recurrent(state))
            outputs.append(self.readout(state))
        return torch.stack(outputs, 1)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_loop_of_ones_own_learns_a_pattern_by_noise_of_single_steps_and_not_of_trials() -> None:
    """The script that a user would write; what the control reaches stands beside it."""
    inputs, targets = pattern(0, 50)
    rules = {
        "backprop": biograd.Backpropagation(),
        "control": biograd.FrozenHidden(),
        "noise of steps": biograd.NodePerturbation(copies=65),
        "weak": biograd.WeakGradient(copies=65),
        "noise of trials": biograd.NodePerturbation(copies=65, time_bin="trial"),
    }
    found = {}
    for name, rule in rules.items():
        torch.manual_seed(0)
        network = Loop()
        sites = {"hidden": ("feed", "recurrent"), "readout": ("readout",)}
        engine = attach(network, rule, task=TimeSeries(1), sites=sites)
        engine.prepare(inputs, targets)
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(200):
            engine(inputs, targets).backward()
            optimiser.step()
            optimiser.zero_grad()
            engine.update()
        totals = summed(engine.task.metrics(network(inputs).detach(), targets))
        found[name] = 1 - engine.task.figures(totals)["r2"]
    assert found["backprop"] < 0.03
    assert max(found["noise of steps"], found["weak"]) < 0.4 * found["control"]
    assert found["noise of trials"] > found["control"]
