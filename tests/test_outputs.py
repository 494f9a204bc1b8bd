"""What of a module's value its outputs are: parts, steps in front, and losses that want them so."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
from networks_for_tests import check_equal
from networks_in_loops import OUTPUTS, ROWS, STEPS, UNITS, Loop, decay, drawn, fire
from snntorch import functional as losses
from test_loops import attached, gradients_of, trained
from torch import Tensor, nn

import biograd
from biograd.contracts import Plan
from biograd.engine import Engine
from biograd.errors import CapabilityError
from biograd.estimators import make
from biograd.tasks.steps_first import StepsFirst


class Tutorial(Loop):
    """A loop whose readout spikes; it returns spikes and potentials, the steps first."""

    def __init__(self) -> None:
        super().__init__()
        self.last = snntorch.Leaky(beta=decay(0.9), spike_grad=fire, threshold=0.3)

    def forward(self, inputs: Tensor) -> Any:
        states, potential = self.begin(inputs), inputs.new_zeros(len(inputs), OUTPUTS)
        spikes, potentials = [], []
        for now in inputs.unbind(1):
            fired, potential = self.last(self.readout(self.step(now, states)), potential)
            spikes.append(fired)
            potentials.append(potential)
        return torch.stack(spikes), torch.stack(potentials)


SPIKES = biograd.Outputs(part=0, time_first=True)


def tutorial() -> Tutorial:
    torch.manual_seed(0)
    network = Tutorial().double()
    weights = drawn("dense").state_dict()
    network.load_state_dict(weights, strict=False)
    return network


def batch(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    inputs = torch.rand(rows, STEPS, 16, generator=stream, dtype=torch.float64)
    return inputs, torch.arange(rows) % OUTPUTS


ALL = {
    "ce_rate_loss": {},
    "ce_count_loss": {},
    "ce_max_membrane_loss": {},
    "mse_count_loss": {"correct_rate": 0.8, "incorrect_rate": 0.2},
    "mse_membrane_loss": {},
    "ce_temporal_loss": {},
    "mse_temporal_loss": {},
}


@pytest.mark.parametrize("name", ALL)
def test_losses_of_snntorch_are_those_of_each_example(name: str) -> None:
    loss = getattr(losses, name)(**ALL[name])
    (inputs, targets), network = batch(), tutorial()
    part = biograd.Outputs(part="membrane" in name, time_first=True)
    course = network(inputs)[part.part].transpose(0, 1).float()
    found = StepsFirst(loss)(course, targets)
    assert found.shape == (ROWS,)
    assert torch.allclose(found.mean(), loss(course.transpose(0, 1), targets).float())
    for row in range(ROWS):  # each by itself
        alone = loss(course[row : row + 1].transpose(0, 1), targets[row : row + 1])
        assert torch.allclose(found[row], alone.float(), atol=1e-6)


@pytest.mark.parametrize("name", ["ce_rate_loss", "ce_count_loss", "mse_count_loss"])
def test_backpropagation_is_that_of_the_users_own_loop(name: str) -> None:
    loss, (inputs, targets) = getattr(losses, name)(), batch()
    network = tutorial()
    expected = gradients_of(network, loss(network(inputs)[0], targets).sum())
    engine = biograd.attach(tutorial(), make("backprop"), loss=loss, outputs=SPIKES)
    check_equal(trained(engine, inputs, targets, 1), expected, 1e-6)


@pytest.mark.parametrize("rule", ["direct_feedback", "weak", "node_perturbation", "ottt", "eprop"])
def test_rules_on_spikes_and_potentials(rule: str) -> None:
    inputs, targets = batch()
    engine = biograd.attach(tutorial(), make(rule), loss=losses.ce_rate_loss(), outputs=SPIKES)
    found = trained(engine, inputs, targets)
    assert engine.timed and all(found[n].any() for n in ("first.weight", "second.weight"))
    assert found["readout.weight"].any()


def test_a_sum_over_the_batch_is_refused() -> None:
    engine = biograd.attach(
        tutorial(), make("backprop"), loss=losses.ce_count_loss(reduction="sum"), outputs=SPIKES
    )
    with pytest.raises(CapabilityError, match=r"ce_count_loss: .*reduction = 'sum'"):
        engine.prepare(*batch())


def test_a_loss_of_steps_needs_steps() -> None:
    loop, (inputs, targets) = drawn("dense"), batch()
    loop.course = False
    with pytest.raises(CapabilityError, match="ce_rate_loss takes the outputs of every step"):
        biograd.attach(loop, make("backprop"), loss=losses.ce_rate_loss()).prepare(inputs, targets)


def prepared(rows: int, form: biograd.Outputs | None) -> Engine:
    engine = biograd.attach(tutorial(), make("backprop"), loss=losses.ce_rate_loss(), outputs=form)
    engine.prepare(*batch(rows))
    return engine


def test_what_is_not_declared_is_refused_by_name() -> None:
    with pytest.raises(CapabilityError, match=r"returned tuple: .* outputs=biograd\.Outputs\(part"):
        prepared(ROWS, None)
    with pytest.raises(CapabilityError, match=r"not the steps: .*Outputs\(time_first=True\)"):
        prepared(ROWS, biograd.Outputs(part=0))


@pytest.mark.parametrize("right", [True, False])
def test_as_many_steps_as_examples_are_no_guess(right: bool) -> None:
    form = biograd.Outputs(part=0, time_first=right)
    if right:
        assert prepared(STEPS, form).timed
        return
    with pytest.raises(CapabilityError, match="second axis are the examples"):
        prepared(STEPS, form)


def test_a_wrong_declaration_is_no_guess_either() -> None:
    loop = drawn("dense")
    inputs, targets = batch(STEPS)
    wrong = attached(loop, make("backprop"), outputs=biograd.Outputs(time_first=True))
    with pytest.raises(CapabilityError, match="second axis are the examples"):
        wrong.prepare(inputs, targets)
    attached(drawn("dense"), make("backprop")).prepare(inputs, targets)


def test_a_sum_over_the_wrong_axis_is_refused() -> None:
    with pytest.raises(CapabilityError, match="do not follow the order of the examples"):
        biograd.attach(
            tutorial(), make("backprop"), outputs=biograd.Outputs(part=0, over_time="sum")
        ).prepare(*batch(STEPS))


class TakesStepsFirst(Loop):
    """A loop over the first axis."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("rows", [ROWS, STEPS])
