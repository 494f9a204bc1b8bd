"""How units fire: their rates; rate, irregularity and correlation of populations."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from biograd.checking import Positive
from biograd.errors import RecipeError
from biograd.tasks.task import Metrics, Task, Totals, check_numbers, known, ratio, refuse, vectors

STATISTICS = ("rate", "cv", "correlation")
"""In the order of a population's targets."""


@dataclasses.dataclass(frozen=True)
class Rates(Task):
    """Target firing rates in Hz, ``[B, K]``, NaN unknown; the outputs count spikes.

    ``f = o / duration``, with the counts of a trial ``[B, K]`` or of its steps ``[B, T, K]``; the
    loss is the mean over the known units of ``((f - f*) / scale)^2`` in each trial, which also
    draws the trials together: rates of a mean over trials would tie them.

    Args:
        duration_ms: length of a trial.
        scale_hz: an error of this size costs 1.
    """

    duration_ms: Positive = 1000.0
    scale_hz: Positive = 10.0

    headline: ClassVar[str] = "rmse_hz"

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what is no rate."""
        check_numbers(dataclasses.replace(self, timed=False), targets, where)
        refuse(targets < 0, where, "a rate is below 0 Hz")

    def _error(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        rates = (outputs.sum(1) if self.timed else outputs) * (1000 / self.duration_ms)
        targets, mask = known(rates, targets)
        return (rates - targets).square(), mask

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        error, mask = self._error(outputs, targets)
        return error.sum(-1) / (self.scale_hz**2 * mask.sum(-1).clamp_min(1))

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the counts that the rates ask for; of a step, their share."""
        counts = vectors(outputs[:, 0] if self.timed else outputs, targets)
        counts = counts * (self.duration_ms / 1000)
        return (counts[:, None] / outputs.shape[1]).expand_as(outputs) if self.timed else counts

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the squared error in Hz^2."""
        error, mask = self._error(outputs, targets)
        return {"rmse_hz": (error.sum(-1), mask.sum(-1))}

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the root of the mean squared error over all trials and units, in Hz."""
        (error,), (count,) = totals["rmse_hz"]
        return {"rmse_hz": math.sqrt(ratio(error, count))}


