"""Decorrelation against the equations, written out slowly in NumPy."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks_for_tests import (
    PLAIN,
    RecurrentCell,
    batch,
    build,
    check_equal,
    drawn,
    gradients,
    spiking,
)
from numpy.typing import NDArray
from torch import Tensor, nn

import biograd
from biograd import decorrelation as matrices
from biograd import experiment
from biograd.decorrelation import MOST_PASSES, Decorrelation
from biograd.decorrelation.input_transform import InputTransform
from biograd.decorrelation.rules import RULES, Moments
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import make
from biograd.randomness import generator
from biograd.recipes import DecorrelationRecipe

Array = NDArray[np.float64]
SINGLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Linear(6, 4), (6,)),
    "dense without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 2, padding=1, stride=2), (2, 7)),
    "conv1d grouped": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 0), stride=(2, 1)), (2, 5, 6)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 2, groups=4), (4, 4, 5)),
}
"""A layer and the shape of its inputs."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=torch.float64)


def attached(name: str, **settings: Any) -> tuple[Engine, Decorrelation, Tensor]:
    """Return a network of one layer and a readout, decorrelated, and a batch of inputs."""
    make_layer, shape = SINGLE[name]
    layer, inputs = drawn(make_layer()), normal(9, *shape)
    width = layer(inputs).flatten(1).shape[1]
    network = drawn(nn.Sequential(layer, nn.Flatten(), nn.Linear(width, 3)))
    decorrelation = Decorrelation(**settings)
    return attach(network, make("backprop"), decorrelation), decorrelation, inputs


def disturb(decorrelation: Decorrelation) -> None:
    """Give every layer a matrix and a mean far from where they start."""
    with torch.no_grad():
        for place, matrix in enumerate(decorrelation.matrices.values()):
            matrix.add_(0.3 * normal(*matrix.shape, seed=place))
        for place, mean in enumerate(decorrelation.means.values()):
            mean.copy_(normal(*mean.shape, seed=place))


def make_positive(decorrelation: Decorrelation) -> None:
    """Make every matrix symmetric, its eigenvalues between 0.5 and 1.5."""
    with torch.no_grad():
        for matrix in decorrelation.matrices.values():
            vectors = torch.linalg.qr(matrix)[0]
            values = 0.5 + torch.linspace(0, 1, matrix.shape[-1], dtype=matrix.dtype)
            matrix.copy_(vectors * values @ vectors.mT)


def patches(layer: nn.Module, inputs: Tensor) -> list[Array]:
    """Return the rows that each group of a layer sees, one output position after the other."""
    if isinstance(layer, nn.Linear):
        return [inputs.reshape(-1, inputs.shape[-1]).numpy()]
    images = inputs.numpy()
    padded = np.pad(images, [(0, 0), (0, 0), *[(p, p) for p in layer.padding]])
    spans = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    counts = [
        (n - span) // s + 1
        for n, span, s in zip(padded.shape[2:], spans, layer.stride, strict=True)
    ]
    per_group = images.shape[1] // layer.groups
    rows: list[list[Array]] = [[] for _ in range(layer.groups)]
    for image in padded:
        for place in np.ndindex(*counts):
            window = tuple(
                slice(p * s, p * s + span, d)
                for p, s, span, d in zip(place, layer.stride, spans, layer.dilation, strict=True)
            )
            for group, found in enumerate(rows):
                channels = slice(group * per_group, (group + 1) * per_group)
                found.append(image[(channels, *window)].reshape(-1))
    return [np.stack(found) for found in rows]


