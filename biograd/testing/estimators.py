"""What a learning rule promises, as a check that also the rules of other packages pass.

Why descent is looked for with the readout held: the readout's gradient is exact whatever the rule,
and training it hides a hidden credit of the wrong sign.  Why after some training of all layers: a
rule with feedback of its own becomes useful as the weights align with it.  Why that is not enough:
weights align with feedback of either sign, so that fixed feedback is first made the weights' own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from biograd.errors import CapabilityError, CheckFailed
from biograd.estimators import Estimator
from biograd.testing.credited import directed, exact, shared, untouched
from biograd.testing.small_training import NETWORKS, SEEDS, SmallTraining

TOGETHER, HELD = 30, 10
"""Steps of all layers, then of the hidden ones alone."""


def check_estimator(make: Callable[[], Estimator]) -> None:
    """See whether a rule does what biograd needs of it, on a rate and on a spiking network.

    It describes itself; what refuses a network says so in a line, and at least one is not refused;
    before the first step ``prepare`` leaves no trace; equal seeds have equal credit, finite, of
    the parameters' shapes, in every layer that it trains; a step changes nothing else; what is
    called exact is that; the gradient is that of the mean loss: of an example given twice, and in
    its length, where it follows back-propagation's or is called unbiased; saved and loaded, it
    goes on as it would have; feedback through which plans let credit pass comes to agree with the
    forward weights; and it *descends*: all layers together lower the loss, and the hidden layers
    alone end below where the opposite of their steps would have led them.  The last is not asked of
    a rule that leaves hidden layers as they are, or follows an objective of its own
    (``Estimator.objective``).

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
            untouched(make, kind),
            exact(make, kind),
            shared(make, kind),
            directed(make, kind),
            _resumed(make, kind),
            _descends(make, kind),
        )
        for fault in () if refusal else faults:
            raise CheckFailed(f"{name} on a {kind} network: {fault}")
    if len(refusals) == len(NETWORKS):
        raise CheckFailed(f"{name} works on no network: {refusals[0]}")


def _described(estimator: Estimator) -> Iterator[str]:
    for what in ("__doc__", "needs", "passes", "bias", "reference"):
        if not getattr(type(estimator), what, None):
            yield f"{what} is empty: say it"
    if estimator.divides not in ("examples", "copies", ""):
        yield f"divides = {estimator.divides!r}: must be 'examples', 'copies' or ''"


def _refusal(make: Callable[[], Estimator], kind: str) -> str:
    """Return why the rule refuses a network, "" if it does not."""
    try:
        SmallTraining(make, kind).prepare().gradients()
    except CapabilityError as error:
        text = str(error)
        if "\n" in text or not text.strip():
            raise CheckFailed(f"a refusal must be one line: {text!r}") from error
        return text
    return ""


def _prepared(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    training = SmallTraining(make, kind)
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
    training = SmallTraining(make, kind).prepare()
    found = training.gradients()
    shapes = {name: parameter.shape for name, parameter in training.network.named_parameters()}
    for name, gradient in found.items():
        if gradient.shape != shapes[name] or not gradient.isfinite().all():
            yield f"the gradient of {name} is not finite, or of another shape"
    if not _equal(found, SmallTraining(make, kind).prepare().gradients()):
        yield "equal seeds have other credit: draw from round.generator"
    hidden = {id(parameter) for parameter in training.hidden()}
    weights = [n for n, p in training.network.named_parameters() if id(p) in hidden and p.dim() > 1]
    learns = type(training.engine.estimator).learns_hidden
    training.train(2)  # what learns its feedback may begin with none
    after = training.gradients()
    for name in weights:
        if bool(after[name].any()) != learns:
            what = "has no gradient" if learns else "has a gradient"
            yield f"learns_hidden = {learns}, but {name} {what}"


def _resumed(make: Callable[[], Estimator], kind: str) -> Iterator[str]:
    training, other = SmallTraining(make, kind).prepare(), SmallTraining(make, kind)
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
    training = SmallTraining(make, kind, seed).prepare()
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
