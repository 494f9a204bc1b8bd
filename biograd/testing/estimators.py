"""What a learning rule promises, as a check that also the rules of other packages pass.

Why descent is looked for with the readout held: the readout's gradient is exact whatever the rule,
and training it hides a hidden credit of the wrong sign.  Why after some training of all layers: a
rule with feedback of its own becomes useful as the weights align with it.  Why that is not enough:
weights align with feedback of either sign, so that fixed feedback is first made the weights' own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biograd import networks
from biograd.contracts import Plan, Transport
from biograd.engine import attach
from biograd.errors import CapabilityError, CheckFailed
from biograd.estimators import Backpropagation, Estimator
from biograd.randomness import generator
from biograd.recipes import ModelRecipe, construct
from biograd.testing.matched_feedback import match_feedback, reaches

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "rate": {"network": {"hidden": (10, 8), "activation": "tanh", "dtype": "float64"}},
    "spiking": {
        "network": {"kind": "spiking", "hidden": (10, 8), "gain": 2.0, "dtype": "float64"},
        "neuron": {"resistance": 8.0},
        "encoding": {"duration_ms": 8.0},
    },
}
"""Recipes of the networks on which rules are tried."""
FEATURES, CLASSES, ROWS = 6, 3, 24
TOGETHER, HELD, RATE = 30, 10, 1e-2
"""Steps of all layers, then of the hidden ones alone, and the learning rate of Adam."""
SEEDS = (0, 1, 2)
"""Losses are means over these: a rule that draws noise may be unlucky once."""
DRAWS = 8
"""Steps without an update whose gradients are added up."""


def check_estimator(make: Callable[[], Estimator]) -> None:
    """See whether a rule does what biograd needs of it, on a rate and on a spiking network.

    It describes itself; what refuses a network says so in a line, and at least one is not refused;
    before the first step ``prepare`` leaves no trace; equal seeds have equal credit, finite, of
    the parameters' shapes; saved and loaded, it goes on as it would have; feedback through
    which plans let credit pass comes to agree with the forward weights; and it *descends*: all
    layers together lower the loss, and the hidden layers alone end below where the opposite of
    their steps would have led them.  The last is not asked of a rule that leaves hidden layers as
    they are, or follows an objective of its own (``Estimator.objective``).

    Args:
        make: a class of estimators, or what returns a new one at every call.

    Raises:
        CheckFailed: the first promise that is broken, in a line.
    """
    name, refusals = type(make()).__name__, []
    for fault in _described(make()):
        raise CheckFailed(f"{name}: {fault}")
    for kind in NETWORKS:
        refusal = _refusal(make, kind)
        refusals += [refusal] if refusal else []
        faults = itertools.chain(
            _prepared(make, kind),
            _credit(make, kind),
            _directed(make, kind),
            _resumed(make, kind),
            _descends(make, kind),
        )
        for fault in () if refusal else faults:
            raise CheckFailed(f"{name} on a {kind} network: {fault}")
    if len(refusals) == len(NETWORKS):
        raise CheckFailed(f"{name} works on no network: {refusals[0]}")


class _Training:
    """A rule on a small network, and the same 24 examples in every step."""

    def __init__(
        self, make: Callable[[], Estimator], kind: str, seed: int = 0, narrow: bool = False
    ) -> None:
        recipe = construct(ModelRecipe, NETWORKS[kind], "check")
        if narrow:
            network = dataclasses.replace(recipe.network, hidden=recipe.network.hidden[:1])
            recipe = dataclasses.replace(recipe, network=network)
        self.network = networks.build(recipe, FEATURES, CLASSES, seed)
        stream = generator(0, "check")
        self.targets = torch.arange(ROWS) % CLASSES
        centres = torch.rand(CLASSES, FEATURES, generator=stream, dtype=torch.float64)
        spread = torch.rand(ROWS, FEATURES, generator=stream, dtype=torch.float64)
        self.inputs = 0.8 * centres[self.targets] + 0.5 * spread
        self.engine = attach(self.network, make(), seed=seed)

    def restart(self) -> None:
        self.optimiser = torch.optim.Adam(self.engine.parameters(), RATE)

    def prepare(self) -> _Training:
        self.engine.prepare(self.inputs, self.targets)
        self.restart()
        return self

    def gradients(self) -> dict[str, Tensor]:
        """Run one step and return what it found, without an update."""
        self.optimiser.zero_grad()
        self.engine(self.inputs, self.targets, torch.arange(ROWS)).backward()
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.network.named_parameters()
        }

    def hidden(self) -> list[nn.Parameter]:
        readout = self.engine.substrate.sites[-1].modules
        layers = [self.network.get_submodule(name) for name in readout]
        others = {id(parameter) for layer in layers for parameter in layer.parameters()}
        return [p for p in self.network.parameters() if id(p) not in others]

    def weights(self) -> list[Tensor]:
        """Return the weights of the layers from the first to the last, without a graph."""
        layers = [name for site in self.engine.substrate.sites for name in site.modules]
        found = (self.network.get_submodule(name).get_parameter("weight") for name in layers)
        return [weight.detach() for weight in found]

    @torch.no_grad()
    def make_positive(self) -> None:
        """Make the weights behind the first hidden layer excite."""
        for weight in self.weights()[1:]:
            weight.abs_()

    def trained(self) -> list[str]:
        """Return the names of the weights that the rule credits: hidden ones, if it does those."""
        hidden = {id(parameter) for parameter in self.hidden()}
        hides = self.engine.estimator.learns_hidden
        named = self.network.named_parameters()
        return [name for name, p in named if p.dim() > 1 and (id(p) in hidden) == hides]

    def train(self, steps: int, sign: int = 1, held: bool = False) -> None:
        """Follow the rule, or its opposite; ``held``: with hidden layers alone."""
        hidden = self.hidden()
        for _ in range(steps):
            self.gradients()
            for parameter in self.network.parameters():
                if held and not any(parameter is other for other in hidden):
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad *= sign
            self.optimiser.step()
            self.engine.update()

    def followed(self) -> float:
        """Return what the hidden layers shall lower, a mean over some steps without an update."""
        if not self.engine.estimator.objective:
            return self.loss()
        values = []
        for _ in range(DRAWS):
            self.gradients()
            assert self.engine._last is not None
            values.append(self.engine.estimator.followed(*self.engine._last))
        found = [value for value in values if value is not None]
        return float(torch.stack(found).mean()) if found else math.nan

    @torch.no_grad()
    def loss(self) -> float:
        self.network.eval()
        found = nn.functional.cross_entropy(self.network(self.inputs), self.targets)
        self.network.train()
        return float(found)

    def transports(self) -> list[Transport]:
        """Return how the plans of one more step let credit pass."""
        substrate, found = self.engine.substrate, list[Transport]()
        run = substrate.run

        def watched(plan: Plan, *given: Any, **more: Any) -> Any:
            found.append(plan.transport)
            return run(plan, *given, **more)

        substrate.run = watched  # type: ignore[method-assign]
        try:
            self.gradients()
        finally:
            del substrate.run  # the class has its own
        return found

    def alignment(self) -> float:
        """Return the mean cosine of feedback and forward weights; 1 if there are none.

        A derivative of spikes of its own that is negative counts as -1.
        """
        found = []
        for transport in self.transports():
            for name, fed_back in transport.feedback.items():
                forward = self.network.get_submodule(name).get_parameter("weight").detach()
                found.append(nn.functional.cosine_similarity(
                    fed_back.detach().flatten(), forward.flatten(), dim=0))  # fmt: skip
            if transport.derivative is not None:
                distance = torch.linspace(-2, 2, 41, dtype=torch.float64)
                found.append(transport.derivative(distance).sum().sign())
        return float(torch.stack(found).mean()) if found else 1.0

    def saved(self) -> dict[str, dict[str, Tensor]]:
        parts = {"network": self.network.state_dict(), "engine": self.engine.state()}
        return {name: {k: v.clone() for k, v in part.items()} for name, part in parts.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.network.load_state_dict(dict(state["network"]))
        self.engine.load_state(state["engine"])
        self.restart()


def _described(estimator: Estimator) -> Iterator[str]:
    for what in ("__doc__", "needs", "passes", "bias", "reference"):
        if not getattr(type(estimator), what, None):
            yield f"{what} is empty: say it"
    if estimator.divides not in ("examples", "copies", ""):
        yield f"divides = {estimator.divides!r}: must be 'examples', 'copies' or ''"


def _refusal(make: Callable[[], Estimator], kind: str) -> str:
    """Return why the rule refuses a network, "" if it does not."""
    try:
        _Training(make, kind).prepare().gradients()
    except CapabilityError as error:
        text = str(error)
        if "\n" in text or not text.strip():
            raise CheckFailed(f"a refusal must be one line: {text!r}") from error
        return text
    return ""


def _prepared(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    training = _Training(make, kind)
    before, chance = training.saved()["network"], torch.get_rng_state()
    streams = {name: s.get_state() for name, s in training.engine.streams.items()}
    training.prepare()
    if not _equal(training.saved()["network"], before):
        yield "prepare changes the network"
    if not torch.equal(torch.get_rng_state(), chance):
        yield "prepare draws from torch's global stream: use round.generator"
    if not _equal({n: s.get_state() for n, s in training.engine.streams.items()}, streams):
        yield "prepare draws from the streams of the steps"


def _credit(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    training = _Training(make, kind).prepare()
    found = training.gradients()
    shapes = {name: parameter.shape for name, parameter in training.network.named_parameters()}
    for name, gradient in found.items():
        if gradient.shape != shapes[name] or not gradient.isfinite().all():
            yield f"the gradient of {name} is not finite, or of another shape"
    if not _equal(found, _Training(make, kind).prepare().gradients()):
        yield "equal seeds have other credit: draw from round.generator"
    hidden = {id(parameter) for parameter in training.hidden()}
    names = [name for name, p in training.network.named_parameters() if id(p) in hidden]
    learns = type(training.engine.estimator).learns_hidden
    training.train(2)  # what learns its feedback may begin with none
    if any(bool(value.any()) for n, value in training.gradients().items() if n in names) != learns:
        yield f"learns_hidden = {learns}, but the gradients of hidden layers say otherwise"


def _directed(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    """Yield how the gradient of a layer points against that of back-propagation.

    Behind several hidden layers it is looked at with positive weights alone, and at the first: a
    rule may take the sign of a unit's influence for granted.
    """
    for narrow in (True, False):
        found: dict[str, list[Tensor]] = {}
        for seed in SEEDS:
            training = _Training(make, kind, seed, narrow).prepare()
            other = _Training(Backpropagation, kind, seed, narrow).prepare()
            training.gradients()  # the first step refuses what back-propagation itself would give
            if not (narrow or training.engine.estimator.objective):
                training.make_positive()
                other.make_positive()
            estimator, weights = training.engine.estimator, training.weights()
            matched = match_feedback(estimator, weights)
            learned = next(estimator.parameters(), None) is not None
            open_to = narrow and not (estimator.objective or estimator.builds)
            if learned or not (open_to or reaches(matched, len(weights))):
                break
            true, drawn = other.gradients(), [training.gradients() for _ in range(DRAWS)]
            name = training.trained()[0]
            gradient = torch.stack([one[name] for one in drawn]).sum(0).flatten()
            cosine = nn.functional.cosine_similarity(gradient, true[name].flatten(), 0)
            found.setdefault(name, []).append(cosine)
        for name, cosines in found.items():
            mean = float(torch.stack(cosines).mean())
            if mean < 0:
                fed = ", with feedback that is back-propagation's" if matched else ""
                yield (
                    f"the gradient of {name} points against that of back-propagation{fed}, by a "
                    f"mean cosine of {mean:.2g}: turn the sign of the credit"
                )


def _resumed(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    training, other = _Training(make, kind).prepare(), _Training(make, kind)
    training.train(2)
    state = training.saved()
    other.prepare().load(state)
    if not _equal(other.saved()["engine"], state["engine"]):
        yield "what was saved is not what is there after loading it"
    if not _equal(other.gradients(), training.gradients()):
        yield "saved and loaded it goes on otherwise: keep what it learns in buffers or parameters"


def _descends(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    courses = torch.tensor([_course(make, kind, seed) for seed in SEEDS]).mean(0).tolist()
    start, trained, opposite, aligned, down, up = courses
    if not trained < min(start, opposite):
        yield (
            f"it does not lower the loss: {start:.4g} at first, {trained:.4g} after {TOGETHER} "
            f"steps, {opposite:.4g} after the opposite steps"
        )
    if aligned <= 0:
        yield (
            f"what credit passes through points against the forward weights after {TOGETHER} "
            f"steps, by a mean cosine of {aligned:.2g}, or a derivative of spikes is negative: "
            "turn the sign of the plan's transport"
        )
    rule = make()
    if not rule.learns_hidden or down < up:
        return
    if rule.objective and math.isnan(down):
        yield (
            f"it follows {rule.objective} in place of the loss, but does not say its value: return "
            "it from `followed`"
        )
    yield (
        f"its hidden layers do not descend: {rule.objective or 'the loss'} is {down:.4g} after "
        f"{HELD} steps of theirs, and {up:.4g} after the opposite steps: turn the sign of the "
        "credit, or say in `objective` and `followed` what they lower instead"
    )


def _course(make: Callable[[], Estimator], kind: str, seed: int) -> list[float]:
    """Return the loss first, trained, and trained in the opposite direction; three more numbers.

    They are how well feedback and forward weights agree, and the loss, or what hidden layers follow
    in its place, after steps of theirs and after the opposite ones.
    """
    training = _Training(make, kind, seed).prepare()
    begun, first, found = training.saved(), training.loss(), []
    training.train(TOGETHER, -1)
    found.append(training.loss())
    training.load(begun)
    training.train(TOGETHER)
    state, trained = training.saved(), training.loss()
    found.append(training.alignment())
    for sign in (1, -1):
        training.load(state)
        training.train(HELD, sign, held=True)
        found.append(training.followed())
    return [first, trained, *found]


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
