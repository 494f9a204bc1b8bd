"""When a run looks at its network, and how often that will be."""

from __future__ import annotations

from biograd.recipes.recording_recipe import RecordingRecipe
from biograd.recording.figures import ends_with_snapshot, log_spaced

UNKNOWN = 10**4
"""Epochs that are counted where the budget is not in epochs."""


class SnapshotSchedule:
    """The steps after which a run takes snapshots."""

    def __init__(self, recipe: RecordingRecipe, per_epoch: int) -> None:
        self.recipe, self.per_epoch = recipe, per_epoch
        self._steps = frozenset(recipe.at) | (log_spaced(per_epoch) if recipe.log else set())

    def within(self, step: int) -> bool:
        """Return whether a step that ends no epoch is followed by a snapshot."""
        every = self.recipe.every
        return step in self._steps or (every is not None and step % every == 0)

    def ends(self, epoch: int, step: int, best: bool) -> bool:
        """Return whether an epoch, counted from 1, ends with a snapshot."""
        asked = {"all": True, "none": False, "log": ends_with_snapshot(epoch)}
        chosen = best and self.recipe.best
        own = step in self.recipe.at or (self.recipe.every and step % self.recipe.every == 0)
        return asked[self.recipe.epochs] or chosen or bool(own)

    def count(self, epochs: int | None) -> int:
        """Return how many snapshots there will be at most, the initial one included."""
        epochs = UNKNOWN if epochs is None else epochs
        steps = epochs * self.per_epoch
        inside = {step for step in self._steps if step <= steps}
        if self.recipe.every:
            inside |= set(range(self.recipe.every, steps + 1, self.recipe.every))
        last = {epoch: epoch * self.per_epoch for epoch in range(1, epochs + 1)}
        ends = {step for epoch, step in last.items() if self.ends(epoch, step, True)}
        return 1 + len(inside | ends | {steps})
