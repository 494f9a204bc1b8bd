"""Normalisation and dropout of a trial: statistics, folding, one mask for all steps and copies."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from networks_for_tests import CLASSES, batch
from torch import Tensor, nn

from biograd.circuit.grids import Convolution
from biograd.contracts import Plan, Round, Site, Trace
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import Backpropagation
from biograd.randomness import generator
from biograd.substrate.normalisation import Dropout, TimeNormalisation

GRIDS = [(4, 5), (3, 4, 2), (2, 3, 2, 2)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "values"), dtype=torch.float64)


def channels_first(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``[channels, rest]`` for ``[rows, steps, units]``."""
    return values.reshape(-1, shape[0], *shape[1:]).transpose(0, 1).flatten(1)


# Normalisation


@pytest.mark.parametrize("shape", [*GRIDS, (20,)])
def test_the_variance_is_that_of_the_threshold(shape: tuple[int, ...]) -> None:
    layer = TimeNormalisation(shape, alpha=0.7, threshold=1.5, steps=6).double()
    units = torch.Size(shape).numel()
    found = layer(3 + 4 * random(9, 6, units))
    assert found.shape == (9, 6, units)
    by_channel = channels_first(found, shape)
    assert by_channel.mean(1).abs().max() < 1e-12
    assert torch.allclose(by_channel.var(1, correction=0).sqrt(), torch.tensor(0.7 * 1.5).double())


