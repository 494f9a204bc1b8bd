"""Who credits each parameter: what a rule does not reach is refused, frozen, or learns exactly.

The oracle is plain autograd on the same network, outside of any engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from click.testing import CliRunner
from networks_for_tests import build
from torch import Tensor, nn
from torch.nn import functional

import biograd
from biograd.commands import console
from biograd.diagnosis import probe, user_networks
from biograd.diagnosis.user_networks import USERS
from biograd.engine import Engine, Outside, attach
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator, make

Gradients = dict[str, Tensor | None]


class Layered(nn.Module):
    """Two linear layers and whatever lies between and around them."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(6, 8), nn.Linear(8, 3)
        self.before = parts.get("before", nn.Identity())
        self.between = parts.get("between", nn.Identity())
        self.behind = parts.get("behind", nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        activity = torch.tanh(self.between(self.first(self.before(inputs))))
        found: Tensor = self.behind(self.readout(activity))
        return found


class Product(nn.Module):
    """A weight of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(shape) / 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.own if self.own.dim() > 1 else inputs * self.own


class Memory(nn.Module):
    """A recurrent network of torch, the same input in every step."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int = 8) -> None:
        super().__init__()
        self.cell = kind(inputs, 8, batch_first=True)  # type: ignore[call-arg]

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.cell(inputs[:, None].expand(-1, 3, -1))[0][:, -1]
        return found


class Attention(nn.Module):
    """Attention over two halves of the units."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        halves = inputs.view(len(inputs), 2, 4)
        found: Tensor = self.heads(halves, halves, halves, need_weights=False)[0].flatten(1)
        return found


class Looked(nn.Module):
    """Two words by the signs of the data, their embeddings side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.words((inputs[:, :2] > 1).long()).flatten(1)


OUTSIDE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lstm": (lambda: Layered(between=Memory(nn.LSTM)), "between.cell.weight_hh_l0"),
    "gru first": (lambda: nn.Sequential(Memory(nn.GRU, 6), nn.Linear(8, 3)), "0.cell.weight_hh"),
    "rnn": (lambda: Layered(between=Memory(nn.RNN)), "between.cell.weight_ih_l0"),
    "own": (lambda: Layered(between=Product(8, 8)), "between.own"),
    "attention": (lambda: Layered(between=Attention()), "between.heads.in_proj_weight"),
    "embedding": (lambda: Layered(before=Looked()), "before.words.weight"),
    "scale of the data": (lambda: Layered(before=Product(6)), "before.own"),
}
"""Networks with parameters that no rule of blocks reaches, and what a refusal must name."""
UNITWISE: dict[str, Callable[[], nn.Module]] = {
    "gain": lambda: Layered(between=Product(8)),
    "layer norm": lambda: Layered(between=nn.LayerNorm(8)),
    "prelu": lambda: Layered(between=nn.PReLU(8)),
}
"""Networks whose blocks have parameters that act unit by unit."""
BLOCKS = [name for name, rule in ESTIMATORS.items() if rule.reach == "blocks"]
CURRENTS = [name for name, rule in ESTIMATORS.items() if rule.reach == "currents"]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return 2 * torch.rand(32, 6, generator=stream), torch.arange(32) % 3, torch.arange(32)


