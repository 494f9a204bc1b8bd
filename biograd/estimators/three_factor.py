"""Three factors: what came in, how the neuron was moved, and whether it paid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from biograd.contracts import Plan, Round, Trace, bin_lengths
from biograd.errors import CapabilityError
from biograd.estimators.weak_gradient import SHARED, WeakGradient
from biograd.ranks import parallel
from biograd.recipes import Count, Positive, Range, validate


class ThreeFactor(WeakGradient):
    """Gate eligibility traces by a reward that all synapses hear, less what was expected of it.

    ::

        e[t] = (1 - 1 / tau) e[t-1] + x[t] n[t] / sigma^2
        dW   = eta sum_t (R[t] - b[t]) e[t]

    with the input ``x`` of a synapse and the noise ``n`` at its neuron's current; ``R[t] = -L[t]``
    are the rewards of the steps, or one at the end.  Without forgetting and with the clean copy as
    ``b`` it is node perturbation, draw for draw; one noisy copy and a running mean are what a brain
    could do.

    Args:
        copies: ``S``, the clean one included, which takes no part unless it is the baseline.
        sigma: size of the noise relative to the site's root-mean-square current.
        tau: time constant of the trace in steps, at least 1; None: nothing is forgotten.
        baseline: of what follows a step: "none", "clean" (that of the clean copy), "leave_one_out"
            (mean of the other trials of the batch) or "running" (mean so far).
        conditions: kinds of trial, each with a running mean of its own; the targets tell which.
        pace: share of a running mean that a batch replaces.
        sites: "all" hidden sites together, or "round_robin" one in each step.
        time_bin: number of time steps in which the noise stays constant, or "trial"; None: one
            step where inputs or targets vary in time, else the whole trial.
    """

    means: Tensor
    visited: Tensor
    bias = "second order in sigma; a trace that forgets misses late rewards; " + SHARED
    passes = "S forward"
    reference = (
        "Williams 1992; Fiete & Seung 2006; Frémaux & Gerstner 2016; Miconi 2017 (running means)"
    )
    builds = True
    in_time = ("time_bin", "tau")

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that nothing reads beside others."""
        if given["baseline"] == "running":
            return {}
        reason = f"with baseline = {given['baseline']!r}"
        return dict.fromkeys(("conditions", "pace"), reason)

    def __init__(
        self,
        copies: Annotated[int, Range(2)] = 2,
        sigma: Positive = 0.2,
        tau: Annotated[float, Range(1.0)] | None = None,
        baseline: Literal["none", "clean", "leave_one_out", "running"] = "running",
        conditions: Count = 1,
        pace: Annotated[float, Range(0.0, 1.0, above=True)] = 0.1,
        sites: Literal["all", "round_robin"] = "all",
        time_bin: Count | Literal["trial"] | None = None,
    ) -> None:
        validate(ThreeFactor, locals())
        super().__init__(copies, sigma, "baseline", sites, 0.0, time_bin)
        self.tau, self.baseline = tau, baseline
        self.conditions, self.pace = conditions, pace

    @property
    def decay(self) -> float:
        """The share of a trace that is left after a step."""
        return 1.0 if self.tau is None else 1.0 - 1.0 / self.tau

    def build(self, trace: Trace, round: Round) -> None:
        """Make the running means, of each kind of trial and bin."""
        steps = max(shape.steps for shape in round.shapes.values())
        count = len(bin_lengths(steps, round.width(self.time_bin)))
        if self.baseline == "running":
            self._kinds(round)
            kind = trace.losses.dtype
            self.register_buffer("means", torch.zeros(self.conditions, count, dtype=kind))
            self.register_buffer("visited", torch.zeros(self.conditions, dtype=kind))

    def plans(self, round: Round) -> Sequence[Plan]:
        """Return one plan: independent noise at the chosen sites, cut behind them."""
        if any(round.owners.values()):
            raise CapabilityError("ThreeFactor: one reward is heard by all: leave local out")
        return super().plans(round)

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the share of every visit of the chosen sites."""
        if round.closed_loop:
            yield from super().credit(traces, round)
            return
        (trace,) = traces
        for name, weights in self.weights(trace, round).items():
            noise, scale = trace.sites[name].noise, self.sigma * round.scales[name]
            assert noise is not None
            gradient = torch.einsum("mbk,mbk...->bk...", weights.to(noise.dtype), noise)
            yield from trace.sites[name].deliver(gradient / (scale**2 * round.batch))

    def weights(self, trace: Trace, round: Round) -> dict[str, Tensor]:
        """Return ``(L - b) / m`` behind each bin, as its trace is then, ``[m, B, K]``, by site."""
        found = {}
        for name in self.chosen(round):
            losses = self._remembered(trace, round.shapes[name].steps)
            noisy = losses[1:]
            found[name] = (noisy - self._expected(losses, round)) / len(noisy)
        return found

    def _remembered(self, trace: Trace, steps: int) -> Tensor:
        """Return the losses that meet the trace of each bin's noise, ``[S, B, K]``.

        A loss of the whole trial comes in its last step.
        """
        width = trace.plan.time_bin
        tails = trace.tails(steps, width, self.decay)
        if tails is not None:
            return tails
        lengths = torch.tensor(bin_lengths(steps, width), device=trace.losses.device)
        firsts = lengths.cumsum(0) - lengths
        left = self.decay ** (steps - 1 - firsts).to(trace.losses.dtype)
        if len(lengths) == 1:
            left = torch.ones_like(left)
        return trace.losses[..., None] * left

    def _expected(self, losses: Tensor, round: Round) -> Tensor:
        """Return what is expected of each bin, ``[m or 1, B, K]``."""
        if self.baseline == "clean":
            return losses[:1]
        if self.baseline == "none":
            return torch.zeros_like(losses[:1])
        if self.baseline == "running":
            return self.means[self._kinds(round), : losses.shape[2]].to(losses.dtype)[None]
        count = parallel.total(torch.tensor(float(losses.shape[1]), device=losses.device))
        if count < 2:
            raise CapabilityError(
                "baseline = 'leave_one_out': needs other trials: training.batch_size >= 2"
            )
        others = parallel.total(losses[1:].sum(1))[:, None] - losses[1:]
        return others / (count - 1)

    def _kinds(self, round: Round) -> Tensor:
        """Return the kind of each trial, int64 ``[B]``.

        Raises:
            CapabilityError: the targets do not tell it.
        """
        targets = round.targets
        if self.conditions == 1:
            return torch.zeros(round.batch, dtype=torch.int64, device=round.device)
        whole = targets is not None and not targets.is_floating_point()
        if targets is None or not whole or targets[0].numel() != 1:
            raise CapabilityError(
                f"conditions = {self.conditions}: the targets are no kinds of trial, one whole "
                "number for each: leave it out"
            )
        kinds = targets.flatten().long()
        if int(kinds.min()) < 0 or int(kinds.max()) >= self.conditions:
            raise CapabilityError(
                f"conditions = {self.conditions}: there is a trial of kind {int(kinds.max())}; "
                "they count from 0"
            )
        return kinds

    @torch.no_grad()
    def after(self, traces: Sequence[Trace], round: Round) -> None:
        """Move the running means towards what the noisy copies have met."""
        if self.baseline != "running":
            return
        longest = max((s.shape.steps, n) for n, s in traces[0].sites.items() if s.noise is not None)
        losses = self._remembered(traces[0], longest[0])[1:].to(self.means.dtype)
        marks = torch.nn.functional.one_hot(self._kinds(round), self.conditions).to(losses.dtype)
        count = parallel.total(marks.sum(0)) * len(losses)
        total = parallel.total(torch.einsum("mbk,bc->ck", losses, marks))
        mean = total / count.clamp_min(1)[:, None]
        first = self.visited.eq(0)[:, None]
        moved = torch.where(first, mean, self.means + self.pace * (mean - self.means))
        self.means.copy_(torch.where(count[:, None] > 0, moved, self.means))
        self.visited.add_(count)