def slow_update(rule: str, matrix: Array, rows: Array, eta: float, kappa: float) -> Array:
    """Return the next matrix by the equations, sample by sample."""
    outputs = [matrix @ row for row in rows]
    size = len(matrix)
    correlation = np.zeros((size, size))
    for output in outputs:
        correlation += np.outer(output, output) / len(outputs)
    off = correlation - np.diag(np.diag(correlation))
    if rule == "kappa":
        variance = np.diag(np.diag(correlation) - 1)
        return matrix - eta * ((1 - kappa) * off @ matrix + kappa * variance @ matrix)
    if rule == "copi":
        return matrix - eta * off @ matrix
    if rule == "foldiak":
        return np.linalg.inv(np.linalg.inv(matrix) + eta * off)
    pairs = zip(rows, outputs, strict=True)
    scaled = np.mean([np.sqrt(x @ x) / np.sqrt(y @ y) for x, y in pairs]) * matrix
    return scaled - eta * correlation @ scaled


@pytest.mark.parametrize("kappa", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SINGLE)
def test_update_follows_the_equations(name: str, rule: str, kappa: float | None) -> None:
    settings: dict[str, Any] = {"rule": rule, "rate": 0.01}
    if kappa is not None and "kappa" in Decorrelation.unread(settings):
        with pytest.raises(RecipeError, match="kappa"):
            Decorrelation(**settings, kappa=kappa)
        return
    engine, decorrelation, inputs = attached(
        name, **settings, **({} if kappa is None else {"kappa": kappa})
    )
    kappa = 0.5 if kappa is None else kappa
    disturb(decorrelation)
    if rule == "foldiak":  # symmetric and positive definite, as the rule keeps it
        make_positive(decorrelation)
    before = decorrelation.matrices["0"].clone().numpy()
    rows = patches(engine.network[0], inputs)
    engine(inputs, torch.arange(9) % 3)
    engine.update()
    for group, found in enumerate(decorrelation.matrices["0"].numpy()):
        expected = slow_update(rule, before[group], rows[group], 0.01, kappa)
        assert np.abs(found - expected).max() < 1e-12
        assert np.abs(found - before[group]).max() > 1e-4


def test_a_broken_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES.own, "copi", lambda moments, rate: moments.without(rate))
    with pytest.raises(AssertionError):
        test_update_follows_the_equations("dense", "copi", None)


def test_every_rule_can_be_chosen() -> None:
    for name in RULES:
        made = matrices.make(DecorrelationRecipe(name), "file")
        assert made is not None and made.rule == name
    assert matrices.make(DecorrelationRecipe(), "file") is None
    with pytest.raises(
        RecipeError, match=r"^file: decorrelation.rule = 'copy': did you mean 'copi'"
    ):
        matrices.make(DecorrelationRecipe("copy"), "file")


@pytest.mark.parametrize("name", SINGLE)
def test_copi_is_kappa_zero(name: str) -> None:
    found = []
    for settings in ({"rule": "kappa", "kappa": 0.0}, {"rule": "copi"}):
        engine, decorrelation, inputs = attached(name, rate=0.01, **settings)
        disturb(decorrelation)
        for _ in range(3):
            engine(inputs, torch.arange(9) % 3)
            engine.update()
        found.append(decorrelation.matrices["0"])
    assert torch.equal(*found)


def test_the_first_small_step_of_foldiak_is_that_of_copi() -> None:
    """Where ``M`` is the identity, ``(I + eta O)^-1 = I - eta O + eta^2 O^2 - ...``."""
    rows, eye, rate = normal(20, 6), torch.eye(6, dtype=torch.float64), 1e-5

    def step(rule: str) -> Tensor:
        return (RULES[rule](Moments(rows, rows, eye.clone(), 0.5), rate) - eye) / rate

    steps = [step("foldiak"), step("copi")]
    second = rate * (steps[1] @ steps[1])
    assert (steps[0] - steps[1] - second).abs().max() < 1e-8
    assert second.abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_foldiak_stays_symmetric_and_positive_at_any_rate(dtype: torch.dtype) -> None:
    """Nearly singular inputs and absurd rates; the raw equation loses definiteness at once."""
    rows = (normal(50, 2) @ normal(2, 12, seed=1) + 1e-3 * normal(50, 12, seed=2)).to(dtype)
    for rate in (0.01, 1e3):
        matrix = torch.eye(12, dtype=dtype)
        for _ in range(100):
            matrix = RULES["foldiak"](Moments(rows, rows @ matrix.T, matrix, 0.5), rate)
            assert torch.equal(matrix, matrix.T)
            assert torch.linalg.eigvalsh(matrix).min() > 0
    raw = slow_update("foldiak", np.eye(12), rows.double().numpy(), 1e3, 0.5)
    assert np.linalg.eigvalsh(raw).min() < 0


