"""Delays of synapses: shifts by hand, finite differences, every rule, a task that needs them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import biograd
from biograd.calls import trained
from biograd.circuit.delays import NARROWEST, Delayed, narrowing
from biograd.circuit.projections import Masked
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.randomness import generator
from biograd.recipes import DelayRecipe, ModelRecipe, construct

PER = ("projection", "axon", "synapse")
NOISE = {name: {"copies": 5} for name in ("weak", "node_perturbation", "weight_perturbation")}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "values"), dtype=torch.float64)


def layer(per: str, learned: str, whole: bool = False, longest: int = 5, **more: Any) -> Delayed:
    """Return a layer from four units to three in float64, all of it drawn."""
    shape = {"projection": (1,), "axon": (4,), "synapse": (3, 4)}[per]
    steps = 0.3 + (longest - 0.6) * torch.rand(shape, generator=generator(1, "delays"))
    recipe = DelayRecipe(per, learned=learned, longest_ms=float(longest), **more)  # type: ignore
    found = Delayed(nn.Linear(4, 3), recipe, steps.round() if whole else steps, longest, 1.3)
    with torch.no_grad():
        found.double().weight.copy_(random(3, 4))
        found.bias.copy_(random(3, seed=2))  # type: ignore[union-attr]
    return found


# The layer ----------------------------------------------------------------------------------------


def shifted(one: Delayed, inputs: Tensor) -> Tensor:
    """Return the currents of whole delays, synapse by synapse."""
    delays = one.steps.detach().round().long().expand(3, 4)
    found = torch.zeros(len(inputs), inputs.shape[1], 3, dtype=inputs.dtype)
    for i, j in itertools.product(range(3), range(4)):
        d = int(delays[i, j])
        late = torch.zeros_like(inputs[..., j])
        late[:, d:] = inputs[:, : inputs.shape[1] - d, j]
        found[..., i] += one.weight[i, j] * late
    assert one.bias is not None
    return found + one.bias


@pytest.mark.parametrize("learned", ["none", "linear", "rounded"])
@pytest.mark.parametrize("per", PER)
def test_whole_delays_shift(per: str, learned: str) -> None:
    one, inputs = layer(per, learned, whole=True), random(2, 12, 4, seed=3)
    assert torch.allclose(one(inputs), shifted(one, inputs), rtol=0, atol=1e-14)
    other = layer(per, learned, whole=True)
    other.delays.data.copy_((other.delays.data + 1 / other.recipe.pace) % 0.4)
    assert not torch.allclose(other(inputs), shifted(one, inputs))


@pytest.mark.parametrize("per", PER)
def test_a_narrow_gaussian_is_a_shift(per: str) -> None:
    one, inputs = layer(per, "gaussian"), random(2, 12, 4, seed=3)
    before = one(inputs)
    one.narrow(1.0)
    assert float(one.width) == pytest.approx(NARROWEST) and not torch.equal(one(inputs), before)
    steps = one.settle()
    assert torch.equal(steps, one.steps.round())
    assert torch.allclose(one(inputs), shifted(one, inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("learned", ["none", "linear", "gaussian", "rounded"])
@pytest.mark.parametrize("per", PER)
def test_the_last_steps_alone_give_the_last_answer(per: str, learned: str) -> None:
    one, inputs = layer(per, learned), random(2, 12, 4, seed=3)
    assert torch.allclose(one(inputs[:, -6:].flatten(1)), one(inputs)[:, -1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("learned", ["linear", "gaussian"])
@pytest.mark.parametrize("per", PER)
def test_gradients_are_finite_differences(per: str, learned: str) -> None:
    """By delays, weights and inputs, to 1e-6; also of delays that were reflected."""
    one, inputs = layer(per, learned), random(2, 9, 4, seed=3).requires_grad_()

    def run(delays: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
        values = {"delays": delays, "weight": weight}
        return torch.func.functional_call(one, values, (inputs,)).tanh()

    for delays in (one.delays, -one.delays, one.delays + 2 * 5 / one.recipe.pace):
        leaf = delays.detach().requires_grad_()
        assert torch.autograd.gradcheck(
            run, (leaf, one.weight, inputs), eps=1e-7, atol=1e-6, check_undefined_grad=False
        )
        assert torch.allclose(run(leaf, one.weight, inputs), run(one.delays, one.weight, inputs))


def test_signs_and_masks_stay() -> None:
    masked = Masked(torch.eye(4), sign="inhibitory")
    recipe = DelayRecipe("synapse", learned="linear")
    one = Delayed(masked, recipe, torch.ones(4, 4), 3).double()
    one.weight.data.copy_(random(4, 4))
    response = one(torch.ones(1, 8, 4, dtype=torch.float64)).sum()
    response.backward()
    assert one.weight.grad is not None and float(response.detach()) < 0
    assert torch.equal(one.weight.grad != 0, torch.eye(4) > 0)


# In networks --------------------------------------------------------------------------------------

TABLE = {"per": "synapse", "start_ms": "uniform(0, 5)", "longest_ms": 6.0}


def circuit(loop: bool = True, substrate: str = "torch", **delays: Any) -> Any:
    """Return two populations that feed each other, with delays on two of three projections."""
    given = TABLE | delays
    late = {"source": "input", "target": "a", "delays": given}
    tables: dict[str, Any] = {
        "network": {"kind": "circuit", "substrate": substrate, "dtype": "float64", "gain": 2.5},
        "populations": {"a": {"units": 6}, "b": {"units": 5}},
        "projections": {"into": late, "on": {"source": "a", "target": "b"}},
        "neuron": {"resistance": 8.0, "slope": 2.0},
        "encoding": {"kind": "poisson", "dt_ms": 1.0, "duration_ms": 20.0},
    }
    if loop:
        tables["projections"]["back"] = {"source": "b", "target": "a", "delays": given}
    return biograd.build(construct(ModelRecipe, tables, "test"), 4, 3, seed=1)


def batch() -> tuple[Tensor, Tensor]:
    inputs = torch.rand(8, 4, generator=generator(0, "inputs"), dtype=torch.float64)
    return inputs, torch.arange(8) % 3


def by_hand(network: Any, encoded: Tensor) -> dict[str, Tensor]:
    """Return the spikes of both populations, ``[rows, steps, units]``, spike by spike."""
    into, on, back = (network.get_submodule(f"projections.{n}") for n in ("into", "on", "back"))
    rows, steps, _ = encoded.shape
    a, b = torch.zeros(rows, steps, 6).double(), torch.zeros(rows, steps, 5).double()
    va, vb = torch.zeros(rows, 6).double(), torch.zeros(rows, 5).double()
    beta = float(np.exp(-0.1))

    def arrived(one: Delayed, course: Tensor, t: int, lag: int) -> Tensor:
        found = one.bias.clone().expand(rows, -1).clone()  # type: ignore[union-attr]
        delays = one.steps.long()
        for i, j in itertools.product(range(len(delays)), range(delays.shape[1])):
            if (past := t - lag - int(delays[i, j])) >= 0:
                found[:, i] += one.weight[i, j] * course[:, past, j]
        return found

    for t in range(steps):
        current = arrived(into, encoded, t, 0) + arrived(back, b, t, 1)
        va = beta * va + (1 - beta) * 8 * current - (a[:, t - 1] if t else 0)
        a[:, t] = (va > 1).double()
        vb = beta * vb + (1 - beta) * 8 * on(a[:, t]) - (b[:, t - 1] if t else 0)
        b[:, t] = (vb > 1).double()
    return {"cells.a": a, "cells.b": b}


@pytest.mark.parametrize("substrate", ["torch", "snntorch", "brian2"])
def test_every_simulator_spikes_as_by_hand(substrate: str) -> None:
    network, (inputs, _) = circuit(substrate=substrate, learned="none"), batch()
    encoded = network.encode(inputs, generator(0, "forward"))
    with torch.no_grad():
        expected, found = by_hand(network, encoded), network.activity(inputs)
    for name, spikes in expected.items():
        assert torch.equal(found[name], spikes) and 0.02 < spikes.mean() < 0.8
    delayed = network.get_submodule("projections.back")
    delayed.delays.zero_()
    assert not torch.equal(network.activity(inputs)["cells.a"], expected["cells.a"])


REFUSED = {"decoupling": "cannot keep spikes as targets"}


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_every_rule_credits_delays_or_says_so(rule: str) -> None:
    network, (inputs, targets) = circuit(learned="gaussian"), batch()
    if rule in REFUSED:
        with pytest.raises(CapabilityError, match=REFUSED[rule]):
            biograd.attach(network, make(rule, NOISE.get(rule)), seed=3)(inputs, targets)
        return
    engine = biograd.attach(network, make(rule, NOISE.get(rule)), seed=3)
    engine(inputs, targets).backward()
    assert engine.account is not None
    credit = {e.name: e.creditor for e in engine.account.entries if "delays" in e.name}
    assert set(credit.values()) == {"frozen" if rule == "frozen_hidden" else "rule"}
    engine.detach()


WHOLE = ("weight_perturbation", "frozen_hidden")
"""Rules that take whole delays: one learns them, one learns the readout alone."""


@pytest.mark.parametrize("rule", [name for name in ESTIMATORS if name != "decoupling"])
def test_whole_delays_are_outside_of_rules_that_differentiate(rule: str) -> None:
    network, (inputs, targets) = circuit(learned="rounded"), batch()
    engine = biograd.attach(network, make(rule, NOISE.get(rule)), seed=3)
    if rule in WHOLE:
        engine(inputs, targets).backward()
    else:
        with pytest.raises(CapabilityError, match=r"does not credit projections\.into\.delays"):
            engine(inputs, targets)
        frozen = make(rule, NOISE.get(rule))
        engine = biograd.attach(circuit(learned="rounded"), frozen, outside="freeze", seed=3)
        engine(inputs, targets).backward()
    assert engine.account is not None
    assert len(engine.account.of("outside")) == (0 if rule in WHOLE else 2)


def test_back_propagation_is_autograd() -> None:
    network, (inputs, targets) = circuit(learned="linear"), batch()
    nn.functional.cross_entropy(network(inputs), targets).backward()
    expected = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    engine = biograd.attach(network, biograd.Backpropagation(), seed=3)
    stream = generator(0, "forward")
    engine.streams["encoding"].set_state(stream.get_state())
    engine(inputs, targets).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
    assert any("delays" in name and bool(g.any()) for name, g in expected.items())


# What does not fit --------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "long": ({"longest_ms": 20.0}, r"projections\.into\.delays\.longest_ms = 20: nothing would"),
    "between": ({"learned": "none", "start_ms": 1.5}, r"start_ms = 1\.5: no multiple"),
    "ends between": ({"longest_ms": 6.5}, r"longest_ms = 6\.5: no multiple"),
    "beyond": ({"start_ms": 7.0}, r"start_ms = 7: longer than .*longest_ms = 6"),
    "drawn beyond": ({"start_ms": "uniform(8, 9)"}, r"longer than .*longest_ms = 6"),
    "number": ({"start_ms": [1.0, 2.0]}, r"2 values for 24 delays"),
    "draw": ({"start_ms": "uniform(1)"}, r"start_ms = 'uniform\(1\)'"),
    "exact": ({"learned": "exact"}, r"learned = 'exact': needs neuron.kind = 'event_driven'"),
    "width": ({"learned": "linear", "width_ms": 2.0}, r"into\.delays\.width_ms: has no effect"),
    "narrowing": ({"narrowing": 0.5}, r"into\.delays\.narrowing: has no effect"),
    "pace": ({"pace": 3.0}, r"into\.delays\.pace: has no effect"),
    "word": ({"per": "neuron"}, r"delays\.per"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(RecipeError, match=message) as refused:
        circuit(loop=False, **changed)
    assert "\n" not in str(refused.value)


def test_nir_holds_delays_of_axons(tmp_path: Path) -> None:
    """There and back; those of synapses are refused, and what lies between two steps is told."""
    pytest.importorskip("nir")
    network, inputs = circuit(learned="none", per="axon"), torch.rand(3, 20, 4).double().round()
    biograd.export_nir(network, tmp_path / "net.nir")
    again = biograd.import_nir(tmp_path / "net.nir", dt_ms=1.0, duration_ms=20.0)
    with torch.no_grad():
        assert torch.equal(again.simulate(inputs), network.simulate(inputs))
        network.get_submodule("projections.into").delays.zero_()
        assert not torch.equal(again.simulate(inputs), network.simulate(inputs))
    with pytest.warns(RuntimeWarning, match="delays between two steps are rounded"):
        biograd.export_nir(circuit(learned="linear", per="axon"), tmp_path / "net.nir", force=True)
    with pytest.raises(CapabilityError, match="NIR has no node for a delay of every synapse"):
        biograd.export_nir(circuit(learned="none"), tmp_path / "other.nir")


@pytest.mark.parametrize("kind", ["sparse", "one_to_one", "skip"])
def test_kinds_without_a_matrix_have_none(kind: str) -> None:
    one = {"source": "input", "target": "a", "kind": kind, "delays": TABLE}
    tables = {
        "network": {"kind": "circuit"},
        "populations": {"a": {"units": 4}},
        "projections": {"into": {"source": "input", "target": "a"}, "late": one},
        "encoding": {"kind": "poisson", "duration_ms": 20.0},
    }
    with pytest.raises(RecipeError, match=r"projections\.late\.delays"):
        biograd.build(construct(ModelRecipe, tables, "test"), 4, 3)


def test_rate_networks_have_none() -> None:
    tables = {"network": {"kind": "rate", "delays": {"start_ms": 2.0}}}
    with pytest.raises(RecipeError, match=r"network\.delays: has no effect"):
        biograd.build(construct(ModelRecipe, tables, "test"), 4, 3)


# Event-driven neurons -----------------------------------------------------------------------------


def events(hidden: tuple[int, ...] = (6, 5), kind: str = "latency", **delays: Any) -> Any:
    given = {"start_ms": "uniform(1, 5)", "longest_ms": 8.0, "learned": "exact"} | delays
    times = {"time_constant_ms": 5.0, "synaptic_time_constant_ms": 2.5, "resistance": 30.0}
    network = {"kind": "spiking", "hidden": [*hidden], "dtype": "float64", "delays": given}
    tables = {
        "network": network,
        "neuron": {"kind": "event_driven", **times},
        "encoding": {"kind": kind, "duration_ms": 30.0},
    }
    return biograd.build(construct(ModelRecipe, tables, "test"), 4, 3, seed=1)


@pytest.mark.parametrize("per", ["axon", "projection"])
def test_event_delays_have_their_exact_gradient(per: str) -> None:
    network, (inputs, targets) = events(per=per), batch()
    loss = nn.functional.cross_entropy(network(inputs), targets)
    late = {n: p for n, p in network.named_parameters() if "delays" in n}
    gradients = torch.autograd.grad(loss, [*late.values()])
    assert len(late) == 2 and all(bool(g.any()) for g in gradients)
    with torch.no_grad():
        for (name, values), gradient in zip(late.items(), gradients, strict=True):
            for place in range(len(values)):
                ends = []
                for step in (1e-6, -2e-6):
                    values[place] += step
                    ends.append(nn.functional.cross_entropy(network(inputs), targets))
                values[place] += 1e-6
                difference = float((ends[0] - ends[1]) / 2e-6)
                error = abs(difference - float(gradient[place]))
                assert error < 1e-6 * max(1.0, abs(difference)), (name, place)


def test_event_delays_shift_spikes() -> None:
    """As much later as the input spikes come earlier."""
    network, inputs = events((6,), learned="none", start_ms=3.0, per="projection"), batch()[0]
    plain = events((6,), learned="none", start_ms=0.0, per="projection")
    plain.load_state_dict(network.state_dict() | {"blocks.0.delay.delays": torch.zeros(1)})
    times = network.encode(inputs, generator(0, "forward"))
    early = torch.where(times < 30, times + 3, 30.0).clamp(max=30)
    assert torch.allclose(network.simulate(times), plain.simulate(early), rtol=0, atol=1e-12)
    assert not torch.allclose(network.simulate(times), plain.simulate(times))


EVENTS_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "synapse": ({"per": "synapse"}, r"per = 'synapse'"),
    "linear": ({"learned": "linear"}, r"learned = 'linear': spike times in continuous time"),
    "current": ({"hidden": (6,), "kind": "current"}, r"no spikes to delay"),
}


@pytest.mark.parametrize("name", EVENTS_WRONG)
def test_event_delays_that_do_not_fit(name: str) -> None:
    changed, message = EVENTS_WRONG[name]
    with pytest.raises(RecipeError, match=rf"network\.delays.*{message}"):
        events(**changed)


# Learning -----------------------------------------------------------------------------------------


def pairs(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a spike on one channel and, 4 or 11 steps later, one on another; which of the two."""
    stream = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (rows,), generator=stream)
    first = torch.randint(0, 8, (rows,), generator=stream)
    spikes, row = torch.zeros(rows, 30, 2), torch.arange(rows)
    spikes[row, first, 0] = 1
    spikes[row, first + torch.where(targets > 0, 11, 4), 1] = 1
    return spikes, targets


