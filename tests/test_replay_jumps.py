"""Credit through what a spike adds to a neuron: adaptation, against loops in plain torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.neurons.surrogate import fast_sigmoid, spike
from biograd.recipes import PopulationRecipe

State = dict[str, Tensor]
Update = Callable[[State, Tensor, Tensor, Tensor], tuple[State, Tensor]]
"""State, spikes that are held, spikes with credit, current: state and distance to the threshold."""
ROWS, STEPS, UNITS = 4, 60, 5


@pytest.fixture(autouse=True)
def on_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Brian2 run without compiling."""
    monkeypatch.setitem(import_brian2().prefs, "codegen.target", "numpy")


@dataclasses.dataclass(frozen=True, eq=False)
class Neuron:
    """A population in Brian2's words, and its step in torch."""

    update: Update
    equations: str
    threshold: str
    reset: str
    jumps: tuple[str, ...]
    mean: float = 1.5
    start: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, Any], ...] = (("method", "euler"),)
    dt_ms: float = 1.0
    scale: float = 1.0
    pause: int = 0
    """Steps without a spike after one."""

    def layer(self) -> Brian2Layer:
        recipe = PopulationRecipe(
            equations=self.equations.replace("; ", "\n"), threshold=self.threshold,
            reset=self.reset, initial=dict(self.start), **dict(self.options),
        )  # fmt: skip
        return Brian2Layer(recipe, UNITS, STEPS, self.dt_ms)

    def current(self) -> Tensor:
        stream = torch.Generator().manual_seed(3)
        noise = torch.randn(ROWS, STEPS, UNITS, generator=stream, dtype=torch.float64)
        return (self.mean * (1 + 0.5 * noise)).requires_grad_()


def by_hand(
    neuron: Neuron,
    current: Tensor,
    credit: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda s: (s.detach(), s),
    recurrent: nn.Module | None = None,
    window: int | None = None,
) -> Tensor:
    """Return spikes ``[rows, T, U]`` of a loop, differentiated by torch.

    Args:
        credit: the last spikes to those that are held and those with credit.
    """
    zero = torch.zeros(ROWS, UNITS, dtype=torch.float64)
    x: State = {name: zero.clone() for name in ("v", "w")}
    x |= {name: zero + value for name, value in neuron.start}
    s, last, train = zero, zero - 1e9, []
    for t in range(STEPS):
        if window and t % window == 0:
            x, s = {name: value.detach() for name, value in x.items()}, s.detach()
        drive = current[:, t] if recurrent is None else current[:, t] + recurrent(s)
        x, distance = neuron.update(x, *credit(s), drive)
        s = spike(distance / neuron.scale, derivative=lambda u: fast_sigmoid(u, 10.0))
        s = s * (t - last > neuron.pause)
        last = torch.where(s > 0, t, last)
        train.append(s)
    return torch.stack(train, 1)