@pytest.mark.parametrize("rule", RULES)
def test_centring_subtracts_a_running_mean(rule: str) -> None:
    engine, decorrelation, inputs = attached("dense", rule=rule, rate=0.01, centre=True)
    mean = np.zeros(6)
    matrix = np.eye(6)
    for turn in range(3):
        engine(inputs + turn, torch.arange(9) % 3)
        engine.update()
        rows = (inputs + turn).numpy()
        mean = 0.9 * mean + 0.1 * rows.mean(0)
        matrix = slow_update(rule, matrix, rows - mean, 0.01, 0.5)
    assert np.abs(decorrelation.means["0"].numpy()[0] - mean).max() < 1e-12
    assert np.abs(decorrelation.matrices["0"].numpy()[0] - matrix).max() < 1e-12


def settled(rule: str, kappa: float, updates: int = 600) -> tuple[list[float], Tensor]:
    """Return the energies of repeated updates on one batch, and ``C`` at the end."""
    inputs = normal(600, 6) @ normal(6, 6, seed=3).T / 2
    decorrelation = Decorrelation(rule, rate=0.05, kappa=kappa)
    engine = attach(build("mlp"), make("backprop"), decorrelation)
    energies, targets = [], torch.arange(600) % 3
    for _ in range(updates):
        engine(inputs, targets)
        engine.update()
        energies.append(decorrelation.energy["0"].item())
    raw = (inputs.T @ inputs / 600).square()
    diagonal = raw.diagonal().mean()
    assert energies[0] == pytest.approx(((raw.sum() - raw.trace()) / 30 / diagonal).item())
    seen = inputs @ decorrelation.matrices["0"][0].T
    return energies, seen.T @ seen / len(seen)


SETTLED = [("kappa", 0.5), ("kappa", 1.0), ("kappa", 0.0), ("copi", 0.5), ("foldiak", 0.5)]


@pytest.mark.parametrize(("rule", "kappa"), SETTLED)
def test_repeated_updates_decorrelate_a_gaussian(rule: str, kappa: float) -> None:
    energies, correlation = settled(rule, kappa)
    off = correlation - torch.diag(correlation.diagonal())
    if (rule, kappa) != ("kappa", 1.0):
        assert energies[-1] < 0.02 * energies[0] and off.abs().max() < 0.15
    if rule == "kappa" and kappa > 0:
        assert (correlation.diagonal() - 1).abs().max() < 0.1
    if (rule, kappa) == ("kappa", 1.0):
        assert off.abs().max() > 0.3  # unit variance alone leaves the correlations


def test_scaled_lowers_the_energy_and_keeps_the_length() -> None:
    """It shrinks every variance towards the others' and has no fixed point of its own."""
    energies, correlation = settled("scaled", 0.5, updates=100)
    assert energies[-1] < 0.1 * energies[0]
    assert 0.5 < correlation.trace() / 6 < 2


def test_the_fixed_point_of_foldiak_has_no_correlations() -> None:
    energies, correlation = settled("foldiak", 0.5, updates=1500)
    off = correlation - torch.diag(correlation.diagonal())
    assert off.abs().max() < 1e-6 * correlation.diagonal().min()
    assert energies[-1] < 1e-12 < energies[0]


@pytest.mark.parametrize("estimator", ["backprop", "weak", "frozen_hidden"])
@pytest.mark.parametrize("name", [*PLAIN, "batch_norm"])
def test_an_identity_matrix_changes_nothing(name: str, estimator: str) -> None:
    inputs, targets = batch()
    found = gradients(attach(build(name), make(estimator), Decorrelation()), inputs, targets)
    check_equal(found, gradients(attach(build(name), make(estimator)), inputs, targets), 1e-12)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "dense without bias"])