@dataclasses.dataclass(frozen=True)
class Firing(Task):
    """Statistics of populations: targets ``[B, 3 P]``, NaN unknown; outputs are spikes in time.

    For each of ``P`` populations, in a trial of spikes ``s [T, U]``:

    ===========  ===================================================================================
    rate         mean over units of the number of spikes by the trial's length, in Hz
    cv           mean over units of standard deviation by mean of the intervals between spikes, of
                 units with two intervals at least
    correlation  mean over pairs of units of Pearson's correlation of spike counts in bins of
                 ``bin_ms``, of units whose counts vary
    ===========  ===================================================================================

    The loss is the mean over the known statistics of ``((f - f*) / scale)^2`` in each trial.  A
    statistic that a trial does not have, of silent units for instance, adds nothing.  All three are
    smooth functions of s: with ``a[t] = (1 - s[t-1]) a[t-1] + 1`` steps since the last spike,
    intervals enter as ``sum_t s[t] a[t]`` and ``sum_t s[t] a[t]^2``.

    Args:
        populations: number of units of each, side by side in the outputs; empty: all are one.
        dt_ms: length of a step.
        bin_ms: of the counts that are correlated.
        rate_scale_hz: an error of this size costs 1.
        cv_scale: the same of the coefficient of variation.
        correlation_scale: the same of the correlation.
    """

    timed: bool = True
    populations: tuple[int, ...] = ()
    dt_ms: Positive = 1.0
    bin_ms: Positive = 10.0
    rate_scale_hz: Positive = 10.0
    cv_scale: Positive = 0.5
    correlation_scale: Positive = 0.1

    headline: ClassVar[str] = "rate_rmse_hz"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timed:
            raise RecipeError("task: timed = false: statistics of spikes need their times")
        if self.populations and (
            min(self.populations) < 1 or sum(self.populations) != self.outputs
        ):
            raise RecipeError(
                f"task: populations = {list(self.populations)}: the outputs are {self.outputs} "
                "units, of which each belongs to one"
            )
        if self.bin_ms < self.dt_ms:
            raise RecipeError(f"task: bin_ms = {self.bin_ms:g}: a step is {self.dt_ms:g} ms")

    @property
    def units(self) -> tuple[int, ...]:
        """The number of units of each population."""
        return self.populations or (self.outputs,)

    @property
    def width(self) -> int:
        """The number of targets of an example."""
        return len(STATISTICS) * len(self.units)

    def check(self, targets: Tensor, where: str) -> None:
        """Refuse what no population can have."""
        plain = dataclasses.replace(self, populations=(), outputs=self.width)
        object.__setattr__(plain, "timed", False)
        check_numbers(plain, targets, where)
        rate, cv, correlation = targets.view(len(targets), -1, len(STATISTICS)).unbind(-1)
        refuse(rate < 0, where, "a rate is below 0 Hz")
        refuse(cv < 0, where, "a coefficient of variation is below 0")
        refuse(correlation.abs() > 1, where, "a correlation is not between -1 and 1")

    def statistics(self, outputs: Tensor) -> Tensor:
        """Return the statistics of spikes ``[B, T, K]``, ``[B, 3 P]``; NaN where there is none."""
        found = [self._of(spikes) for spikes in outputs.split(list(self.units), -1)]
        return torch.stack([one for three in found for one in three], -1)

    def _of(self, spikes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rate = spikes.sum(1).mean(-1) * (1000 / (self.dt_ms * spikes.shape[1]))
        width = round(self.bin_ms / self.dt_ms)
        return rate, irregularity(spikes), synchrony(spikes, width)

    def _error(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = self.statistics(outputs)
        there = ~found.detach().isnan()
        goal, mask = known(found, targets)
        mask = mask & there
        # in place of, before the difference: 0 * NaN is NaN in a gradient
        error = torch.where(mask, found, 0.0) - torch.where(mask, goal, 0.0)
        return error, mask

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one loss an example, ``[B]``."""
        error, mask = self._error(outputs, targets)
        scales = (self.rate_scale_hz, self.cv_scale, self.correlation_scale)
        scaled = error / error.new_tensor(scales).repeat(len(self.units))
        return scaled.square().sum(-1) / mask.sum(-1).clamp_min(1)

    def vectors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the spikes that the rates ask for of every unit and step."""
        rates = targets.view(len(targets), -1, len(STATISTICS))[..., 0].nan_to_num().to(outputs)
        parts = [rates[:, k, None].expand(-1, size) for k, size in enumerate(self.units)]
        share = torch.cat(parts, -1) * (self.dt_ms / 1000)
        return share[:, None].expand_as(outputs)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Metrics:
        """Return the squared errors of each statistic, and its mean."""
        error, mask = self._error(outputs, targets)
        found, metrics = self.statistics(outputs), dict[str, tuple[Tensor, ...]]()
        for place, name in enumerate(NAMES):
            own = slice(place, None, len(STATISTICS))
            seen = ~found[:, own].isnan()
            metrics[name] = (error[:, own].square().sum(-1), mask[:, own].sum(-1))
            metrics[f"mean_{STATISTICS[place]}"] = (
                torch.where(seen, found[:, own], 0.0).sum(-1),
                seen.sum(-1),
            )
        return metrics

    def figures(self, totals: Totals) -> dict[str, float]:
        """Return the roots of the mean squared errors, and the means over populations."""
        found = super().figures(totals)
        return {n: math.sqrt(v) if n in NAMES else v for n, v in found.items()}

    @classmethod
    def fitting(cls, targets: Any) -> dict[str, Any]:
        """Return nothing: the targets do not tell the number of units."""
        return {}


NAMES = ("rate_rmse_hz", "cv_rmse", "correlation_rmse")
"""Metrics by the place of the statistic."""


def irregularity(spikes: Tensor) -> Tensor:
    """Return the mean coefficient of variation of units ``[B, T, U]``, ``[B]``; NaN: none has one.

    Of units with two intervals at least, by the biased standard deviation.
    """
    one = torch.ones_like(spikes[:, 0])
    age, begun = one, torch.zeros_like(one)
    count, first, second = begun, begun, begun
    for fired in spikes.unbind(1):
        weight = fired * begun  # the first spike ends no interval
        count, first = count + weight, first + weight * age
        second = second + weight * age.square()
        begun = begun + fired - begun * fired
        age = (1 - fired) * age + 1
    enough = count.detach() > 1.5
    safe = torch.where(enough, count, 1.0)
    mean = torch.where(enough, first, 1.0) / safe
    variance = (torch.where(enough, second, 1.0) / safe - mean.square()).clamp_min(0)
    spreads = variance.detach() > 1e-12 * mean.detach().square()  # a root has no slope at zero
    spread = torch.where(spreads, variance, 1.0).sqrt() * spreads
    return _mean(spread / mean, enough)


def synchrony(spikes: Tensor, width: int) -> Tensor:
    """Return the mean correlation of pairs of units ``[B, T, U]`` by counts in bins, ``[B]``.

    NaN: no two units have counts that vary.  The steps behind the last whole bin do not count.

    Args:
        width: of a bin, in steps.
    """
    bins = spikes.shape[1] // width
    counts = spikes[:, : bins * width].unflatten(1, (bins, width)).sum(2)
    centred = counts - counts.mean(1, keepdim=True)
    power = centred.square().sum(1)
    varies = power.detach() > 1e-12
    scaled = centred / torch.where(varies, power, 1.0).sqrt().unsqueeze(1)
    scaled = scaled * varies.unsqueeze(1)
    units = varies.sum(-1)
    # the sum over all pairs is the square of the sum, without the units themselves
    total = scaled.sum(-1).square().sum(1) - scaled.square().sum((1, 2))
    pairs = units * (units - 1)
    return torch.where(pairs > 0, total / pairs.clamp_min(1), float("nan"))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(-1)
    found = (values * mask).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, found, float("nan"))
