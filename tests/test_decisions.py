"""Credit of decisions: against exact enumeration, and draw for draw between rules."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds_for_tests import (
    PAYS,
    WALK,
    Deciding,
    PaidAtOnce,
    PaidByChance,
    Remembering,
    Walk,
    drawn,
    noted,
    seeds,
)

import biograd
from biograd.engine import Engine, attach
from biograd.environments import DelayedReward, Environment, Episodes
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator, make
from biograd.tasks import Decisions
from biograd.testing.tasks import check_task

NOISE = ("weak", "node_perturbation", "likelihood_ratio", "three_factor")
ABLE = (*NOISE, "weight_perturbation")


def engine_of(
    rule: Estimator, world: Environment | None = None, module: nn.Module | None = None, **task: Any
) -> Engine:
    world = world or Walk()
    module = module or drawn(lambda: Deciding(world.observation[0], world.actions))
    decide = Decisions(world.actions, **task)
    return attach(Episodes(module, world, decide), rule, task=decide)


def gradients(engine: Engine, rows: int = 4) -> dict[str, Tensor]:
    engine(*seeds(rows)).backward()
    found = {}
    for name, parameter in engine.network.named_parameters():
        grad = parameter.grad
        found[name] = torch.zeros_like(parameter) if grad is None else grad.clone()
    engine.network.zero_grad()
    return found


# The score function, by enumeration of all actions

WORTH = torch.tensor([[0.2, 1.0, -0.4], [3.0, 2.5, 2.0], [-1.0, 0.0, 0.5]], dtype=torch.float64)
LOGITS = torch.tensor([[0.1, -0.7, 0.4], [1.0, 0.2, -0.3], [0.0, 0.9, 0.6]], dtype=torch.float64)


def expected_score(task: Decisions) -> Tensor:
    """Return the mean over all joint actions of the gradient of three trials' mean loss."""
    total, chances = torch.zeros_like(LOGITS), LOGITS.softmax(1)
    for actions in itertools.product(range(3), repeat=3):
        action = torch.tensor(actions)
        logits = LOGITS.clone().requires_grad_()
        task.losses(noted(task, logits, action, WORTH), torch.zeros(3, 1)).mean().backward()
        assert logits.grad is not None
        total += chances.gather(1, action[:, None]).prod() * logits.grad
    return total


def exact() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (-(logits.softmax(1) * WORTH).sum(1).mean()).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "expected"])
def test_every_baseline_leaves_the_mean_of_the_score_where_it_is(baseline: str) -> None:
    found = expected_score(Decisions(3, score=True, baseline=baseline))  # type: ignore[arg-type]
    assert torch.allclose(found, exact(), atol=1e-14)


def test_a_mean_that_holds_the_trial_itself_shrinks_the_gradient_by_one_in_the_batch() -> None:
    class Held(Decisions):
        def advantages(self, noted: dict[str, Tensor]) -> Tensor:
            returns = self.returns(noted["reward"])
            return returns - returns.mean(0)

    found = expected_score(Held(3, score=True))
    assert torch.allclose(found, (1 - 1 / 3) * exact(), atol=1e-14)
    assert not torch.allclose(found, exact(), atol=1e-3)


def test_baselines_lower_the_variance() -> None:
    """With rewards far from zero; exact, over all joint actions."""
    far, spread = WORTH + 4, {}
    for baseline in ("none", "leave_one_out", "expected"):
        task = Decisions(3, score=True, baseline=baseline)  # type: ignore[arg-type]
        squares = 0.0
        for actions in itertools.product(range(3), repeat=3):
            action = torch.tensor(actions)
            logits = LOGITS.clone().requires_grad_()
            task.losses(noted(task, logits, action, far), torch.zeros(3, 1)).mean().backward()
            assert logits.grad is not None
            chance = LOGITS.softmax(1).gather(1, action[:, None]).prod()
            squares += float(chance * logits.grad.square().sum())
        spread[baseline] = squares
    assert spread["expected"] < spread["leave_one_out"] < spread["none"] / 2


