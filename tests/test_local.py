"""Local losses against formulas written out slowly, and broken forms that must not agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks_for_tests import (
    Residual,
    autograd,
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
from torch.autograd import forward_ad
from torch.nn import functional

import biograd
from biograd.contracts import Objective, Plan, Site
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError, RecipeError
from biograd.local import LocalLosses
from biograd.local.aggregator import replicated_cross_entropy
from biograd.local.objectives import LOCAL_LOSSES, LocalHead, Setting
from biograd.local.partition import AXES, Cells, channel_count, patch_count
from biograd.randomness import generator

SHAPES = [(5, 1, 1, 4), (5, 1, 3, 2), (4, 3, 1, 5), (6, 4, 3, 2)]
"""Rows, patches, groups and channels of a group."""
CLASSES = 3
Losses = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "local"), dtype=torch.float64).to(dtype)


def naive(activity: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The losses cell by cell, with stop-gradients, straight from the formula."""
    rows, patches, groups, _ = activity.shape
    own = [  # the head's gradient is that of one loss: each cell carries its share
        value.detach() + (value - value.detach()) / (patches * groups) for value in (weight, bias)
    ]
    found = []
    for patch, group in itertools.product(range(patches), range(groups)):
        parts = []
        for other in range(groups):
            x = activity[:, :, other]
            if other == group:
                others = [x[:, p].detach() for p in range(patches) if p != patch]
                parts.append((x[:, patch] + sum(others)) / patches)
            else:
                parts.append(x.detach().mean(1))
        logits = functional.linear(torch.cat(parts, 1), *own)
        found.append(functional.cross_entropy(logits, targets, reduction="none"))
    return torch.stack(found, 1).view(rows, patches, groups)


