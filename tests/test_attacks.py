"""What a newcomer tried that once failed without saying what to do."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from networks_for_tests import batch, build
from torch import nn

import biograd
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, nearest
from biograd.estimators import ESTIMATORS, make
from biograd.runs.parts.buffer import LayerRecord

BUILT = [name for name, kind in ESTIMATORS.items() if kind.builds]
INPUTS, TARGETS, ROWS = torch.linspace(-1, 1, 48).view(8, 6), torch.arange(8) % 3, torch.arange(8)


def attached(name: str, width: int = 5, depth: int = 2) -> Engine:
    layers: list[nn.Module] = [nn.Linear(6, width), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    engine = biograd.attach(nn.Sequential(*layers, nn.Linear(width, 3)), ESTIMATORS[name]())
    engine.prepare(INPUTS, TARGETS)
    return engine


def one_line(error: pytest.ExceptionInfo[biograd.BiogradError]) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("other", ["weak", "another network"])
def test_a_state_that_does_not_fit_is_refused_in_one_line(name: str, other: str) -> None:
    shaped = attached(name, width=4, depth=1) if other != "weak" else attached("weak")
    shaped(INPUTS, TARGETS, ROWS)
    engine, state = attached(name), shaped.state()
    kept = [
        {key: value.shape for key, value in each.items() if key.startswith("estimator.")}
        for each in (state, engine.state())
    ]
    if kept[0] == kept[1]:
        pytest.skip("keeps nothing for the network's shapes")
    with pytest.raises(biograd.RecipeError, match="the state does not fit") as error:
        engine.load_state(state)
    assert one_line(error)
    own = attached(name)
    own.load_state(engine.state())  # its own kind is taken


@pytest.mark.parametrize("name", ["backprop", "direct_feedback"])
def test_a_copied_engine_can_be_detached_and_its_network_attached_again(name: str) -> None:
    engine = attached(name)
    twin = copy.deepcopy(engine)
    again = biograd.attach(twin.detach(), ESTIMATORS[name]())
    again.prepare(INPUTS, TARGETS)
    again.load_state(engine.state())
    gradients = []
    for each in (engine, again):
        each(INPUTS, TARGETS, ROWS).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.network.parameters()]))  # type: ignore[union-attr]
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    "name", [n for n, kind in ESTIMATORS.items() if kind.needs & {"perturb_site", "jvp_site"}]
)
def test_one_layer_is_refused_by_rules_that_need_a_hidden_site(name: str) -> None:
    engine = biograd.attach(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), ESTIMATORS[name]())
    with pytest.raises(biograd.CapabilityError, match="no hidden site"):
        engine.prepare(INPUTS, TARGETS)


def test_the_hint_of_an_empty_list_is_a_sentence() -> None:
    assert nearest("window", []) == "there is none to choose from"
    assert "did you mean 'weak'" in nearest("waek", ["weak"])


def test_statistics_of_a_diverged_network_warn_of_nothing() -> None:
    found = LayerRecord(np.array([[np.inf, 1.0], [-np.inf, 3.0]], dtype=np.float32)).statistics()
    assert np.isnan(found["std"][0]) and found["std"][1] == 1.0


@pytest.mark.slow
def test_forward_forward_learns_on_spikes_by_default(tmp_path: Path) -> None:
    accuracy = {}
    for name, estimator, settings in (
        ("default", "forward_forward", ()),
        ("out of reach", "forward_forward", ("estimators.forward_forward.threshold=1.0",)),
        ("frozen", "frozen_hidden", ()),
    ):
        run = biograd.train(
            "spiking",
            estimator=estimator,
            epochs=4,
            path=tmp_path / f"{name}.h5",
            settings=("dataset.validation=0.2", *settings),
        )
        accuracy[name] = float(run.scalars("epoch")["test_accuracy"][-1])
    assert accuracy["default"] > accuracy["frozen"] + 0.05
    assert accuracy["out of reach"] < accuracy["frozen"] - 0.2


def test_an_estimator_serves_one_engine() -> None:
    estimator = make("direct_feedback")
    attach(build("mlp"), estimator)(*batch())
    with pytest.raises(CapabilityError, match="give every engine an estimator of its own"):
        attach(build("mlp"), estimator)(*batch())
    without_state = make("weak")
    for _ in range(2):
        attach(build("mlp"), without_state)(*batch())
