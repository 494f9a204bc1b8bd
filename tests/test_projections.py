"""Layers of projections: sparse ones against masked ones and autograd, one-to-one by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks_for_tests import Gradients, batch, gradients
from torch import Tensor, nn

import biograd
from biograd.circuit import sparse
from biograd.circuit.projections import Masked, OneToOne, Sparse
from biograd.decorrelation import Decorrelation
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make
from biograd.estimators.weight_mirror import mirrored
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, construct
from biograd.substrate.effective import respond
from biograd.substrate.network import initialise
from biograd.substrate.sites import find_sites

SIGNS = ("both", "excitatory", "inhibitory")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "values"), dtype=torch.float64)


def made(inputs: int = 7, outputs: int = 5, sign: Any = "both", seed: int = 1) -> Sparse:
    """Return a sparse layer in float64 whose weights and biases are drawn."""
    layer = Sparse(inputs, outputs, 0.4, sign=sign).double()
    layer.choose(generator(seed, "pairs"))
    with torch.no_grad():
        layer.weight.copy_(random(len(layer.weight), seed=seed))
        layer.bias.copy_(random(outputs, seed=seed + 1))  # type: ignore[union-attr]
    return layer


def places(layer: Sparse) -> tuple[Tensor, Tensor]:
    return layer.connections[:, 0], layer.connections[:, 1]


@torch.no_grad()
def dense(layer: Sparse) -> Masked:
    """Return the masked layer of the same connections and weights."""
    mask = torch.zeros(layer.shape, dtype=torch.bool)
    mask[places(layer)] = True
    twin = Masked(mask, layer.bias is not None, layer.sign).to(layer.weight.dtype)
    twin.weight[mask] = layer.weight  # both by target, then by source
    if layer.bias is not None:
        twin.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return twin


def as_function(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def run(weight: Tensor, inputs: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, {"weight": weight}, (inputs,))
        return found

    return run


# Sparse: values and derivatives


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("shape", [(3,), (3, 4), (150, 2)])
def test_a_sparse_layer_is_the_masked_one(sign: str, shape: tuple[int, ...]) -> None:
    layer, inputs = made(sign=sign), random(*shape, 7).requires_grad_()
    twin, cotangent = dense(layer), random(*shape, 5, seed=3)
    assert torch.allclose(layer(inputs), twin(inputs), rtol=0, atol=1e-13)
    found, expected = (
        torch.autograd.grad(one(inputs), [one.weight, one.bias, inputs], cotangent)
        for one in (layer, twin)
    )
    for name, one, other in zip("wbx", found, expected, strict=True):
        same = other[twin.mask] if name == "w" else other
        assert torch.allclose(one, same, rtol=0, atol=1e-12), name


def test_its_derivatives_of_every_order_are_those_of_finite_differences() -> None:
    layer, inputs = made(4, 3), random(2, 4, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        as_function(layer),
        (layer.weight, inputs),
        check_forward_ad=True,
        check_batched_grad=False,
    )
    assert torch.autograd.gradgradcheck(
        as_function(layer), (layer.weight, inputs), check_fwd_over_rev=True
    )


def test_a_wrong_transpose_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = made(6, 6), random(3, 6).requires_grad_()
    starts, targets, order = layer.pattern.turned
    object.__setattr__(layer.pattern, "turned", (starts, targets, order.flip(0)))
    expected = torch.autograd.grad(dense(layer)(inputs).sum(), inputs)[0]
    assert not torch.allclose(torch.autograd.grad(layer(inputs).sum(), inputs)[0], expected)


def test_rows_are_taken_in_parts() -> None:
    layer, inputs = made(), random(2 * sparse.PAIRED_ROWS + 3, 7)
    assert torch.equal(layer(inputs)[-5:], layer(inputs[-5:]))
    (found,) = torch.autograd.grad(layer(inputs).square().sum(), layer.weight)
    twin = dense(layer)
    (expected,) = torch.autograd.grad(twin(inputs).square().sum(), twin.weight)
    assert torch.allclose(found, expected[twin.mask], rtol=1e-12)
    assert layer(inputs[:0]).shape == (0, 5)


def test_single_precision_stays_and_half_is_lifted() -> None:
    layer = made().float()
    assert layer(torch.ones(2, 7)).dtype == torch.float32
    assert layer.connections.dtype == torch.int64
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(torch.ones(2, 7, dtype=torch.bfloat16))
    assert torch.equal(found, layer(torch.ones(2, 7)))


# Sparse: connections


def test_connections_are_drawn_with_the_seed_and_set_the_size_of_the_weights() -> None:
    def network(seed: int) -> nn.ModuleDict:
        found = nn.ModuleDict({"into": Sparse(200, 300, 0.1)})
        initialise(found, seed, 2.0, "readout")
        return found

    one, same, other = (network(seed)["into"] for seed in (0, 0, 1))
    assert isinstance(one, Sparse) and isinstance(same, Sparse) and isinstance(other, Sparse)
    assert torch.equal(one.connections, same.connections) and torch.equal(one.weight, same.weight)
    assert not torch.equal(one.connections, other.connections)
    assert len(one.weight) == 6000 and one.fan_in == 20
    assert len(one.connections.unique(dim=0)) == 6000
    per_output = torch.bincount(one.connections[:, 0], minlength=300).double()
    assert abs(float(per_output.var()) / 18 - 1) < 0.3  # of a binomial draw: 200 x 0.1 x 0.9
    size = one.weight.detach().std() * one.fan_in**0.5
    assert abs(float(size) / 2.0 - 1) < 0.05
    other.load_state_dict(one.state_dict())
    inputs = torch.rand(3, 200, generator=generator(2))
    assert torch.equal(other(inputs), one(inputs))


@pytest.mark.parametrize("density", [0.01, 0.5, 0.9, 1.0])
def test_every_density_can_be_drawn(density: float) -> None:
    layer = Sparse(30, 20, density)
    layer.choose(generator(3))
    assert len(layer.connections.unique(dim=0)) == len(layer.weight) == round(600 * density)
    assert torch.allclose(layer(torch.ones(1, 30)), layer.bias)


def test_pairs_can_be_given() -> None:
    layer = Sparse(4, 3, torch.tensor([[2, 0], [0, 3], [0, 1]]), bias=False)
    assert layer.connections.tolist() == [[0, 1], [0, 3], [2, 0]]
    layer.choose(generator(0))
    assert layer.connections.tolist() == [[0, 1], [0, 3], [2, 0]]
    layer.weight.data = torch.tensor([10.0, 20.0, 30.0])
    assert layer(torch.tensor([[1.0, 2, 3, 4]])).tolist() == [[2 * 10 + 4 * 20, 0, 30]]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 1], [0, 1]], r"\(0, 1\) is there twice"),
        ([[3, 0]], r"\(3, 0\) lies outside of \(3, 4\)"),
        ([[0, -1]], r"\(0, -1\) lies outside"),
        ([[0, 1, 2]], "give pairs"),
        ([[0.0, 1.0]], "give pairs"),
    ],
)
def test_what_are_no_connections_is_refused(pairs: list[list[float]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Sparse(4, 3, torch.tensor(pairs))


def test_connections_from_a_broken_file_are_refused() -> None:
    layer = Sparse(4, 3, 0.5)
    layer.connections[0, 1] = 9
    with pytest.raises(CapabilityError, match="connections: not one pair"):
        layer(torch.ones(1, 4))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_computes_the_same(twin: Callable[[Sparse], Sparse]) -> None:
    layer, inputs = made(), random(2, 7)
    expected = layer(inputs)
    other = twin(layer)
    assert torch.equal(other(inputs), expected)
    other.connections.copy_(made(seed=5).connections)
    assert not torch.allclose(other(inputs), expected)
    assert torch.equal(layer(inputs), expected)


# Sparse: under the rules


def stack(masked: bool) -> nn.Sequential:
    """Return a network of three sparse layers, or of the masked ones of the same weights."""
    parts: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(((6, 8), (8, 7), (7, 5))):
        layer = made(inputs, outputs, SIGNS[place], seed=place)
        parts += [dense(layer) if masked else layer, nn.Tanh()]
    readout = nn.Linear(5, 3).double()
    readout.weight.data, readout.bias.data = random(3, 5), random(3)
    return nn.Sequential(*parts, readout)


def engines(rule: str) -> tuple[Engine, Engine]:
    networks = [stack(masked) for masked in (False, True)]
    sparse_one, masked_one = (
        attach(network, make(rule), sites=("0", "2", "4", "6"), seed=1) for network in networks
    )
    return sparse_one, masked_one


def assert_same(found: Gradients, expected: Gradients, network: nn.Module) -> None:
    for name, one in found.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        other = expected[name]
        if isinstance(layer, Masked) and name.endswith("weight"):
            other = other[layer.mask]
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12), name


DRAWN = {
    "feedback_alignment",
    "sign_symmetry",
    "weight_mirror",
    "kolen_pollack",
    "weight_perturbation",
    "forward_gradient_weight",
}
"""Rules that draw numbers, or take sizes, in the shape of the weights."""


@pytest.mark.parametrize("rule", sorted(set(ESTIMATORS) - DRAWN))
def test_credit_of_sparse_layers_is_that_of_masked_ones(rule: str) -> None:
    one, two = engines(rule)
    found, expected = (gradients(engine, *batch()) for engine in (one, two))
    assert_same(found, expected, two.network)


@pytest.mark.parametrize("rule", sorted(DRAWN))
def test_rules_that_draw_weights_train_every_sparse_layer(rule: str) -> None:
    engine, _ = engines(rule)
    inputs, targets = batch()
    engine.prepare(inputs, targets)
    optimiser = torch.optim.SGD(engine.parameters(), 0.1)
    before, losses = copy.deepcopy(engine.network.state_dict()), []
    for _ in range(40):
        optimiser.zero_grad()
        result = engine(inputs, targets)
        result.backward()
        optimiser.step()
        engine.update()
        losses.append(float(result.loss))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for name, parameter in engine.network.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_a_feedback_weight_stands_in_connection_by_connection() -> None:
    one, two = engines("feedback_alignment")
    for engine in (one, two):
        engine.prepare(*batch())
    for name, layer in one.network.named_children():
        if isinstance(layer, Sparse) and name != "0":
            two.estimator.weights[name][places(layer)] = one.estimator.weights[name]  # type: ignore[index, union-attr]
    two.estimator.weights["6"].copy_(one.estimator.weights["6"])  # type: ignore[index, union-attr]
    found, expected = (gradients(engine, *batch()) for engine in (one, two))
    assert_same(found, expected, two.network)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("kind", ["sparse", "masked"])
def test_a_mirror_finds_the_weight_that_acts(kind: str, sign: str) -> None:
    layer: Any = made(sign=sign)
    layer = layer if kind == "sparse" else dense(layer)
    noise = torch.randn(40_000, 7, generator=generator(8), dtype=torch.float64)
    found = mirrored(layer, layer.weight.detach(), noise)
    eye = torch.eye(7, dtype=torch.float64)
    acting = respond(layer, found, eye), respond(layer, layer.weight.detach(), eye)
    assert torch.allclose(*acting, atol=0.06) and acting[1].abs().max() > 1


def test_decorrelation_names_what_it_leaves_as_it_is() -> None:
    network = stack(masked=False)
    decorrelation = Decorrelation(rate=0.1)
    attach(network, make("backprop"), decorrelation, sites=("0", "2", "4", "6")).detach()
    assert "0 (Sparse)" in decorrelation.passed_over
    with pytest.raises(CapabilityError, match=r"cannot act on 0 \(Sparse\)"):
        attach(network, make("backprop"), Decorrelation(rate=0.1), sites=("0",), outside="exact")
    decorrelation = Decorrelation(rate={"6": 0.1})
    attach(network, make("backprop"), decorrelation, sites=("0", "2", "4", "6")).detach()
    with pytest.raises(CapabilityError, match=r"rate: 0: only Linear"):
        attach(network, make("backprop"), Decorrelation(rate={"0": 0.1}), sites=("0", "6"))


def test_the_layers_of_a_module_are_sites_by_themselves() -> None:
    assert [site.name for site in find_sites(stack(masked=False), None)] == ["0", "2", "4", "6"]


# One to one


@pytest.mark.parametrize("sign", SIGNS)
def test_one_to_one_by_hand(sign: Any) -> None:
    layer = OneToOne(3, bias=True, sign=sign)
    layer.weight.data, layer.bias.data = torch.tensor([[2.0], [-3], [0]]), torch.ones(3)  # type: ignore[union-attr]
    weight = {"both": [2, -3, 0], "excitatory": [2, 3, 0], "inhibitory": [-2, -3, 0]}[sign]
    inputs = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert torch.equal(layer(inputs), inputs * torch.tensor(weight) + 1)
    assert OneToOne(3).bias is None and torch.equal(OneToOne(3)(inputs), inputs)


# In a circuit


def circuit(kind: str) -> Any:
    equations = "dv/dt = (8 * I + g - v) / (10*ms) : 1\ndg/dt = -g / (4*ms) : 1\nI : 1"
    cells = {"equations": equations, "threshold": "v > 1", "reset": "v = 0", "method": "exact"}
    some = {"kind": kind, "density": 0.5, "bias": False}
    table: dict[str, Any] = {
        "network": {"substrate": "brian2", "kind": "circuit", "dtype": "float64", "gain": 3.0},
        "populations": {"a": {"units": 8, **cells}, "b": {"units": 6, **cells}},
        "projections": {
            "into": {"source": "input", "target": "a"},
            "a_b": {"source": "a", "target": "b", "sign": "excitatory", **some},
            "b_a": {"source": "b", "target": "a", "variable": "g", "sign": "inhibitory", **some},
            "b_b": {"source": "b", "target": "b", "variable": "g", "delay_ms": 2.0, **some},
        },
    }
    return biograd.build(construct(ModelRecipe, table, "test"), 6, 3)


@pytest.fixture(scope="module")
def circuits() -> tuple[Any, Any]:
    """Return a circuit of sparse projections, and of masked ones of the same weights."""
    from biograd.brian.import_brian2 import import_brian2

    import_brian2().prefs.codegen.target = "numpy"
    one, two = circuit("sparse"), circuit("masked")
    for name, layer in one.projections.items():
        if isinstance(layer, Sparse):
            two.projections[name] = dense(layer)
    two.load_state_dict(one.state_dict() | two.projections.state_dict(prefix="projections."), False)
    two.projections["into"].load_state_dict(one.projections["into"].state_dict())
    return one, two


@pytest.mark.parametrize("rule", ["backprop", "eprop", "weak", "unitwise"])
def test_a_sparse_circuit_is_the_masked_one(rule: str, circuits: tuple[Any, Any]) -> None:
    inputs, targets = batch()
    found = []
    for network in circuits:
        engine = attach(network, make(rule), seed=1)
        found.append(gradients(engine, inputs, targets))
        engine.detach()
    assert torch.allclose(circuits[0](inputs), circuits[1](inputs), atol=1e-12)
    assert_same(found[0], found[1], circuits[1])
    assert found[0]["projections.b_b.weight"].any()


def test_a_density_stands_for_masked_and_sparse_alone() -> None:
    table = {
        "network": {"substrate": "brian2", "kind": "circuit"},
        "populations": {"a": {"units": 3}},
        "projections": {"x": {"source": "input", "target": "a", "density": 0.3}},
    }
    with pytest.raises(RecipeError, match="kind = 'masked' or 'sparse'"):
        biograd.build(construct(ModelRecipe, table, "test"), 6, 3)


def connected(**settings: Any) -> Any:
    table = {
        "network": {"kind": "circuit"},
        "populations": {"a": {"units": 9}},
        "projections": {"x": {"source": "input", "target": "a", **settings}},
    }
    return biograd.build(construct(ModelRecipe, table, "test"), (1, 5, 5), 3).projections["x"]


def test_a_recipe_says_one_to_one_and_the_padding() -> None:
    with pytest.raises(RecipeError, match=r"projections.x.kind = 'one_to_one': leads from 25"):
        connected(kind="one_to_one")
    kernel = {"kind": "convolution", "channels": 1, "stride": 1}
    layer = connected(**kernel, padding="valid")
    assert (layer.padding, layer.target_shape) == (0, (1, 3, 3))
    with pytest.raises(RecipeError, match=r"has 49 outputs \(1, 7, 7\)"):
        connected(**kernel, padding=2)
    table = {
        "network": {"kind": "circuit"},
        "populations": {"a": {"units": 6}},
        "projections": {
            "x": {"source": "input", "target": "a"},
            "own": {"source": "a", "target": "a", "kind": "one_to_one", "sign": "inhibitory"},
        },
    }
    own = biograd.build(construct(ModelRecipe, table, "test"), 4, 3).projections["own"]
    assert isinstance(own, OneToOne) and own.sign == "inhibitory" and own.bias is not None