def test_folding_keeps_the_outputs(name: str, centre: bool) -> None:
    engine, decorrelation, inputs = attached(name, centre=centre)
    disturb(decorrelation)
    before = engine.network(inputs)
    decorrelation.fold()
    assert (engine.network(inputs) - before).abs().max() < 1e-12
    assert (engine.detach()(inputs) - before).abs().max() < 1e-12


def kept(engine: Engine) -> list[object]:
    """Return what the hooks of a network's layers keep of their products."""
    hooks = [h for m in engine.network.modules() for h in m._forward_pre_hooks.values()]
    return [hook.kept for hook in hooks if hasattr(hook, "kept")]


@pytest.mark.parametrize("name", SINGLE)
def test_products_kept_for_inference_change_no_output(name: str) -> None:
    engine, decorrelation, inputs = attached(name, centre="bias" not in name)
    disturb(decorrelation)
    expected = engine.network(inputs).detach()
    engine.network.eval()
    assert (engine.network(inputs) - expected).abs().max() < 1e-12
    assert kept(engine) == [None, None]  # a graph must not outlive its pass
    products: list[object] = []
    for context in (torch.no_grad, torch.no_grad, torch.inference_mode):
        with context():
            found = engine.network(inputs)
        assert all(kept(engine))
        assert (found - expected).abs().max() < 1e-12
        products = products or kept(engine)
        assert all(map(operator.is_, kept(engine), products))  # made once


def change_weight(engine: Engine, layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)  # type: ignore[operator]


def change_matrix(engine: Engine, layer: nn.Module) -> None:
    engine.network.train()
    engine(normal(9, 6, seed=5), torch.arange(9) % 3)
    engine.update()
    engine.network.eval()


def load_weights(engine: Engine, layer: nn.Module) -> None:
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})


def load_matrices(engine: Engine, layer: nn.Module) -> None:
    state = engine.state()
    engine.load_state({n: 2 * v if "matrices" in n else v for n, v in state.items()})


def replace_weight(engine: Engine, layer: nn.Module) -> None:
    layer.weight = nn.Parameter(2 * layer.weight.detach())  # type: ignore[operator]


def replace_values(engine: Engine, layer: nn.Module) -> None:
    layer.weight.data = 2 * layer.weight.data  # type: ignore[union-attr,operator]


def optimise(engine: Engine, layer: nn.Module) -> None:
    for parameter in engine.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(engine.parameters(), lr=0.1).step()


def write_past_autograd(engine: Engine, layer: nn.Module) -> None:
    layer.weight.data.mul_(2)  # type: ignore[operator,union-attr]
    engine.network.train()
    engine(normal(9, 6, seed=5), torch.arange(9) % 3)
    engine.network.eval()


CHANGES = [
    change_weight,
    change_matrix,
    load_weights,
    load_matrices,
    replace_weight,
    replace_values,
    optimise,
    write_past_autograd,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_product_follows_every_change(change: Callable[[Engine, nn.Module], None]) -> None:
    engine, decorrelation, inputs = attached("dense", rate=0.1)
    disturb(decorrelation)
    engine.network.eval()
    with torch.no_grad():
        before = engine.network(inputs)
    change(engine, engine.network[0])
    with torch.no_grad():
        found = engine.network(inputs)
    expected = engine.network(inputs).detach()  # with a graph nothing is kept
    assert torch.equal(found, expected)
    assert (found - before).abs().max() > 1e-6


def test_a_product_kept_too_long_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "biograd.decorrelation.input_transform._unchanged", lambda before, now: True
    )
    with pytest.raises(AssertionError):
        test_a_kept_product_follows_every_change(change_weight)


