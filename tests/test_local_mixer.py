"""The LocalMixer against formulas written out slowly, and its published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks_for_tests import TrueCredit, autograd, check_equal, drawn, gradients, kept_gradients
from torch import Tensor
from torch.nn import functional

import biograd
from biograd import recipes
from biograd.circuit.local_mixer import GroupLinear, TokenMixing
from biograd.contracts import Plan
from biograd.data import Arrays
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.local import LocalLosses
from biograd.networks import LocalMixer
from biograd.randomness import generator
from biograd.recipes import MixerRecipe, ModelRecipe, NetworkRecipe, TrainingRecipe
from biograd.substrate.effective import through
from biograd.training import Trainer

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
SIZES: dict[str, tuple[tuple[int, ...], str, int, int]] = {
    "local_mixer": (MNIST, "272K", 269_322, 2_570),
    "local_mixer_m_1_16": (MNIST, "429K", 423_946, 5_130),
    "local_mixer_m_8_16": (CIFAR, "919K", 898_250, 20_520),
    "local_mixer_l_8_64": (CIFAR, "13.1M", 12_992_714, 81_960),
}
"""Data, published number of parameters, and those of the network and of the local heads."""
SMALL = MixerRecipe(blocks=3, patches=2, channels=12, groups=3)
SHAPE, CLASSES = (2, 4, 6), 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "mixer"), dtype=torch.float64)


def small(recipe: MixerRecipe = SMALL) -> LocalMixer:
    return drawn(LocalMixer(recipe, SHAPE, CLASSES))  # type: ignore[return-value]


def batch(rows: int = 5) -> tuple[Tensor, Tensor]:
    return normal(rows, *SHAPE), torch.arange(rows) % CLASSES


def attached(network: LocalMixer, cells: Any = "patch_group", **settings: Any) -> Engine:
    local = LocalLosses(cells=cells, groups=3, normalise=True)
    return attach(network, biograd.Backpropagation(), local=local, **settings)


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_those_published(name: str) -> None:
    """The published numbers count the readout and one local head for each block."""
    shape, published, own, heads = SIZES[name]
    recipe = recipes.load_model(name)
    with torch.device("meta"):
        network = LocalMixer(recipe.mixer, shape, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == own
    head = recipe.mixer.channels * 10 + 10
    assert heads == recipe.mixer.blocks * head
    total = own + heads
    assert published == (f"{total / 1e3:.0f}K" if total < 1e6 else f"{total / 1e6:.1f}M")
    assert recipe.local.groups == recipe.mixer.groups and recipe.local.loss == "cross_entropy"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist"])
def test_the_shipped_sizes_take_the_shipped_images(name: str, dataset: str) -> None:
    recipe, data = recipes.load_model(name, dataset), recipes.load_dataset(dataset)
    with torch.device("meta"):
        network = LocalMixer(recipe.mixer, data.shape, 10)
        assert network.simulate(torch.zeros(2, *data.shape)).shape == (2, 10)


def test_the_heads_of_the_local_losses_are_those_counted() -> None:
    engine = attached(small())
    engine.prepare(*batch())
    found = sum(parameter.numel() for parameter in engine.local.parameters())
    assert found == SMALL.blocks * (SMALL.channels * CLASSES + CLASSES)


def normalised(values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def by_groups(block: Any, values: Tensor) -> Tensor:
    """Normalised, mapped and normalised again, group by group."""
    parts = []
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        mapped = normalised(values[..., rows]) @ block.groups.weight[rows].T
        parts.append(normalised(mapped + block.groups.bias[rows]))
    return torch.cat(parts, -1)


def slowly(network: LocalMixer, images: Tensor, stop: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The outputs and the activities of all blocks, patch by patch, for one image after another."""
    outputs, activities = [], []
    for image in images:
        corners = [(down, right) for down in (0, 2) for right in (0, 3)]
        pixels = [image[:, i : i + 2, j : j + 3].flatten() for i, j in corners]
        values, kept = torch.stack(pixels), []
        for block in network.blocks:
            inner = normalised(values)
            if block.mixing:
                mixed = [
                    sum(weight * inner[q] for q, weight in enumerate(row)) + bias
                    for row, bias in zip(block.tokens.weight, block.tokens.bias, strict=True)
                ]
                inner = normalised(torch.relu(normalised(torch.stack(mixed))))
            inner = inner @ block.channels.weight.T + block.channels.bias
            inner = by_groups(block, torch.relu(normalised(inner)))
            values = torch.relu(inner + values if block.mixing else inner)
            kept.append(values)
            values = values.detach() if stop else values
        pooled = normalised(values.mean(0))
        outputs.append(network.readout.weight @ pooled + network.readout.bias)
        activities.append(kept)
    return torch.stack(outputs), [torch.stack(parts) for parts in zip(*activities, strict=True)]


