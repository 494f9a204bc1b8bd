"""What lies between a current and the next one, or is reached in two ways, gets all of its credit.

Affine normalisations, skips past a site, losses that tie rows together, several plans in a step.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from networks_for_tests import (
    Gradients,
    autograd,
    batch,
    build,
    cannot,
    check_equal,
    check_unbiased,
    drawn,
    gradients,
    spiking,
)
from torch import Tensor, nn

import biograd
from biograd.contracts import Plan, Round, Trace, Transport
from biograd.engine import Engine, attach
from biograd.estimators import ESTIMATORS, Estimator, make, weight_perturbation
from biograd.local.objectives import Setting, Similarity
from biograd.local.partition import Cells
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, NetworkRecipe


def normalised(residual: bool = False) -> nn.Module:
    """Return two blocks with a trained normalisation behind each current."""
    recipe = NetworkRecipe(
        kind="rate",
        hidden=(4, 4),
        residual=residual,
        normalisation="layer",
        activation="tanh",
        dtype="float64",
    )
    return drawn(biograd.build(ModelRecipe(network=recipe), 6, 3))


def known_before(trace: Trace, round: Round) -> weight_perturbation.Known:
    """Take every gradient that the cuts let through for the whole: wrong if a weight is shared."""
    found = weight_perturbation.gradients(trace.loss, round.parameters)
    return weight_perturbation.Known(found, [None] * len(found))


def test_a_parameter_that_a_skip_reaches_is_estimated() -> None:
    network = normalised(residual=True)
    inputs, targets = batch(6)
    truth = autograd(network, inputs, targets)
    engine = attach(network, biograd.ForwardGradientWeight(copies=16), seed=1)
    check_unbiased(engine, inputs, targets, truth, draws=60)


@pytest.mark.parametrize("broken", [False, True])
def test_a_weight_of_the_readout_and_of_a_layer_below_is_estimated(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    network[4].weight = network[2].weight
    network = drawn(network)
    inputs, targets = batch(6)
    truth = autograd(network, inputs, targets)
    if broken:
        monkeypatch.setattr(weight_perturbation.Known, "of", known_before)
    engine = attach(network, biograd.ForwardGradientWeight(copies=16), seed=1)
    if broken:
        with pytest.raises(AssertionError):
            check_unbiased(engine, inputs, targets, truth, draws=60)
    else:
        check_unbiased(engine, inputs, targets, truth, draws=60)


def test_beside_a_guess_the_last_normalisation_has_its_exact_gradient() -> None:
    network = normalised()
    inputs, targets = batch(6)
    truth = autograd(network, inputs, targets)
    rule = biograd.ForwardGradientActivity(tangents="local")
    found = gradients(attach(network, rule, outside="exact"), inputs, targets)
    names = [name for name in truth if name.startswith(("blocks.1.normalise", "readout"))]
    assert len(names) == 4
    check_equal({n: found[n] for n in names}, {n: truth[n] for n in names}, 1e-12)


def ratio_gradients(bits: str) -> Gradients:
    inputs, targets = batch(6)
    rule = biograd.LikelihoodRatio(copies=9, bits=bits)  # type: ignore[arg-type]
    return gradients(attach(normalised(), rule, seed=4, outside="freeze"), inputs, targets)


def test_signs_of_inputs_alter_the_weights_alone() -> None:
    """The biases have the same gradients with and without them; the normalisations are frozen."""
    noise, product = ratio_gradients("noise"), ratio_gradients("product")
    weights = {"blocks.0.synapse.weight", "blocks.1.synapse.weight"}
    assert noise["blocks.0.synapse.bias"].any()
    assert not any(value.any() for name, value in noise.items() if "normalise" in name)
    check_equal(
        {name: value for name, value in product.items() if name not in weights},
        {name: value for name, value in noise.items() if name not in weights},
        1e-12,
    )
    for name in weights:
        assert not torch.allclose(product[name], noise[name])


def measured_slope(values: Tensor, broken: bool) -> tuple[float, float]:
    """Return the slope of a row's similarity loss by central differences, and by autograd."""
    rows, step = len(values), 1e-5
    setting = Setting(
        (5,), False, 3, Cells("block"), False, 0.5, generator(0, "head"), values.new_zeros(1)
    )
    head, targets = Similarity(setting), torch.arange(rows) % 3
    direction = torch.randn(5, generator=generator(1), dtype=torch.float64)

    def loss(change: float) -> float:
        many = values.repeat(100, 1)  # as in noisy copies
        many[0] += change * direction
        losses = head(many, targets.repeat(100)).detach()
        return float(losses[0] if not broken else (losses[0] + losses.mean()) / 2)

    live = values.clone().requires_grad_()
    (exact,) = torch.autograd.grad(head(live, targets).mean(), live)
    return (loss(step) - loss(-step)) / (2 * step), float(exact[0] @ direction) * rows