def test_parameters_swapped_for_a_call_are_not_kept() -> None:
    engine, _, inputs = attached("dense")
    engine.network.eval()
    swapped = {n: 2 * p.detach() for n, p in engine.network.named_parameters()}
    with torch.no_grad():
        expected = engine.network(inputs)
        torch.func.functional_call(engine.network, swapped, (inputs,))
        assert kept(engine) == [None, None]
        assert torch.equal(engine.network(inputs), expected)


def test_a_centred_input_cannot_be_folded_without_bias() -> None:
    engine, decorrelation, _ = attached("dense without bias", centre=True)
    disturb(decorrelation)
    weights = [value.clone() for value in engine.network.parameters()]
    with pytest.raises(CapabilityError, match="0: it has no bias"):
        decorrelation.fold()
    assert all(map(torch.equal, engine.network.parameters(), weights))


def test_tied_layers_are_folded_or_refused_but_never_changed() -> None:
    """Two layers with one weight and two matrices have no common folded weight."""
    network, decorrelation = build("tied"), Decorrelation()
    attach(network, make("backprop"), decorrelation)
    disturb(decorrelation)
    inputs = batch()[0]
    before = network(inputs)
    with contextlib.suppress(CapabilityError):
        decorrelation.fold()
    assert (network(inputs) - before).abs().max() < 1e-12


@pytest.mark.parametrize("name", SINGLE)
def test_gradient_is_autograd_through_the_explicit_transform(name: str) -> None:
    """The input is transformed patch by patch; the layer's weight then acts on the patches."""
    engine, decorrelation, inputs = attached(name, centre="bias" not in name)
    disturb(decorrelation)
    targets = torch.arange(9) % 3
    layer, readout = engine.network[0], engine.network[2]
    found = gradients(engine, inputs, targets)
    columns = [torch.from_numpy(rows) for rows in patches(layer, inputs)]
    engine.network.zero_grad()
    means, matrices = decorrelation.means["0"], decorrelation.matrices["0"]
    parts = []
    for group, weight in enumerate(layer.weight.flatten(1).chunk(len(columns))):
        rows = (columns[group] - means[group] * decorrelation.centre) @ matrices[group].T
        parts.append((rows @ weight.T).view(9, -1, len(weight)))
    outputs = torch.cat(parts, -1)
    if layer.bias is not None:
        outputs = outputs + layer.bias
    hidden = outputs.transpose(1, 2).flatten(1)
    seen = (hidden - decorrelation.means["2"] * decorrelation.centre) @ (
        decorrelation.matrices["2"][0].T
    )
    outputs = nn.functional.linear(seen, readout.weight, readout.bias)
    nn.functional.cross_entropy(outputs, targets).backward()
    check_equal(found, {n: p.grad for n, p in engine.network.named_parameters()}, 1e-12)


def test_weight_and_bias_are_the_parameters_again_when_forward_fails() -> None:
    engine, decorrelation, inputs = attached("dense", centre=True)
    disturb(decorrelation)
    layer = engine.network[0]
    keys, weight = list(engine.network.state_dict()), layer._parameters["weight"]
    engine.network(inputs)
    with pytest.raises(RuntimeError):
        engine.network(inputs[:, :2])
    assert layer.weight is weight and list(engine.network.state_dict()) == keys
    assert "weight" not in layer.__dict__ and "bias" not in layer.__dict__
    assert torch.equal(engine.network.state_dict()["0.weight"], weight)


def test_only_clean_training_passes_are_learned_from() -> None:
    inputs, targets = batch()
    engine = attach(build("mlp"), make("weak"), Decorrelation())
    engine(inputs, targets)
    (kept,) = engine.decorrelate._passes  # type: ignore[union-attr]
    assert {name: len(visits) for name, visits in kept.items()} == {"0": 1, "2": 1, "4": 1}
    assert torch.equal(kept["0"][0].inputs, inputs)
    engine.update()
    matrices = {name: m.clone() for name, m in engine.decorrelate.matrices.items()}  # type: ignore[union-attr]
    engine.network.eval()
    engine(inputs, targets)
    engine.update()
    for name, matrix in engine.decorrelate.matrices.items():  # type: ignore[union-attr]
        assert torch.equal(matrix, matrices[name])


