"""What decides when, and whether, Brian2's objects act: spike for spike, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_model import NeuronModel
from biograd.errors import CapabilityError, RecipeError
from biograd.recipes import EncodingRecipe, PopulationRecipe
from biograd.wrapping.wrap import wrap

STEPS, UNITS = 60, 6
CURRENT = np.linspace(1, 6, UNITS)
RESETS_FIRST = ["start", "groups", "thresholds", "resets", "synapses", "end"]
THRESHOLDS_FIRST = ["start", "thresholds", "groups", "synapses", "resets", "end"]
Parts = dict[str, Any]


@pytest.fixture(autouse=True)
def numpy_target(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Brian2 run without compiling, in steps of 1 ms, and set back all preferences."""
    b2 = import_brian2()
    kept, step = dict(b2.prefs), b2.defaultclock.dt
    b2.prefs["codegen.target"], b2.defaultclock.dt = "numpy", 1 * b2.ms
    yield
    for name in ("codegen.target", "core.network.default_schedule", "legacy.refractory_timing"):
        b2.prefs[name] = kept[name]
    b2.defaultclock.dt = step


def make(change: Callable[[Parts], None], **options: Any) -> tuple[Any, Parts]:
    """Return a recurrent network after a change, and its parts by name."""
    b2 = import_brian2()
    given: dict[str, Any] = {
        "model": "dv/dt = (I + g - v)/(10*ms) : 1 (unless refractory)\n"
        "dg/dt = -g/(5*ms) : 1\nc = 0.2*g : 1 (constant over dt)\nI : 1",
        "threshold": "v > 1 + c",
        "reset": "v = 0",
        "refractory": 2 * b2.ms,
        "method": "euler",
        "name": "E",
    }
    cells = b2.NeuronGroup(UNITS, **given | options)
    synapses = b2.Synapses(
        cells,
        cells,
        on_pre={"one": "g_post += 0.3", "two": "v_post += 0.1"},
        on_post="g_post += 0*g_post",
        delay={"one": 2 * b2.ms},
        name="S",
    )
    synapses.connect("i != j")
    synapses.post.active = False
    parts = {"E": cells, "S": synapses, "net": b2.Network(cells, synapses)}
    change(parts)
    return parts["net"], parts


def original(change: Callable[[Parts], None], **options: Any) -> Any:
    """Return the spikes ``[steps, units]`` of Brian2's own run."""
    b2 = import_brian2()
    network, parts = make(change, **options)
    monitor = b2.SpikeMonitor(parts["E"])
    network.add(monitor)
    parts["E"].I = CURRENT
    network.run(STEPS * b2.ms)
    found = np.zeros((STEPS, UNITS))
    found[np.rint(np.asarray(monitor.t / b2.ms)).astype(int), np.asarray(monitor.i)] = 1
    return found


def again(change: Callable[[Parts], None], **options: Any) -> Any:
    """Return the spikes ``[steps, units]`` of the network wrapped."""
    network, _ = make(change, **options)
    encoding = EncodingRecipe(dt_ms=1.0, duration_ms=float(STEPS))
    circuit = wrap(network, ("E", "I"), "E", inputs=UNITS, classes=2, encoding=encoding)
    stimulus, scale = circuit.projections["stimulus"], circuit.layer("E").model.scales["I"]
    with torch.no_grad():
        stimulus.weight.copy_(torch.eye(UNITS))
        stimulus.bias.zero_()
    inputs = torch.tensor(CURRENT / scale, dtype=torch.float64)[None]
    return circuit.activity(inputs)["cells.E"][0].numpy()