def alif(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    beta, rho = math.exp(-1 / 10), math.exp(-1 / 50)
    v = beta * x["v"] * (1 - held) + (1 - beta) * current
    w = rho * (x["w"] + 0.3 * fired)
    return {"v": v, "w": w}, v - (1 + w)


def adex(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    v, w = x["v"] * (1 - held) - 70.6e-3 * held, x["w"] + 80e-12 * fired
    rise = 30e-9 * (-70.6e-3 - v) + 30e-9 * 2e-3 * ((v + 50.4e-3) / 2e-3).exp() - w
    new_v = v + 0.2e-3 * (rise + current * 1e-9) / 281e-12
    new_w = w + 0.2e-3 * (4e-9 * (v + 70.6e-3) - w) / 20e-3
    return {"v": new_v, "w": new_w}, new_v + 40e-3


def izhikevich(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    v, u = x["v"] * (1 - held) - 65 * held, x["u"] + 8 * fired
    new_v = v + 0.25 * (0.04 * v**2 + 5 * v + 140 - u + 10 * current)
    return {"v": new_v, "u": u + 0.25 * 0.02 * (0.2 * v - u)}, new_v - 30


def traced(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    """A synapse of the neuron onto itself: every spike adds to the current that it receives."""
    v, w = x["v"] * (1 - held), x["w"] + 0.5 * fired
    new = v + (current - 0.4 * w - v) / 10
    return {"v": new, "w": w - w / 5}, new - 1


def capped(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    """At the cap a spike adds nothing, however many statements say so."""
    v, w = x["v"] * (1 - held), x["w"]
    w = w + fired * ((w + 0.3).clamp(max=0.5) - w)
    v, w = v + (current - v) / 10, w - w / 20
    return {"v": v, "w": w}, v - (1 + w)


def mixed(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    """The potential is lowered by a threshold that the same spike has raised."""
    w = x["w"] + 0.3 * fired
    v = x["v"] - held * (1 + w)
    v, w = v + (current - v) / 10, w - w / 50
    return {"v": v, "w": w}, v - (1 + w)


def mixed_before(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    v = x["v"] - held * (1 + x["w"])
    w = x["w"] + 0.3 * fired
    v, w = v + (current - v) / 10, w - w / 50
    return {"v": v, "w": w}, v - (1 + w)


def from_below(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    v, w = x["v"] * (1 - held), x["w"] + 0.3 * fired
    v = v + (-current + 0.3 * w - v) / 10
    return {"v": v, "w": w - w / 50}, -1 - v


def refractory(x: State, held: Tensor, fired: Tensor, current: Tensor) -> tuple[State, Tensor]:
    v, w = x["v"] * (1 - held), x["w"] + 0.3 * fired
    v, w = v + (current - v) / 10, w - w / 50
    return {"v": v, "w": w}, v - (1 + w)


VW = "dv/dt = (I - v)/(10*ms) : 1; dw/dt = -w/(50*ms) : 1; I : 1"
NEURONS = {
    "alif": Neuron(
        alif, VW, "v > 1 + w", "v = 0; w += 0.3", ("w",), 2.5, options=(("method", "exact"),)
    ),
    "adex": Neuron(
        adex,
        "dv/dt = (30*nS*(-70.6*mV - v) + 60*nS*mV*exp((v + 50.4*mV)/(2*mV)) - w + I*nA)/(281*pF)"
        " : volt; dw/dt = (4*nS*(v + 70.6*mV) - w)/(20*ms) : amp; I : 1",
        "v > -40*mV", "v = -70.6*mV; w += 80*pA", ("w",), 6.0, (("v", -70.6e-3),),
        dt_ms=0.2, scale=5e-3,
        options=(("method", "euler"), ("surrogate_scale", "5*mV")),
    ),
    "izhikevich": Neuron(
        izhikevich,
        "dv/dt = (0.04*v**2 + 5*v + 140 - u + 10*I)/ms : 1; du/dt = 0.02*(0.2*v - u)/ms : 1; I : 1",
        "v > 30", "v = -65; u += 8", ("u",), 1.8, (("v", -65.0), ("u", -13.0)),
        dt_ms=0.25, scale=20.0, options=(("method", "euler"), ("surrogate_scale", "20")),
    ),
    "trace": Neuron(
        traced, "dv/dt = (I - 0.4*w - v)/(10*ms) : 1; dw/dt = -w/(5*ms) : 1; I : 1",
        "v > 1", "w += 0.5; v = 0", ("w",), 2.5,
    ),
    "mixed": Neuron(mixed, VW, "v > 1 + w", "w += 0.3; v -= 1 + w", ("v", "w"), 2.5),
    "mixed, before": Neuron(mixed_before, VW, "v > 1 + w", "v -= 1 + w; w += 0.3", ("w",), 2.5),
    "capped": Neuron(
        capped, VW.replace("50", "20"), "v > 1 + w", "v = 0; w += 0.3; w = clip(w, 0, 0.5)",
        ("w",), 2.5,
    ),
    "from below": Neuron(
        from_below, "dv/dt = (-I + 0.3*w - v)/(10*ms) : 1; dw/dt = -w/(50*ms) : 1; I : 1",
        "v < -1", "v = 0; w += 0.3", ("w",), 2.5,
    ),
    "refractory": Neuron(
        refractory, VW, "v > 1 + w", "v = 0; w += 0.3", ("w",), 4.0, pause=2,
        options=(("method", "euler"), ("refractory", "3*ms")),
    ),
}  # fmt: skip


def cotangent() -> Tensor:
    stream = torch.Generator().manual_seed(7)
    return torch.randn(ROWS, STEPS, UNITS, generator=stream, dtype=torch.float64)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def gradient(spikes: Tensor, by: Any) -> Any:
    return torch.autograd.grad(spikes, by, cotangent())


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", NEURONS)
def test_a_jump_has_the_credit_of_a_loop_in_torch(name: str, window: int | None) -> None:
    neuron = NEURONS[name]
    current, layer = neuron.current(), neuron.layer()
    assert layer.step.jumps == neuron.jumps
    layer.transport = dataclasses.replace(layer.transport, window=window)
    expected = by_hand(neuron, current, window=window)
    found = layer(current)
    assert torch.equal(found, expected)
    assert found.sum() > 40
    (wanted,) = gradient(expected, current)
    assert distance(gradient(found, current)[0], wanted) < 1e-12
    # with the two exchanged, or all of the reset held, it is another gradient
    for wrong in (lambda s: (s, s.detach()), lambda s: (s.detach(), s.detach())):
        other = by_hand(neuron, current, wrong, window=window)
        assert distance(gradient(other, current)[0], wanted) > 1e-4


@pytest.mark.parametrize("name", NEURONS)
def test_forward_mode_has_the_derivative_of_a_loop_in_torch(name: str) -> None:
    neuron = NEURONS[name]
    found = []
    for run in (neuron.layer(), lambda dual: by_hand(neuron, dual)):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(neuron.current().detach(), cotangent())
            found.append(forward_ad.unpack_dual(run(dual)).tangent)
    assert distance(*found) < 1e-12


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", NEURONS)
def test_step_by_step_with_recurrent_weights(name: str, window: int | None) -> None:
    neuron = NEURONS[name]
    current, layer = neuron.current(), neuron.layer()
    torch.manual_seed(1)
    recurrent = nn.Linear(UNITS, UNITS, bias=False, dtype=torch.float64)
    layer.transport = dataclasses.replace(layer.transport, window=window)
    found = layer(current, recurrent)
    expected = by_hand(neuron, current, recurrent=recurrent, window=window)
    assert torch.equal(found, expected)
    by = (current, recurrent.weight)
    other = by_hand(neuron, current, lambda s: (s.detach(), s.detach()), recurrent, window)
    for one, wanted, wrong in zip(
        *(gradient(s, by) for s in (found, expected, other)), strict=True
    ):
        assert distance(one, wanted) < 1e-12
        assert distance(wrong, wanted) > 1e-4


@pytest.mark.parametrize("threshold", ["v > limit + w", "v - w > limit", "v > limit * (1 + w)"])
def test_learned_constants_have_the_gradient_of_a_loop(threshold: str) -> None:
    """The size of the jump, the threshold, and the time constant of the adaptation."""
    constants = {"limit": "1.0", "jump": "0.3", "tau": "50*ms"}
    recipe = PopulationRecipe(
        equations="dv/dt = (I - v)/(10*ms) : 1\ndw/dt = -w/tau : 1\nI : 1",
        threshold=threshold, reset="v = 0; w += jump", method="euler", namespace=constants,
        trainable=dict.fromkeys(constants, (0.5, 2.0)),
    )  # fmt: skip
    layer = Brian2Layer(recipe, UNITS, STEPS, 1.0).double()
    with torch.no_grad():
        for factor in layer.factors.values():
            factor.copy_(torch.linspace(-1, 1, UNITS))
    c = layer.constants()

    def update(x: State, held: Tensor, fired: Tensor, now: Tensor) -> tuple[State, Tensor]:
        v, w = x["v"] * (1 - held), x["w"] + c["jump"] * fired
        v, w = v + (now - v) / 10, w - w * 1e-3 / c["tau"]
        level = c["limit"] * (1 + w) if "*" in threshold else c["limit"] + w
        return {"v": v, "w": w}, v - level

    neuron = Neuron(update, "", "", "", (), 2.5)
    by = list(layer.factors.values())
    found, expected = layer(neuron.current()), by_hand(neuron, neuron.current())
    other = by_hand(neuron, neuron.current(), lambda s: (s.detach(), s.detach()))
    assert torch.equal(found, expected)
    for one, wanted, wrong in zip(
        *(
            torch.autograd.grad(s, by, cotangent(), retain_graph=True)
            for s in (found, expected, other)
        ),
        strict=True,
    ):
        assert distance(one, wanted) < 1e-12 < 1e-4 < distance(wrong, wanted)


def test_a_variable_as_output_has_the_credit_of_the_spikes_before() -> None:
    """The adaptation itself is read out: it moves with the spikes, and they with the current."""
    neuron = NEURONS["refractory"]
    recipe = dataclasses.replace(neuron.layer().model.recipe, output="w", refractory="")
    layer = Brian2Layer(recipe, UNITS, STEPS, 1.0)
    current = neuron.current()
    seen: list[Tensor] = []

    def update(x: State, held: Tensor, fired: Tensor, now: Tensor) -> tuple[State, Tensor]:
        x, passed = refractory(x, held, fired, now)
        seen.append(x["w"])
        return x, passed

    by_hand(dataclasses.replace(neuron, update=update, pause=0), current)
    expected, found = torch.stack(seen, 1), layer(current)
    assert distance(found.detach(), expected.detach()) < 1e-14
    (wanted,) = gradient(expected, current)
    assert distance(gradient(found, current)[0], wanted) < 1e-12
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(current.detach(), torch.ones_like(current))
        tangent = forward_ad.unpack_dual(layer(dual)).tangent
    assert abs((tangent * cotangent()).sum() / wanted.sum() - 1) < 1e-12


@pytest.mark.parametrize(
    ("threshold", "reset", "jumps"),
    [
        ("v > 1 + w", "v = 0; w += 1", ("w",)),
        ("v >= w", "v = 0; w += 1", ("w",)),
        ("v > level * (1 + w)", "v = 0; w += 1", ("w",)),
        ("v**2 > 1 + w", "v = 0; w += 1", ("w",)),
        ("v - w > level", "w = 0.5*w + 1; v = 0", ("w",)),
        ("v + w > 1", "v = 0; w = 0", ()),
        ("v > 1", "v = 0; w = 0", ("w",)),
        ("v < -1", "v = 0; w += 1", ("w",)),
        ("v < -1 - w", "v = 0; w += 1", ()),
        ("v > 1", "v = 0", ()),
        ("v > 1 + 0.1*n", "v = 0; n += 1", ()),
        ("v > 1 and w < 3", "v = 0; w += 1", ("w",)),
    ],
)
def test_what_is_held_and_what_carries_credit(
    threshold: str, reset: str, jumps: tuple[str, ...]
) -> None:
    """The potential raises the distance to the threshold; integers are held, too."""
    recipe = PopulationRecipe(
        equations="dv/dt = (I - v)/(10*ms) : 1\ndw/dt = -w/(50*ms) : 1\nI : 1\n"
        + ("n : integer\n" if "n +=" in reset else "")
        + ("level : 1\n" if "level" in threshold else ""),
        threshold=threshold,
        reset=reset,
        method="euler",
        initial={"level": [1.0, 2.0]} if "level" in threshold else {},
    )
    assert Brian2Layer(recipe, 2, STEPS, 1.0).step.jumps == jumps


def test_a_random_slope_is_drawn_once_as_rows_steps_units() -> None:
    """So that the same stream gives the same slopes on every simulator, spike for spike."""
    neuron = NEURONS["alif"]
    current, layer = neuron.current(), neuron.layer()
    shapes: list[tuple[int, ...]] = []

    def random(stream: torch.Generator, steps_first: bool = False) -> Callable[[Tensor], Tensor]:
        def draw(distance: Tensor) -> Tensor:
            shapes.append(tuple(distance.shape))
            shape = (STEPS, ROWS, UNITS) if steps_first else distance.shape
            drawn = torch.rand(shape, generator=stream, dtype=torch.float64)
            return drawn.transpose(0, 1) if steps_first else drawn

        return draw

    def slopes(**options: bool) -> Tensor:
        chosen = random(torch.Generator().manual_seed(5), **options)
        layer.transport = dataclasses.replace(layer.transport, derivative=chosen)
        spikes = layer(current)
        first, again = (torch.autograd.grad(spikes.sum(), current, retain_graph=True) for _ in "ab")
        assert torch.equal(*first, *again)
        return first[0]

    found, wrong = slopes(), slopes(steps_first=True)
    assert shapes == [(ROWS, STEPS, UNITS)] * 2
    drawn = torch.rand(
        ROWS, STEPS, UNITS, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    ).unbind(1)
    told = iter(drawn)

    def train(distance: Tensor) -> Tensor:
        return spike(distance, derivative=lambda _: next(told))

    x: State = {name: torch.zeros(ROWS, UNITS, dtype=torch.float64) for name in "vw"}
    s, total = x["v"], torch.zeros(())
    for t in range(STEPS):
        x, passed = alif(x, s.detach(), s, current[:, t])
        s = train(passed)
        total = total + s.sum()
    (expected,) = torch.autograd.grad(total, current)
    assert distance(found, expected) < 1e-12 < 1e-2 < distance(wrong, expected)
