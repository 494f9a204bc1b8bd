"""What a check of a learning rule sees in the gradients of one step, beside back-propagation's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from biograd.estimators import Backpropagation, Estimator
from biograd.testing.matched_feedback import match_feedback, reaches
from biograd.testing.small_training import DRAWS, ROWS, SEEDS, SmallTraining

SAME = 1e-6
"""Relative difference of gradients that are called equal, in float64."""
CLEAR = 0.9
"""Cosine with back-propagation's gradient from which on a gradient's length is judged."""
SHORT, LONG = 0.6, 1.5
"""Shares of that gradient: a ridge shrinks it and noise blurs it, but not by a factor of two."""
ASTRAY = 0.25
"""Cosine below which it does not follow, of a weight beside another that clearly does."""
MANY = 128
"""Passes of an example over which the mean is taken where a rule is called unbiased."""
Make = Callable[[], Estimator]
Gradients = Mapping[str, Tensor]


def untouched(make: Make, kind: str) -> Iterator[str]:
    """Yield what a step changes beside the gradients."""
    training = SmallTraining(make, kind).prepare()
    given = {"its inputs": training.inputs, "its targets": training.targets}
    state = {**training.network.state_dict(), **given}
    before = {name: value.clone() for name, value in state.items()}
    chance = torch.get_rng_state()
    training.gradients()
    for name, value in state.items():
        if not torch.equal(value, before[name]):
            yield f"a step changes {name}: yield pairs of credit, or learn in `after`"
    if not torch.equal(torch.get_rng_state(), chance):
        yield "a step draws from torch's global stream: use round.generator"


def exact(make: Make, kind: str) -> Iterator[str]:
    """Yield the parameters whose gradient is called exact and is not."""
    training = SmallTraining(make, kind).prepare()
    true, found = SmallTraining(Backpropagation, kind).prepare().gradients(), training.gradients()
    rule, hidden = training.engine.estimator, {id(p) for p in training.hidden()}
    told = rule.exact_readout and rule.at_readout == Estimator.at_readout
    for name, parameter in training.network.named_parameters():
        asked = rule.exact or (told and id(parameter) not in hidden)
        if asked and not _close(found[name], true[name]):
            what = "exact" if rule.exact else "exact_readout"
            yield f"the gradient of {name} is not that of back-propagation, but {what} = True"


def shared(make: Make, kind: str) -> Iterator[str]:
    """Yield the parameters whose gradient is not that of the mean of the examples' losses.

    Rules that draw random numbers, which are others in other batches, are not asked.
    """
    rule = make()

    def one(rows: Sequence[int]) -> Gradients | None:
        training = SmallTraining(make, kind).prepare()
        stream = training.engine.streams["noise"]
        before, found = stream.get_state(), training.gradients(rows)
        return found if torch.equal(before, stream.get_state()) else None

    whole, twice = one(range(ROWS)), one([*range(ROWS), *range(ROWS)])
    if whole is None or twice is None:
        return
    parts = [one(range(start, ROWS, 2)) for start in (0, 1)]
    for name, gradient in whole.items():
        if not _close(twice[name], gradient):
            yield (
                f"every example twice has another gradient of {name}: it must be that of the mean "
                "loss, 1/B included"
            )
        mean = torch.stack([part[name] for part in parts if part is not None]).mean(0)
        if rule.divides == "examples" and not _close(mean, gradient):
            yield (
                f"divides = 'examples', but the gradient of {name} in a batch is not the mean of "
                "its examples'"
            )


class _Compared(NamedTuple):
    """A rule's mean gradient and back-propagation's, and the names that the rule trains."""

    rule: Estimator
    found: Gradients
    true: Gradients
    names: list[str]
    matched: bool
    reached: bool

    def cosine(self, names: Sequence[str]) -> float:
        return float(cosine_similarity(_flat(self.found, names), _flat(self.true, names), 0))

    def share(self) -> float:
        """Return how much of back-propagation's gradient the rule's holds along it."""
        true = _flat(self.true, self.names)
        return float(_flat(self.found, self.names) @ true / (true @ true).clamp_min(1e-300))


def directed(make: Make, kind: str) -> Iterator[str]:
    """Yield how the gradients of layers point against those of back-propagation, or their length.

    Behind several hidden layers they are looked at with positive weights alone: a rule may take
    the sign of a unit's influence for granted.  Length is judged behind one hidden layer that does
    not spike, where there is a true derivative, and the gradient clearly follows it.
    """
    for narrow in (True, False):
        compared = [_compare(make, kind, seed, narrow) for seed in SEEDS]
        known = [one for one in compared if one is not None]
        cosines = {
            name: sum(one.cosine([name]) for one in known) / len(known)
            for name in (known[0].names if known else ())
        }
        for name, mean in cosines.items():
            if mean < 0 and (narrow or known[0].reached):
                fed = ", with feedback that is back-propagation's" if known[0].matched else ""
                yield (
                    f"the gradient of {name} points against that of back-propagation{fed}, by a "
                    f"mean cosine of {mean:.2g}: turn the sign of the credit"
                )
        if known and kind == "rate" and not known[0].rule.objective:
            yield from _lengths(make, known) if narrow else _astray(cosines)


def _astray(cosines: Mapping[str, float]) -> Iterator[str]:
    """Yield a weight whose gradient is another's, it seems: that of others is clearly right."""
    best, worst = max(cosines, key=cosines.__getitem__), min(cosines, key=cosines.__getitem__)
    if cosines[best] > CLEAR and cosines[worst] < ASTRAY:
        yield (
            f"the gradient of {worst} does not follow that of back-propagation (cosine "
            f"{cosines[worst]:.2g}), and that of {best} does ({cosines[best]:.2g}): is it "
            "credited with another's?"
        )