def test_accumulated_batches_count_as_one() -> None:
    inputs, targets = batch(40)
    found = []
    for parts in ([40], [16, 16, 8]):
        decorrelation = Decorrelation(rate=0.01)
        engine = attach(build("mlp"), make("backprop"), decorrelation)
        for part, target in zip(inputs.split(parts), targets.split(parts), strict=True):
            engine(part, target)
        engine.update()
        found.append(decorrelation.matrices["2"].clone())
    assert (found[0] - found[1]).abs().max() < 1e-12
    assert (found[0] - torch.eye(5, dtype=torch.float64)).abs().max() > 1e-6


def test_without_updates_memory_is_bounded() -> None:
    engine = attach(build("mlp"), make("backprop"), Decorrelation())
    for _ in range(MOST_PASSES + 5):
        engine(*batch())
    assert len(engine.decorrelate._passes) == MOST_PASSES  # type: ignore[union-attr]


WRONG = [{"rule": "kapa"}, {"rate": -1.0}, {"rate": {"0": 0.0}}, {"kappa": 3.0}, {"sample": 0.0}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"^Decorrelation: {next(iter(wrong))}"):
        Decorrelation(**wrong)


@pytest.mark.parametrize("rule", RULES)
def test_rates_by_layer_and_samples(rule: str) -> None:
    inputs, targets = batch(40)
    decorrelation = Decorrelation(rule, rate={"0": 0.01, "4": 1e-4}, sample=0.1)
    engine = attach(build("mlp"), make("backprop"), decorrelation)
    engine(inputs, targets)
    (seen,) = decorrelation._passes
    last = seen["4"][0].inputs.numpy()
    engine.update(pace=0.5)
    assert torch.equal(decorrelation.matrices["2"][0], torch.eye(5, dtype=torch.float64))
    stream = generator(0, "decorrelation")
    for name, rows, rate in (("0", inputs.numpy(), 0.005), ("2", None, 0), ("4", last, 5e-5)):
        chosen = torch.randperm(40, generator=stream)[:4].numpy()
        if rows is not None:
            expected = slow_update(rule, np.eye(rows.shape[1]), rows[chosen], rate, 0.5)
            assert np.abs(decorrelation.matrices[name][0].numpy() - expected).max() < 1e-12


def test_a_rate_for_no_layer_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"decorrelation\.rate: no layer 'readuot'"):
        attach(build("mlp"), make("backprop"), Decorrelation(rate={"readuot": 0.1}))


@pytest.mark.parametrize(
    "rule",
    [rule if rule == "copi" else pytest.param(rule, marks=pytest.mark.slow) for rule in RULES],
)
def test_the_energy_of_every_layer_is_in_the_run_file(tmp_path: Path, rule: str) -> None:
    found = {}
    for chosen in (rule, "off"):
        request = experiment.TrainingRequest(
            model="ann",
            epochs=2,
            out=tmp_path / f"{chosen}.h5",
            assignments=(f"decorrelation.rule={chosen}",),
        )
        experiment.execute(request)
        with biograd.load(request.out) as run:  # type: ignore[arg-type]
            found[chosen] = run.scalars("epoch"), [entry.name for entry in run.tree()]
    layers = ("blocks.0.synapse", "blocks.1.synapse", "readout")
    for layer in layers:
        column = found[rule][0][f"off_diagonal_energy.{layer}"]
        assert len(column) == 2 and all(0 < value < math.inf for value in column)
        assert f"learning/{layer}/off_diagonal_energy" in found[rule][1]
    assert not any("energy" in name for name in (*found["off"][0], *found["off"][1]))


