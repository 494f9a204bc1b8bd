"""The public check of learning rules: all of biograd's pass it, broken ones do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace
from biograd.engine.step_result import surface
from biograd.errors import CapabilityError, CheckFailed
from biograd.estimators import (
    ESTIMATORS,
    Backpropagation,
    DirectFeedback,
    EligibilityPropagation,
    Estimator,
    FeedbackAlignment,
    Kickback,
    NodePerturbation,
    TargetProjection,
    UnitwiseGradient,
    WeakGradient,
)
from biograd.estimators.feedback import Feedback
from biograd.estimators.weight_perturbation import gradients
from biograd.testing import check_estimator

Pairs = Iterator[tuple[Tensor, Tensor]]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_rule_passes(name: str) -> None:
    check_estimator(ESTIMATORS[name])


def test_few_rules_follow_something_else_than_the_loss() -> None:
    own = {name for name, rule in ESTIMATORS.items() if rule.objective}
    assert own == {"forward_forward", "target_projection"}
    assert {name for name, rule in ESTIMATORS.items() if not rule.learns_hidden} == {
        "frozen_hidden"
    }


def turned(rule: type[Estimator]) -> type[Estimator]:
    """Return the rule with gradients of the wrong sign in all that it credits but the readout.

    A rule that trains the readout alone has those of the wrong sign.
    """

    class Turned(rule):  # type: ignore[misc, valid-type]
        __doc__ = rule.__doc__

        def credit(self, traces: Sequence[Trace], round: Round) -> Pairs:
            pairs, loss = list(super().credit(traces, round)), traces[0].loss
            yield from pairs
            layers = [round.layers[name] for name in round.site_layers[round.readout]]
            readout = {id(parameter) for layer in layers for parameter in layer.parameters()}
            own = [p for p in round.parameters if (id(p) in readout) != self.learns_hidden]
            for parameter, gradient in zip(own, gradients(surface(loss, pairs), own), strict=True):
                if gradient is not None:
                    yield parameter, -2 * gradient

    return Turned


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_wrong_sign_is_seen(name: str) -> None:
    words = "points against|do not descend|does not lower the loss|is not that of back-propag"
    with pytest.raises(CheckFailed, match=words):
        check_estimator(turned(ESTIMATORS[name]))


def minus(rule: type[Estimator], method: str, site: str = "", **settings: Any) -> type[Estimator]:
    """Return the rule with a part of the wrong sign, at one site or all."""

    class Minus(rule):  # type: ignore[misc, valid-type]
        __doc__ = rule.__doc__

        def __init__(self) -> None:
            super().__init__(**settings)

    def other(self: Estimator, *given: Any) -> Tensor:
        found: Tensor = getattr(super(Minus, self), method)(*given)
        return found if site and given[0] != site else -found

    setattr(Minus, method, other)
    return Minus


FIRST, SECOND = "blocks.0.synapse", "blocks.1.synapse"
PARTS = [
    minus(DirectFeedback, "signal"),
    minus(DirectFeedback, "matrix"),
    minus(DirectFeedback, "matrix", FIRST),
    minus(DirectFeedback, "matrix", shared=True),
    minus(TargetProjection, "signal"),
    minus(TargetProjection, "matrix", FIRST),
    minus(Kickback, "received"),
    minus(Kickback, "signal", influence=False),
    minus(EligibilityPropagation, "received"),
    minus(EligibilityPropagation, "received", feedback="random"),
    minus(FeedbackAlignment, "feedback"),
    minus(FeedbackAlignment, "feedback", SECOND),
]


@pytest.mark.parametrize("rule", PARTS, ids=lambda rule: rule.__mro__[1].__name__)
def test_feedback_of_the_wrong_sign_is_seen_though_weights_would_align_with_it(
    rule: type[Estimator],
) -> None:
    with pytest.raises(CheckFailed, match="points against"):
        check_estimator(rule)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: DirectFeedback(shared=True),
        lambda: Kickback(influence=False),
        lambda: EligibilityPropagation(feedback="random"),
        lambda: TargetProjection(shared=True),
    ],
)
def test_other_settings_of_feedback_pass(make: Callable[[], Estimator]) -> None:
    check_estimator(make)


class Mute(TargetProjection):
    """Follows something of which it does not say the value."""

    def followed(self, traces: Sequence[Trace], round: Round) -> None:  # type: ignore[override]
        return None


@pytest.mark.slow
def test_an_objective_without_a_value_is_named() -> None:
    with pytest.raises(CheckFailed, match="return it from `followed`"):
        check_estimator(Mute)


def negated(rule: type[Feedback]) -> type[Estimator]:
    """Return the rule with feedback of the wrong sign, which is in its plans, not in its credit."""

    class Negated(rule):  # type: ignore[misc, valid-type]
        __doc__ = rule.__doc__

        def feedback(self, name: str, weight: Tensor, round: Round) -> Tensor:
            return -super().feedback(name, weight, round)

    return Negated


class Inverted(UnitwiseGradient):
    """Lets credit pass by a derivative of the wrong sign."""

    def plans(self, round: Round) -> Sequence[Plan]:
        (plan,) = super().plans(round)
        derivative = plan.transport.derivative
        assert derivative is not None
        turned = replace(plan.transport, derivative=lambda distance: -derivative(distance))
        return (replace(plan, transport=turned),)


SENT = ("sign_symmetry", "weight_mirror", "kolen_pollack")


@pytest.mark.parametrize(
    "name", [SENT[0], *(pytest.param(n, marks=pytest.mark.slow) for n in SENT[1:])]
)
def test_a_wrong_sign_in_a_plan_is_seen(name: str) -> None:
    words = r"against the forward weights|do not descend|does not lower"
    with pytest.raises(CheckFailed, match=words):
        check_estimator(negated(ESTIMATORS[name]))  # type: ignore[arg-type]


def test_a_derivative_of_the_wrong_sign_is_seen() -> None:
    with pytest.raises(CheckFailed, match=r"derivative|not descend|not lower"):
        check_estimator(Inverted)


class Silent(Backpropagation):
    """Has no word on its bias."""

    bias = ""


class Spreading(Backpropagation):
    """Refuses in two lines."""

    def check(self, sites: Sequence[str]) -> None:
        raise CapabilityError("no\nsites")


class Choosy(Backpropagation):
    """Refuses every network."""

    def check(self, sites: Sequence[str]) -> None:
        raise CapabilityError("sites that cannot be")


class Chance(WeakGradient):
    """Draws from torch's global stream."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Pairs:
        for tensor, delta in super().credit(traces, round):
            yield tensor, delta * (1 + 0.1 * torch.rand(()))