def learned(rule: str, seed: int, steps: int, delays: dict[str, Any] | None) -> tuple[float, float]:
    """Return the accuracy with delays as they were learned, and with whole ones."""
    table = {"kind": "spiking", "hidden": [16], "readout": "rate", "gain": 1.5}
    if delays is not None:
        table["delays"] = {"start_ms": "uniform(0, 15)", "longest_ms": 15.0, **delays}
    tables = {
        "network": table,
        "neuron": {"time_constant_ms": 0.2, "slope": 3.0},  # forgets within a step
        "encoding": {"kind": "given", "dt_ms": 1.0, "duration_ms": 30.0},
    }
    network = biograd.build(construct(ModelRecipe, tables, "test"), 2, 2, seed=seed)
    engine = biograd.attach(network, make(rule), seed=seed)
    engine.prepare(*pairs(64, 0))
    optimiser = torch.optim.Adam(engine.parameters(), 0.02)
    for step in range(steps):
        for one in narrowing(network):
            one.narrow(step / steps)
        engine(*pairs(64, 1000 * (seed + 1) + step)).backward()
        optimiser.step()
        optimiser.zero_grad()
        engine.update()
    engine.detach()
    found, (inputs, targets) = [], pairs(500, 999)
    for _ in range(2):
        with torch.no_grad():
            found.append(float((network(inputs).argmax(1) == targets).float().mean()))
        for part in network.modules():
            if isinstance(part, Delayed):
                part.settle()
    return found[0], found[1]