def test_the_equation_by_hand() -> None:
    layer, inputs = TimeNormalisation((3, 2, 2), alpha=2.0).double(), random(4, 5, 12)
    values = inputs.view(4, 5, 3, 4)
    mean = values.mean((0, 1, 3), keepdim=True)
    variance = values.var((0, 1, 3), correction=0, keepdim=True)
    expected = 2 * (values - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(layer(inputs), expected.view(4, 5, 12), atol=1e-12)


def test_one_step_is_batch_normalisation_times_the_gain() -> None:
    layer, inputs = TimeNormalisation((4, 3, 3), alpha=0.5, threshold=3.0), random(8, 36).float()
    plain = nn.BatchNorm2d(4)
    for _ in range(3):
        expected = 1.5 * plain(inputs.view(8, 4, 3, 3)).flatten(1)
        assert torch.allclose(layer(inputs), expected, atol=1e-6)
        assert torch.allclose(layer(inputs[:, None])[:, 0], expected, atol=1e-6)
        plain(inputs.view(8, 4, 3, 3))  # seen as often
    assert torch.equal(layer.norm.running_mean, plain.running_mean)  # type: ignore[arg-type]
    assert torch.equal(layer.norm.running_var, plain.running_var)  # type: ignore[arg-type]


def test_in_evaluation_it_is_a_factor_on_the_weights() -> None:
    synapse = Convolution((2, 6, 6), 4, 3).double()
    synapse.weight.data = random(4, 2, 3, 3)
    layer = TimeNormalisation(synapse.target_shape, threshold=0.8).double()
    layer.norm.bias.data = random(4)
    inputs = random(5, 7, 72)
    for step in range(20):
        layer(synapse(inputs + step / 10))
    layer.eval()
    expected, norm = layer(synapse(inputs)), layer.norm
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    shift = norm.bias - factor * norm.running_mean  # type: ignore[operator]
    synapse.bias.data = factor * synapse.bias + shift  # type: ignore[union-attr]
    synapse.weight.data *= factor.view(-1, 1, 1, 1)
    assert torch.allclose(synapse(inputs), expected, atol=1e-6)


def test_layers_are_normalised_step_by_step() -> None:
    layer, inputs = TimeNormalisation((3, 4), "layer", threshold=2.0).double(), random(5, 6, 12)
    found = layer(inputs)
    assert found.mean(-1).abs().max() < 1e-12
    assert torch.allclose(found.std(-1, correction=0), torch.tensor(2.0).double(), atol=1e-4)
    assert torch.equal(layer(inputs[:, 2]), found[:, 2])


def test_a_step_alone_is_refused_while_statistics_are_taken() -> None:
    layer = TimeNormalisation((4, 3, 3), steps=6)
    with pytest.raises(CapabilityError, match="one step of 6 arrives alone: take kind = 'layer'"):
        layer(torch.ones(2, 36))
    layer.eval()(torch.ones(2, 36))
    with pytest.raises(RecipeError, match="threshold"):
        TimeNormalisation((4,), threshold=0.0)


# Dropout


def test_one_mask_serves_a_trial() -> None:
    layer = Dropout(0.4)
    torch.manual_seed(0)
    found = layer(torch.ones(50, 7, 40))
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert abs(float((found == 0).float().mean()) - 0.4) < 0.05
    assert not torch.equal(layer(torch.ones(50, 7, 40)), found)
    assert torch.equal(layer.eval()(torch.ones(2, 3, 4)), torch.ones(2, 3, 4))


def test_a_population_of_single_steps_keeps_the_mask() -> None:
    layer, ones = Dropout(0.5), torch.ones(20, 30)
    torch.manual_seed(0)
    trials = []
    for _ in range(2):
        layer.begin()
        steps = [layer(ones) for _ in range(4)]
        layer.end()
        assert all(torch.equal(step, steps[0]) for step in steps)
        trials.append(steps[0])
    assert not torch.equal(*trials)
    assert not torch.equal(layer(ones), layer(ones))


# Copies


class InTime(nn.Module):
    """A layer in time, its normalisation, smooth neurons, dropout, the mean over time."""

    def __init__(self, stepwise: bool, kind: type[nn.Module] = Dropout) -> None:
        super().__init__()
        self.synapse, self.readout = nn.Linear(6, 12), nn.Linear(12, CLASSES)
        self.normalise = TimeNormalisation((3, 2, 2), steps=5)
        self.dropout, self.stepwise = kind(0.5), stepwise

    def forward(self, inputs: Tensor) -> Tensor:
        course = inputs[:, None] * torch.linspace(0.5, 2, 5, dtype=inputs.dtype)[:, None]
        activity = torch.tanh(self.normalise(self.synapse(course)))
        if self.stepwise:
            self.dropout.begin()  # type: ignore[operator]
            activity = torch.stack([self.dropout(step) for step in activity.unbind(1)], 1)
            self.dropout.end()  # type: ignore[operator]
        else:
            activity = self.dropout(activity)
        self.__dict__.setdefault("seen", []).append(activity.detach())
        return self.readout(activity.mean(1))  # type: ignore[no-any-return]


class Twice(Backpropagation):
    """Back-propagation beside two noisy copies, the second of which has no noise."""

    def plans(self, round: Round) -> Sequence[Plan]:
        noise = torch.zeros(2, round.batch, 1, 12, dtype=round.dtype)
        noise[0] = 5.0
        return (Plan(noise={"synapse": noise}),)


def copies(network: InTime) -> tuple[Trace, Tensor]:
    """Return the trace of a step and what dropout passed on in each copy."""
    sites = [Site("synapse", ("synapse",), (True,)), Site("readout", ("readout",), (False,))]
    engine = attach(network.double(), Twice(), sites=sites, seed=3)
    inputs, targets = batch()
    engine.prepare(inputs, targets)
    network.__dict__["seen"] = []
    engine(inputs, targets)
    assert engine._last is not None
    clean, noisy = network.__dict__["seen"][-2:]
    engine.detach()
    return engine._last[0][0], torch.cat((clean, noisy)).unflatten(0, (3, -1))


@pytest.mark.parametrize("stepwise", [False, True])
def test_copies_share_statistics_and_masks(stepwise: bool) -> None:
    network = InTime(stepwise)
    trace, seen = copies(network)
    assert torch.allclose(trace.losses[0], trace.losses[2], atol=1e-12)
    assert not torch.allclose(trace.losses[0], trace.losses[1])
    assert torch.equal(seen == 0, (seen[:1, :, :1] == 0).expand_as(seen))
    assert 0.2 < float((seen == 0).double().mean()) < 0.8
    assert network.normalise.norm.num_batches_tracked == 1  # of one step


def test_a_mask_for_each_step_is_found() -> None:
    _, seen = copies(InTime(False, nn.Dropout))
    assert not torch.equal(seen == 0, (seen[:1, :, :1] == 0).expand_as(seen))