def without_stops(activity: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Broken: every cell is live in every loss."""
    pooled = activity.mean(1).flatten(1)
    logits = functional.linear(pooled, weight, bias)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return losses[:, None, None].expand(activity.shape[:3])


def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    rows, _, groups, channels = shape
    drawn = [
        normal(*shape, seed=1, dtype=dtype),
        normal(CLASSES, groups * channels, seed=2, dtype=dtype),
        normal(CLASSES, seed=3, dtype=dtype),
    ]
    return drawn, torch.arange(rows) % CLASSES


def check_same_losses(
    found: Losses, expected: Losses, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Equal in value, in reverse and in forward mode, for any cotangent and tangent."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    values, targets = arguments(shape, dtype)
    cotangent = normal(*shape[:3], seed=4, dtype=dtype)
    tangents = [normal(*v.shape, seed=5 + i, dtype=dtype) for i, v in enumerate(values)]
    results = []
    for function in (found, expected):
        leaves = [value.clone().requires_grad_() for value in values]
        losses = function(*leaves, targets)
        pulled = torch.autograd.grad((losses * cotangent).sum(), leaves)
        pushed = []
        for chosen in ((0,), (1,), (2,), (0, 1, 2)):
            with forward_ad.dual_level():
                dual = [
                    forward_ad.make_dual(v, t) if i in chosen else v
                    for i, (v, t) in enumerate(zip(values, tangents, strict=True))
                ]
                pushed.append(forward_ad.unpack_dual(function(*dual, targets)).tangent)
        results.append([losses.detach(), *pulled, *pushed])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape and bool(other.any())
        assert (one - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_losses_are_the_naive_ones(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_same_losses(replicated_cross_entropy, naive, shape, dtype)


def test_losses_without_stop_gradients_are_told_apart() -> None:
    with pytest.raises(AssertionError):
        check_same_losses(without_stops, naive, SHAPES[-1], torch.float64)


def test_the_cells_share_one_value_and_their_gradients_add_up_to_that_of_the_plain_loss() -> None:
    values, targets = arguments((6, 4, 3, 2), torch.float64)
    leaves = [value.requires_grad_() for value in values]
    losses = replicated_cross_entropy(*leaves, targets)
    plain = functional.cross_entropy(
        functional.linear(leaves[0].mean(1).flatten(1), *leaves[1:]), targets, reduction="none"
    )
    assert torch.allclose(losses, plain[:, None, None].expand_as(losses), rtol=0, atol=1e-14)
    by_activity, by_weight, by_bias = torch.autograd.grad(losses.sum(), leaves)
    expected = torch.autograd.grad(plain.sum(), leaves)
    for found, wanted in zip((by_activity, by_weight, by_bias), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def saved_bytes(function: Losses, groups: int) -> int:
    values, targets = arguments((8, 4, groups, 64 // groups), torch.float64)
    leaves, sizes = [value.requires_grad_() for value in values], {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = function(*leaves, targets)
    assert losses.shape == (8, 4, groups)
    return sum(sizes.values())


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_groups() -> None:
    fused = [saved_bytes(replicated_cross_entropy, groups) for groups in (1, 4, 16)]
    assert fused[0] == fused[1] == fused[2] > 0
    slow = [saved_bytes(naive, groups) for groups in (1, 4, 16)]
    assert slow[2] > 10 * slow[0] > 10 * fused[0]


UNITS = [(6,), (4, 6), (6, 2, 2)]


def cell_of(kind: str, units: tuple[int, ...], groups: int, place: tuple[int, ...]) -> list[int]:
    """The cell of one unit, from what patches and groups are."""
    patch = {1: 0, 2: place[0]}.get(len(units), 0)
    if len(units) == 3:
        patch = place[1] * units[2] + place[2]
    channel = place[1] if len(units) == 2 else place[0]
    own = {"patch": patch, "group": channel // (channel_count(units) // groups)}
    return [own[axis] for axis in AXES[kind]]


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", AXES)
def test_units_get_the_values_of_their_own_cells(kind: Any, units: tuple[int, ...]) -> None:
    cells, groups = Cells(kind, 3), 3
    counts = {"patch": patch_count(units), "group": groups}
    shape = tuple(counts[axis] for axis in AXES[kind])
    values = normal(2, 5, *shape)
    for level in range(len(shape) + 1):
        found = cells.spread(values, units, level)
        assert found.shape == (2, 5, *units)
        for place in itertools.product(*map(range, units)):
            index = cell_of(kind, units, groups, place)[:level]
            own = values[(slice(None), slice(None), *index)].reshape(2, 5, -1)
            assert torch.allclose(found[(..., *place)], own.sum(-1))


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("kind", AXES)
def test_an_activity_is_arranged_by_its_cells(kind: Any, units: tuple[int, ...]) -> None:
    cells, activity = Cells(kind, 3), normal(2, *units)
    arranged = cells.arrange(activity)
    losses = cells.pick(arranged.sum(-1))
    expected = torch.zeros_like(losses)
    share = 1 if "patch" in AXES[kind] else 1 / patch_count(units)
    for place in itertools.product(*map(range, units)):
        index = (slice(None), *cell_of(kind, units, 3, place))
        expected[index] += activity[(slice(None), *place)] * share
    assert torch.allclose(losses, expected)


def live(kind: Any, path: str) -> tuple[Cells, Tensor, tuple[int, ...]]:
    """Gradient of the loss of cell (1, 2) by units ``(4, 6)`` through a known path."""
    cells, units = Cells(kind, 3), normal(4, 6).requires_grad_()
    activity = units.unsqueeze(0)
    if path == "by group":
        activity = activity.unflatten(-1, (3, 2)).softmax(-1).flatten(-2)
    elif path == "by patch":
        activity = activity.softmax(-1)
    elif path == "by channel":
        activity = activity.softmax(1)
    elif path == "silent":
        activity = activity * 0
    losses = cells.pick(naive(cells.arrange(activity), normal(3, 6), normal(3), torch.tensor([1])))
    cell = tuple({"patch": 1, "group": 2}[axis] for axis in AXES[kind])
    gradient = torch.autograd.grad(losses[(0, *cell)], units)[0]
    return cells, gradient, cell


@pytest.mark.parametrize(
    ("kind", "path", "level"),
    [
        ("patch_group", "straight", 2),
        ("patch_group", "by group", 2),
        ("patch_group", "by patch", 1),
        ("patch_group", "by channel", 0),
        ("patch_group", "silent", 0),
        ("patch", "by patch", 1),
        ("patch", "by channel", 0),
        ("group", "by group", 1),
        ("group", "by patch", 0),
        ("group", "by channel", 1),
        ("block", "straight", 0),
    ],
)
def test_it_is_found_which_cells_a_unit_acts_on(kind: str, path: str, level: int) -> None:
    cells, gradient, cell = live(kind, path)
    counts = {"patch": 4, "group": 3}
    assert cells.exclusive(gradient, tuple(counts[a] for a in AXES[kind]), cell) == level


def test_units_that_do_not_match_the_cells_keep_to_none() -> None:
    cells = Cells("patch_group", 3)
    assert cells.exclusive(torch.ones(5, 6), (4, 3), (0, 0)) == 0  # other patches
    one = torch.zeros(4, 7)
    one[1] = 1
    assert cells.exclusive(one, (4, 3), (1, 0)) == 1  # channels in no three groups


def setting(units: tuple[int, ...], **changes: Any) -> Setting:
    settings = {"temporal": False, "cells": Cells("block"), "normalise": False, "beta": 0.7}
    return Setting(
        units,
        classes=CLASSES,
        stream=generator(0, "heads"),
        like=torch.zeros(1, dtype=torch.float64),
        **settings | changes,
    )


def similarity(rows: Tensor) -> Tensor:
    """The cosine of centred rows, pair by pair."""
    centred = [row - row.mean() for row in rows]
    pairs = [[a @ b / (a.norm() * b.norm()) for b in centred] for a in centred]
    return torch.stack([torch.stack(row) for row in pairs])


def written_out(name: str, head: LocalHead, activity: Tensor, targets: Tensor) -> Tensor:
    """The mean loss, by hand; the activity is ``[rows, C]`` or ``[rows, P, C]``."""
    pooled = activity.mean(1) if activity.dim() == 3 else activity
    if name == "cross_entropy":
        logits = pooled @ head.weight.T + head.bias
        return -logits.log_softmax(1)[torch.arange(len(targets)), targets].mean()
    if name == "similarity":
        mapped = activity @ head.map.T
        rows = mapped.std(1, correction=0) if activity.dim() == 3 else mapped
        hot = functional.one_hot(targets, CLASSES).double()
        return (similarity(rows) - similarity(hot)).square().mean()
    if name == "predsim":
        first = written_out("cross_entropy", head.prediction, activity, targets)
        second = written_out("similarity", head.similarity, activity, targets)
        return 0.3 * first + 0.7 * second
    logits = activity.flatten(1) @ head.readout.T
    return -logits.log_softmax(1)[torch.arange(len(targets)), targets].mean()


@pytest.mark.parametrize("units", [(6,), (4, 6)])
@pytest.mark.parametrize("name", LOCAL_LOSSES)
def test_every_head_is_its_formula(name: str, units: tuple[int, ...]) -> None:
    head, targets = LOCAL_LOSSES[name](setting(units)), torch.arange(7) % CLASSES
    activity = normal(7, *units).requires_grad_()
    losses = head(activity, targets)
    assert losses.shape == (7,)
    expected = written_out(name, head, activity, targets)
    assert abs((losses.mean() - expected).item()) < 1e-12
    leaves = [activity, *head.parameters()]
    found = torch.autograd.grad(losses.mean(), leaves)
    for one, other in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        assert (one - other).abs().max() < 2e-12 and bool(other.any())


def test_a_wrong_weight_of_the_similarity_is_told_apart() -> None:
    head = LOCAL_LOSSES["predsim"](setting((6,), beta=0.3))
    activity, targets = normal(7, 6), torch.arange(7) % CLASSES
    expected = written_out("predsim", head, activity, targets)  # with beta = 0.7
    assert abs((head(activity, targets).mean() - expected).item()) > 0.1


@pytest.mark.parametrize("name", LOCAL_LOSSES)
def test_a_loss_in_time_is_of_the_mean_activity_or_the_mean_over_steps(name: str) -> None:
    still, timed = (LOCAL_LOSSES[name](setting((6,), temporal=t)) for t in (False, True))
    activity, targets = normal(7, 5, 6), torch.arange(7) % CLASSES
    found = timed(activity, targets)
    if name == "fixed_readout":
        expected = torch.stack([still(step, targets) for step in activity.unbind(1)]).mean(0)
    else:
        expected = still(activity.mean(1), targets)
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("units", [(6,), (4, 6), (6, 2, 2)])
@pytest.mark.parametrize("name", LOCAL_LOSSES)
def test_a_row_s_loss_depends_on_no_other_row_s_activity(name: str, units: tuple[int, ...]) -> None:
    head, targets = LOCAL_LOSSES[name](setting(units)), torch.arange(7) % CLASSES
    activity = normal(7, *units)
    with forward_ad.dual_level():
        tangent = torch.zeros_like(activity)
        tangent[2] = normal(*units, seed=1)
        losses = head(forward_ad.make_dual(activity, tangent), targets)
        slopes = forward_ad.unpack_dual(losses).tangent.detach()
    leaf = activity.clone().requires_grad_()
    pulled = torch.autograd.grad(head(leaf, targets).sum(), leaf)[0]
    assert abs(float(slopes[2] - (pulled * tangent).sum())) < 1e-12 and float(slopes[2]) != 0
    assert not slopes[[0, 1, 3, 4, 5, 6]].any()


def test_each_group_is_normalised_by_itself() -> None:
    chosen = setting((4, 6), cells=Cells("patch_group", 3), normalise=True)
    head, plain = LOCAL_LOSSES["cross_entropy"](chosen), Cells("patch_group", 3)
    activity, targets = normal(7, 4, 6), torch.arange(7) % CLASSES
    grouped = activity.view(7, 4, 3, 2)
    centred = grouped - grouped.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = plain.pick(naive(scaled, head.weight, head.bias, targets))
    assert torch.allclose(head(activity, targets), expected, rtol=0, atol=1e-12)


def test_a_silent_block_has_finite_losses_and_gradients() -> None:
    for name, units in itertools.product(LOCAL_LOSSES, [(6,), (4, 6)]):
        head, activity = (
            LOCAL_LOSSES[name](setting(units)),
            torch.zeros(5, *units, dtype=torch.float64),
        )
        losses = head(activity.requires_grad_(), torch.arange(5) % CLASSES)
        (gradient,) = torch.autograd.grad(losses.sum(), activity)
        assert torch.isfinite(losses).all() and torch.isfinite(gradient).all()


def local_engine(network: nn.Module, local: LocalLosses, sites: Any = None) -> Engine:
    return attach(network, biograd.Backpropagation(), local=local, sites=sites)


def by_hand(engine: Engine, blocks: list[Any], inputs: Tensor, targets: Tensor) -> Any:
    """Gradients of the sum of all losses, with a stop-gradient between the blocks."""
    engine.network.zero_grad()
    engine.local.zero_grad()
    heads, total, values = list(engine.local.heads.values()), 0.0, inputs
    for block, head in zip(blocks, [*heads, None], strict=True):
        values = block(values)
        if head is None:
            total = total + functional.cross_entropy(values, targets)
        else:
            pooled = values if values.dim() == 2 else values.flatten(2).mean(2)
            logits = functional.linear(pooled, head.weight, head.bias)
            total = total + functional.cross_entropy(logits, targets)
            values = values.detach()
    total.backward()
    return kept_gradients(engine.network), kept_gradients(engine.local), total.item()


@pytest.mark.parametrize(
    ("make", "ends", "pieces"),
    [
        (mlp, ("0", "2"), [(0, 2), (2, 4), (4, 5)]),
        (mlp, ("2",), [(0, 4), (4, 5)]),
        (mlp, ("0",), [(0, 2), (2, 5)]),
        (grouped_convolution, ("1",), [(0, 3), (3, 7)]),
    ],
)
def test_blocks_are_trained_by_their_own_losses(make: Any, ends: Any, pieces: Any) -> None:
    network, (inputs, targets) = drawn(make()), batch()
    engine = local_engine(network, LocalLosses(sites=ends))
    engine.prepare(inputs, targets)
    blocks = [network[start:end] for start, end in pieces]
    expected, heads, total = by_hand(engine, blocks, inputs, targets)
    engine.local.zero_grad()
    check_equal(gradients(engine, inputs, targets), expected, 1e-12)
    check_equal(kept_gradients(engine.local), heads, 1e-12)
    assert abs(engine(inputs, targets).surrogate.item() - total) < 1e-12
    with pytest.raises(AssertionError):  # credit through all blocks is something else
        check_equal(autograd(network, inputs, targets), expected, 1e-12)


def test_a_skip_past_a_loss_is_refused() -> None:
    inputs, targets = batch()
    engine = local_engine(drawn(Residual()), LocalLosses(sites=("first",)))
    with pytest.raises(CapabilityError, match="passes by the activity of site 'first'"):
        engine.prepare(inputs, targets)


class Tokens(nn.Module):
    """Two blocks over 3 patches of 4 channels; the first mixes channels by groups of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Tanh(), nn.Tanh()])
        self.readout = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.blocks[0](self.first(inputs.view(len(inputs), 3, 2)))
        values = self.blocks[1](self.second(values))
        return self.readout(values.mean(1))