def drawn(network: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network()


def exact(network: nn.Module) -> Gradients:
    """Return the gradients of plain autograd."""
    inputs, targets, _ = batch()
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    loss = functional.cross_entropy(network(inputs), targets)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def stepped(network: nn.Module, rule: Estimator, **settings: Any) -> tuple[Gradients, Engine]:
    """Return the gradients of an engine's step, and the engine."""
    engine = attach(network, rule, **settings)
    engine(*batch()).backward()
    return {name: p.grad for name, p in network.named_parameters()}, engine


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.allclose(one, other, 1e-5, 1e-7)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*BLOCKS, *CURRENTS, "gain"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_parameters_outside_are_refused_by_name_before_the_first_step(name: str, rule: str) -> None:
    network, word = OUTSIDE[name]
    engine = attach(drawn(network), make(rule))
    with pytest.raises(CapabilityError, match=re.escape(word)) as caught:
        engine.prepare(*batch()[:2])
    assert "outside='freeze'" in str(caught.value) and "\n" not in str(caught.value)
    assert all(p.grad is None and p.requires_grad for p in engine.network.parameters())


@pytest.mark.parametrize("rule", CURRENTS)
@pytest.mark.parametrize("name", UNITWISE)
def test_noise_at_currents_reaches_no_parameter_behind_them(name: str, rule: str) -> None:
    with pytest.raises(CapabilityError, match="between"):
        stepped(drawn(UNITWISE[name]), make(rule))


@pytest.mark.parametrize("rule", ["backprop", *BLOCKS, *CURRENTS, "gain", "weight_perturbation"])
def test_an_ordinary_network_is_not_refused(rule: str) -> None:
    found, engine = stepped(drawn(Layered), make(rule))
    assert all(gradient is not None for gradient in found.values())
    assert engine.account is not None and not engine.account.of("outside", "nobody", "frozen")


def test_a_readout_that_is_not_called_as_a_module_is_no_readout() -> None:
    """The layer before it would learn exactly as the last site, under any rule's name."""
    network = drawn(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Product(8, 3)))
    for rule in ("direct_feedback", "frozen_hidden", "gain", "forward_gradient_weight"):
        with pytest.raises(CapabilityError, match=r"2\.own.*no readout"):
            stepped(network, make(rule), outside="freeze")
    found, _ = stepped(network, make("node_perturbation", {"copies": 513}), outside="exact")
    true = exact(network)
    assert equal(found["2.own"], true["2.own"]) and not equal(found["0.weight"], true["0.weight"])
    one, other = found["0.weight"], true["0.weight"]
    assert one is not None and other is not None
    assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.9


def test_a_weight_that_is_also_used_elsewhere_is_outside() -> None:
    class Twice(Layered):
        def forward(self, inputs: Tensor) -> Tensor:
            back = functional.linear(torch.tanh(self.first(inputs)), self.first.weight.t())
            found: Tensor = self.readout(torch.tanh(self.first(back)))
            return found

    with pytest.raises(CapabilityError, match=r"first\.weight:"):
        stepped(drawn(Twice), make("direct_feedback"))


def test_a_network_of_which_nothing_would_learn_is_refused() -> None:
    network = drawn(Layered)
    network.get_submodule("readout").requires_grad_(False)
    with pytest.raises(CapabilityError, match="would train nothing"):
        stepped(network, make("frozen_hidden"))


# Frozen, or exact ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["direct_feedback", "feedback_alignment", "weak", "gain", "sltt"])
@pytest.mark.parametrize("name", ["own", "embedding", "gru first"])
def test_outside_is_frozen_or_exact(name: str, rule: str) -> None:
    network, word = OUTSIDE[name]
    true = exact(drawn(network))
    for outside in ("freeze", "exact"):
        try:
            found, engine = stepped(drawn(network), make(rule), outside=outside)
        except CapabilityError as error:  # the GRU's network has one site
            assert "no hidden site" in str(error) and name == "gru first"
            continue
        assert engine.account is not None
        names = [entry.name for entry in engine.account.of("outside")]
        assert any(one.startswith(word) for one in names)
        for one in names:
            assert found[one] is None if outside == "freeze" else equal(found[one], true[one])
        assert not set(names) & {entry.name for entry in engine.account.of("rule", "readout")}
        engine.detach()
        assert all(parameter.requires_grad for parameter in engine.network.parameters())


