"""``biograd.record``: a loop of the user's own writes the file that a training writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import biograd
from biograd.runs.views.validation import validate

STIMULI = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(6) % 3


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))


def trained(module: nn.Sequential, recording: Any = None, steps: int = 12) -> list[Tensor]:
    """Train in a plain loop with dropout, and return what the parameters are in the end."""
    torch.manual_seed(2)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for step in range(1, steps + 1):
        loss = nn.functional.cross_entropy(module(STIMULI), CLASSES)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if recording is not None:
            recording.step(step, loss=loss)
    return [p.detach().clone() for p in module.parameters()]


def test_a_plain_loop_is_recorded_as_it_was(tmp_path: Path) -> None:
    module = network()
    first = module[0].weight.detach().clone()
    with biograd.record(module, tmp_path / "run.h5", STIMULI, CLASSES, notes={"a": 1}) as kept:
        final = trained(module, kept)
        kept.epoch(0, test_accuracy=0.5)
    run = biograd.load(tmp_path / "run.h5")
    assert run.snapshots["step"].tolist() == [0, 1, 2, 5, 10]
    assert run.status == "completed" and len(run.scalars("train_step")["loss"]) == 12
    assert run.scalars("epoch")["test_accuracy"].tolist() == [0.5]
    np.testing.assert_array_equal(run.weights("0.weight")[0], first)
    with torch.no_grad():  # by hand, from the weights of the file
        weight, bias = (torch.from_numpy(run.weights(f"0.{n}")[-1]) for n in ("weight", "bias"))
        hidden = torch.tanh(STIMULI @ weight.T + bias)
        weight, bias = (torch.from_numpy(run.weights(f"3.{n}")[-1]) for n in ("weight", "bias"))
    layer = next(iter(run.layers))
    np.testing.assert_allclose(run.activity(layer)[-1], hidden, atol=1e-6)
    np.testing.assert_allclose(run.outputs()[-1], hidden @ weight.T + bias, atol=1e-6)
    assert run.probe is not None and run.probe.label.tolist() == CLASSES.tolist()
    assert run.confusion().counts.sum() == 6
    assert not any(part.problem for part in validate(run))
    assert all(map(torch.equal, final, trained(network())))  # nobody was disturbed


def test_it_is_read_while_it_goes_on_and_after_it_died(tmp_path: Path) -> None:
    module, path = network(), tmp_path / "run.h5"
    kept = biograd.record(module, path, STIMULI)
    assert biograd.load(path).snapshots["step"].tolist() == [0]
    trained(module, kept, 5)
    assert biograd.load(path).snapshots["step"].tolist() == [0, 1, 2, 5]
    with pytest.raises(ZeroDivisionError), kept:
        raise ZeroDivisionError
    assert biograd.load(path).status == "crashed"


def test_every_at_events_and_parts(tmp_path: Path) -> None:
    module = network()
    how: dict[str, Any] = {"log": False, "every": 4, "at": [3], "weights": ["3.*"]}
    with biograd.record(module, tmp_path / "r.h5", STIMULI, steps=9, outputs=False, **how) as kept:
        trained(module, kept, 9)
        kept.snapshot(9)
        with pytest.raises(biograd.RecipeError, match="step 10 after step 9, of 9"):
            kept.step(10)
        with pytest.raises(biograd.RecipeError, match="step 9 after step 9"):
            kept.step(9)
    run = biograd.load(tmp_path / "r.h5")
    assert run.snapshots["step"].tolist() == [0, 3, 4, 8, 9]
    assert sorted(run.recorded_weights) == ["3.bias", "3.weight"]
    with pytest.raises(biograd.RunFileError, match="not recorded"):
        run.outputs()


def test_an_engine_gives_credit_and_gradients(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    engine = biograd.attach(module, biograd.Backpropagation())
    engine(STIMULI, CLASSES).backward()
    due = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    with biograd.record(engine, tmp_path / "run.h5", STIMULI, CLASSES, gradients=True):
        pass
    run = biograd.load(tmp_path / "run.h5")
    for name, gradient in due.items():
        np.testing.assert_allclose(run.weights(name, "gradient")[0], gradient, atol=1e-6)
    assert run.attributes["rule"] == "backprop"


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"every": 3}, biograd.RecipeError, "steps"),
        ({"epochs": "all"}, biograd.RecipeError, "epochs"),
        ({"wieghts": ["*"]}, biograd.RecipeError, "wieghts"),
        ({"weights": ["nothing"]}, biograd.RecipeError, "nothing"),
        ({"layers": ["nothing"]}, biograd.RecipeError, "nothing"),
        ({"at": [0]}, biograd.RecipeError, "at"),
        ({"log": "yes"}, biograd.RecipeError, "log"),
        ({"gradients": True}, biograd.RecipeError, "targets"),
        ({"gradients": True, "targets": CLASSES}, biograd.CapabilityError, "engine"),
        ({"variables": ["potential"]}, biograd.CapabilityError, "potential"),
        ({"targets": CLASSES[:2]}, biograd.DataError, "2 for 6"),
        ({"stimuli": STIMULI[:0]}, biograd.DataError, "stimuli"),
        ({"limit_gb": 1e-7}, biograd.RecipeError, "limit_gb"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_file(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], text: str
) -> None:
    shown, targets = given.pop("stimuli", STIMULI), given.pop("targets", None)
    with pytest.raises(error, match=text):
        biograd.record(network(), tmp_path / "run.h5", shown, targets, **given)
    assert not list(tmp_path.iterdir())


def test_a_network_of_biograd_gives_its_spikes(tmp_path: Path) -> None:
    module = biograd.build("spiking", inputs=4, classes=3)
    with biograd.record(
        module, tmp_path / "run.h5", STIMULI.abs(), CLASSES, variables=["potential"]
    ):
        pass
    run = biograd.load(tmp_path / "run.h5")
    layer = next(iter(run.layers))
    assert run.layers[layer].kind == "spiking" and len(run.spikes(layer).rows) == 6
    assert run.variable(layer, "potential").shape[1] == 6
    with pytest.raises(biograd.RecipeError, match="exists"):
        biograd.record(module, tmp_path / "run.h5", STIMULI)


@pytest.mark.parametrize("call", ["resume", "reproduce", "diagnose"])
def test_what_trained_it_is_not_in_the_file(tmp_path: Path, call: str) -> None:
    with biograd.record(network(), tmp_path / "run.h5", STIMULI):
        pass
    with pytest.raises(biograd.RunFileError, match="loop of one's own"):
        path = tmp_path / "run.h5"
        getattr(biograd, call)(biograd.load(path) if call == "diagnose" else path)