def test_the_network_is_its_formula() -> None:
    network, (images, targets) = small(), batch()
    outputs, activities = slowly(network, images)
    assert torch.allclose(network(images), outputs, rtol=0, atol=1e-12)
    kept = network.activity(images)
    assert list(kept) == list(network.populations)
    for found, expected in zip(kept.values(), activities, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    functional.cross_entropy(outputs, targets).backward()
    check_equal(kept_gradients(network), autograd(network, images, targets), 1e-11)


def test_one_patch_takes_data_of_any_shape() -> None:
    network = LocalMixer(MixerRecipe(channels=6, groups=2), (5,), 3)
    assert network.patchified(torch.ones(4, 5)).shape == (4, 1, 5)
    flat = small().patchified(normal(5, 48))
    assert torch.equal(flat, small().patchified(normal(5, 48).view(5, *SHAPE)))


@pytest.mark.parametrize("layer", [TokenMixing(3), GroupLinear(6, 2)])
def test_own_layers_are_linear_maps_that_feedback_can_stand_in_for(layer: Any) -> None:
    drawn(layer)
    inputs = normal(4, 3, 6).requires_grad_()
    cotangent = normal(4, 3, 6, seed=1)
    (plain,) = torch.autograd.grad((layer(inputs) * cotangent).sum(), inputs)
    same = through(layer, layer.weight.detach(), inputs)
    assert torch.allclose(same + (layer(inputs) - same).detach(), layer(inputs), atol=1e-14)
    (equal,) = torch.autograd.grad((same * cotangent).sum(), inputs)
    other = normal(*layer.weight.shape, seed=2)
    (bent,) = torch.autograd.grad((through(layer, other, inputs) * cotangent).sum(), inputs)
    assert torch.allclose(plain, equal, rtol=0, atol=1e-13) and not torch.allclose(plain, bent)


def test_weights_are_drawn_from_the_seed_at_the_scale_of_their_inputs() -> None:
    recipe = ModelRecipe(
        network=NetworkRecipe(kind="local_mixer"), mixer=MixerRecipe(2, 4, 1024, 4)
    )
    networks = [biograd.build(recipe, (1, 16, 16), 10, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (dict(network.named_parameters()) for network in networks)
    for name, fan_in in (("tokens", 16), ("channels", 1024), ("groups", 256)):
        weight = first[f"blocks.1.{name}.weight"].detach()
        assert torch.equal(weight, again[f"blocks.1.{name}.weight"])
        assert not torch.equal(weight, other[f"blocks.1.{name}.weight"])
        assert abs(float(weight.std()) * fan_in**0.5 - 1) < 0.2
        assert not first[f"blocks.1.{name}.bias"].any()


def test_true_credit_at_every_current_is_the_gradient() -> None:
    network, (images, targets) = small(), batch()
    expected = autograd(network, images, targets)
    check_equal(gradients(attach(network, TrueCredit()), images, targets), expected, 1e-11)
    with pytest.raises(AssertionError):
        broken = attach(network, TrueCredit(factor=0.9))
        check_equal(gradients(broken, images, targets), expected, 1e-11)


def test_every_layer_is_a_site_whose_current_is_normalised() -> None:
    network, (images, targets) = small(), batch()
    engine = attached(network)
    engine.prepare(images, targets)
    names = [site.name for site in network.sites]
    assert names[:5] == [
        "blocks.0.channels",
        "blocks.0.groups",
        "blocks.1.tokens",
        "blocks.1.channels",
        "blocks.1.groups",
    ]
    assert len(names) == 9 and network.ends == tuple(f"blocks.{k}.groups" for k in range(3))
    trace = engine.substrate.run(Plan(), images, targets, engine.objective, generator(0))
    for name in names[:-1]:
        current = trace.sites[name].current()[:, 0]
        groups = 3 if name.endswith("groups") else 1
        parts = current.unflatten(-1, (groups, -1))
        assert current.shape == (5, 4, 12) and parts.mean(-1).abs().max() < 1e-12
        assert (parts.var(-1, correction=0) - 1).abs().max() < 0.01
    assert torch.equal(trace.sites["blocks.1.groups"].activity, slow_activity(engine, images))


def slow_activity(engine: Engine, images: Tensor) -> Tensor:
    network = engine.network
    return network.blocks[1](network.blocks[0](network.patchified(images)))


@pytest.mark.parametrize(
    ("cells", "levels"),
    [
        ("patch_group", {"tokens": 1, "channels": 2, "groups": 2}),
        ("patch", {"tokens": 1, "channels": 1, "groups": 1}),
        ("group", {"tokens": 0, "channels": 1, "groups": 1}),
        ("block", {"tokens": 0, "channels": 0, "groups": 0}),
    ],
)
def test_units_behind_the_token_mixing_act_on_one_cell(cells: str, levels: dict[str, int]) -> None:
    engine = attached(small(), cells)
    engine.prepare(*batch())
    found = engine._structure["levels"]
    assert found == {name: levels[name.rpartition(".")[2]] for name in engine.hidden}
    owners = engine._structure["owners"]
    assert owners == {name: f"{name.rpartition('.')[0]}.groups" for name in engine.hidden}


def by_hand(engine: Engine, images: Tensor, targets: Tensor) -> Any:
    network, local = engine.network, engine.local
    network.zero_grad()
    local.zero_grad()
    outputs, activities = slowly(network, images, stop=True)
    total = functional.cross_entropy(outputs, targets)
    for head, activity in zip(local.heads.values(), activities, strict=True):
        pooled = normalised(activity.unflatten(-1, (3, 4))).flatten(2).mean(1)
        logits = pooled @ head.weight.T + head.bias
        total = total + functional.cross_entropy(logits, targets)
    total.backward()
    return kept_gradients(network), kept_gradients(local)


@pytest.mark.parametrize("cells", ["block", "patch", "group", "patch_group"])
def test_local_gradients_are_those_with_stops_between_the_blocks(cells: str) -> None:
    network, (images, targets) = small(), batch()
    engine = attached(network, cells)
    engine.prepare(images, targets)
    expected, heads = by_hand(engine, images, targets)
    engine.local.zero_grad()
    check_equal(gradients(engine, images, targets), expected, 1e-11)
    check_equal(kept_gradients(engine.local), heads, 1e-11)
    with pytest.raises(AssertionError):
        check_equal(autograd(network, images, targets), expected, 1e-11)


def slopes_of_all_units(engine: Engine, name: str, count: int, groups: bool) -> Tensor:
    """The gradient at a site from ``count`` tangents, each of one unit in every cell at once."""
    images, targets = batch()
    size = 4 if groups else 12
    tangent = torch.eye(size, dtype=torch.float64).repeat(1, 12 // size)[:count]
    tangents = {name: tangent[:, None, None, None].expand(-1, 5, 1, 4, 12)}
    plan = Plan(tangents=tangents)
    trace = engine.substrate.run(plan, images, targets, engine.objective, generator(0))
    round = engine._round(images, targets, None, generator(0))
    return (round.slopes(trace, name) * tangents[name]).sum(0)[:, 0] / len(images)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("blocks.1.groups", True), ("blocks.1.channels", True), ("blocks.1.tokens", False)],
)
def test_one_direction_for_each_unit_of_a_cell_gives_the_whole_gradient(
    name: str, groups: bool
) -> None:
    """12 units of 4 patches: 4 directions with patches and groups by themselves, else 12."""
    images, targets = batch()
    engine = attached(small())
    engine.prepare(images, targets)
    trace = engine.substrate.run(Plan(), images, targets, engine.objective, generator(0))
    (output,) = trace.sites[name].visits[0].outputs
    plain = attached(small(), "block")
    plain.prepare(images, targets)
    whole = plain.substrate.run(Plan(), images, targets, plain.objective, generator(0))
    (current,) = whole.sites[name].visits[0].outputs
    (expected,) = torch.autograd.grad(whole.loss, current)
    assert torch.equal(output, current) and bool(expected.any())
    count = 4 if groups else 12
    found = slopes_of_all_units(engine, name, count, groups)
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    fewer = slopes_of_all_units(engine, name, count - 1, groups)
    assert not torch.allclose(fewer, expected, rtol=0, atol=1e-4)
    with_one_loss = slopes_of_all_units(plain, name, count, groups)
    assert not torch.allclose(with_one_loss, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("estimator", ["forward_gradient_activity", "weak", "feedback_alignment"])
def test_estimators_and_decorrelation_work_on_it(estimator: str) -> None:
    images, targets = batch()
    network = small()
    engine = attach(
        network,
        biograd.estimators.make(estimator),
        biograd.Decorrelation(),
        LocalLosses(cells="patch_group", groups=3, normalise=True),
    )
    for _ in range(2):
        engine(images, targets).backward()
        engine.update()
    assert set(engine.decorrelate.layers) == {
        *(f"blocks.{k}.channels" for k in range(3)),
        "readout",
    }
    for name, parameter in [*network.named_parameters(), *engine.local.named_parameters()]:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert bool(parameter.grad.any()), name


def trainer() -> Trainer:
    images, targets = batch(12)
    local = LocalLosses(cells="patch_group", groups=3, normalise=True)
    engine = attach(small(), biograd.estimators.make("forward_gradient_activity"), local=local)
    return Trainer(engine, TrainingRecipe(epochs=3, batch_size=4), Arrays(images, targets), 0)


def test_training_with_heads_goes_on_from_a_checkpoint_bit_by_bit() -> None:
    whole, first, second = trainer(), trainer(), trainer()
    records = list(whole.steps())
    steps = first.steps()
    for _ in range(4):
        next(steps)
    second.restore(*first.checkpoint())
    losses = [record.loss for record in second.steps()]
    assert losses == [record.loss for record in records[4:]]
    found, expected = second.checkpoint()[0], whole.checkpoint()[0]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "engine.local.heads.blocks/2/groups.weight" in found


@pytest.mark.parametrize(
    ("mixer", "shape", "words"),
    [
        (MixerRecipe(groups=3), (1, 8, 8), "mixer.groups = 3: 256 channels"),
        (MixerRecipe(channels=4, groups=4), (1, 8, 8), "mixer.groups = 4: 4 channels"),
        (MixerRecipe(patches=3), (1, 8, 8), "mixer.patches = 3"),
        (MixerRecipe(patches=2), (64,), "mixer.patches = 2"),
        (MixerRecipe(patches=8), (1, 8, 8), "would be one number"),
    ],
)
def test_what_cannot_be_divided_is_refused(mixer: MixerRecipe, shape: Any, words: str) -> None:
    recipe = ModelRecipe(network=NetworkRecipe(kind="local_mixer"), mixer=mixer)
    with pytest.raises(RecipeError, match=words) as caught:
        biograd.build(recipe, shape, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "network",
    [
        {"substrate": "brian2"},
        {"recurrent": True},
        {"activation": "tanh"},
        {"dropout": 0.5},
        {"normalisation": "batch"},
        {"channels": (4,)},
    ],
)
def test_keys_of_other_networks_are_refused(network: dict[str, Any]) -> None:
    recipe = ModelRecipe(network=NetworkRecipe(kind="local_mixer", **network))
    with pytest.raises((RecipeError, CapabilityError), match=r"network\."):
        biograd.build(recipe, (1, 8, 8), 10)


@pytest.mark.slow
def test_groups_of_their_own_losses_speed_up_forward_gradients(tmp_path: Any) -> None:
    """Fewer units share a loss, so that its slope along a random direction varies less."""
    settings = [
        "mixer.channels=64",
        "mixer.groups=8",
        "local.groups=8",
        "training.epochs=4",
        "training.learning_rate=0.02",
    ]
    found = {}
    for cells in ("block", "patch_group"):
        run = biograd.train(
            "local_mixer",
            "digits",
            path=tmp_path / f"{cells}.h5",
            settings=[*settings, f"local.cells={cells}"],
            device="cpu",
        )
        found[cells] = float(run.scalars("epoch")["test_accuracy"][-1])
    assert found["patch_group"] > 0.85
    assert found["patch_group"] > found["block"] + 0.02
