"""The noisy copies share all chance with the clean one and cannot alter it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from networks_for_tests import (
    PLAIN,
    RANDOM,
    autograd,
    batch,
    build,
    check_equal,
    check_silent_copies,
    gradients,
    spiking,
)
from torch import Tensor, nn

from biograd.contracts import Objective, Plan, Round, Trace
from biograd.engine import attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import Backpropagation, WeakGradient, make
from biograd.estimators.loss_regression import METHODS
from biograd.randomness import generator
from biograd.substrate.copies import SharedRandomness
from biograd.substrate.torch_substrate import TorchSubstrate

NETWORKS = sorted(PLAIN | RANDOM)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


class NoisyBackpropagation(Backpropagation):
    """Back-propagation beside noisy copies that nobody looks at."""

    def __init__(self, size: float, copies: int = 2) -> None:
        super().__init__()
        self.size, self.copies = size, copies

    def plans(self, round: Round) -> Sequence[Plan]:
        stream = generator(round.step, "noise of the test")
        noise = {
            name: self.size
            * torch.randn(
                self.copies,
                round.batch,
                1,
                *round.shapes[name].units,
                generator=stream,
                dtype=torch.float64,
            )
            for name in round.hidden
        }
        return (Plan(noise=noise),)


def trace_of(network: nn.Module, size: float) -> Trace:
    """Run one clean and three noisy copies; only the last copy depends on ``size``."""
    substrate = TorchSubstrate(network)
    inputs, targets = batch()
    substrate.run(Plan(graph=False), inputs, targets, Objective(cross_entropy), generator(9))
    name = substrate.sites[0].name
    units = substrate._shapes[name].units
    noise = torch.randn(3, len(inputs), 1, *units, generator=generator(1), dtype=torch.float64)
    noise[2] *= size
    found = substrate.run(
        Plan(noise={name: noise}), inputs, targets, Objective(cross_entropy), generator(5)
    )
    substrate.close()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_noisy_copy_cannot_alter_the_clean_one(name: str) -> None:
    assert NETWORKS
    small, large = trace_of(build(name), 1.0), trace_of(build(name), 1e3)
    assert not torch.equal(small.losses[3], large.losses[3])
    assert torch.equal(small.losses[:3], large.losses[:3])
    assert torch.equal(small.outputs, large.outputs)
    assert torch.equal(small.loss, large.loss)


@pytest.mark.parametrize("name", NETWORKS)
def test_noise_leaves_the_gradient_of_the_clean_copy_alone(name: str) -> None:
    inputs, targets = batch()
    plain = gradients(attach(build(name), Backpropagation()), inputs, targets)
    for size in (0.0, 1.0, 1e3):
        found = gradients(attach(build(name), NoisyBackpropagation(size)), inputs, targets)
        assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_without_noise_have_the_clean_loss(name: str) -> None:
    inputs, targets = batch()
    check_silent_copies(attach(build(name), WeakGradient(4)), inputs, targets)


@pytest.mark.parametrize("kind", ["current", "poisson"])
def test_spiking_copies_without_noise_have_the_clean_loss(kind: str) -> None:
    inputs, targets = batch()
    engine = attach(spiking(encoding={"kind": kind}), WeakGradient(4))
    check_silent_copies(engine, inputs, targets)


def test_masks_drawn_anew_in_every_copy_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = batch()
    engine = attach(build("dropout"), WeakGradient(4))
    engine(inputs, targets)
    kept = SharedRandomness._before_drop

    def redrawn(
        self: SharedRandomness, layer: nn.Module, given: tuple[Tensor]
    ) -> tuple[Tensor] | None:
        """Treat every pass as the clean one."""
        recording = self.recording
        self.recording = True if recording is False else recording
        try:
            return kept(self, layer, given)
        finally:
            self.recording = recording

    # the hooks of a fresh engine find the altered method; the engine itself then refuses
    monkeypatch.setattr(SharedRandomness, "_before_drop", redrawn)
    with pytest.raises(CapabilityError, match="two copies without noise differ"):
        attach(build("dropout"), WeakGradient(4))(inputs, targets)
    broken = attach(build("dropout").eval(), WeakGradient(4))
    broken(inputs, targets)
    broken.network.train()
    with pytest.raises(AssertionError):
        check_silent_copies(broken, inputs, targets)


def test_dropout_masks_come_from_the_engines_stream() -> None:
    inputs, targets = batch()
    first = attach(build("dropout"), Backpropagation(), seed=1)(inputs, targets)
    again = attach(build("dropout"), Backpropagation(), seed=1)(inputs, targets)
    other = attach(build("dropout"), Backpropagation(), seed=2)(inputs, targets)
    assert torch.equal(first.losses, again.losses) and not torch.equal(first.losses, other.losses)


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.25), nn.Dropout(0.25, inplace=True), nn.Dropout1d(0.25), nn.Dropout2d(0.25)],
    ids=str,
)
def test_dropout_drops_its_share_and_keeps_the_mean(layer: nn.Module) -> None:
    shape = (200, 40, *[1] * (2 if isinstance(layer, nn.Dropout2d) else 1))
    shared = SharedRandomness(layer, generator(0))
    with shared.clean():
        clean = layer(torch.ones(shape, dtype=torch.float64))
    with shared.noisy():
        noisy = layer(torch.ones(2 * shape[0], *shape[1:], dtype=torch.float64))
    shared.close()
    assert torch.equal(noisy, torch.cat((clean, clean)))
    assert clean.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (clean == 0).double().mean().item() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)], ids=str)
def test_dropout_of_another_kind_is_refused_or_kept_as_it_is(layer: nn.Module) -> None:
    """Plain masks in place of an alpha dropout would be a silent change of the network."""
    network = nn.Sequential(nn.Linear(6, 400), layer, nn.Linear(400, 3)).double()
    inputs, targets = batch()
    seen: list[Tensor] = []
    try:
        engine = attach(network, WeakGradient(4))
        layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
        engine(inputs, targets)
    except CapabilityError:
        return
    assert not any(bool((output == 0).any()) for output in seen)


def test_batch_norm_copies_use_the_clean_statistics() -> None:
    """A copy whose noise is the same in all rows: its own statistics would take it away."""
    inputs, targets = batch()
    network = build("batch_norm")
    substrate = TorchSubstrate(network)
    substrate.run(Plan(graph=False), inputs, targets, Objective(cross_entropy), generator(0))
    noise = torch.ones(1, len(inputs), 1, 5, dtype=torch.float64)
    losses = substrate.run(
        Plan(noise={"0": noise}), inputs, targets, Objective(cross_entropy), generator(0)
    ).losses
    assert (losses[1] - losses[0]).abs().min() > 1e-3


@pytest.mark.parametrize(
    "estimator", ["backprop", "weak", "node_perturbation", "weight_perturbation"]
)
def test_batch_norm_learns_its_statistics_from_the_clean_batch_once(estimator: str) -> None:
    inputs, targets = batch()
    network, plain = build("batch_norm"), build("batch_norm")
    attach(network, make(estimator))(inputs, targets).backward()
    plain(inputs)
    for (name, found), expected in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), name
    assert all(layer.training for layer in network.modules())


def test_batch_norm_is_whole_again_when_a_copy_fails() -> None:
    """The statistics that stood in for the running ones do not stay behind."""
    network = build("batch_norm")
    engine = attach(network, WeakGradient(4))
    inputs, targets = batch()
    engine(inputs, targets)

    def fail(_module: nn.Module, given: tuple[Tensor]) -> None:
        if len(given[0]) > len(inputs):
            raise RuntimeError("interrupted")

    network[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        engine(inputs, targets)
    assert network[1].training and "biograd_kept" not in network[1].__dict__
    plain = build("batch_norm")
    plain(inputs), plain(inputs)
    assert torch.equal(network[1].running_mean, plain[1].running_mean)


@pytest.mark.parametrize(
    ("method", "copies", "words"),
    [
        ("orthogonal", 65, "at most 65 copies"),
        ("finite_difference", 65, "at most 65 copies"),
        ("antithetic", 7, "odd number of copies"),
        ("leave_one_out", 1, "at least 3 copies"),
        ("quadratic", 128, "at least 130 copies"),
    ],
)
def test_numbers_of_copies_that_cannot_work(method: str, copies: int, words: str) -> None:
    draw, regress = METHODS[method]
    with pytest.raises(RecipeError, match=words) as caught:
        regress(torch.zeros(copies + 1, 2), draw((copies, 2, 64), generator(0), torch.float32), 0)
    assert "\n" not in str(caught.value)


def test_evaluation_draws_nothing_and_learns_no_statistics() -> None:
    inputs, targets = batch()
    for name in RANDOM:
        network = build(name).eval()
        buffers = {key: value.clone() for key, value in network.named_buffers()}
        engine = attach(network, WeakGradient(4))
        state = engine.streams["dropout"].get_state()
        found = engine(inputs, targets)
        assert torch.equal(engine.streams["dropout"].get_state(), state)
        assert torch.allclose(found.losses[0], cross_entropy(network(inputs), targets))
        assert all(torch.equal(value, buffers[key]) for key, value in network.named_buffers())


def test_back_propagation_through_batch_norm_is_autograd() -> None:
    inputs, targets = batch()
    found = gradients(attach(build("batch_norm"), Backpropagation()), inputs, targets)
    check_equal(found, autograd(build("batch_norm"), inputs, targets))