def test_a_module_that_takes_the_steps_first_is_refused(rows: int) -> None:
    with pytest.raises(CapabilityError, match="do not follow the order of the examples"):
        biograd.attach(
            TakesStepsFirst().double(), make("backprop"), loss=losses.ce_rate_loss()
        ).prepare(*batch(rows))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"part": 2}, "part = 2: the module returns a tuple of 2 parts"),
        ({"part": "spikes"}, "part = 'spikes': the module returns a tuple"),
        ({"over_time": "average"}, "over_time = 'average'"),
    ],
)
def test_parts_that_are_not_there_are_named(form: dict[str, Any], message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        prepared(ROWS, biograd.Outputs(**form))


def test_a_part_of_one_tensor_and_a_key() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    with pytest.raises(CapabilityError, match="returns one Tensor"):
        biograd.Outputs(part=0)(values)
    assert torch.equal(biograd.Outputs(part="a")({"a": values}), values)
    with pytest.raises(CapabilityError, match=r"keys \['a'\]"):
        biograd.Outputs(part="b")({"a": values})
    with pytest.raises(CapabilityError, match="no axis of steps"):
        biograd.Outputs(time_first=True)(values[0])


@pytest.mark.parametrize("kind", ["sum", "mean", "last", "max"])
def test_over_time(kind: Any) -> None:
    values = torch.randn(5, 2, 3)  # [T, B, K]
    found = biograd.Outputs(time_first=True, over_time=kind)(values)
    expected = {"sum": values.sum(0), "mean": values.mean(0), "last": values[-1],
                "max": values.max(0).values}  # fmt: skip
    assert torch.equal(found, expected[kind])


def test_a_network_of_a_recipe_returns_nothing_else() -> None:
    with pytest.raises(CapabilityError, match="returns its outputs alone"):
        biograd.attach(biograd.build("ann", 4, 3), make("weak"), outputs=SPIKES)


def layerwise(kept: bool = False) -> nn.Sequential:
    def neurons() -> nn.Module:
        cell = snntorch.Leaky(beta=decay(0.9), spike_grad=fire, init_hidden=kept)
        return biograd.Steps(cell, reset="reset_mem")

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, UNITS), neurons(), nn.Linear(UNITS, UNITS), neurons(), nn.Linear(UNITS, 3)
    ).double()


@pytest.mark.parametrize("kept", [True, False])
def test_steps_are_a_loop(kept: bool) -> None:
    inputs, _ = batch()
    network = layerwise(kept)
    cells = [snntorch.Leaky(beta=decay(0.9), spike_grad=fire) for _ in range(2)]
    states, found = [torch.zeros(ROWS, UNITS, dtype=torch.float64) for _ in range(2)], []
    for now in inputs.unbind(1):
        for at, cell in enumerate(cells):
            now, states[at] = cell(network[2 * at](now), states[at])
        found.append(network[4](now))
    for _ in range(2):  # nothing is kept from trial to trial
        assert torch.allclose(network(inputs), torch.stack(found, 1))


