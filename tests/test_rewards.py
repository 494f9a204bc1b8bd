"""Losses without a graph: who can learn from them, and that the readout learns, too."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import biograd
from biograd import diagnosis
from biograd.engine import Engine, attach
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator, make
from biograd.randomness import generator
from biograd.tasks import Classes, OwnLoss, Reward, Task

ABLE = ("three_factor", "weak", "node_perturbation", "likelihood_ratio", "weight_perturbation")
ROWS = 16


def network(*sizes: int) -> nn.Module:
    sizes = sizes or (5, 4, 3)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for one, other in pairwise(sizes):
        layers += [nn.Linear(one, other), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, 5, generator=generator(0, "x")).double(), torch.arange(ROWS) % 3


def chance(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.softmax(-1).gather(1, targets[:, None])[:, 0]


def gradients(engine: Engine) -> dict[str, Tensor]:
    engine(*data()).backward()
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in engine.network.named_parameters()
    }
    engine.network.zero_grad()
    return found


def mean(rule: str, settings: dict[str, Any], task: Task, draws: int) -> dict[str, Tensor]:
    engine = attach(network(), make(rule, settings), task=task)
    found = [gradients(engine) for _ in range(draws)]
    return {name: torch.stack([g[name] for g in found]).mean(0) for name in found[0]}


def truth() -> dict[str, Tensor]:
    return gradients(attach(network(), biograd.Backpropagation(), loss=lambda o, t: -chance(o, t)))


@pytest.mark.parametrize(
    ("rule", "settings", "cosine"),
    [
        ("node_perturbation", {"copies": 65, "sigma": 0.05}, 0.99),
        ("node_perturbation", {"copies": 65, "sigma": 0.05, "activity": "measured"}, 0.99),
        ("weak", {"copies": 65, "sigma": 0.05}, 0.99),
        ("weak", {"copies": 65, "sigma": 0.05, "sites": "round_robin"}, 0.98),
        ("likelihood_ratio", {"copies": 65, "sigma": 0.05}, 0.99),
        ("likelihood_ratio", {"copies": 65, "sigma": 0.05, "antithetic": True}, 0.99),
        ("weight_perturbation", {"copies": 129, "sigma": 0.01}, 0.93),
    ],
)
def test_the_mean_estimate_is_the_gradient_of_the_reward_in_every_layer(
    rule: str, settings: dict[str, Any], cosine: float
) -> None:
    found, expected = mean(rule, settings, Reward(3, reward=chance), 250), truth()
    turns = 0.5 if settings.get("sites") == "round_robin" else 1.0
    for name in ("0.weight", "2.weight"):
        value, other = expected[name], found[name].flatten()
        assert nn.functional.cosine_similarity(value.flatten(), other, 0) > cosine, name
        assert float(other.norm() / value.norm()) == pytest.approx(turns, rel=0.15), name


def test_every_baseline_is_unbiased_and_one_that_holds_the_copy_itself_is_not() -> None:
    class Held(biograd.LikelihoodRatio):
        """The mean of all noisy copies, this one among them, divided by their number."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            own = self.regression
            self.regression = lambda *given: own(*given) * (self.copies - 2) / (self.copies - 1)

    lengths = {}
    for name, kind in {"leave_one_out": biograd.LikelihoodRatio, "held": Held}.items():
        engine = attach(network(), kind(copies=5, sigma=0.05), task=Reward(3, reward=chance))
        found = [gradients(engine)["2.weight"] for _ in range(1500)]
        expected = truth()["2.weight"]
        projected = (torch.stack(found).mean(0) * expected).sum() / expected.square().sum()
        lengths[name] = float(projected)
    assert lengths["leave_one_out"] == pytest.approx(1.0, abs=0.06)
    assert lengths["held"] == pytest.approx(0.75, abs=0.06)  # 1 - 1/m


