"""Metrics as people read them: what they are called, and which are shares, shown in per cent.

This module imports nothing but the standard library, so that a table can be written without torch.
A summary names the metric by which its run is compared (``headline``) and which values of it are
better; one of before there were other tasks says nothing and means the accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

SHARES = frozenset(("accuracy", "exact", "labels"))
DEFAULT = "accuracy"


def is_share(name: str) -> bool:
    """Return whether a metric, or that of a head (``head.metric``), is a share from 0 to 1."""
    return name.rpartition(".")[2] in SHARES


def words(name: str) -> str:
    """Return a metric's name for people."""
    return name.replace("_", " ").replace(".", " ")


def written(name: str, value: float) -> str:
    """Return a value as text, shares in per cent.

    >>> written("accuracy", 0.95), written("r2", 0.4567)
    ('95.0 %', '0.4567')
    """
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.4g}"


def headline(summary: Mapping[str, Any]) -> str:
    """Return the name of the metric by which a run is compared."""
    return str(summary.get("headline") or DEFAULT)


def figure(summary: Mapping[str, Any], split: str = "test") -> float:
    """Return a run's headline metric on a split.

    "test": on the rows that nothing was chosen by, if the run has looked at them in the end; else
    on those that it was judged on.

    Raises:
        KeyError: the summary does not have it.
    """
    name, unseen = headline(summary), summary.get("test")
    if split == "test" and isinstance(unseen, Mapping) and name in unseen:
        return float(unseen[name])
    return float(summary[f"{split}_{name}"])


@dataclasses.dataclass(frozen=True)
class Shown:
    """How a comparison shows the headline metric.

    Attributes:
        name: of the metric; "": runs of several tasks, each in its own unit.
        error: shares are shown as errors, ``1 - share``.
        better: "higher" or "lower".
    """

    name: str = DEFAULT
    error: bool = False
    better: str = "higher"

    @classmethod
    def of(cls, summaries: Iterable[Mapping[str, Any]], error: bool) -> Shown:
        """Return how these runs are shown together."""
        found = {(headline(one), str(one.get("better") or "higher")) for one in summaries}
        name, better = found.pop() if len(found) == 1 else ("" if found else DEFAULT, "higher")
        return cls(name, error, better)

    @property
    def falls(self) -> bool:
        """Whether what is shown gets smaller as it gets better."""
        return self.better == "lower" or (self.error and self.share)

    @property
    def share(self) -> bool:
        """Whether the metric is shown in per cent."""
        return is_share(self.name)

    @property
    def word(self) -> str:
        """The name for people."""
        return "error" if self.error and self.share else words(self.name) or "result"

    @property
    def unit(self) -> str:
        """The unit behind the name: per cent, or nothing."""
        return "%" if self.share else ""

    def value(self, found: float) -> float:
        """Return a value in the unit that is shown."""
        return 100 * (1 - found if self.error else found) if self.share else found
