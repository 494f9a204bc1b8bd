"""Forward-forward against its formula written out, and the inputs that it is shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks_for_tests import (
    Gradients,
    batch,
    check_equal,
    drawn,
    gradients,
    grouped_convolution,
    kept_gradients,
    mlp,
    spiking,
)
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd.circuit.sugar import LengthNormalisation
from biograd.contracts import Plan
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ForwardForward
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, NetworkRecipe

CLASSES = 3


class Fixed(ForwardForward):
    """Wrong labels that a test knows: the next class."""

    def wrong(self, targets: Tensor, outputs: Tensor, stream: torch.Generator) -> Tensor:
        return (targets + 1) % outputs.shape[1]


class Swapped(Fixed):
    """Broken: learns to be active for wrong labels."""

    def credit(self, traces: Any, round: Any) -> Any:
        return super().credit([traces[0], traces[2], traces[1]], round)


def dense(normalisation: str = "length") -> nn.Module:
    recipe = NetworkRecipe(hidden=(5, 4), normalisation=normalisation, dtype="float64", gain=2.0)
    return drawn(biograd.build(ModelRecipe(network=recipe), 6, CLASSES))


def written_out(network: nn.Module, inputs: Tensor, targets: Tensor) -> Gradients:
    """Gradients of the blocks' losses and of the readout's, by hand."""
    network.zero_grad()
    for labels, sign in ((targets, 1), ((targets + 1) % CLASSES, -1)):
        values = inputs.clone()
        values[:, :CLASSES] = 0.7 * functional.one_hot(labels, CLASSES).double()
        for block in network.blocks:
            activity = torch.relu(block.synapse(values))
            goodness = activity.square().sum(1) - 0.5 * activity.shape[1]
            torch.log(1 + torch.exp(-sign * goodness)).mean().backward()
            lengths = (activity.square().mean(1, keepdim=True) + 1e-8).sqrt()
            values = (activity / lengths).detach()
    hidden = inputs
    for block in network.blocks:
        hidden = block(block.synapse(hidden))
    functional.cross_entropy(network.readout(hidden.detach()), targets).backward()
    return kept_gradients(network)


def test_each_block_learns_by_the_goodness_of_right_and_wrong_labels() -> None:
    network, (inputs, targets) = dense(), batch()
    expected = written_out(network, inputs, targets)
    settings = {"threshold": 0.5, "strength": 0.7}
    check_equal(gradients(attach(network, Fixed(**settings)), inputs, targets), expected, 1e-12)
    for broken in (Swapped(**settings), Fixed(threshold=0.6, strength=0.7), Fixed(0.5)):
        with pytest.raises(AssertionError):
            check_equal(gradients(attach(network, broken), inputs, targets), expected, 1e-6)


def labelled() -> nn.Module:
    recipe = NetworkRecipe(hidden=(5, 4), label_inputs=True, dtype="float64")
    return drawn(biograd.build(ModelRecipe(network=recipe), 6, CLASSES))


def test_inputs_of_their_own_for_labels_are_neutral_until_a_label_is_laid_over_them() -> None:
    network, (inputs, targets) = labelled(), batch()
    assert network.blocks[0].synapse.in_features == 9
    engine = attach(network, Fixed())
    engine(inputs, targets)
    (traces, _round) = engine._last
    plain, right, wrong = (t.sites["blocks.0.synapse"].visits[0].inputs[0] for t in traces)
    assert all(torch.equal(seen[:, 3:], inputs) for seen in (plain, right, wrong))
    assert torch.equal(plain[:, :3], torch.full((8, 3), 1 / 3, dtype=torch.float64))
    assert torch.equal(right[:, :3], functional.one_hot(targets, 3).double())
    assert torch.equal(wrong[:, :3], functional.one_hot((targets + 1) % 3, 3).double())
    assert torch.equal(network(inputs), network.simulate(plain))


@pytest.mark.parametrize(
    "network",
    [{"kind": "spiking"}, {"recurrent": True}, {"channels": (2,)}, {"kind": "local_mixer"}],
)
def test_only_dense_networks_have_inputs_for_labels(network: dict[str, Any]) -> None:
    recipe = ModelRecipe(network=NetworkRecipe(label_inputs=True, **network))
    with pytest.raises(RecipeError, match=r"network\.label_inputs"):
        biograd.build(recipe, (1, 4, 4), CLASSES)


def test_without_length_normalisation_the_next_block_sees_the_activity_itself() -> None:
    network, (inputs, targets) = dense("none"), batch()
    engine = attach(network, Fixed())
    engine(inputs, targets)
    (traces, _round) = engine._last
    for trace in traces[1:]:
        seen = trace.sites["blocks.1.synapse"].visits[0].inputs[0]
        assert torch.equal(seen, trace.sites["blocks.0.synapse"].activity)


def test_labels_are_laid_over_the_first_features() -> None:
    inputs, targets = batch(4)
    flat = ForwardForward(strength=2.0).overlay(targets, CLASSES, False)(inputs)
    assert torch.equal(flat[:, :3], 2 * functional.one_hot(targets, CLASSES).double())
    assert torch.equal(flat[:, 3:], inputs[:, 3:])
    images = ForwardForward().overlay(targets, CLASSES, False)(inputs.view(4, 1, 2, 3))
    assert images.shape == (4, 1, 2, 3)
    assert torch.equal(images[:, 0, 0], functional.one_hot(targets, CLASSES).double())
    steps = ForwardForward().overlay(targets, CLASSES, True)(inputs.view(4, 1, 6).repeat(1, 5, 1))
    assert torch.equal(steps[:, 4, :3], functional.one_hot(targets, CLASSES).double())
    assert torch.equal(steps[:, 4, 3:], inputs[:, 3:])


@pytest.mark.parametrize("negatives", ["random", "hard"])
def test_a_wrong_label_is_never_the_right_one(negatives: Any) -> None:
    estimator, rows = ForwardForward(negatives=negatives), 3000
    targets = torch.arange(rows) % CLASSES
    outputs = torch.tensor([[0.0, 2.0, 4.0]]).repeat(rows, 1)
    wrong = estimator.wrong(targets, outputs, generator(0))
    assert not bool((wrong == targets).any())
    share = float((wrong[targets == 0] == 2).double().mean())  # class 2 rather than class 1
    expected = 0.5 if negatives == "random" else 1 / (1 + torch.tensor(-2.0).exp().item())
    assert abs(share - expected) < 4 * (expected * (1 - expected) / (rows / 3)) ** 0.5
    again = estimator.wrong(targets, outputs, generator(0))
    assert torch.equal(wrong, again)


def test_certain_outputs_leave_another_label_to_draw() -> None:
    outputs = torch.tensor([[1e4, 0.0, 0.0]]).repeat(9, 1)
    wrong = ForwardForward(negatives="hard").wrong(torch.zeros(9).long(), outputs, generator(0))
    assert set(wrong.tolist()) <= {1, 2}


@pytest.mark.parametrize(
    "make",
    [lambda: drawn(mlp()), lambda: drawn(grouped_convolution()), dense, spiking],
    ids=["mlp", "convolution", "dense", "spiking"],
)
def test_all_layers_of_all_networks_learn(make: Any) -> None:
    network, (inputs, targets) = make(), batch()
    found = gradients(attach(network, ForwardForward(threshold=0.1)), inputs, targets)
    assert all(bool(value.any()) and bool(value.isfinite().all()) for value in found.values())


def test_a_block_s_credit_reaches_no_other_block() -> None:
    network, (inputs, targets) = dense(), batch()
    before = gradients(attach(network, Fixed()), inputs, targets)
    with torch.no_grad():
        network.blocks[1].synapse.weight.mul_(3.0)
    after = gradients(attach(network, Fixed()), inputs, targets)
    name = "blocks.0.synapse.weight"
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before["blocks.1.synapse.weight"], after["blocks.1.synapse.weight"])


def test_plans_with_inputs_of_their_own_leave_the_batch_alone() -> None:
    network, (inputs, targets) = dense(), batch()
    engine = attach(network, biograd.Backpropagation())
    engine.prepare(inputs, targets)
    kept = inputs.clone()
    plan = Plan(inputs=lambda encoded: -encoded)
    run = engine.substrate.run
    trace = run(plan, inputs, targets, engine.objective, generator(0))
    assert torch.equal(inputs, kept) and torch.equal(trace.outputs, network(-inputs))
    noise = {"blocks.0.synapse": torch.zeros(2, 8, 1, 5, dtype=torch.float64)}
    noisy = Plan(inputs=lambda encoded: -encoded, noise=noise)
    losses = run(noisy, inputs, targets, engine.objective, generator(0)).losses
    assert torch.allclose(losses, losses[:1].expand(3, -1), rtol=1e-12, atol=1e-12)


def test_lengths_are_normalised_row_by_row() -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.03, -0.04]], dtype=torch.float64)
    found = LengthNormalisation()(values)
    unit = torch.tensor([0.6, 0.8], dtype=torch.float64) * 2**0.5
    assert torch.allclose(found[0], unit, atol=1e-9) and not found[1].any()
    assert torch.allclose(found[2], unit * torch.tensor([1.0, -1.0]), atol=1e-4)
    images = LengthNormalisation()(torch.rand(3, 2, 4, 4, generator=generator(0)))
    assert torch.allclose(images.square().mean((1, 2, 3)), torch.ones(3))


def refused(engine: Engine, inputs: Tensor, targets: Tensor, words: str) -> None:
    with pytest.raises(CapabilityError, match=words) as caught:
        engine(inputs, targets)
    assert "\n" not in str(caught.value)


def test_what_has_no_room_for_labels_or_no_classes_is_refused() -> None:
    small = attach(drawn(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))), Fixed())
    refused(small, batch()[0][:, :2], batch()[1], "inputs of 2 features have no room")
    vectors = attach(dense(), Fixed(), loss="squared_error")
    refused(vectors, batch()[0], torch.zeros(8, 3).double(), "targets must be the numbers")
    with pytest.raises(RecipeError, match="threshold"):
        ForwardForward(threshold=0.0)


@pytest.mark.slow
def test_it_learns_more_than_a_readout_of_random_features(tmp_path: Any) -> None:
    run = biograd.train(
        "ann",
        "digits",
        estimator="forward_forward",
        path=tmp_path / "run.h5",
        settings=[
            "network.normalisation=length",
            "network.label_inputs=true",
            "network.hidden=[100, 100]",
            "decorrelation.rule=off",
            "training.epochs=30",
            "training.learning_rate=0.003",
            "estimators.forward_forward.threshold=0.3",
        ],
        control=True,
        device="cpu",
    )
    assert run.summary["test_accuracy"] > 0.95
    assert run.summary["test_accuracy"] > run.summary["frozen_hidden_control"] + 0.015