def test_one_reward_for_the_batch_has_the_same_mean_and_more_variance() -> None:
    def shared(outputs: Tensor, targets: Tensor) -> Tensor:
        whole = chance(outputs, targets).view(-1, ROWS)
        return whole.sum(1, keepdim=True).expand_as(whole).flatten()

    expected, noise = truth()["2.weight"], {}
    for name, reward in {"each": chance, "batch": shared}.items():
        engine = attach(
            network(),
            make("node_perturbation", {"copies": 17, "sigma": 0.05}),
            task=Reward(3, reward=reward),
        )
        found = torch.stack([gradients(engine)["2.weight"] for _ in range(400)])
        assert nn.functional.cosine_similarity(found.mean(0).flatten(), expected.flatten(), 0) > 0.9
        noise[name] = float(found.var(0).mean())
    assert noise["batch"] / noise["each"] == pytest.approx(ROWS, rel=0.5)


def test_a_reward_that_the_network_does_not_earn_teaches_nothing() -> None:
    """In every copy the same number for a row: nothing is credited, in no layer."""

    def fixed(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.to(outputs.dtype)

    for rule in ABLE[1:]:  # a running mean does not know the reward yet
        found = gradients(attach(network(), make(rule), task=Reward(3, reward=fixed)))
        assert all(not gradient.abs().gt(1e-9).any() for gradient in found.values()), rule


def test_a_network_of_one_layer_learns_from_noise_at_its_outputs() -> None:
    engine = attach(
        network(5, 3), make("node_perturbation", {"copies": 33}), task=Reward(3, reward=chance)
    )
    assert gradients(engine)["0.weight"].any()
    with pytest.raises(CapabilityError, match="no hidden site"):
        attach(network(5, 3), make("node_perturbation")).prepare(*data())


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_rules_that_need_a_graph_are_refused_by_name(rule: str) -> None:
    given: list[dict[str, Any]] = [
        {"task": Reward(3)},
        {"loss": lambda o, t: -(o.argmax(1) == t).to(o.dtype)},
    ]
    for way in given:
        if rule in ABLE:
            engine = attach(network(), make(rule), **way)
            engine.prepare(*data())
            assert not engine.differentiable
            continue
        with pytest.raises(CapabilityError) as refused:
            attach(network(), make(rule), **way).prepare(*data())
        text = str(refused.value)
        assert "needs the gradient of the loss" in text and "\n" not in text
        assert all(ESTIMATORS[name].__name__ in text for name in ABLE)


def test_named_sites_need_a_graph_and_say_so() -> None:
    with pytest.raises(CapabilityError, match="needs the gradient of the loss"):
        attach(network(), make("weak", {"sites": ("0",)}), task=Reward(3))


def test_a_loss_with_a_graph_does_not_perturb_the_readout() -> None:
    engine = attach(
        network(), make("node_perturbation"), task=OwnLoss(loss=lambda o, t: -chance(o, t))
    )
    engine(*data())
    assert engine.differentiable and engine._last is not None
    assert set(engine._last[0][0].plan.noise or {}) == {"0"} == set(engine.scales)


def test_a_probe_compares_with_differences_of_the_reward() -> None:
    engine = attach(
        network(), make("node_perturbation", {"copies": 65}), task=Reward(3, reward=chance)
    )
    found = diagnosis.probe(engine, *data(), draws=16)
    assert "difference" in found.reference
    assert found.layers["2"].quality.cosine_of_mean.value > 0.9
    with pytest.raises(CapabilityError, match="Reward has no derivative"):
        diagnosis.probe(engine, *data(), reference="backpropagation")


def accuracy(task: Task, rule: Estimator, seed: int) -> float:
    inputs, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(inputs / 16, dtype=torch.float32)[order], torch.tensor(targets)[order]
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 10))
    engine = attach(module, rule, task=task, seed=seed)
    engine.prepare(x[:32], y[:32])
    optimiser = torch.optim.Adam(engine.parameters(), 3e-3)
    stream = torch.Generator().manual_seed(seed)
    for _ in range(20):
        for rows in torch.randperm(1437, generator=stream)[:1408].view(-1, 32):
            engine(x[rows], y[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
            engine.update()
    return float((module(x[1437:]).argmax(1) == y[1437:]).double().mean())


@pytest.mark.slow
def test_digits_are_learned_from_a_reward_as_from_a_cross_entropy() -> None:
    rule = {"copies": 17, "sigma": 0.2}
    reward, entropy = (
        sum(accuracy(task, make("node_perturbation", rule), seed) for seed in range(2)) / 2
        for task in (Reward(10, reward="probability"), Classes(10))
    )
    assert reward > entropy - 0.02 and reward > 0.93