def test_delays_solve_what_a_network_without_them_cannot() -> None:
    found = learned("backprop", 0, 120, {"per": "axon", "learned": "gaussian"})
    assert min(found) > 0.95
    assert max(learned("backprop", 0, 120, None)) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rule", "per", "kernel"),
    [
        ("backprop", "synapse", "gaussian"),
        ("backprop", "synapse", "linear"),
        ("backprop", "axon", "gaussian"),
        ("eprop", "synapse", "gaussian"),
    ],
)
def test_coincidences_over_seeds(rule: str, per: str, kernel: str, seed: int) -> None:
    assert min(learned(rule, seed, 200, {"per": per, "learned": kernel})) > 0.95
    assert max(learned(rule, seed, 200, None)) < 0.6


def test_perturbation_alone_finds_whole_delays() -> None:
    """One neuron hears two channels; only their delays learn, and only perturbation moves them."""
    recipe = DelayRecipe("axon", learned="rounded", longest_ms=20.0, pace=20.0)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = Delayed(nn.Linear(2, 1, bias=False), recipe, torch.tensor([14.0, 6.0]), 20)
            self.late.weight.data.fill_(1.0)
            self.late.weight.requires_grad_(False)

        def forward(self, spikes: Tensor) -> Tensor:
            peak = self.late(spikes).unfold(1, 3, 1).sum(-1).amax((1, 2))  # together in 3 steps
            return torch.stack([1.5 - peak, peak - 1.5], 1)

    network = Pair()
    rule = make("weight_perturbation", {"copies": 33, "sigma": 0.05})
    engine = biograd.attach(network, rule, sites=["late"], seed=1)
    optimiser = torch.optim.Adam(engine.parameters(), 0.005)
    for step in range(80):
        engine(*pairs(64, step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    inputs, targets = pairs(300, 999)
    with torch.no_grad():
        assert float((network(inputs).argmax(1) == targets).float().mean()) > 0.95
        apart = network.late.steps.round()
    assert abs(float(apart[0] - apart[1]) - 11) <= 2


# Files --------------------------------------------------------------------------------------------


def test_a_run_keeps_them_and_narrows(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    run = biograd.train(
        "spiking",
        "digits",
        path=path,
        epochs=1,
        settings=(
            "network.hidden=[12]",
            "network.delays.learned='gaussian'",
            "network.delays.longest_ms=6.0",
            "network.delays.start_ms='uniform(0, 6)'",
            "encoding.kind='poisson'",
            "dataset.training_examples=128",
        ),
    )
    tensors, _ = run.checkpoint()
    assert float(tensors["network.blocks.0.synapse.width"]) == pytest.approx(NARROWEST)
    assert tensors["network.blocks.0.synapse.delays"].shape == (64,)
    again, _ = trained(run)
    found = again.get_submodule("blocks.0.synapse")
    assert torch.equal(found.delays.detach(), tensors["network.blocks.0.synapse.delays"])
    assert found.recipe.longest_ms == 6.0


@pytest.mark.parametrize("setting", ["online", "recompute"])
def test_trials_in_parts_are_refused(setting: str) -> None:
    """What is still on its way at the end of a part would be lost."""
    rule = {"online": "eprop", "recompute": "backprop"}[setting]
    table = {"kind": "spiking", "hidden": [5], "delays": {"learned": "linear"}}
    encoding = {"kind": "poisson", "duration_ms": 30.0}
    recipe = construct(ModelRecipe, {"network": table, "encoding": encoding}, "test")
    network = biograd.build(recipe, 4, 3)
    with pytest.raises(CapabilityError, match=r"blocks\.0\.synapse .*comes later than at once"):
        biograd.attach(network, make(rule, {setting: True}))
