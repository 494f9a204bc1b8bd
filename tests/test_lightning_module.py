"""The example for Lightning: its step is the engine's, by hand and in Lightning's own loop."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import biograd

FILE = Path(__file__).parent.parent / "examples" / "lightning_module.py"
INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(24) % 3
RULES: dict[str, Callable[[], Any]] = {
    "backprop": biograd.Backpropagation,
    "weak": lambda: biograd.WeakGradient(copies=5),
    "weight_mirror": biograd.WeightMirror,
}


class Base(nn.Module):
    """Stands in for ``lightning.LightningModule``."""

    def log(self, name: str, value: Tensor, **_: Any) -> None:
        self.__dict__.setdefault("logged", {})[name] = float(value)


def example() -> Any:
    """Return the example's module, executed anew."""
    spec = importlib.util.spec_from_file_location("lightning_example", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    stand_in = types.ModuleType("lightning")
    stand_in.LightningModule = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", stand_in)
    return example()


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(INPUTS.split(8), TARGETS.split(8), strict=True))


def by_hand(rule: Any, update: bool = True) -> tuple[nn.Module, list[float]]:
    """Return a network after three steps without Lightning, and their losses."""
    made = network()
    engine = biograd.attach(made, rule)
    engine.prepare(*batches()[0])
    optimiser = torch.optim.Adam(engine.parameters(), 0.01)
    losses = []
    for inputs, targets in batches():
        optimiser.zero_grad()
        result = engine(inputs, targets)
        result.backward()
        optimiser.step()
        if update:
            engine.update()
        losses.append(float(result.loss))
    engine.detach()
    return made, losses


def steps(learner: Any, optimiser: Any, given: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Do what Lightning does in automatic optimisation."""
    losses = []
    for number, batch in enumerate(given):
        loss = learner.training_step(batch, number)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        learner.on_train_batch_end(None, batch, number)
        losses.append(loss.item())
    return losses


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", RULES)
def test_its_step_is_the_engines(name: str, standing_in: Any) -> None:
    expected, losses = by_hand(RULES[name]())
    learner = standing_in.Learner(network(), RULES[name](), batches()[0], 0.01)
    assert steps(learner, learner.configure_optimizers(), batches()) == pytest.approx(losses)
    assert same(learner.network, expected)
    assert learner.logged["train_loss"] == pytest.approx(losses[-1])
    learner.validation_step((INPUTS, TARGETS), 0)
    right = (expected(INPUTS).argmax(1) == TARGETS).float().mean()
    assert learner.logged["accuracy"] == pytest.approx(float(right))
    learner.engine.detach()


def test_what_the_rule_learns_by_itself_is_seen() -> None:
    """The check above fails where the rule's own learning is left out."""
    assert not same(
        by_hand(RULES["weight_mirror"]())[0], by_hand(RULES["weight_mirror"](), False)[0]
    )


@pytest.mark.parametrize("name", ["weak", "weight_mirror"])
def test_a_checkpoint_goes_on_bit_for_bit(name: str, standing_in: Any) -> None:
    expected, _losses = by_hand(RULES[name]())
    first = standing_in.Learner(network(), RULES[name](), batches()[0], 0.01)
    optimiser = first.configure_optimizers()
    steps(first, optimiser, batches()[:1])
    checkpoint: dict[str, Any] = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    kept = optimiser.state_dict()
    first.engine.detach()
    second = standing_in.Learner(network(), RULES[name](), batches()[0], 0.01)
    second.load_state_dict(checkpoint["state_dict"])
    second.on_load_checkpoint(checkpoint)
    optimiser = second.configure_optimizers()
    optimiser.load_state_dict(kept)
    steps(second, optimiser, batches()[1:])
    assert same(second.network, expected)
    second.engine.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RULES)
def test_lightnings_loop_does_the_same(name: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    expected, losses = by_hand(RULES[name]())
    learner = example().Learner(network(), RULES[name](), batches()[0], 0.01)
    rows = DataLoader(TensorDataset(INPUTS, TARGETS), 8)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(learner, rows, rows)
    assert same(learner.network, expected)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(losses[-1])
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    state = torch.load(tmp_path / "learner.ckpt", weights_only=False)["engine"]
    assert {*state} == {*learner.engine.state()}
    learner.engine.detach()