def regular(*codes: str, off: bool = False, **options: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for number, code in enumerate(codes):
            name = {"name": f"E_{'zyx'[number]}"} if len(codes) > 1 else {}
            made = parts["E"].run_regularly(code, **options | name)
            made.active = not off

    return change


def setting(path: str, value: Any) -> Callable[[Parts], None]:
    """Return what sets an attribute, ``E.thresholder.spike.active``, of a part."""

    def change(parts: Parts) -> None:
        *way, last = path.split(".")
        thing: Any = parts
        for word in way:
            thing = thing[word] if isinstance(thing, dict) else getattr(thing, word)
        setattr(thing, last, value)

    return change


def preference(name: str, value: Any) -> Callable[[Parts], None]:
    def change(_parts: Parts) -> None:
        import_brian2().prefs[name] = value

    return change


def added(off: bool, kind: str) -> Callable[[Parts], None]:
    """Return what adds an object that would change everything."""

    def change(parts: Parts) -> None:
        b2, cells = import_brian2(), parts["E"]
        if kind == "operation":
            made = b2.NetworkOperation(lambda: cells.set_states({"v": 5.0}), name="kick")
        elif kind == "input":
            made = b2.PoissonInput(cells, "v", 100, 100 * b2.Hz, 1.0)
        else:
            made = b2.SpikeMonitor(cells)
        made.active = not off
        parts["net"].add(made)

    return change


def both(*changes: Callable[[Parts], None]) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for one in changes:
            one(parts)

    return change


def own_schedule(slots: list[str]) -> Callable[[Parts], None]:
    return setting("net.schedule", slots)


def joined(on_pre: str) -> Callable[[Parts], None]:
    """Return what adds synapses from some neurons to others."""

    def change(parts: Parts) -> None:
        b2, cells = import_brian2(), parts["E"]
        made = b2.Synapses(cells[2:5], cells[1:3], on_pre=on_pre, name="more")
        made.connect()
        parts["net"].add(made)

    return change


PLAIN = both()
HALVE, RAISE = "v = v * 0.9", "v = v + 0.2"
SAME: dict[str, tuple[Callable[[Parts], None], dict[str, Any]]] = {
    "nothing changed": (PLAIN, {}),
    "a run_regularly is inactive": (regular(HALVE, off=True), {}),
    "a pathway is inactive": (setting("S.one.active", False), {}),
    "synapses are inactive": (setting("S.two.active", False), {}),
    "an operation is inactive": (added(True, "operation"), {}),
    "an input is inactive": (added(True, "input"), {}),
    "a monitor is inactive": (added(True, "monitor"), {}),
    "statements before the update by name": (regular(HALVE, when="groups"), {}),
    "statements behind the update by name": (regular(HALVE, when="groups", name="zzz"), {}),
    "statements before the update by the group's order": (
        regular(HALVE, when="groups", order=3),
        {"order": 5},
    ),
    "statements behind the update by order": (regular(HALVE, when="groups", order=1), {}),
    "two statements whose names tell their order": (regular(HALVE, RAISE, when="groups"), {}),
    "two statements at the start": (regular(HALVE, RAISE), {}),
    "statements before a constant over dt": (regular("g = g * 0.5", when="before_start"), {}),
    "statements behind a constant over dt": (
        regular("g = g * 0.5", when="before_start", name="zzz"),
        {},
    ),
    "the group has an order": (PLAIN, {"order": -3}),
    "pathways have an order": (setting("S.one.order", 7), {}),
    "refractoriness of before": (preference("legacy.refractory_timing", True), {}),
    "refractoriness as a condition": (PLAIN, {"refractory": "v > 0.9 or g > 2"}),
    "refractoriness as a formula": (PLAIN, {"refractory": "(1 + int(g > 1))*ms"}),
    "weights by the numbers of neurons": (joined("g_post += 0.3*i - 0.4*j"), {}),
    "weights by how many there are": (joined("g_post += 3.0/N_pre + N_post/N"), {}),
    "a schedule of its own that is Brian2's": (
        both(
            own_schedule(["start", "groups", "thresholds", "synapses", "resets", "end"]),
            preference("core.network.default_schedule", RESETS_FIRST),
        ),
        {},
    ),
}
REFUSED: dict[str, tuple[Callable[[Parts], None], dict[str, Any], str]] = {
    "group": (setting("E.active", False), {}, r"group 'E' is switched off: set E.active = True"),
    "update": (setting("E.state_updater.active", False), {}, r"\(StateUpdater\) is switched off"),
    "threshold": (
        setting("E.thresholder.spike.active", False),
        {},
        r"\(Thresholder\) is switched off",
    ),
    "reset": (
        setting("E.resetter.spike.active", False),
        {},
        r"\(Resetter\) is switched off",
    ),
    "constant over dt": (
        setting("E.subexpression_updater.active", False),
        {},
        r"\(SubexpressionUpdater\) is switched off",
    ),
    "update late": (
        setting("E.state_updater.when", "end"),
        {},
        r"runs in 'end': it must",
    ),
    "threshold late": (
        lambda parts: parts["E"].set_event_schedule("spike", when="after_synapses"),
        {},
        r"runs in 'after_synapses': it must run in 'thresholds'",
    ),
    "reset early": (
        setting("E.resetter.spike.when", "before_synapses"),
        {},
        r"runs in 'before_synapses': it must run in 'resets'",
    ),
    "synapses late": (setting("S.one.when", "end"), {}, r"'one' must act on spikes, in the slot"),
    "statements late": (regular(HALVE, when="end"), {}, r"runs in 'end': run it before the thresh"),
    "statements seldom": (
        lambda parts: parts["E"].run_regularly(HALVE, dt=5 * import_brian2().ms),
        {},
        r"has steps of 5 ms, the encoding of 1 ms",
    ),
    "schedule": (own_schedule(RESETS_FIRST), {}, r"the network's schedule is start, groups, thre"),
    "preference": (
        preference("core.network.default_schedule", THRESHOLDS_FIRST),
        {},
        r"preference core.network.default_schedule",
    ),
    "an operation": (added(False, "operation"), {}, r"kick \(NetworkOperation\) cannot be"),
    "an input": (added(False, "input"), {}, r"\(PoissonInput\) cannot be wrapped"),
    "small numbers": (
        PLAIN,
        {"dtype": np.float32},
        r"I is float32, populations compute in",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_wrapped_network_acts_as_it_did(name: str) -> None:
    change, options = SAME[name]
    expected = original(change, **options)
    assert 0.02 < expected.mean() < 0.6
    assert (again(change, **options) == expected).all()


CHANGING = [name for name in SAME if name.startswith(("weights", "statements behind the update"))]


@pytest.mark.parametrize("name", [*CHANGING, "a pathway is inactive"])
def test_the_changes_change_something(name: str) -> None:
    assert (original(SAME[name][0]) != original(PLAIN)).any()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_obeyed_is_refused_by_name(name: str) -> None:
    change, options, words = REFUSED[name]
    with pytest.raises(CapabilityError, match=words) as caught:
        again(change, **options)
    assert str(caught.value).endswith("; or take it whole: biograd.Brian2Box")


def test_a_source_that_is_switched_off_is_not_replaced() -> None:
    b2 = import_brian2()
    source = b2.PoissonGroup(UNITS, 5 * b2.Hz, name="noise")
    network, parts = make(PLAIN)
    drive = b2.Synapses(source, parts["E"], on_pre="g_post += 1", name="drive")
    drive.connect(j="i")
    network.add(source, drive)
    source.active = False
    with pytest.raises(CapabilityError, match=r"noise \(PoissonGroup\) is switched off"):
        wrap(network, ("noise", "spikes"), "E", inputs=UNITS, classes=2)


def test_populations_of_recipes_keep_the_order_of_a_step() -> None:
    recipe = PopulationRecipe(
        equations="dv/dt = (I - v) / (10*ms) : 1\nI : 1",
        threshold="v > 1",
        reset="v = 0",
        method="exact",
    )
    assert NeuronModel(recipe, 1.0).port == "I"
    import_brian2().prefs["core.network.default_schedule"] = THRESHOLDS_FIRST
    with pytest.raises(RecipeError, match=r"preference core.network.default_schedule is start, th"):
        NeuronModel(recipe, 1.0)
