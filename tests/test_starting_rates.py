"""Weights scaled until every hidden layer fires at a given rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import biograd
from biograd.errors import BiogradError, CapabilityError, RecipeError
from biograd.recipes import ModelRecipe
from biograd.training.starting_rates import tune_init

INPUTS = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(64) % 10


def deep(seed: int, *settings: str, model: str = "spiking") -> Any:
    from biograd.recipes import load_model

    recipe = load_model(model, assignments=("network.hidden=[40,40,40,40,40]", *settings))
    return biograd.build(recipe, 64, 10, seed=seed)


def rates(network: Any, inputs: Tensor = INPUTS) -> list[float]:
    """Measured apart from the function under test, by the network's own record."""
    return [float(spikes.mean()) for spikes in network.activity(inputs).values()]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_layer_of_a_network_that_is_silent_from_its_second_on_fires(seed: int) -> None:
    network = deep(seed, "network.gain=0.1")
    assert rates(network)[2:] == [0, 0, 0]
    found = tune_init(network, INPUTS, TARGETS, 0.05)
    assert rates(network) == pytest.approx([0.05] * 5, rel=0.1)
    assert [one.after for one in found.values()] == pytest.approx(rates(network), rel=0.05)
    assert found["blocks.4.synapse"].before == 0


def test_only_the_scale_changes() -> None:
    network, other = deep(0), deep(0)
    found = tune_init(network, INPUTS, TARGETS, {"blocks.1.synapse": 0.2, "blocks.3.synapse": 0.1})
    measured = rates(network)
    assert (measured[1], measured[3]) == pytest.approx((0.2, 0.1), rel=0.1)
    for (name, now), was in zip(network.named_parameters(), other.parameters(), strict=True):
        layer = name.removesuffix(".weight")
        torch.testing.assert_close(now, was * (found[layer].factor if layer in found else 1.0))