def _lengths(make: Make, known: Sequence[_Compared]) -> Iterator[str]:
    """Yield that a gradient is too long or too short for that of the mean loss, in any batch."""
    if not (known[0].rule.unbiased or min(one.cosine(one.names) for one in known) > CLEAR):
        return
    batches = {"": known}
    for name, rows in (("every second example", range(1, ROWS, 2)), ("6 examples", range(6))):
        parts = [_compare(make, "rate", seed, True, rows) for seed in SEEDS]
        batches[f" in a batch of {name}"] = [part for part in parts if part is not None]
    for where, found in batches.items():
        share = sum(one.share() for one in found) / len(found)
        if not SHORT < share < LONG:
            yield (
                f"the mean gradient of {', '.join(known[0].names)}{where} holds {share:.3g} of "
                "that of back-propagation: it must be that of the mean loss, 1/B included"
            )


def _compare(
    make: Make, kind: str, seed: int, narrow: bool, rows: Sequence[int] = range(ROWS)
) -> _Compared | None:
    """Return the mean gradients of a rule and of back-propagation; None: nothing can be told."""
    training = SmallTraining(make, kind, seed, narrow).prepare()
    other = SmallTraining(Backpropagation, kind, seed, narrow).prepare()
    training.gradients()  # the first step refuses what back-propagation itself would give
    if not (narrow or training.engine.estimator.objective):
        training.make_positive()
        other.make_positive()
    rule, weights = training.engine.estimator, training.weights()
    matched = match_feedback(rule, weights)
    learned = next(rule.parameters(), None) is not None
    reached = reaches(matched, len(weights))
    if learned or not (reached or not (rule.objective or rule.builds)):
        return None
    long = rule.unbiased and narrow and kind == "rate"
    many = max(DRAWS, MANY // training.passes if long else 0)
    drawn = [training.gradients(rows) for _ in range(many)]
    mean = {name: torch.stack([one[name] for one in drawn]).mean(0) for name in drawn[0]}
    return _Compared(rule, mean, other.gradients(rows), training.trained(), bool(matched), reached)


def _flat(gradients: Gradients, names: Sequence[str]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in names])


def _close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= SAME * max(float(other.abs().max()), 1e-12)
