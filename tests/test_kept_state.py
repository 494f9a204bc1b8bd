"""Networks that keep something from pass to pass, and first looks that leave no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from torch import Tensor, nn

import biograd
from biograd.errors import CapabilityError, RecipeError
from biograd.estimators import ESTIMATORS, make

X = 2 * torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3
INDEX = torch.arange(8)
SEVERAL = [name for name, rule in ESTIMATORS.items() if rule.needs & {
    "perturb_site", "perturb_parameter", "jvp_site", "jvp_parameter"}] + [
    "decoupling", "predictive_coding", "forward_forward"]  # fmt: skip


class Attribute(nn.Module):
    """A detached tensor."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        old = 0 if self.kept is None or self.kept.shape != x.shape else 0.8 * self.kept.detach()
        self.kept = torch.tanh(x + old)
        return self.kept

    def reset_state(self) -> None:
        self.kept = None


class Buffer(nn.Module):
    """A buffer that is changed in place and that acts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.level.add_(1)
        return torch.tanh(x + 0.3 * self.level)


class Called(nn.Module):
    """A state in an object that is called, which no look at attributes can put back."""

    class Cell:
        old: Tensor | None = None

        def __call__(self, x: Tensor) -> Tensor:
            self.old, old = torch.tanh(x).detach(), self.old
            return torch.tanh(x if old is None or old.shape != x.shape else x + 0.8 * old)

    def __init__(self) -> None:
        super().__init__()
        self.cell = Called.Cell()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cell(x)
        return found


class Closed(nn.Module):
    """A state in a closure."""

    def __init__(self) -> None:
        super().__init__()
        old: list[Tensor] = []

        def act(x: Tensor) -> Tensor:
            before = 0.8 * old[-1] if old and old[-1].shape == x.shape else 0
            old.append(torch.tanh(x).detach())
            return torch.tanh(x + before)

        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Counter(nn.Module):
    """A number that acts from the third call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x) * (1.0 if self.calls < 3 else 0.5)


class Delay(nn.Module):
    """A list, and an object of one's own that holds it."""

    class Line:
        def __init__(self) -> None:
            self.past: list[Tensor] = []

    def __init__(self) -> None:
        super().__init__()
        self.line = Delay.Line()

    def forward(self, x: Tensor) -> Tensor:
        self.line.past.append(x.detach())
        rows = [old for old in self.line.past[-3:] if old.shape == x.shape]
        return torch.tanh(x + sum(rows))


KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attribute": (Attribute, r"1\.kept"),
    "buffer": (Buffer, r"1\.level"),
    "counter": (Counter, r"1\.calls"),
    "delay": (Delay, r"1\.line"),
    "snntorch": (lambda: snntorch.Leaky(beta=0.9, threshold=0.2, init_hidden=True), r"1\.mem"),
}


class Recorder(nn.Module):
    """What changes without acting: a log, a count, the last values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last, self.log = 0, torch.zeros(1), list[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.tanh(x)
        self.log.append(float(x.detach().sum()))
        return self.last


class Noisy(nn.Module):
    """Draws from every global stream, and from one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(()) + torch.rand((), generator=self.stream)
        return torch.tanh(x) * (1 + drawn + random.random() + float(np.random.rand()))


HARMLESS: dict[str, Callable[[], nn.Module]] = {
    "recorder": Recorder,
    "dropout": lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.3)),
    "batch_norm": lambda: nn.Sequential(nn.BatchNorm1d(12), nn.Tanh()),
    "lazy": lambda: nn.Sequential(nn.Tanh(), nn.LazyBatchNorm1d(), nn.Identity()),
    "noisy": Noisy,
}


def network(middle: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), middle(), nn.Linear(12, 3))


def everything(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"streams": (torch.get_rng_state().tolist(), random.getstate())}
    found["numpy"] = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    for name, part in module.named_modules():
        own = {k: v for k, v in vars(part).items() if not k.startswith("_")}
        for key, value in {**own, **part._buffers, **part._parameters}.items():
            if isinstance(value, torch.Generator):
                value = value.get_state()
            if isinstance(value, Delay.Line):
                value = value.past
            if callable(value):
                continue
            plain = value.tolist() if isinstance(value, Tensor) else value
            found[f"{name}.{key}"] = copy.deepcopy(plain)
    return found


@pytest.mark.parametrize("kind", [*KINDS, "recorder", "dropout", "batch_norm", "noisy"])
def test_first_look_leaves_no_trace(kind: str) -> None:
    made = network(KINDS[kind][0] if kind in KINDS else HARMLESS[kind])
    before = everything(made)
    engine = biograd.attach(made, biograd.Backpropagation())
    engine.prepare(X, Y)
    assert everything(made) == before
    twin = network(KINDS[kind][0] if kind in KINDS else HARMLESS[kind])
    assert float(engine(X, Y).loss) > 0 and everything(made).keys() >= before.keys()
    if kind in KINDS:
        loss = nn.functional.cross_entropy(twin(X), Y).detach()
        engine.detach()
        again = biograd.attach(network(KINDS[kind][0]), biograd.Backpropagation())
        assert float(again(X, Y).loss) == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", SEVERAL)
def test_rule_of_several_passes_names_the_state(rule: str, kind: str) -> None:
    middle, name = KINDS[kind]
    with pytest.raises(CapabilityError, match=f"keeps a state from pass to pass .*{name}"):
        biograd.attach(network(middle), make(rule))(X, Y, INDEX)