SITES = [
    Site("first", ("first",), (False,), "blocks.0"),
    Site("second", ("second",), (False,), "blocks.1"),
    Site("readout", ("readout",), (False,)),
]


def divided(cells: Any) -> LocalLosses:
    """Return losses with these cells, of two groups where the cells have groups."""
    return LocalLosses(cells=cells, groups=2 if "group" in cells else 1)


@pytest.mark.parametrize("cells", AXES)
def test_reverse_mode_gradients_are_the_same_for_all_cells(cells: Any) -> None:
    inputs, targets = batch()
    found = [
        gradients(local_engine(drawn(Tokens()), divided(kind), SITES), inputs, targets)
        for kind in ("block", cells)
    ]
    check_equal(found[1], found[0], 1e-12)


@pytest.mark.parametrize("cells", AXES)
def test_slopes_are_directional_derivatives_of_the_block_s_own_losses(cells: Any) -> None:
    inputs, targets = batch()
    engine = local_engine(drawn(Tokens()), divided(cells), SITES)
    engine.prepare(inputs, targets)
    assert engine.local.cells == dict.fromkeys(("first", "second"), engine.local.cells["first"])
    tangents = {n: normal(2, 8, 1, 3, 4, seed=i) for i, n in enumerate(("first", "second"))}
    plan = Plan(tangents=tangents)
    trace = engine.substrate.run(plan, inputs, targets, engine.objective, generator(0))
    values = Tokens.forward(engine.network, inputs)
    assert torch.allclose(values, trace.outputs)
    for name in tangents:
        slopes = trace.local_slopes[name]
        assert slopes.shape == (2, 8, *engine.local.cells[name])
        activity = trace.sites[name].activity
        losses = engine.objective.local[name](activity, targets)
        (current,) = trace.sites[name].visits[0].outputs
        for row, cell in ((0, 0), (5, -1)):
            one = losses[row].flatten()[cell]
            (gradient,) = torch.autograd.grad(one, current, retain_graph=True)
            expected = (gradient * tangents[name][:, :, 0]).flatten(1).sum(1)
            assert torch.allclose(slopes[:, row].reshape(2, -1)[:, cell], expected, atol=1e-13)