MODELS: dict[str, tuple[str, ...]] = {
    "recurrent": ("network.recurrent=true", "network.hidden=[40]"),
    "adaptive": ("neuron.kind=adaptive_threshold", "network.hidden=[40,30]"),
    "snntorch": ("network.substrate=snntorch", "network.hidden=[40,30]"),
    "brian2": ("network.substrate=brian2", "network.hidden=[40,30]"),
    "poisson": ("encoding.kind=poisson", "encoding.gain=1.0", "network.hidden=[40,30]"),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_neurons_simulators_and_encodings(name: str) -> None:
    network = deep(0, *MODELS[name])
    tune_init(network, INPUTS, TARGETS, 0.08)
    # a random encoding draws others than those that were tuned on
    assert rates(network) == pytest.approx([0.08] * len(rates(network)), rel=0.15)


class Loop(nn.Module):
    """A user's network: recurrent weights and input weights feed one current."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(64, 32), nn.Linear(32, 10)
        self.neurons = snn.Leaky(0.9, init_hidden=hidden)
        self.back = nn.Linear(32, 32)
        self.hidden = hidden

    def forward(self, inputs: Tensor) -> Tensor:
        total, spikes = torch.zeros(len(inputs), 10), torch.zeros(len(inputs), 32)
        potential = torch.zeros(len(inputs), 32)
        for _ in range(15):
            current = self.first(inputs) + self.back(spikes)
            if self.hidden:
                spikes = self.neurons(current)
            else:
                spikes, potential = self.neurons(current, potential)
            total = total + self.readout(spikes)
        return total


def test_a_loop_of_ones_own_keeps_the_share_of_its_recurrent_weights() -> None:
    torch.manual_seed(0)
    network = Loop()
    share = network.back.weight.norm() / network.first.weight.norm()
    bias = network.first.bias.clone()
    found = tune_init(network, INPUTS, TARGETS, 0.1)
    assert list(found) == ["first"] and found["first"].after == pytest.approx(0.1, rel=0.05)
    torch.testing.assert_close(network.back.weight.norm() / network.first.weight.norm(), share)
    assert torch.equal(network.first.bias, bias)
    assert not network._forward_hooks and not network.first._forward_hooks


def test_kept_state_is_reset() -> None:
    torch.manual_seed(0)
    found = tune_init(Loop(True), INPUTS, TARGETS, 0.1, reset="reset_mem")
    assert found["first"].after == pytest.approx(0.1, rel=0.05)
    with pytest.raises(CapabilityError, match="keeps a state"):
        tune_init(Loop(True), INPUTS, TARGETS, 0.1)


def test_populations_that_feed_back_take_several_turns() -> None:
    network = biograd.build("circuit", 64, 10, seed=0)
    found = tune_init(network, INPUTS, TARGETS, {"inhibitory": 0.15, "excitatory": 0.03})
    measured = dict(zip(network.activity(INPUTS), rates(network), strict=True))
    assert found["inhibitory"].after == pytest.approx(0.15, rel=0.1)
    assert found["excitatory"].after == pytest.approx(0.03, rel=0.1)
    assert sorted(measured.values()) == pytest.approx([0.03, 0.15], rel=0.15)


def spiking(*settings: str) -> Any:
    return deep(0, "network.hidden=[20,20]", *settings)


def frozen() -> Any:
    network = spiking()
    network.get_submodule("blocks.1.synapse").weight.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("network", "inputs", "rate", "words"),
    [
        (spiking, INPUTS, 1.5, "rate = 1.5: must be between 0 and 1"),
        (spiking, INPUTS, 0.0, "must be between 0 and 1"),
        (spiking, INPUTS, float("nan"), "rate of blocks.0.synapse"),
        (spiking, INPUTS, {"block": 0.1}, "no hidden site 'block'"),
        (spiking, 0 * INPUTS, 0.05, "nothing reaches it"),
        (spiking, INPUTS, {"blocks.1.synapse": 0.99}, "0.99 spikes a unit and step cannot be"),
        (lambda: biograd.build("event", 64, 10), INPUTS, 0.05, "event-driven neurons have no"),
        (lambda: biograd.build("ann", 64, 10), INPUTS, 0.05, "other values than spikes"),
        (frozen, INPUTS, 0.05, "blocks.1.synapse is frozen"),
        (
            lambda: spiking("network.normalisation=layer"),
            INPUTS,
            0.3,
            "as often whatever its weights",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_stays_changed(
    network: Any, inputs: Tensor, rate: Any, words: str
) -> None:
    made = network()
    with pytest.raises((CapabilityError, RecipeError), match=words):
        tune_init(made, inputs, TARGETS, rate)


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        (lambda: spiking(), {"blocks.0.synapse": 0.2, "blocks.1.synapse": 0.99}),
        (lambda: biograd.build("circuit", 64, 10, seed=0), {"inhibitory": 0.9, "excitatory": 0.2}),
    ],
    ids=["the second", "a circuit"],
)
def test_an_error_puts_all_layers_back(network: Any, rate: Any) -> None:
    made = network()
    before = [parameter.clone() for parameter in made.parameters()]
    with pytest.raises(BiogradError):
        tune_init(made, INPUTS, TARGETS, rate)
    assert all(map(torch.equal, before, made.parameters()))


def test_rates_that_do_not_come_to_rest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biograd.training.starting_rates.SWEEPS", 1)
    monkeypatch.setattr("biograd.training.starting_rates._search", lambda *_: None)
    with pytest.raises(CapabilityError, match="do not come to rest"):
        tune_init(spiking(), INPUTS, TARGETS, 0.4)


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    from biograd.configuration import TrainingRequest, configure

    settings = ["training.start_rate=0.06", "network.gain=0.3", "network.hidden=[30,30,30]"]
    for place in "ab":
        biograd.train(
            "spiking",
            (INPUTS, TARGETS),
            epochs=0,
            path=tmp_path / f"{place}.h5",
            task="classes",
            settings=settings,
        )
    first, second = (
        biograd.trained(biograd.load(tmp_path / f"{n}.h5"), data=(INPUTS, TARGETS))[0] for n in "ab"
    )
    assert rates(first) == pytest.approx([0.06] * 3, rel=0.15)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    with pytest.raises(RecipeError, match="start_rate: has no effect on a network without spikes"):
        configure(TrainingRequest("ann", assignments=("training.start_rate=0.1",)))
    assert ModelRecipe().training.start_rate == 0.0


def test_a_run_that_goes_on_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from biograd.recording import training_setup

    count, asked = [0], ["training.start_rate=0.06", "network.hidden=[10]"]

    def counted(*given: Any, **named: Any) -> Any:
        count[0] += 1
        return tune_init(*given, **named)

    monkeypatch.setattr(training_setup, "tune_init", counted)
    more: dict[str, Any] = {"task": "classes", "settings": asked, "seed": 1}
    data = (INPUTS, TARGETS)
    for place, epochs in (("short", 1), ("long", 2)):
        path = tmp_path / f"{place}.h5"
        biograd.train("spiking", data, epochs=epochs, path=path, **more)
    assert count == [2]
    resumed = biograd.resume(tmp_path / "short.h5", epochs=2, data=data)
    network = biograd.trained(resumed, data=data)[0]
    longer = biograd.trained(biograd.load(tmp_path / "long.h5"), data=data)[0]
    assert count == [2]
    assert all(map(torch.equal, network.parameters(), longer.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_network_that_starts_silent_learns_after_it(seed: int, tmp_path: Path) -> None:
    def accuracy(rate: float) -> float:
        settings = [f"training.start_rate={rate}", "network.gain=0.3", "network.hidden=[64,64,64]"]
        run = biograd.train(
            "spiking",
            "digits",
            epochs=3,
            seed=seed,
            path=tmp_path / f"{rate}.h5",
            settings=settings,
        )
        return float(run.summary["test_accuracy"])

    assert accuracy(0.05) > 0.6 > 0.3 > accuracy(0.0)