def test_what_is_outside_does_not_change_the_credit_of_the_rest() -> None:
    """Neither a pass that is run for it nor its gradient moves the rule's random numbers."""
    credit = {}
    for outside in ("freeze", "exact"):
        network = drawn(lambda: Layered(before=Product(6)))
        engine = attach(network, make("weak"), outside=outside)  # type: ignore[arg-type]
        for _ in range(2):
            network.zero_grad()
            engine(*batch()).backward()
        credit[outside] = [p.grad for n, p in network.named_parameters() if "own" not in n]
    for one, other in zip(*credit.values(), strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_layers_that_are_frozen_later_are_accounted_for_anew() -> None:
    network = drawn(lambda: Layered(between=nn.LayerNorm(8)))
    engine = attach(network, make("weak"), outside="freeze")
    engine(*batch()).backward()
    network.get_submodule("first").requires_grad_(False)
    engine(*batch()).backward()
    assert engine.account is not None
    words = {entry.name: entry.words for entry in engine.account.entries}
    assert "requires_grad" in words["first.weight"] and "frozen" in words["between.weight"]


def test_what_a_user_freezes_beside_the_rule_stays_frozen() -> None:
    network = drawn(lambda: Layered(before=Product(6)))
    engine = attach(network, make("weak"), outside="exact")
    engine(*batch()).backward()
    before = network.get_submodule("before")
    assert all(p.grad is not None for p in before.parameters())
    before.requires_grad_(False)
    network.zero_grad()
    engine(*batch()).backward()
    engine.detach()
    assert not any(p.requires_grad or p.grad is not None for p in before.parameters())


@pytest.mark.parametrize("outside", ["", "thaw", None])
def test_another_word_for_outside_is_refused(outside: Any) -> None:
    with pytest.raises(CapabilityError, match="outside"):
        attach(drawn(Layered), make("weak"), outside=outside)


# What every rule does with them -------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*BLOCKS, "gain"])
@pytest.mark.parametrize("name", UNITWISE)
def test_rules_of_blocks_credit_what_acts_unit_by_unit(name: str, rule: str) -> None:
    try:
        found, engine = stepped(drawn(UNITWISE[name]), make(rule))
    except CapabilityError as error:  # of a gain of one's own nothing is known
        assert rule == "gain" and name != "layer norm" and "between" in str(error)
        return
    assert engine.account is not None
    (entry,) = [e for e in engine.account.entries if re.match(r"between\.(own|weight)", e.name)]
    assert entry.creditor == "rule" and entry.sites == ("first",)
    assert found[entry.name] is not None


@pytest.mark.parametrize("network", [*OUTSIDE, "own behind"])
def test_frozen_hidden_trains_the_readout_alone(network: str) -> None:
    made = drawn(OUTSIDE[network][0] if network in OUTSIDE else Layered)
    if network == "own behind":
        made.register_module("behind", Product(3))  # a scale of the outputs is the readout's
    found, _ = stepped(made, make("frozen_hidden"))
    last = "1." if isinstance(made, nn.Sequential) else ("readout.", "behind.")
    moved = {name for name, gradient in found.items() if gradient is not None}
    assert moved == {name for name in found if name.startswith(last)}
    true = exact(made)
    assert all(equal(found[name], true[name]) for name in moved)


@pytest.mark.parametrize("name", ["own", "embedding", "scale of the data"])
def test_directions_of_all_parameters_reach_what_others_do_not(name: str) -> None:
    """The mean over many directions is the gradient; only the readout's is exact in each."""
    network = drawn(OUTSIDE[name][0])
    true = exact(network)
    found, engine = stepped(network, make("forward_gradient_weight", {"copies": 3000}))
    assert engine.account is not None
    for entry in engine.account.entries:
        one, other = found[entry.name], true[entry.name]
        assert one is not None and other is not None
        assert torch.equal(one, other) == (entry.creditor == "readout")
        assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.7


def test_a_rule_that_changes_nothing_is_found_by_its_gradient() -> None:
    class Renamed(Estimator):
        """Back-propagation under another name."""

        needs = frozenset(("loss", "vjp"))

        def plans(self, round: Any) -> Any:
            return make("backprop").plans(round)

    with pytest.raises(CapabilityError, match="the gradient of back-propagation, so that"):
        stepped(drawn(Layered), Renamed())
    Renamed.coincides = "everywhere"
    stepped(drawn(Layered), Renamed())


# Sites --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (["first", "spare", "readout"], "spare is never called"),
        ({"one": ["first", "spare"], "readout": ["readout"]}, "spare is never called"),
        (["first", "first", "readout"], "first stands there twice"),
        ({"one": ["first"], "two": ["first"], "readout": ["readout"]}, "first stands there twice"),
        (["first", "reedout"], "readout"),
        (["first"], r"readout\.weight.*behind the last site"),
    ],
)
def test_a_site_that_has_no_effect_is_refused(sites: Any, words: str) -> None:
    network = drawn(Layered)
    network.register_module("spare", nn.Linear(8, 8))
    for rule in ("direct_feedback", "gain"):
        with pytest.raises(CapabilityError, match=words):
            stepped(network, make(rule), sites=sites)