def test_steps_of_inputs_without_steps_and_of_states_that_are_passed_on() -> None:
    class Cell(nn.Module):
        def forward(self, now: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            state = now if state is None else state + now
            return 2 * state, state

    inputs = torch.randn(3, 4)
    found = biograd.Steps(Cell(), steps=3, passes_state=True)(inputs)
    assert torch.allclose(found, torch.stack([2 * inputs, 4 * inputs, 6 * inputs], 1))
    with pytest.raises(CapabilityError, match="have no steps"):
        biograd.Steps(nn.Identity())(torch.zeros(3))
    with pytest.raises(CapabilityError, match="no module has such a method"):
        biograd.Steps(nn.Identity(), reset="reset_mem")
    with pytest.raises(CapabilityError, match="steps = 0"):
        biograd.Steps(nn.Identity(), steps=0)


@pytest.mark.parametrize("rule", ["direct_feedback", "eprop", "ottt", "sltt", "weak"])
def test_rules_on_networks_of_steps_layer_by_layer(rule: str) -> None:
    inputs, targets = batch()
    steps = targets[:, None].expand(ROWS, STEPS).contiguous()
    network = layerwise()
    network.course = True  # type: ignore[assignment]
    found = trained(attached(network, make(rule)), inputs, steps)
    assert found["0.weight"].any() and found["2.weight"].any()


def test_sltt_layer_by_layer_is_that_of_the_loop() -> None:
    inputs, targets = batch()
    steps = targets[:, None].expand(ROWS, STEPS).contiguous()

    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.course = layerwise(), True

        def forward(self, inputs: Tensor) -> Tensor:
            cells = [self.layers[at].module for at in (1, 3)]
            for cell in cells:
                cell.reset_mem()
            states, found = [cells[0].mem, cells[1].mem], []
            for now in inputs.unbind(1):
                now, states[0] = cells[0](self.layers[0](now), states[0])
                now, states[1] = cells[1](self.layers[2](now), states[1])
                found.append(self.layers[4](now))
            return torch.stack(found, 1)

    for rule in ("sltt", "ottt"):
        network = layerwise()
        network.course = True  # type: ignore[assignment]
        found = trained(attached(network, make(rule)), inputs, steps, 1)
        expected = trained(attached(Looped(), make(rule)), inputs, steps, 1)
        check_equal({f"layers.{name}": value for name, value in found.items()}, expected)


class Flat(nn.Module):
    """A convolution on examples and steps in one axis, as multi-step layers are written.

    Args:
        stepwise: by ``Steps`` in place of the one axis.
    """

    def __init__(self, stepwise: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2))
        self.neurons = biograd.Steps(
            snntorch.Leaky(beta=decay(0.9), spike_grad=fire, threshold=0.1), reset="reset_mem"
        )
        self.readout, self.stepwise = nn.Linear(2, OUTPUTS), stepwise
        if stepwise:
            self.convolution = biograd.Steps(self.convolution)  # type: ignore[assignment]

    def forward(self, inputs: Tensor) -> Tensor:
        images = inputs.unflatten(2, (1, 4, 4))
        if self.stepwise:
            current = self.convolution(images)
        else:
            current = self.convolution(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        found: Tensor = self.readout(self.neurons(current).flatten(2).mean(1))
        return found


@pytest.mark.parametrize("rule", ["weak", "direct_feedback", "forward_gradient_activity"])
def test_rows_of_examples_and_steps_are_refused_with_a_way(rule: str) -> None:
    torch.manual_seed(1)
    inputs, targets = batch()
    flat, stepwise = Flat().double(), Flat(stepwise=True).double()
    weights = {f"convolution.module.{k.removeprefix('convolution.')}" if "conv" in k else k: v
               for k, v in flat.state_dict().items()}  # fmt: skip
    stepwise.load_state_dict(weights)
    assert torch.allclose(flat(inputs), stepwise(inputs))
    biograd.attach(flat, make("backprop")).prepare(inputs, targets)
    with pytest.raises(CapabilityError, match=r"receives 30 rows for 5 examples.*biograd\.Steps"):
        biograd.attach(flat, make(rule)).prepare(inputs, targets)
    found = trained(biograd.attach(stepwise, make(rule)), inputs, targets)
    assert found["convolution.module.0.weight"].any()


def test_a_layers_own_current_is_no_activity() -> None:
    site = biograd.Site("first", ("first",), (False,), activity="first")
    with pytest.raises(CapabilityError, match="not what its layer 'first' returns"):
        attached(drawn("dense"), make("direct_feedback"), sites=[site])


def test_training_takes_a_module_that_returns_more_than_its_outputs(tmp_path: Any) -> None:
    class Classifier(Tutorial):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs.view(len(inputs), STEPS, 16))

    inputs, targets = batch(24)
    torch.manual_seed(0)
    run = biograd.train(
        Classifier(),
        (inputs.flatten(1).float(), targets),
        estimator="direct_feedback",
        epochs=1,
        path=tmp_path / "run.h5",
        outputs=biograd.Outputs(part=1, time_first=True, over_time="mean"),
    )
    assert len(run.scalars("epoch")["test_accuracy"])


def test_a_plan_of_boundaries_is_refused_where_lengths_differ() -> None:
    inputs, targets = batch()
    engine = attached(drawn("dense"), make("predictive_coding"))
    steps = targets[:, None].expand(ROWS, STEPS).contiguous()
    engine.prepare(inputs, steps)
    run = engine.substrate.run
    trace = run(Plan(boundaries=frozenset(("first",)), slots=True), inputs, steps, engine.objective)
    assert trace.sites["first"].leaf.shape == (ROWS, STEPS, UNITS)
    with pytest.raises(CapabilityError, match="reached 4 times in a pass, and was 6 times"):
        run(Plan(boundaries=frozenset(("first",)), slots=True), inputs[:, :4], steps[:, :4],
            engine.objective)  # fmt: skip
