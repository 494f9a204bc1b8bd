"""Brian2 networks of many rows in one run, against Brian2 run by hand for every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from biograd.brian.box import Brian2Box
from biograd.brian.import_brian2 import import_brian2

b2 = import_brian2()
EQUATIONS = "dv/dt = (4*I + g - v)/(10*ms) : 1\ndg/dt = -g/(5*ms) : 1\nI : 1"
LIF = {"threshold": "v > 1", "reset": "v = 0", "method": "euler"}


@pytest.fixture(autouse=True)
def no_compiler() -> None:
    b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = 1 * b2.ms


def drive(rows: int = 3) -> Tensor:
    return 1.5 * torch.rand(rows, 5, generator=torch.Generator().manual_seed(0)).double()


def groups(equations: str = EQUATIONS, **options: Any) -> tuple[Any, Any]:
    first = b2.NeuronGroup(5, equations, name="first", **(LIF | options))
    second = b2.NeuronGroup(4, EQUATIONS.replace("4*I + ", ""), name="second", **LIF)
    return first, second


def joined(first: Any, second: Any, model: str = "w : 1", **options: Any) -> Any:
    given = {"on_pre": "g_post += w", "name": "syn"} | options
    made = b2.Synapses(first, second, model, **given)
    made.connect(condition="i != j")
    made.w = "0.5 + 0.1*i + 0.05*j"
    return made


def plastic() -> Any:
    """Pair-based plasticity, delays of each synapse, a short-term depression."""
    first, second = groups()
    stdp = joined(
        first,
        second,
        """w : 1
        dpre/dt = -pre/(20*ms) : 1 (event-driven)
        dpost/dt = -post/(20*ms) : 1 (event-driven)
        dx/dt = (1 - x)/(50*ms) : 1 (event-driven)""",
        on_pre="g_post += w*x\nx *= 0.8\npre += 0.1\nw = clip(w + post, 0, 3)",
        on_post="post -= 0.11\nw = clip(w + pre, 0, 3)",
    )
    stdp.x = 1
    stdp.pre.delay = "(i % 3)*ms"
    back = joined(second, first[1:4], on_pre="v_post -= 0.1*w", name="back", delay=2 * b2.ms)
    return b2.Network(first, second, stdp, back)


def graded() -> Any:
    """A summed variable, synapses with a clock, statements in every step, refractoriness."""
    first, second = groups(
        EQUATIONS.replace(" : 1\ndg", " : 1 (unless refractory)\ndg") + "\nz : 1",
        refractory=2 * b2.ms,
    )
    mean = b2.Synapses(first, first, "k : 1\nz_post = k*v_pre : 1 (summed)", name="mean")
    mean.connect()
    mean.k = "0.01*i"
    slow = joined(
        first,
        second,
        "w : 1\ndh/dt = -h/(8*ms) : 1 (clock-driven)",
        on_pre="h += w\ng_post += h",
        method="euler",
    )
    first.run_regularly("g += 0.2*z", when="start")
    return b2.Network(first, second, mean, slow)


def played() -> Any:
    """A course for each neuron, spikes from a list, own numbers of neurons."""
    course = b2.TimedArray(3 * np.random.RandomState(0).rand(60, 5), dt=1 * b2.ms)
    first, second = groups(
        EQUATIONS.replace("4*I", "4*I + course(t, i)*i/N"), namespace={"course": course}
    )
    played = b2.SpikeGeneratorGroup(
        3, [0, 1, 2, 2], [5, 5, 9, 2] * b2.ms, period=20 * b2.ms, name="listed"
    )
    into = joined(played, second, name="into", on_pre="v_post += 0.3*w")
    return b2.Network(first, second, joined(first, second), played, into)


NETWORKS: dict[str, Callable[[], Any]] = {"plastic": plastic, "graded": graded, "played": played}


def by_hand(network: Any, current: np.ndarray, weights: float = 1.0) -> dict[str, np.ndarray]:
    spikes = b2.SpikeMonitor(network["second"])
    course = b2.StateMonitor(network["first"], "v", record=True)
    network["first"].I = current
    network["syn"].w = weights * network["syn"].w[:]
    network.add(spikes, course)
    network.run(60 * b2.ms)
    return {"spikes": np.array(spikes.count), "v": np.asarray(course.v).mean(1)}


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_that_run_together_are_those_of_brian2(name: str) -> None:
    outputs = {"spikes": ("second", "spikes"), "v": ("first", "v")}
    hand = [by_hand(NETWORKS[name](), current, 1.25) for current in drive(2).numpy()]
    for what, output in outputs.items():
        box = Brian2Box(NETWORKS[name](), ("first", "I"), output, 60.0, ["syn.w"])
        with torch.no_grad():
            box.values["syn_w"].mul_(1.25)
        found = box(drive(2))
        assert box.alone == "" and sorted(box._rows) == [2]
        for row, expected in zip(found.numpy(), hand, strict=True):
            assert np.abs(row - expected[what]).max() < 1e-9
        assert torch.equal(box(drive(1))[0], found[0]) and torch.equal(box(drive(2)), found)
    assert sum(one["spikes"].sum() for one in hand) > 5


def noisy(kind: str) -> Any:
    first, second = groups(
        EQUATIONS.replace("- v)/(10*ms)", "- v)/(10*ms) + 0.3*xi/sqrt(10*ms)")
        if kind == "xi"
        else EQUATIONS
    )
    parts = [first, second, joined(first, second)]
    if kind == "input":
        parts.append(b2.PoissonInput(first, "g", 20, 10 * b2.Hz, 0.8))
    if kind == "group":
        source = b2.PoissonGroup(6, [50, 100, 20, 80, 10, 40] * b2.Hz, name="source")
        parts += [source, joined(source, first, name="into")]
    return b2.Network(*parts)


@pytest.mark.parametrize("kind", ["xi", "input", "group"])
def test_random_numbers_are_of_the_same_law(kind: str) -> None:
    """Mean and variance of counts over 400 trials, against runs of Brian2 for each row."""
    current = 0.3 * torch.ones(400, 5).double()
    together, alone = (
        Brian2Box(noisy(kind), ("first", "I"), ("first", "spikes"), 60.0) for _ in range(2)
    )
    alone.alone = "asked for"
    found, expected = together(current), alone(current)
    assert together.alone == "" and found.mean() > 1 and found.std() > 0.3
    error = ((found.var(0) + expected.var(0)) / len(current)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error + 1e-9).all()
    ratio = found.var(0) / expected.var(0)
    assert ratio.min() > 0.7 and ratio.max() < 1.4
    assert len(found.unique(dim=0)) > 50 and torch.equal(together(current), found)


def test_seeds_decide_which_rows_draw_alike() -> None:
    box = Brian2Box(noisy("xi"), ("first", "I"), ("first", "spikes"), 60.0)
    box._seeds = lambda rows: [0, 1, 2, 0, 1, 2]  # type: ignore[method-assign]
    current = drive(1).expand(6, 5)
    found = box(current)
    assert torch.equal(found[:3], found[3:]) and len(found.unique(dim=0)) == 3


def test_batches_are_cut_where_memory_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Brian2Box(plastic(), ("first", "I"), ("second", "spikes"), 60.0)(drive(7))
    monkeypatch.setattr("biograd.brian.box.LARGEST", 120)
    box = Brian2Box(plastic(), ("first", "I"), ("second", "spikes"), 60.0)
    assert torch.equal(box(drive(7)), whole)
    assert max(box._rows) < 7


def alone(reason: str) -> Any:
    first, second = groups()
    parts = [first, second]
    match reason:
        case "operation":
            parts.append(b2.NetworkOperation(lambda: None, name="tick"))
        case "rand":
            first, second = groups(reset="v = 0.1*rand()")
            parts = [first, second]
        case "clocks":
            parts.append(b2.NeuronGroup(1, "dz/dt = 1*Hz : 1", dt=5 * b2.ms, method="euler"))
        case "index":
            parts.append(joined(first, second, on_pre="g_post += w*(i + 1)"))
        case "multiplied":
            factor = EQUATIONS.replace("/(10*ms)", "/(10*ms) + 0.1*v*xi/sqrt(ms)", 1)
            first, second = groups(factor, method="milstein")
            parts = [first, second]
        case "event":
            first, second = groups(events={"other": "v > 0.5"})
            parts = [first, second]
    made = b2.Network(*parts)
    if reason == "run":
        made.run(1 * b2.ms)
    return made


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("operation", "tick (NetworkOperation)"),
        ("rand", "first draws random numbers (rand)"),
        ("clocks", "several clocks"),
        ("index", "syn uses i"),
        ("multiplied", "first: noise xi with a factor that changes"),
        ("event", "other events than spikes"),
        ("run", "the network has run already"),
    ],
)
def test_what_runs_row_by_row_says_why(reason: str, words: str) -> None:
    box = Brian2Box(alone(reason), ("first", "I"), ("first", "spikes"), 60.0)
    found = box(drive())
    assert words in box.alone and found.sum() > 3


def test_a_wrong_replica_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is compared with runs of their own."""
    from biograd.brian.replicated import Replicas

    monkeypatch.setattr(Replicas, "tiled", lambda self, values: 0.9 * np.tile(values, self.rows))
    box = Brian2Box(plastic(), ("first", "I"), ("second", "spikes"), 60.0, ["syn.w"])
    with torch.no_grad():
        box.values["syn_w"].mul_(1.5)
    found = box(drive())
    assert "other values than alone" in box.alone
    monkeypatch.undo()
    right = Brian2Box(plastic(), ("first", "I"), ("second", "spikes"), 60.0, ["syn.w"])
    with torch.no_grad():
        right.values["syn_w"].mul_(1.5)
    assert torch.equal(right(drive()), found)