def test_a_layer_that_nobody_named_may_stay_uncalled() -> None:
    network = drawn(Layered)
    network.register_module("spare", nn.Linear(8, 8))
    _, engine = stepped(network, make("direct_feedback"))
    assert "outputs do not depend on it: spare.weight, spare.bias" in str(engine.account)


def test_a_module_of_ones_own_can_be_named_as_a_site() -> None:
    network = drawn(OUTSIDE["own"][0])
    found, engine = stepped(network, make("direct_feedback"), sites=["first", "between", "readout"])
    assert engine.account is not None and not engine.account.of("outside")
    assert not equal(found["between.own"], exact(network)["between.own"])


# Others' neurons ----------------------------------------------------------------------------------


def snn() -> Any:
    return pytest.importorskip("snntorch")


class LayerWise(nn.Module):
    """Each layer runs through all steps before the next one, as some write snnTorch networks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(6, 12), nn.Linear(12, 3)
        self.cell = snn().Leaky(beta=0.9, **settings)

    def forward(self, inputs: Tensor) -> Tensor:
        current = self.first(inputs[:, None].expand(-1, 5, -1))
        state, spikes = torch.zeros_like(current[:, 0]), []
        for now in current.unbind(1):
            spike, state = self.cell(now, state)
            spikes.append(spike)
        found: Tensor = self.readout(torch.stack(spikes, 1)).mean(1)
        return found


@pytest.mark.parametrize("rule", ["ottt", "sltt", "unitwise"])
def test_rules_of_time_and_thresholds_are_not_back_propagation_on_others_neurons(rule: str) -> None:
    network = drawn(lambda: LayerWise(threshold=0.2))
    true, (found, _) = exact(network), stepped(network, make(rule))
    assert true["first.bias"] is not None and bool(true["first.bias"].any())
    assert not equal(found["first.bias"], true["first.bias"])
    stepped(build("mlp").float(), make(rule))  # without time and thresholds they are as they say


def test_a_window_cannot_be_cut_in_others_neurons() -> None:
    with pytest.raises(CapabilityError, match="window = 2: has no effect where no neurons"):
        stepped(drawn(LayerWise), biograd.Backpropagation(window=2))


@pytest.mark.parametrize("rule", ["weak", "node_perturbation", "likelihood_ratio", "gain"])
def test_learned_constants_of_neurons_are_not_credited_by_noise(rule: str) -> None:
    with pytest.raises(CapabilityError, match=r"cell\.threshold, cell\.beta"):
        stepped(drawn(lambda: LayerWise(learn_beta=True, learn_threshold=True)), make(rule))


def test_neurons_behind_the_last_layer_make_it_hidden() -> None:
    """Noise at its current, and not the surrogate behind it, gives its credit."""

    class Spiking(LayerWise):
        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.cell(super().forward(inputs), torch.zeros(len(inputs), 3))[0]
            return found

    network = drawn(lambda: Spiking(threshold=0.2))
    found, engine = stepped(network, make("node_perturbation"))
    assert not engine.leads and not equal(found["readout.weight"], exact(network)["readout.weight"])
    assert engine.account is not None
    assert [e.creditor for e in engine.account.entries if e.name == "readout.weight"] == ["rule"]
    _, plain = stepped(drawn(LayerWise), make("node_perturbation"))
    assert plain.leads


# Users' kinds of networks -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", ESTIMATORS)
@pytest.mark.parametrize("name", [n for n in USERS if n not in ("stateful", "autocast")])
def test_every_cell_is_right_or_refused_with_a_way_out(name: str, rule: str) -> None:
    inputs = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    targets, index = torch.arange(12) % 3, torch.arange(12)
    network = user_networks.make(name)
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    loss = functional.cross_entropy(network(inputs), targets)
    true = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    outsides: list[Outside] = ["refuse", "freeze", "exact"]
    for outside in outsides:
        network = user_networks.make(name)
        try:
            engine = attach(network, make(rule), outside=outside)
            engine.prepare(inputs, targets)
        except CapabilityError as error:
            assert re.search(r"take|name|leave|use|unfreeze|say|give", str(error))
            continue
        engine(inputs, targets, index).backward()
        assert engine.account is not None
        for entry in engine.account.entries:
            gradient = network.get_parameter(entry.name).grad
            known = true.get(entry.name)
            if entry.creditor in ("nobody", "frozen"):
                assert gradient is None or not gradient.any()
            elif entry.creditor == "outside":
                assert gradient is None if outside == "freeze" else equal(gradient, known)
            elif entry.creditor == "readout":
                if rule in ("decoupling", "predictive_coding") and engine.hidden:
                    continue  # its gradient is exact at the targets that the readout receives
                small = 1e-3 if rule == "kolen_pollack" else 1e-6  # which adds its decay
                assert gradient is not None and known is not None
                assert torch.allclose(gradient, known, rtol=1e-3, atol=small)
            elif make(rule).exact:
                assert equal(gradient, known)
            elif not make(rule).coincides:
                assert gradient is not None and known is not None and gradient.isfinite().all()
                assert not (known.any() and torch.equal(gradient, known))


# What tells ---------------------------------------------------------------------------------------


def test_engine_probe_and_run_file_tell_who_credits_what(tmp_path: Path) -> None:
    class Images(Layered):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs.flatten(1)[:, 20:26])

    network = drawn(lambda: Images(between=Product(8, 8)))
    network.register_module("readout", nn.Linear(8, 10))
    small = ["dataset.training_examples=64", "dataset.test_examples=32"]
    path = tmp_path / "run.h5"
    with pytest.raises(CapabilityError, match=r"between\.own"):
        biograd.train(network, "digits", estimator="direct_feedback", path=path, settings=small)
    assert not path.exists()
    run = biograd.train(
        network,
        "digits",
        estimator="direct_feedback",
        outside="exact",
        epochs=1,
        path=path,
        settings=small,
    )
    assert run.credit["between.own"] == {
        "shape": [8, 8],
        "credit": "outside: the exact gradient of back-propagation",
    }
    assert run.credit["first.weight"]["credit"] == "DirectFeedback at first"
    shown = console_output(["inspect", str(path)])
    assert "between.own" in shown and "first.weight  DirectFeedback" not in shown
    with h5py.File(path) as file:
        assert b"between.own" in file["credit"][()]
    engine = attach(network, make("direct_feedback"), outside="exact")
    assert "not known before" in repr(engine)
    inputs, targets = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    probe(engine, inputs, targets, draws=2)
    assert engine.account is None  # a probe leaves no trace
    engine.prepare(inputs, targets)
    found = probe(engine, inputs, targets, draws=2)
    assert "outside: the exact gradient of back-propagation: between.own" in str(found)
    assert "between.own" in repr(engine) and list(found.credit) == list(engine.account.lines())  # type: ignore[union-attr]


def console_output(arguments: list[str]) -> str:
    return CliRunner().invoke(console, arguments).output


def test_a_recipe_can_say_it(tmp_path: Path) -> None:
    settings = ["network.normalisation=layer", "training.outside=freeze"]
    small = ["dataset.training_examples=64", "dataset.test_examples=32"]
    path = tmp_path / "run.h5"
    given: Any = {"data": "digits", "estimator": "weak", "epochs": 1, "path": path}
    run = biograd.train("ann", settings=settings + small, **given)
    assert run.credit["blocks.0.normalise.weight"]["credit"] == "outside: frozen"
    assert run.summary["outside"].startswith("frozen: blocks.0.normalise.weight")
    with pytest.raises(CapabilityError, match=r"blocks\.0\.normalise\.weight"):
        biograd.train("ann", settings=settings[:1] + small, force=True, **given)