def test_noisy_copies_have_losses_of_their_own_and_leave_the_clean_one_alone() -> None:
    inputs, targets = batch()
    engine = local_engine(drawn(Tokens()), LocalLosses(cells="patch_group", groups=2), SITES)
    engine.prepare(inputs, targets)
    noise = {"first": normal(3, 8, 1, 3, 4)}
    clean, noisy = (
        engine.substrate.run(plan, inputs, targets, engine.objective, generator(0))
        for plan in (Plan(), Plan(noise=noise))
    )
    for name in ("first", "second"):
        losses = noisy.local[name]
        assert losses.shape == (4, 8, 3, 2)
        assert torch.equal(losses[0], clean.local[name][0])
        assert bool((losses[1:] != losses[:1]).all())
        assert torch.equal(losses, losses[:, :, :1, :1].expand_as(losses))  # one common value


@pytest.mark.parametrize("loss", LOCAL_LOSSES)
def test_spiking_blocks_have_local_losses(loss: Any) -> None:
    inputs, targets = batch()
    network = spiking()
    engine = local_engine(network, LocalLosses(loss, sites="all"))
    result = engine(inputs, targets)
    result.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
        assert bool(parameter.grad.any()), name
    assert len(engine.local.cells) == 2


def test_heads_are_drawn_from_the_seed_and_kept_in_the_state() -> None:
    inputs, targets = batch()

    def state(seed: int) -> dict[str, Tensor]:
        engine = attach(drawn(mlp()), biograd.Backpropagation(), local=LocalLosses(), seed=seed)
        torch.manual_seed(seed + 5)  # must not matter
        engine.prepare(inputs, targets)
        found = {k: v for k, v in engine.state().items() if k.startswith("local.")}
        count = sum(parameter.numel() for parameter in engine.parameters())
        own = sum(parameter.numel() for parameter in engine.network.parameters())
        assert count - own == sum(value.numel() for value in found.values()) > 0
        return found

    first, again, other = state(0), state(0), state(1)
    assert first.keys() == {f"local.heads.{n}.{k}" for n in "02" for k in ("weight", "bias")}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["local.heads.0.weight"], other["local.heads.0.weight"])