class Forgetful(DirectFeedback):
    """Keeps a number that is in no buffer."""

    steps = 0

    def credit(self, traces: Sequence[Trace], round: Round) -> Pairs:
        for tensor, delta in super().credit(traces, round):
            yield tensor, delta * (1 + self.steps)

    def after(self, traces: Sequence[Trace], round: Round) -> None:
        self.steps += 1


class Infinite(NodePerturbation):
    """Divides by nothing."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Pairs:
        yield from ((tensor, delta / 0.0) for tensor, delta in super().credit(traces, round))


class Idle(WeakGradient):
    """Gives no credit, and does not say that hidden layers do not learn."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Pairs:
        yield from ()


class Meddling(Backpropagation):
    """Changes the network before the first step."""

    builds = True

    def build(self, trace: Trace, round: Round) -> None:
        with torch.no_grad():
            round.parameters[0].mul_(2)

    def plans(self, round: Round) -> Iterable[Plan]:
        return (Plan(),)


BROKEN: list[tuple[Callable[[], Estimator], str]] = [
    (Silent, "Silent: bias is empty"),
    (Spreading, "a refusal must be one line"),
    (Choosy, "Choosy works on no network: sites that cannot be"),
    (Chance, "equal seeds have other credit"),
    (Forgetful, "saved and loaded it goes on otherwise"),
    (Infinite, r"the gradient of .* is not finite"),
    (Idle, "learns_hidden = True, but"),
    (Meddling, "prepare changes the network"),
]


