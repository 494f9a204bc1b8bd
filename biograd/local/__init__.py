"""Local losses: each block of a network is trained by a loss of its own activity.

No credit passes from one block to the next.  A block may have one loss or, with separate
gradients, one for each patch, each group of channels or each of both (``LocalLosses.kind``); the
fewer units a loss depends on, the less a directional derivative of it varies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from biograd.contracts import Objective, Round, Trace
from biograd.contracts.plan import module_key
from biograd.contracts.precision import widened
from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.local.objectives import LOCAL_LOSSES, Setting
from biograd.local.partition import Cells, Kind, channel_count
from biograd.recipes import Count, Fraction, LocalRecipe, construct, validate

__all__ = ["LocalLosses", "make"]


class LocalLosses(nn.Module):
    """The local losses of a network and their heads.

    Args:
        loss: "cross_entropy" of a linear head, "predsim" (prediction and similarity matching),
            "similarity", or "fixed_readout" (a random readout of every time step).
        cells: one loss for each "block", "patch", "group" of channels, or "patch_group" of both;
            all but "block" for the cross-entropy only.
        groups: number of groups of channels.
        sites: "ends" of the network's blocks (its attribute ``ends``, else all hidden sites),
            "all" hidden sites, or names.
        beta: weight of similarity beside prediction.
        normalise: layer-normalise each group of channels before the head.

    Attributes:
        cells: name of a site to the shape of its loss's cells, once ``build`` has been called.

    Raises:
        RecipeError: a setting out of range, or cells that the loss does not have.
    """

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that the loss does not read, each with the reason."""
        loss, found = given["loss"], dict[str, str]()
        if loss in {*LOCAL_LOSSES.own} - {"predsim"}:
            found["beta"] = f"with loss = {loss!r}"
        if loss == "fixed_readout":
            found["normalise"] = f"with loss = {loss!r}"
        if "group" not in given["cells"] and (not given["normalise"] or "normalise" in found):
            found["groups"] = f"with cells = {given['cells']!r}, not normalised"
        return found

    def __init__(
        self,
        loss: Annotated[str, LOCAL_LOSSES] = "cross_entropy",
        cells: Kind = "block",
        groups: Count = 1,
        sites: Literal["ends", "all"] | tuple[str, ...] = "ends",
        beta: Fraction = 0.99,
        normalise: bool = False,
    ) -> None:
        validate(LocalLosses, locals())
        super().__init__()
        if cells != "block" and loss != "cross_entropy":
            raise RecipeError(f"local.cells = {cells!r}: only with local.loss = 'cross_entropy'")
        self.loss, self.kind, self.groups, self.sites = loss, Cells(cells, groups), groups, sites
        self.beta, self.normalise = beta, normalise
        self.names: tuple[str, ...] | None = None
        self.cells: dict[str, tuple[int, ...]] = {}
        self.heads = nn.ModuleDict()

    def choose(self, hidden: Sequence[str], ends: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the sites that have a loss, in the order of the data flow.

        Args:
            hidden: names of all hidden sites.
            ends: names of the sites that end a block.

        Raises:
            CapabilityError: no such site, or none at all.
        """
        wanted = tuple(ends) or tuple(hidden) if self.sites == "ends" else self.sites
        wanted = tuple(hidden) if wanted == "all" else wanted
        for name in wanted:
            if name not in hidden:
                raise CapabilityError(f"local.sites: no site {name!r}: {nearest(name, hidden)}")
        self.names = tuple(name for name in hidden if name in wanted)
        if not self.names:
            raise CapabilityError("local losses: the network has no hidden site to give a loss")
        return self.names

    def build(self, trace: Trace, round: Round, classes: int) -> None:
        """Make the heads for the activities of a clean pass, drawn from ``round.generator``.

        Raises:
            CapabilityError: an activity is missing, or its channels cannot be divided.
        """
        for name in self.names or self.choose(round.blocks):
            site = trace.sites[name]
            if site.activity is None:
                raise CapabilityError(f"site {name}: its activity is not reached: no local loss")
            temporal = site.timed
            units = tuple(site.activity.shape[2 if temporal else 1 :])
            if channel_count(units) % self.groups:
                raise CapabilityError(
                    f"site {name}: its activity {units} cannot be divided into {self.groups} "
                    "groups of channels: change local.groups"
                )
            setting = Setting(
                units,
                temporal,
                classes,
                self.kind,
                self.normalise,
                self.beta,
                round.generator,
                widened(site.activity.detach()),
            )
            head = LOCAL_LOSSES[self.loss](setting)
            self.heads[module_key(name)] = head
            self.cells[name] = tuple(head(widened(site.activity.detach()), trace.targets).shape[1:])

    def objective(self, outputs: Objective) -> Objective:
        """Return the objective of the outputs with the local losses beside it."""
        local = {name: self.heads[module_key(name)] for name in self.cells}
        return dataclasses.replace(outputs, local=local)

    def spread(self, values: Tensor, units: tuple[int, ...], level: int) -> Tensor:
        """Return for each unit what is credited to it; see ``Cells.spread``."""
        return self.kind.spread(values, units, level)

    def exclusive(self, gradient: Tensor, cells: tuple[int, ...], cell: tuple[int, ...]) -> int:
        """Return to how many leading axes of the cells a site keeps; see ``Cells.exclusive``."""
        return self.kind.exclusive(gradient, cells, cell)

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        kind = self.kind.kind
        return f"loss={self.loss}, cells={kind}, groups={self.groups}, sites={self.sites}"


def make(recipe: LocalRecipe, where: object) -> LocalLosses | None:
    """Return the local losses of a recipe; None if they are off.

    Raises:
        RecipeError: no such loss, or cells that it does not have.
    """
    table = dataclasses.asdict(recipe)
    return None if recipe.loss == "off" else construct(LocalLosses, table, where, "local")