def test_a_head_starts_at_the_scale_of_its_inputs() -> None:
    weight = LOCAL_LOSSES["cross_entropy"](setting((4000,))).weight
    assert abs(float(weight.detach().std()) * math.sqrt(4000) - 1) < 0.05


def test_sites_are_chosen_by_name_or_as_the_ends_of_blocks() -> None:
    hidden = ("a", "b", "c")
    assert LocalLosses().choose(hidden, ("a", "c")) == ("a", "c")
    assert LocalLosses().choose(hidden) == hidden
    assert LocalLosses(sites="all").choose(hidden, ("a",)) == hidden
    assert LocalLosses(sites=("c", "a")).choose(hidden) == ("a", "c")
    with pytest.raises(CapabilityError, match=r"local.sites: no site 'd': .*known: a, b, c"):
        LocalLosses(sites=("d",)).choose(hidden)
    with pytest.raises(CapabilityError, match="no hidden site"):
        LocalLosses().choose(())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "predsin"}, "did you mean 'predsim'"),
        ({"cells": "token"}, "cells = 'token'"),
        ({"groups": 0}, "groups = 0: must be >= 1"),
        ({"beta": 1.5}, "beta = 1.5"),
        ({"loss": "predsim", "cells": "patch"}, "only with local.loss = 'cross_entropy'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        LocalLosses(**settings)


def test_channels_that_cannot_be_divided_are_refused() -> None:
    engine = local_engine(drawn(mlp()), LocalLosses(cells="group", groups=4, sites=("0",)))
    with pytest.raises(CapabilityError, match=r"site 0: .*\(5,\) cannot be divided into 4 groups"):
        engine.prepare(*batch())


def test_the_objective_lists_the_sites_in_the_order_of_the_data_flow() -> None:
    engine = local_engine(drawn(mlp()), LocalLosses(sites=("2", "0")))
    engine.prepare(*batch())
    assert isinstance(engine.objective, Objective) and list(engine.objective.local) == ["0", "2"]