def test_noise_at_a_row_finds_the_whole_slope_of_its_similarity() -> None:
    """A row is in the losses of all rows; its own must change as much as all of them together."""
    values = torch.randn(6, 5, generator=generator(2), dtype=torch.float64)
    measured, exact = measured_slope(values, broken=False)
    assert measured == pytest.approx(exact, rel=2 / 600)
    halved, exact = measured_slope(values, broken=True)
    assert halved == pytest.approx(exact / 2, rel=2 / 600)


def test_the_running_statistics_count_a_step_once() -> None:
    """Forward-forward passes the batch three times, twice of them with labels laid over it."""
    network = build("batch_norm")
    inputs, targets = batch()
    engine = attach(network, biograd.ForwardForward())
    found = []
    for rule in (engine, attach(build("batch_norm"), biograd.Backpropagation())):
        rule(inputs, targets)
        found.append({n: b.clone() for n, b in rule.network.named_buffers()})
    assert found[0].keys() == found[1].keys() and int(found[0]["1.num_batches_tracked"]) == 1
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert all(layer.track_running_stats for layer in (network[1], network[4]))  # type: ignore[index]


def test_an_attribute_of_a_module_stays_its_own() -> None:
    """Only populations are told how credit passes through them."""
    network = build("mlp")
    network[1].transport = "by sea"  # type: ignore[index]
    attach(network, biograd.Backpropagation())(*batch())
    assert network[1].transport == "by sea"  # type: ignore[index]


class KeepsItsRound(Estimator):
    """A rule whose derivative leads back to the graph that holds it."""

    needs = frozenset(("loss", "vjp"))
    coincides = "where nothing spikes"

    def plans(self, round: Round) -> tuple[Plan, ...]:
        def derivative(distance: Tensor) -> Tensor:
            return torch.ones_like(distance) * len(round.traces or "1")

        return (Plan(transport=Transport(derivative=derivative)),)


def forgotten(engine: Engine) -> bool:
    """Return whether nothing is left of a step when its result and the engine are done with it."""
    inputs, targets = batch()
    engine(inputs, targets, torch.arange(len(inputs))).backward()
    assert engine._last is not None
    left = weakref.ref(engine._last[0][0])
    engine.update()
    gc.collect()
    return left() is None


@pytest.mark.parametrize("network", ["mlp", "torch"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_step_leaves_no_graph_behind(name: str, network: str) -> None:
    if cannot(network, name):
        pytest.skip(cannot(network, name))
    assert forgotten(attach(spiking() if network == "torch" else build("mlp"), make(name)))


def test_a_graph_that_holds_itself_is_found() -> None:
    assert not forgotten(attach(spiking(), KeepsItsRound()))


def test_a_second_axis_is_not_time() -> None:
    """A dense layer whose output is folded into maps: every unit counts in its goodness."""
    network = drawn(
        nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 3, 2), nn.Flatten()
        )
    )
    inputs, targets = batch()
    rule = biograd.ForwardForward()
    engine = attach(network, rule)
    engine(inputs, targets)
    assert engine._last is not None
    site = engine._last[0][1].sites["0"]
    assert site.activity is not None and site.activity.shape[1:] == (2, 2, 2) and not site.timed
    expected = site.activity.square().flatten(1).sum(1) - 8
    assert torch.allclose(rule.goodness(site), expected, rtol=1e-12)
