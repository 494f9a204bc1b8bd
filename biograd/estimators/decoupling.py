"""Layer-wise decoupling: every hidden activity has a trainable target for each example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from biograd.contracts import Capability, Plan, Round, Trace
from biograd.errors import CapabilityError
from biograd.estimators.estimator import Estimator
from biograd.estimators.target_store import TargetStore
from biograd.ranks import parallel
from biograd.recipes import Count, Positive, Range, validate

Targets = dict[str, Tensor]
Rate = Annotated[float, Range(0, 1, above=True)]


COARSE = 0.1
"""Most that rounding may make of an activity's error, relative to the activity.

``e = rho (z - h)`` is a difference of two almost equal numbers: that of an activity ``h`` is off by
up to ``rho eps h``, with ``eps`` 1.2e-7 in float32 and 7.8e-3 in bfloat16.  Beyond a tenth of the
activity learning would follow the rounding.
"""


class Decoupling(Estimator):
    """Let every block learn from targets of its own, one for each example and hidden site.

    ``J = sum_i L(out_i) + sum_t rho/2 |z_t - h_t|^2`` with ``h_{t+1} = f(z_t, theta_t)``: what
    follows site ``t`` sees its target ``z_t`` in place of its activity ``h_t``, so that all blocks
    run at the same time and none waits for another's credit.  With ``e_t = rho (z_t - h_t)``::

        dJ/dz_t     = e_t - J_t' e_{t+1}        (the last one: e_t + J_t' dL/dout)
        dJ/dtheta_t = -(dh_{t+1}/dtheta_t)' e_{t+1}

    A step moves the targets a few times, ``z <- z - eta/rho dJ/dz``, and then gives the layers the
    gradient of ``J``.  Where ``dJ/dz = 0``, ``-e_t`` is what back-propagation would deliver, with
    derivatives taken at the targets; for large ``rho`` the gradient is that of back-propagation.
    Losses and outputs of a step are those of the feed-forward network.

    An example's targets start as its activities and are kept from visit to visit, so that the data
    must not be augmented; ``predictive_coding`` starts them afresh in each visit.  On a site with
    a local loss there is no target: it learns from that loss alone.

    Args:
        stiffness: ``rho`` in the first step.
        growth: factor on ``rho`` from one step to the next.
        stiffest: ``rho`` grows no further.
        order: "top_down" moves one target after the other, each by what the one above it has
            become; "jacobi" all at once, each by what the others were.
        rate: ``eta``; 1 takes each target to ``h_t + J_t' e_{t+1} / rho``, what "top_down" needs;
            "jacobi" overshoots beyond ``2 / (1 + |J|)^2``: try 0.2.
        steps: times that the targets are moved; None: once for each hidden site and once more.

    Raises:
        CapabilityError: a step is given no ``index``; or a site spikes: a kept spike that comes a
            step later is an error of ``rho``, however little the weights have changed.
        DataError: an example does not look as it did.
    """

    steady = True
    passes = "K + 2 forward, K + 1 backward within blocks"
    bias = "vanishes as 1/rho"
    at_readout = "the gradient of the readout for the last targets as its input"
    closed_loop = "it keeps targets for each example, and every episode is a new one"
    reference = "Mertens Velasquez; Carreira-Perpiñán & Wang 2014, arXiv 1212.5921"
    needs: frozenset[Capability] = frozenset(("loss", "vjp"))
    reach = "blocks"
    blockwise = True
    may_equal = True  # for stiff targets
    divides = "examples"
    builds = True

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others."""
        return {} if given.get("growth", 2) > 1 else {"stiffest": "with growth = 1"}

    def __init__(
        self,
        stiffness: Positive = 10.0,
        growth: Annotated[float, Range(1)] = 1.0,
        stiffest: Positive = 1e3,
        order: Literal["top_down", "jacobi"] = "top_down",
        rate: Rate = 1.0,
        steps: Count | None = None,
    ) -> None:
        validate(Decoupling, locals())
        super().__init__()
        self.stiffness, self.growth, self.stiffest = stiffness, growth, stiffest
        self.order, self.rate, self.steps = order, rate, steps
        self.store: TargetStore | None = TargetStore()
        self.gap: dict[str, Tensor] = {}
        """``|z - h|^2 / |z|^2`` of each site in the last step."""

    def build(self, trace: Trace, round: Round) -> None:
        """Give the store of targets its shapes; refuse spikes."""
        if self.store is None:
            return
        units = {}
        for name in chosen(round):
            activity = trace.sites[name].output
            if round.shapes[name].steps > 1 and bool(((activity == 0) | (activity == 1)).all()):
                raise CapabilityError(
                    f"site {name}: decoupling cannot keep spikes as targets: use estimator = "
                    "'predictive_coding' with a large stiffness"
                )
            units[name] = tuple(activity.shape[1:])
        self.store.shape(units, round.dtype)

    def check_trace(self, trace: Trace) -> None:
        """Refuse activities so coarse that their rounding is an error of ``rho``.

        Raises:
            CapabilityError: with the site and the stiffness that its type allows.
        """
        most = self.rho(1_000_000)
        for name, site in trace.sites.items():
            grain = torch.finfo(site.visits[0].outputs[0].dtype).eps
            if most * grain > COARSE:
                raise CapabilityError(
                    f"site {name}: stiffness {most:g} makes an error of what "
                    f"{site.visits[0].outputs[0].dtype} rounds away: take float32 (no autocast), "
                    f"or a stiffness of at most {COARSE / grain:.2g}"
                )

    def rho(self, step: int) -> float:
        """Return ``rho`` in a step.

        >>> [Decoupling(3.0, growth=2.0, stiffest=20.0).rho(step) for step in range(4)]
        [3.0, 6.0, 12.0, 20.0]
        """
        most = max(self.stiffness, self.stiffest)
        try:
            return min(self.stiffness * self.growth**step, most)
        except OverflowError:
            return most

    def plans(self, round: Round) -> Iterator[Plan]:
        """Yield the feed-forward pass, one pass for each move of the targets, and the last one."""
        names = chosen(round)
        yield Plan(graph=False, boundaries=frozenset(names))
        self.check_trace(round.traces[-1])
        targets = self._first(round.traces[-1], round)
        for _ in range((self.steps or len(names) + 1) if names else 0):
            yield Plan(clamp=targets, slots=True)
            targets = self.moved(round.traces[-1], self.rho(round.step))
        yield Plan(clamp=targets)
        self.gap = gaps(round.traces[-1])
        if self.store is not None and names:
            assert round.index is not None
            self.store.keep(round.index, _data(round.traces[-1], round), targets)

    def _first(self, trace: Trace, round: Round) -> Targets:
        """Return the kept targets; the feed-forward activities of examples that are new."""
        fresh = {name: trace.sites[name].output.detach() for name in chosen(round)}
        if self.store is None or not fresh:
            return fresh
        if round.index is None:
            raise CapabilityError(
                "decoupling keeps targets for each example: give the rows of the batch in the data "
                "set, engine(inputs, targets, index), or use estimator = 'predictive_coding'"
            )
        kept, seen = self.store.find(round.index, _data(trace, round))
        return {
            name: torch.where(seen.view(-1, *[1] * (value.dim() - 1)), kept[name], value)
            for name, value in fresh.items()
        }

    def moved(self, trace: Trace, rho: float) -> Targets:
        """Return the targets after ``z <- z - eta/rho dJ/dz``, from a trace with slots."""
        targets = {name: trace.sites[name].leaf.detach() for name in trace.plan.clamp}
        errors = {
            name: rho * (target - trace.sites[name].output.detach())
            for name, target in targets.items()
        }
        groups = [tuple(targets)] if self.order == "jacobi" else [(n,) for n in reversed(targets)]
        for names in groups:
            for name, arriving in zip(names, arrivals(trace, errors, names), strict=True):
                change = self.rate / rho * (errors[name] + arriving)
                targets[name] = targets[name] - change
                errors[name] = errors[name] - rho * change
        return targets

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss above the last target, and each activity with ``-e / B``."""
        last, rho = traces[-1], self.rho(round.step)
        yield last.loss, torch.ones_like(last.loss)
        for name, target in last.plan.clamp.items():
            activity = last.sites[name].output
            yield activity, rho / round.batch * (activity.detach() - target)

    def measures(self) -> dict[str, float]:
        """Return the constraint gap of every site in the last step."""
        return {f"constraint_gap.{name}": float(value) for name, value in self.gap.items()}


def chosen(round: Round) -> tuple[str, ...]:
    """Return the hidden sites that have a target: those without a local loss."""
    return tuple(name for name in round.blocks if round.owners.get(name, "") != name)


def arrivals(trace: Trace, errors: Mapping[str, Tensor], names: Sequence[str]) -> Sequence[Tensor]:
    """Return ``d/dz_t [sum_i L - sum_s e_s' h_s]`` at the named sites, from what follows them."""
    batch = trace.losses.shape[1]
    outputs, cotangents = [trace.loss], [torch.full_like(trace.loss, batch)]
    for name, error in errors.items():
        if trace.sites[name].output.requires_grad:  # not behind layers that are frozen
            outputs.append(trace.sites[name].output)
            cotangents.append(-error)
    slots = [trace.sites[name].leaf for name in names]
    return torch.autograd.grad(
        outputs, slots, cotangents, retain_graph=True, materialize_grads=True
    )


def gaps(trace: Trace) -> dict[str, Tensor]:
    """Return ``|z - h|^2 / |z|^2`` of every site with a target."""
    found = {}
    for name, target in trace.plan.clamp.items():
        gap = (target - trace.sites[name].output.detach()).square().sum()
        gap, size = parallel.total(torch.stack((gap, target.square().sum())))
        found[name] = gap / size.clamp_min(torch.finfo(target.dtype).tiny)
    return found


def _data(trace: Trace, round: Round) -> Tensor:
    """Return what the examples look like to the first layer."""
    return trace.sites[round.hidden[0]].visits[0].inputs[0]