@pytest.mark.parametrize("rule", sorted(set(ESTIMATORS) - set(SEVERAL)))
def test_rule_of_one_pass_takes_a_state_that_the_loop_resets(rule: str) -> None:
    engine = biograd.attach(network(Attribute), make(rule))
    losses = []
    for _ in range(2):
        engine.network.get_submodule("1").reset_state()  # type: ignore[operator]
        losses.append(float(engine(X, Y, INDEX).loss))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("rule", ["backprop", "weight_perturbation", "decoupling"])
def test_what_does_not_act_is_no_state(rule: str, kind: str) -> None:
    if kind == "noisy" and rule != "backprop":
        return  # copies would differ by chance, decoupling sees other data
    engine = biograd.attach(network(HARMLESS[kind]), make(rule))
    engine(X, Y, INDEX).backward()
    assert not engine.keeps


@pytest.mark.parametrize("reset", ["reset_state", lambda made: made[1].reset_state()])
@pytest.mark.parametrize("rule", ["forward_gradient_weight", "weak", "decoupling"])
def test_reset_before_every_pass_is_a_network_without_state(rule: str, reset: Any) -> None:
    def mean(middle: Callable[[], nn.Module], **options: Any) -> Tensor:
        engine = biograd.attach(network(middle), make(rule), seed=3, **options)
        for _ in range(3):
            engine(X, Y, INDEX).backward()
        return torch.cat([p.grad.flatten() for p in engine.network.parameters()])  # type: ignore[union-attr]

    found = mean(Attribute, reset=reset)
    torch.testing.assert_close(found, mean(nn.Tanh), rtol=1e-5, atol=1e-7)


def test_reset_goes_with_the_engine_and_acts_in_evaluation() -> None:
    made = network(Attribute)
    engine = biograd.attach(made, biograd.Backpropagation(), reset="reset_state")
    assert torch.equal(made(X), made(X))
    engine.detach()
    made(X)
    assert not torch.equal(made(X), made(X))


def test_reset_that_does_not_reset_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"1\.kept.* does not put back"):
        biograd.attach(network(Attribute), biograd.Backpropagation(), reset=lambda made: None)(X, Y)
    with pytest.raises(CapabilityError, match=r"no module has such a method: did you mean 'res"):
        biograd.attach(network(Attribute), biograd.Backpropagation(), reset="reset_stat")


def test_refusal_offers_the_modules_own_way() -> None:
    with pytest.raises(CapabilityError, match=r"attach\(\.\.\., reset='reset_state'\)"):
        biograd.attach(network(Attribute), biograd.WeakGradient())(X, Y)


def test_training_resets_or_refuses(tmp_path: Path) -> None:
    data = (X, Y)
    options: dict[str, Any] = {"estimator": "backprop", "epochs": 1, "batch_size": 4}
    with pytest.raises(
        CapabilityError, match=r"from batch to batch \(1\.kept\).*train\(\.\.\., reset="
    ):
        biograd.train(network(Attribute), data, path=tmp_path / "a.h5", **options)
    made = network(Attribute)
    biograd.train(made, data, path=tmp_path / "b.h5", reset="reset_state", **options)
    assert not made._forward_pre_hooks
    again = network(Attribute)
    with pytest.raises(RecipeError, match="the run's reset is 'reset_state'"):
        biograd.resume(tmp_path / "b.h5", 2, again, data, reset=lambda made: None)
    run = biograd.resume(tmp_path / "b.h5", 2, again, data)  # the file knows its name
    whole = network(Attribute)
    options["epochs"] = 2
    biograd.train(whole, data, path=tmp_path / "d.h5", reset="reset_state", **options)
    assert not again._forward_pre_hooks
    for one, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    twin = network(Attribute)
    found = biograd.diagnose(run, twin, data=data, examples=4, reset="reset_state")
    assert "credit" in str(found) and not twin._forward_pre_hooks
    with pytest.raises(CapabilityError, match="only for a module of yours"):
        biograd.train("ann", data, path=tmp_path / "c.h5", reset="reset_state", **options)


@pytest.mark.parametrize("kind", [Called, Closed])
@pytest.mark.parametrize("rule", SEVERAL)
def test_state_that_cannot_be_seen_is_refused_too(rule: str, kind: type[nn.Module]) -> None:
    engine = biograd.attach(network(kind), make(rule), outside="exact")
    with pytest.raises(CapabilityError, match=r"a closure, a global.*reset it in forward"):
        engine(X, Y, INDEX)


@pytest.mark.parametrize("kind", [Called, Closed])
def test_rule_of_one_pass_tells_of_a_state_that_cannot_be_seen(kind: type[nn.Module]) -> None:
    engine = biograd.attach(network(kind), biograd.FeedbackAlignment())
    engine(X, Y, INDEX)
    assert "a closure" in engine.keeps[0]


def test_state_that_cannot_be_seen_can_be_reset() -> None:
    def reset(made: nn.Module) -> None:
        made.get_submodule("1").cell.old = None  # type: ignore[union-attr, assignment]

    engine = biograd.attach(network(Called), make("weak"), reset=reset)
    assert engine(X, Y, INDEX).losses.isfinite().all() and engine.keeps == ()