def test_sampled_choices_have_the_softmax_probabilities_and_numbers_their_deviation() -> None:
    draws = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = LOGITS[:1].expand(len(draws), -1)
    chosen = Decisions(3, choice="sampled").act(outputs, draws)
    shares = torch.bincount(chosen, minlength=3) / len(draws)
    assert torch.allclose(shares.double(), LOGITS[0].softmax(0), atol=0.01)
    assert (Decisions(3).act(outputs, draws) == LOGITS[0].argmax()).all()
    numbers = Decisions(3, continuous=True, choice="sampled", deviation=0.3).act(outputs, draws)
    assert torch.allclose(numbers.std(0), torch.full((3,), 0.3).double(), atol=0.01)


def test_the_score_of_numbers_is_that_of_a_normal_density() -> None:
    task = Decisions(2, continuous=True, score=True, deviation=0.7)
    outputs = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    action = torch.randn(3, 4, 2, dtype=torch.float64)
    task.log_probability(outputs, action).sum().backward()
    twin = outputs.detach().requires_grad_()
    torch.distributions.Normal(twin, 0.7).log_prob(action).sum().backward()
    assert outputs.grad is not None and twin.grad is not None
    assert torch.allclose(outputs.grad, twin.grad)


def walked(weight: Tensor, later: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Return the exact mean rewards of a linear network whose currents are noisy, over all courses.

    Args:
        weight, later: of the first step and of the second.
    """

    def likely(place: int, weight: Tensor) -> Tensor:
        """Return the chance of action 1 under independent noise at both currents."""
        currents = weight @ WALK[place]
        return torch.special.ndtr((currents[1] - currents[0]) / (math.sqrt(2) * size))

    one = likely(0, weight)
    second = [PAYS[p, 0] + likely(p, later) * (PAYS[p, 1] - PAYS[p, 0]) for p in (1, 3)]
    first = PAYS[0, 0] + one * (PAYS[0, 1] - PAYS[0, 0])
    return first, (1 - one) * second[0] + one * second[1]


def undecided() -> nn.Module:
    """Return a linear network for which both first actions are as likely."""
    module = drawn(lambda: nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.2, 0.1], [0.1, 0.3]]))
    return module


def expected_gradient(module: nn.Module, size: float, discount: float = 1.0) -> Tensor:
    """Return what a step's own discounted return teaches, the first and the second step's."""
    own, later = (module.weight.detach().clone().requires_grad_() for _ in range(2))
    first, second = walked(own, later, size)
    (first + discount * second).backward(inputs=[own], retain_graph=True)
    second.backward(inputs=[later])
    assert own.grad is not None and later.grad is not None
    return -(own.grad + later.grad)


@pytest.mark.parametrize("discount", [1.0, 0.6])
@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("likelihood_ratio", {"baseline": "none"}),
        ("likelihood_ratio", {"baseline": "leave_one_out"}),
        ("likelihood_ratio", {"antithetic": True}),
        ("node_perturbation", {}),
        ("weak", {"method": "baseline"}),
        ("three_factor", {"baseline": "none"}),
        ("three_factor", {"baseline": "clean"}),
    ],
)
def test_the_mean_estimate_is_the_gradient_of_the_noisy_networks_return(
    rule: str, settings: dict[str, Any], discount: float
) -> None:
    """Also in the second step, where copies see what their own first action led to.

    The credit of a step is that of its own discounted return, as if the trial began there.
    """
    module = undecided()
    engine = engine_of(
        make(rule, {"copies": 30_001, "sigma": 0.8, **settings}), Walk(), module, discount=discount
    )
    found = gradients(engine, 1)["policy.weight"]
    expected = expected_gradient(module, 0.8 * engine.scales["policy"], discount)
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_credit_that_goes_with_the_clean_copys_inputs_is_wrong() -> None:
    class Clean(biograd.NodePerturbation):
        def credit(self, traces: Any, round: Any) -> Any:
            (trace,) = traces
            for name, gradient in self.estimates(trace, round).items():
                yield from trace.sites[name].deliver(gradient)

    module = undecided()
    engine = engine_of(Clean(copies=30_001, sigma=0.8), Walk(), module)
    found = gradients(engine, 1)["policy.weight"]
    expected = expected_gradient(module, 0.8 * engine.scales["policy"])
    assert float((found - expected).norm() / expected.norm()) > 0.3


# Who learns what


@pytest.mark.parametrize("rule", ABLE)
def test_hidden_layers_and_readout_learn_from_the_return(rule: str) -> None:
    engine = engine_of(make(rule, {"sigma": 0.8}))
    found = gradients(engine, 16)
    assert all(bool(found[f"policy.{name}.weight"].any()) for name in ("first", "second"))


@pytest.mark.parametrize("rule", NOISE)
def test_recurrent_layers_learn_from_the_return(rule: str) -> None:
    world = DelayedReward(steps=5, recall=True)
    engine = engine_of(make(rule, {"sigma": 2.0}), world, drawn(Remembering))
    found = gradients(engine, 32)
    assert all(bool(found[f"policy.{name}.weight"].any()) for name in ("w", "r", "o"))


@pytest.mark.parametrize("rule", ABLE)
def test_rewards_that_the_network_does_not_earn_teach_nothing(rule: str) -> None:
    settings = {"baseline": "clean"} if rule == "three_factor" else {}
    found = gradients(engine_of(make(rule, {"sigma": 0.8, **settings}), PaidByChance()), 8)
    assert all(float(one.abs().max()) < 1e-9 for one in found.values())


@pytest.mark.parametrize("baseline", ["none", "running", "leave_one_out"])
def test_rewards_by_chance_teach_nothing_in_the_mean(baseline: str) -> None:
    engine = engine_of(biograd.ThreeFactor(copies=2, sigma=0.8, baseline=baseline), PaidByChance())
    found = torch.stack([gradients(engine, 8)["policy.second.weight"] for _ in range(300)])
    error = found.std(0) / math.sqrt(len(found))
    assert float((found.mean(0) / error).abs().max()) < 4 and float(error.min()) > 0


@pytest.mark.parametrize("rule", ["node_perturbation", "likelihood_ratio", "three_factor", "weak"])
def test_a_reward_credits_noise_before_it_alone(rule: str) -> None:
    settings = {"baseline": "clean"} if rule == "three_factor" else {}
    engine = engine_of(make(rule, {"copies": 9, "sigma": 0.8, **settings}), PaidAtOnce())
    engine(*seeds(4))
    assert engine._last is not None
    (trace, *_), round = engine._last
    weights = engine.estimator.weights(trace, round)  # type: ignore[operator, union-attr]
    for one in weights.values():
        assert one.shape[2] == 4 and bool(one[..., 0].any()) and not bool(one[..., 1:].any())


def test_an_ended_episode_is_credited_no_more() -> None:
    class Short(PaidAtOnce):
        def step(self, action: Tensor) -> tuple[Tensor, ...]:
            seen, _reward, _one, other, info = super().step(action)
            over = (self.place == 1) & (self.time == 2)
            return seen, PAYS[0, action], over, other, info  # type: ignore[return-value]

    engine = engine_of(biograd.LikelihoodRatio(copies=65, sigma=0.8), Short())
    result = engine(*seeds(4))
    assert engine._last is not None
    trace = engine._last[0][0]
    alive = trace.alive
    assert alive is not None and 0 < float(alive[1:, :, 2].double().mean()) < 1
    received = torch.stack(trace.sites["policy.first"].received[0])  # [T, m B, 2]
    assert not received[2:][:, ~alive[1:, :, 2].flatten()].any()
    lost = engine.task.noted(result.outputs)["alive"] == 0  # type: ignore[attr-defined]
    assert not engine.task.noted(result.outputs)["reward"][lost].any()  # type: ignore[attr-defined]


def graph_rules() -> list[str]:
    return [rule for rule in ESTIMATORS if rule not in ABLE]


@pytest.mark.parametrize("rule", graph_rules())
def test_rules_that_need_a_graph_are_refused_and_told_who_can(rule: str) -> None:
    with pytest.raises(CapabilityError) as refused:
        engine_of(make(rule))
    text = str(refused.value)
    assert "\n" not in text and "ThreeFactor" in text and "task.score" in text


WITHOUT = ("gain", "unitwise", "decoupling", "target_projection", "forward_forward",
           "synthetic_gradient")  # fmt: skip


@pytest.mark.parametrize("rule", graph_rules())
def test_under_the_score_rules_learn_or_say_before_the_first_step_why_not(rule: str) -> None:
    if rule in WITHOUT:
        with pytest.raises(CapabilityError, match="cannot learn in an environment") as refused:
            engine_of(make(rule), score=True)
        assert "\n" not in str(refused.value)
        return
    if rule in ("ottt", "sltt"):
        with pytest.raises(CapabilityError, match="runs through time by itself"):
            engine_of(make(rule), score=True).prepare(*seeds(4))
        return
    found = gradients(engine_of(make(rule), score=True), 16)
    assert bool(found["policy.second.weight"].any())
    assert bool(found["policy.first.weight"].any()) is (rule != "frozen_hidden")


def test_back_propagation_follows_the_score_of_its_own_course() -> None:
    """Against the sum over the steps of log-probabilities times what followed, by hand."""
    module, task = drawn(Deciding), Decisions(2, score=True, baseline="none", discount=0.5)
    engine = attach(Episodes(module, Walk(), task), biograd.Backpropagation(), task=task)
    inputs, _targets = seeds(6)
    found = gradients(engine, 6)
    outputs = Episodes(module, Walk(), task)(inputs).detach()
    noted = task.noted(outputs)
    total = torch.zeros((), dtype=torch.float64)
    place = torch.zeros(6, dtype=torch.int64)
    for time in range(2):
        action = outputs[:, time, 2].long()
        later = noted["reward"][:, time] + (0.5 * noted["reward"][:, 1] if time == 0 else 0)
        logs = module(WALK[place]).log_softmax(1)
        total = total - (later * logs.gather(1, action[:, None])[:, 0]).mean()
        place = torch.where(place == 0, 1 + 2 * action, place)
    total.backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(found[f"policy.{name}"], parameter.grad, atol=1e-12), name  # type: ignore[arg-type]


# Rules against each other


@pytest.mark.parametrize("kind", ["still", "in_time", "decisions"])
def test_a_trace_that_forgets_nothing_is_node_perturbation_draw_for_draw(kind: str) -> None:
    found = {}
    for rule, own in (("node_perturbation", {}), ("three_factor", {"baseline": "clean"})):
        found[rule] = by_kind(kind, make(rule, {"copies": 5, "sigma": 0.5, **own}))
    for name, one in found["node_perturbation"].items():
        assert torch.allclose(one, found["three_factor"][name], rtol=1e-9, atol=1e-12), name
        assert bool(one.any()), name


def by_kind(kind: str, rule: Estimator) -> dict[str, Tensor]:
    if kind == "decisions":
        return gradients(engine_of(rule, DelayedReward(steps=5), drawn(lambda: Deciding(3, 2))), 8)
    if kind == "in_time":
        return stepped(rule)
    module = drawn(lambda: Deciding(5, 3))
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).double()
    engine = attach(module, rule)
    engine(inputs, torch.arange(8) % 3).backward()
    return {name: one.grad for name, one in module.named_parameters()}  # type: ignore[misc]


def stepped(rule: Estimator) -> dict[str, Tensor]:
    """Return the gradients of a network that runs through time and is paid in every step."""

    class Running(Remembering):
        def forward(self, seen: Tensor) -> Tensor:  # type: ignore[override]
            state, found = None, []
            for step in seen.unbind(1):
                output, state = super().forward(step, state)
                found.append(output)
            return torch.stack(found, 1)

    module = drawn(Running)
    inputs = torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(1)).double()
    task = biograd.tasks.Reward(
        2, timed=True, reward=lambda outputs, targets: outputs[..., 0].tanh()
    )
    engine = attach(module, rule, task=task)
    engine(inputs, torch.zeros(8, 1).double()).backward()
    return {name: one.grad for name, one in module.named_parameters()}  # type: ignore[misc]


def test_a_trace_that_forgets_is_another() -> None:
    long, short = (
        by_kind("decisions", biograd.ThreeFactor(copies=5, sigma=2.0, baseline="clean", tau=tau))
        for tau in (None, 1.5)
    )
    assert not torch.allclose(long["policy.second.weight"], short["policy.second.weight"])


@pytest.mark.parametrize("tau", [None, 1.0, 3.0])
def test_traces_are_those_of_the_equation(tau: float | None) -> None:
    """``e <- (1 - 1 / tau) e + x n / s^2``, ``dW = sum_t (R - b) e``, step by step by hand."""
    world = DelayedReward(signs=2, steps=5, noise=0.3)
    module = drawn(lambda: nn.Linear(3, 2))
    engine = engine_of(
        biograd.ThreeFactor(copies=2, sigma=1.5, tau=tau, baseline="none"), world, module
    )
    found = gradients(engine, 6)["policy.weight"]
    assert engine._last is not None
    noise = engine._last[0][0].sites["policy"].noise
    assert noise is not None
    size, left = 1.5 * engine.scales["policy"], 1.0 if tau is None else 1 - 1 / tau
    trace, total = torch.zeros(6, 2, 3).double(), torch.zeros(6, 2, 3).double()
    seen, _ = world.reset(seeds(6)[0][:, 0].long())
    for time in range(5):
        offset = noise[0, :, time]
        trace = left * trace + offset[:, :, None] * seen[:, None, :] / size**2
        action = (module(seen) + offset).argmax(1)
        seen, reward, *_ = world.step(action)
        total = total + reward[:, None, None] * trace
    assert torch.allclose(found, -total.mean(0), rtol=1e-9, atol=1e-12)


def test_running_means_follow_each_kind_of_trial_and_are_saved() -> None:
    rule = biograd.ThreeFactor(copies=3, sigma=1.0, conditions=2, pace=0.5)
    world = DelayedReward(signs=2, steps=3)
    task = Decisions(2)
    engine = attach(Episodes(drawn(lambda: Deciding(3, 2)), world, task), rule, task=task)
    inputs, _ = seeds(16)
    kinds = world.condition(inputs[:, 0].long())[:, None]
    means = []
    for _ in range(2):
        engine(inputs, kinds).backward()
        assert engine._last is not None
        trace = engine._last[0][0]
        engine.update()
        means.append(
            torch.stack([trace.losses[1:][:, kinds[:, 0] == kind].mean() for kind in (0, 1)])
        )
    expected = (means[0] + means[1]) / 2
    assert torch.allclose(rule.means[:, 0].double(), expected, atol=1e-6)
    other = attach(
        Episodes(drawn(lambda: Deciding(3, 2)), world, task),
        biograd.ThreeFactor(copies=3, sigma=1.0, conditions=2, pace=0.5),
        task=task,
    )
    other.load_state(engine.state())
    other.prepare(inputs, kinds)
    assert torch.equal(other.estimator.means, rule.means)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "targets", "said"),
    [
        ({"conditions": 2}, torch.full((4, 1), 2), "conditions = 2: there is a trial of kind 2"),
        ({"conditions": 2}, torch.full((4, 1), -1), "conditions = 2"),
    ],
)
def test_kinds_of_trial_that_are_none_are_refused(
    settings: dict[str, Any], targets: Tensor, said: str
) -> None:
    engine = engine_of(biograd.ThreeFactor(**settings))
    with pytest.raises(CapabilityError, match=said):
        engine.prepare(seeds(4)[0], targets)


@pytest.mark.parametrize(
    "settings",
    [{"baseline": "clean", "pace": 0.5}, {"baseline": "none", "conditions": 3}, {"tau": 0.5}],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(biograd.RecipeError, match="ThreeFactor"):
        biograd.ThreeFactor(**settings)


def test_weight_and_node_perturbation_are_one_for_one_layer_and_a_unit_input() -> None:
    """Draw for draw: noise of a weight whose input is 1 is noise of the current."""

    def reward(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sin(2 * outputs[:, 0]) * outputs[:, 1]

    task = biograd.tasks.Reward(3, reward=reward)
    module = drawn(lambda: nn.Linear(1, 3, bias=False))
    ones, targets = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    by_weight = attach(module, biograd.WeightPerturbation(copies=9, sigma=0.1), task=task)
    by_weight(ones, targets).backward()
    assert by_weight._last is not None and module.weight.grad is not None
    noise = by_weight._last[0][0].plan.parameter_noise
    assert noise is not None
    draws = [next(iter(noise.draw(copy, [module.weight]))) for copy in range(8)]
    by_weight.detach()
    signed = [scale / 0.1 * draw for scale, draw in zip(noise.scales, draws, strict=True)]
    found, module.weight.grad = module.weight.grad.clone(), None
    size = float(module.weight.detach().square().mean().sqrt())
    rule = biograd.LikelihoodRatio(copies=9, sigma=0.1 / size, antithetic=True)
    rule.directions = lambda *_: torch.stack(signed).view(8, 1, 3)
    attach(module, rule, task=task)(ones, targets).backward()
    assert module.weight.grad is not None and bool(found.any())
    assert torch.allclose(found, module.weight.grad, rtol=1e-9)


@pytest.mark.parametrize("method", ["least_squares", "anchored", "quadratic", "orthogonal"])
def test_methods_that_mix_copies_are_refused(method: str) -> None:
    with pytest.raises(CapabilityError, match="each copy has inputs of its own"):
        engine_of(biograd.WeakGradient(3, method=method), Walk()).prepare(*seeds(4))


def test_measured_noise_is_refused() -> None:
    with pytest.raises(CapabilityError, match="take 'injected'"):
        engine_of(biograd.NodePerturbation(activity="measured"), Walk()).prepare(*seeds(4))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score": True, "choice": "greedy"}, "only sampled actions"),
        ({"baseline": "none"}, "has no effect without score"),
    ],
)
def test_decisions_that_contradict_themselves_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Decisions(2, **settings)


def test_a_baseline_of_others_needs_others() -> None:
    engine = engine_of(biograd.Backpropagation(), score=True)
    with pytest.raises(CapabilityError, match="batch_size >= 2"):
        engine.prepare(*seeds(1))


def test_what_is_expected_must_be_known() -> None:
    engine = engine_of(biograd.Backpropagation(), score=True, baseline="expected")
    with pytest.raises(CapabilityError, match="does not know what actions are worth"):
        engine.prepare(*seeds(4))


def test_a_network_outside_of_an_environment_is_refused() -> None:
    engine = attach(drawn(Deciding), biograd.NodePerturbation(), task=Decisions(2))
    with pytest.raises(CapabilityError, match=r"put the network into its environment"):
        engine.prepare(torch.zeros(4, 2).double(), torch.zeros(4, 1).long())


def test_returns_are_discounted_from_each_step_on() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    found = Decisions(2, discount=0.5).returns(rewards)
    assert found.tolist() == [[3.0, 4.0, 4.0]]


@pytest.mark.parametrize("settings", [{}, {"score": True, "baseline": "none"}, {"discount": 0.5}])
def test_what_a_task_promises(settings: dict[str, Any]) -> None:
    task = Decisions(2, **settings)
    outputs = Episodes(drawn(Deciding), Walk(), task)(seeds(5)[0]).detach()
    check_task(task, outputs, torch.zeros(5, 1).long())