@pytest.mark.parametrize(("make", "line"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_each_broken_promise_is_named(make: Callable[[], Estimator], line: str) -> None:
    with pytest.raises(CheckFailed, match=line):
        check_estimator(make)


def test_a_factory_chooses_settings() -> None:
    check_estimator(lambda: WeakGradient(copies=5, method="antithetic"))


Changed = Callable[[Estimator, Sequence[Trace], Round, list[Tensor]], Iterable[Tensor]]
"""Gradients of the hidden parameters to what is to become of them."""


def changed(rule: type[Estimator], change: Changed, readout: bool = False) -> type[Estimator]:
    """Return the rule with other gradients of the hidden layers, or of the readout."""

    class Other(rule):  # type: ignore[misc, valid-type]
        __doc__ = rule.__doc__

        def credit(self, traces: Sequence[Trace], round: Round) -> Pairs:
            pairs, loss = list(super().credit(traces, round)), traces[0].loss
            yield from pairs
            layers = [round.layers[name] for name in round.site_layers[round.readout]]
            known = {id(parameter) for layer in layers for parameter in layer.parameters()}
            own = [p for p in round.parameters if (id(p) in known) == readout]
            found = [g for g in gradients(surface(loss, pairs), own) if g is not None]
            other = change(self, traces, round, found)
            for parameter, gradient, now in zip(own, found, other, strict=True):
                yield parameter, now - gradient

    return Other


def times(factor: Callable[[Round], float]) -> Changed:
    """Return what multiplies gradients."""
    return lambda rule, traces, round, found: [factor(round) * one for one in found]


def meddling(change: Callable[[Sequence[Trace], Round], object]) -> Changed:
    """Return what leaves gradients as they are, and does something else."""

    def act(rule: Estimator, traces: Sequence[Trace], round: Round, found: list[Tensor]) -> Any:
        change(traces, round)
        return found

    return act


def last_only(rule: Estimator, traces: Any, round: Any, found: list[Tensor]) -> list[Tensor]:
    """Leave the first hidden weight without a gradient."""
    return [one * (number > 1) for number, one in enumerate(found)]


def of_another(rule: Estimator, traces: Any, round: Any, found: list[Tensor]) -> list[Tensor]:
    """Give the first hidden layer what is the second's."""
    other = found[-2] if found[-2].dim() > 1 else found[-1]
    first = other.flatten()[: found[0].numel()].view_as(found[0])
    return [first, *found[1:]]


WRONG: dict[str, tuple[Changed, str]] = {
    "doubled": (times(lambda round: 2.0), r"holds|exact = True"),
    "summed": (times(lambda round: round.batch), r"holds|exact = True|every example twice"),
    "of one example": (
        times(lambda round: 1.0 + float(round.targets[0])),
        r"in a batch of every second example|exact = True|divides = 'examples'",
    ),
    "first left out": (last_only, r"has no gradient|exact = True"),
    "another's": (of_another, r"does not follow|exact = True"),
    "weights": (meddling(lambda traces, round: round.parameters[0].data.mul_(0.9)), "a step chang"),
    "targets": (meddling(lambda traces, round: traces[0].targets.fill_(0)), "in place what it is"),
    "chance": (meddling(lambda traces, round: torch.rand(1)), "torch's global stream"),
}
RULES = [Backpropagation, WeakGradient, NodePerturbation, DirectFeedback, FeedbackAlignment]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_seen(name: str, rule: type[Estimator]) -> None:
    change, words = WRONG[name]
    with pytest.raises(CheckFailed, match=words):
        check_estimator(changed(rule, change))


@pytest.mark.parametrize("rule", RULES)
def test_a_wrong_readout_is_seen(rule: type[Estimator]) -> None:
    with pytest.raises(CheckFailed, match=r"readout\.weight is not that of back-propagation"):
        check_estimator(changed(rule, times(lambda round: 1.1), readout=True))