@pytest.mark.parametrize("network", ["plain", "cell"])
def test_the_frozen_control_decorrelates_the_readout_alone(network: str) -> None:
    """Whatever the order in which the layers were defined."""
    inputs, targets = batch()
    made, decorrelation = build("mlp"), Decorrelation(rate=0.1)
    made = made if network == "plain" else drawn(RecurrentCell())
    engine = attach(made, make("frozen_hidden"), decorrelation)
    engine(inputs, targets)
    engine.update()
    readout = "4" if network == "plain" else "readout"
    for name, matrix in decorrelation.matrices.items():
        eye = torch.eye(matrix.shape[-1], dtype=torch.float64)
        assert torch.equal(matrix[0], eye) == (name != readout)
    assert readout in decorrelation.matrices


def test_spiking_layers_see_their_mean_input() -> None:
    """Training on the mean over the trial, applied to every step."""
    inputs, targets = batch()
    made, decorrelation = spiking(encoding={"kind": "poisson"}), Decorrelation(rate=0.1)
    engine = attach(made, make("backprop"), decorrelation)
    engine(inputs, targets)
    rows = made.encode(inputs, generator(0, "encoding")).mean(1).numpy()
    engine.update()
    expected = slow_update("kappa", np.eye(6), rows, 0.1, 0.5)
    found = decorrelation.matrices["blocks/0/synapse"][0].numpy()
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("kind", ["masked", "one_to_one"])
def test_layers_that_cannot_be_decorrelated_are_named(kind: str) -> None:
    from biograd.recipes import ModelRecipe, construct

    units = 6
    table = {
        "network": {"kind": "circuit"},
        "populations": {"a": {"units": units}},
        "projections": {"x": {"source": "input", "target": "a", "kind": kind}},
    }
    network = biograd.build(construct(ModelRecipe, table, "here"), units, 3)
    decorrelate = Decorrelation()
    engine = biograd.attach(network, biograd.Backpropagation(), decorrelate)
    assert list(decorrelate.layers) == ["readout"]
    engine.detach()
    assert "projections.x (" in decorrelate.passed_over
    with pytest.raises(CapabilityError, match=r"decorrelation\.rate: projections\.x: only Linear"):
        biograd.attach(
            network, biograd.Backpropagation(), Decorrelation(rate={"projections.x": 1e-3})
        )
    rates = Decorrelation(rate={"readout": 1e-3})
    engine = biograd.attach(network, biograd.Backpropagation(), rates)
    assert list(rates.layers) == ["readout"] and not rates.passed_over
    engine.detach()


def on_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InputTransform, "by_rows", lambda *given: False)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "estimator", ["backprop", "weak", "feedback_alignment", "node_perturbation"]
)
def test_rows_and_weights_are_transformed_alike(
    rule: str, centre: bool, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows are multiplied by the matrix, many leave it to the weights: the same numbers."""

    def learned() -> list[Tensor]:
        network = drawn(
            nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 3))
        )
        decorrelation = Decorrelation(rule, rate=0.01, centre=centre)
        engine = attach(network, make(estimator), decorrelation, seed=1)
        optimiser = torch.optim.SGD(network.parameters(), 0.1)
        for turn in range(3):
            engine(normal(8, 6, seed=turn), torch.arange(8) % 3).backward()
            optimiser.step(), optimiser.zero_grad(), engine.update()
        own = [*decorrelation.matrices.values(), *decorrelation.means.values()]
        return [p.detach() for p in network.parameters()] + own

    asked: list[bool] = []
    by_rows = InputTransform.by_rows

    def noted(*given: Any) -> bool:
        asked.append(by_rows(*given))
        return asked[-1]

    monkeypatch.setattr(InputTransform, "by_rows", noted)
    found = learned()
    assert True in asked and False in asked  # the readout has few units
    on_weights(monkeypatch)
    for one, other in zip(found, learned(), strict=True):
        assert (one - other).abs().max() < 1e-12 * max(1, float(other.abs().max()))


def test_a_matrix_on_rows_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decorrelation, "moved", lambda self, name, inputs: inputs)
    with pytest.raises(AssertionError):
        test_rows_and_weights_are_transformed_alike("kappa", False, "backprop", monkeypatch)
