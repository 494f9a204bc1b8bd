"""What a Brian2 user comes for: a neuron that fits recorded spikes, a worm whose wiring learns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_paths import shared_data

from biograd.brian.import_brian2 import import_brian2

sys.path.append(str(Path(__file__).parent / "benchmarks"))  # the last place: it hides nothing

import grasshopper
import worm


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """Let Brian2 run without compiling."""
    codegen = import_brian2().prefs.codegen
    kept, codegen.target = codegen.target, "numpy"
    yield
    codegen.target = kept


def test_coincidences_by_hand() -> None:
    data = np.zeros(1000)
    data[100:1000:100] = 1
    assert grasshopper.coincidence(data, data) == pytest.approx(1.0)
    late, far = np.roll(data, 2), np.roll(data, 30)
    assert grasshopper.coincidence(late, data) == pytest.approx(1.0)
    assert grasshopper.coincidence(far, data) < 0
    assert grasshopper.coincidence(np.zeros(1000), data) == 0.0
    stream = np.random.default_rng(0)
    chance = [
        grasshopper.coincidence(*(stream.random((2, 40_000)) < 0.01).astype(float))
        for _ in range(20)
    ]
    assert abs(np.mean(chance)) < 0.02


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_brian2_neuron_fits_recorded_spikes() -> None:
    """Measured: 1.66 bits a spike on held-out time in 150 steps; a model of the sound alone .91."""
    folder = shared_data("grasshopper")
    recording = grasshopper.Recording.read(folder, 1)
    assert recording.spikes.sum() == 929 and recording.spikes.max() == 1
    circuit = grasshopper.neuron()
    inputs, targets = recording.rows("test")
    with torch.no_grad():
        untrained = grasshopper.bits(circuit(inputs), targets)
    grasshopper.fit(circuit, recording, 60)
    with torch.no_grad():
        found = grasshopper.bits(circuit(inputs), targets)
    sound, _ = grasshopper.poisson(recording, 0)
    assert found > 1.3 > sound > untrained
    trains = grasshopper.free(circuit, recording, "test", 20)
    data = recording.spikes[8000:]
    assert 0.5 < trains.mean() / data.mean() < 2
    factors = [grasshopper.coincidence(train, data) for train in trains]
    shifted = [grasshopper.coincidence(np.roll(train, 500), data) for train in trains]
    assert np.mean(factors) > 0.2 > 0.1 > np.mean(shifted)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rule", ["backprop"])
def test_the_worm_s_wiring_stays_what_it_is(rule: str) -> None:
    """Weights of connections that do not exist are zero to the bit; those that do have learned."""
    sections = worm.wiring(shared_data("celegans"))
    network = worm.worm(sections, 0)
    before = {name: np.array(network[name].w[:]) for name in synapses(sections)}
    circuit = worm.circuit(network, 0)
    inputs, targets, *_ = worm.rows()
    engine = worm.biograd.attach(circuit, worm.make(rule), loss="cross_entropy")
    engine.prepare(inputs[:64], targets[:64])
    optimiser = torch.optim.Adam(engine.parameters(), 0.01, weight_decay=0.01)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        result = engine(inputs[:64], targets[:64], torch.arange(64))
        result.backward()
        optimiser.step()
        losses.append(float(result.loss))
    engine.detach()
    learned, outside = worm.check_mask(circuit, network, sections)
    assert outside == 0 and learned > 3000 and losses[-1] < losses[0]
    assert sum(len(values) for values in before.values()) == 3565
    for name, old in before.items():
        one, two = name.split("_")
        assert np.array_equal(network[name].w[:] != 0, old != 0)
        pairs = np.stack([network[name].i[:], network[name].j[:]])
        assert np.array_equal(pairs, sections[one, two].nonzero())


def synapses(sections: dict[tuple[str, str], Any]) -> list[str]:
    return [f"{one}_{two}" for one, two in sections]
