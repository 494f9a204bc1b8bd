"""Who credits each parameter: traced through one clean pass, before the first step.

Why: autograd reaches every parameter, also those that a rule knows nothing of, so that whatever
acts outside the sites would learn by exact back-propagation under the name of any rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from biograd.contracts import Trace
from biograd.engine.structure import Places, places
from biograd.errors import CapabilityError
from biograd.estimators import ESTIMATORS, Estimator
from biograd.estimators.estimator import Reach

Outside = Literal["refuse", "freeze", "exact"]
"""What becomes of parameters that the rule does not credit."""
Creditor = Literal["rule", "readout", "outside", "frozen", "nobody"]
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
"""Modules whose parameters act on one unit or channel each."""
SHOWN = 6
"""Parameters that a message names."""


@dataclasses.dataclass(frozen=True)
class ParameterCredit:
    """What the account says of one parameter.

    Attributes:
        name: dotted, as in ``named_parameters``.
        shape: of its values.
        creditor: "rule"; "readout": the gradient of the readout; "outside": the rule does
            not credit it; "frozen": it does not learn; "nobody": the outputs do not depend on it.
        sites: by whose credit it learns.
        words: the same in words, for people.
    """

    name: str
    shape: tuple[int, ...]
    creditor: Creditor
    sites: tuple[str, ...]
    words: str


@dataclasses.dataclass(frozen=True)
class Account:
    """Who credits each parameter of a network under a rule; ``print`` it.

    Attributes:
        rule: class of the estimator.
        entries: in the order of the network's parameters.
    """

    rule: str
    entries: tuple[ParameterCredit, ...]

    def of(self, *creditors: Creditor) -> list[ParameterCredit]:
        """Return the entries with these creditors."""
        return [entry for entry in self.entries if entry.creditor in creditors]

    @property
    def outside(self) -> str:
        """What became of the parameters outside the rule, and which they are; "": none."""
        part = dataclasses.replace(self, entries=tuple(self.of("outside")))
        return "; ".join(part.lines()).removeprefix("outside: ")

    def without(self, names: Sequence[str]) -> Account:
        """Return the account with parameters to which the rule gave no credit."""
        words = f"nobody: {self.rule} gave it no credit in the first step"
        entries = (
            dataclasses.replace(e, creditor="nobody", sites=(), words=words)
            if e.name in names
            else e
            for e in self.entries
        )
        return dataclasses.replace(self, entries=tuple(entries))

    def as_dict(self) -> dict[str, Any]:
        """Return shape and creditor by the name of each parameter, as JSON has them."""
        return {e.name: {"shape": list(e.shape), "credit": e.words} for e in self.entries}

    def lines(self) -> Iterator[str]:
        """Yield a line for each kind of credit, with the parameters that have it."""
        kinds: dict[str, list[str]] = {}
        for entry in self.entries:
            words = entry.words.replace(f" at {', '.join(entry.sites)}", "")
            kinds.setdefault(words, []).append(entry.name)
        for words, names in kinds.items():
            yield f"{words}: {named(names)}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def named(names: Sequence[str]) -> str:
    """Return names with commas, some of them and how many more if there are many.

    >>> named(["a", "b"]), named([str(number) for number in range(9)])
    ('a, b', '0, 1, 2, 3, 4, 5 and 3 more')
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN + 1 else ""
    return ", ".join(names[:SHOWN] if more else names) + more


@dataclasses.dataclass(frozen=True)
class Bookkeeper:
    """Makes the account of a rule on a network.

    Attributes:
        sites: names of all, in the order of the data flow; the last is the readout.
        local: whether hidden sites have losses of their own.
        named: whether the user chose the sites; what stands before the first, a front end, then
            learns by what noise there finds, passed on by back-propagation.
        trace: of the plan ``structure.dissected``.
        layers_alone: whether the rule does not look into the neurons between the layers.
    """

    network: nn.Module
    estimator: Estimator
    sites: tuple[str, ...]
    local: bool
    named: bool
    trace: Trace
    layers_alone: bool = False

    @cached_property
    def _places(self) -> dict[str, tuple[nn.Parameter, Places]]:
        known = dict(self.network.named_parameters())
        found = places(self.trace, list(known.values()))
        return {n: (p, place) for (n, p), place in zip(known.items(), found, strict=True)}

    @cached_property
    def behind(self) -> list[str]:
        """Names of the weights that follow the last site, which is then no readout."""
        return [
            name
            for name, (parameter, place) in self._places.items()
            if place.behind and not self._unitwise(name, parameter, "")
        ]

    @property
    def _rule(self) -> str:
        """The rule in words, and where it is none of its own."""
        where = self.estimator.coincides
        name = type(self.estimator).__name__
        return f"{name} (back-propagation {where})" if where else name

    @property
    def _exact_readout(self) -> bool:
        return self.estimator.exact_readout or self.local

    def account(self, leads: bool, limits: Sequence[str], outside: Outside) -> Account:
        """Return the account.

        Args:
            leads: whether the outputs follow the last site's current by its exact gradient.
            limits: why some part of the network has no derivative; empty: all have one.
            outside: what becomes of parameters that the rule does not credit.

        Raises:
            CapabilityError: the rule takes the last site for a readout, but weights follow it.
        """
        rule = self.estimator
        perturbs = rule.reach == "currents" and rule.graphless
        if self.behind and self._exact_readout and not (rule.exact or perturbs):
            raise CapabilityError(
                f"{type(rule).__name__}: {named(self.behind)} acts behind the last site, "
                f"{self.sites[-1]!r}, which is thus no readout: name the module that makes the "
                "outputs as the last site, attach(..., sites=[..., 'its name']), or take "
                "biograd.Backpropagation, biograd.NodePerturbation or biograd.WeightPerturbation"
            )
        return Account(
            type(rule).__name__,
            tuple(
                self._entry(name, *found, leads, bool(limits), outside)
                for name, found in self._places.items()
            ),
        )

    def _entry(
        self,
        name: str,
        parameter: nn.Parameter,
        place: Places,
        leads: bool,
        limited: bool,
        outside: Outside,
    ) -> ParameterCredit:
        shape, rule = tuple(parameter.shape), type(self.estimator).__name__
        if not parameter.requires_grad:
            return ParameterCredit(name, shape, "nobody", (), "nobody: requires_grad is False")
        creditor, sites = self._credited(name, parameter, place, leads)
        passed = ", passed on by back-propagation" if place.before and sites else ""
        if (creditor == "nobody" and limited) or self._underivable(name):
            creditor = "frozen" if self.estimator.reach == "readout" else "outside"
        words = {
            "rule": self._rule + (f" at {', '.join(sites)}" if sites else "") + passed,
            "readout": self.estimator.at_readout,
            "nobody": "nobody: the outputs do not depend on it",
            "frozen": f"nobody: {rule} leaves it as it is",
            "outside": f"outside: {OUTSIDE[outside]}",
        }[creditor]
        return ParameterCredit(name, shape, creditor, sites, words)

    def _credited(
        self, name: str, parameter: nn.Parameter, place: Places, leads: bool
    ) -> tuple[Creditor, tuple[str, ...]]:
        """Return who credits a parameter that acts at these places, and at which sites."""
        rule, readout = self.estimator, self.sites[-1]
        own = [site for site in place.layers if site != readout or not leads]
        sites = tuple(dict.fromkeys((*own, *place.blocks)))
        at_readout = (readout in place.layers and leads) or place.behind
        if place.nowhere and (rule.exact or rule.reach != "parameters"):
            return "nobody", ()
        if rule.exact:
            return "rule", ()
        if rule.reach == "parameters":
            alone = at_readout and not (sites or place.before) and self._exact_readout
            return "readout" if alone else "rule", ()
        if rule.reach == "readout" and not at_readout:
            return "frozen", ()
        if rule.reach == "readout" and not (sites or place.before):
            return "readout", ()
        front = self.named and rule.reach == "currents" and (self.sites[0] != readout or not leads)
        if place.before and front:
            sites = (self.sites[0], *(site for site in sites if site != self.sites[0]))
        lost = place.before and not front
        lost = lost or (place.behind and not leads) or rule.reach == "readout"
        lost = lost or any(not self._reaches(name, parameter, site) for site in place.blocks)
        if lost or (place.behind and not self._unitwise(name, parameter, "")):
            return "outside", ()
        return ("rule", sites) if sites else ("readout", ())

    def _reaches(self, name: str, parameter: nn.Parameter, site: str) -> bool:
        """Return whether the rule credits a parameter that acts in the block of a site."""
        if self.estimator.reach == "currents" or self.layers_alone:
            return False
        if self.estimator.reach == "normalisations":
            return isinstance(self._owner(name), NORMS)
        return self._unitwise(name, parameter, site)

    def _underivable(self, name: str) -> bool:
        """Return whether a parameter acts without a derivative, by which alone the rule learns."""
        own = name.rpartition(".")[2] in getattr(self._owner(name), "unlearned", ())
        return own and "perturb_parameter" not in self.estimator.needs

    def _owner(self, name: str) -> nn.Module:
        return self.network.get_submodule(name.rpartition(".")[0])

    def _unitwise(self, name: str, parameter: nn.Parameter, site: str) -> bool:
        """Return whether a parameter acts on each unit by itself, so that it carries no credit.

        Args:
            site: in whose block it acts; "": behind the readout.
        """
        if isinstance(self._owner(name), NORMS) or parameter.numel() <= 1:
            return True
        trace = self.trace.sites[site or self.sites[-1]]
        behind = self.trace.outputs if not site or trace.activity is None else trace.activity
        shapes = (trace.shape.units, tuple(behind.shape[1:]))
        wide = [size for size in parameter.shape if size > 1]
        if len(wide) > 1:  # a matrix may have the shape of a course [steps, units]
            return parameter.dim() > 2 and tuple(parameter.shape) in shapes
        return any(wide[0] in shape for shape in shapes) and wide[0] <= behind[0].numel()


OUTSIDE: dict[str, str] = {
    "refuse": "the rule does not credit it",
    "freeze": "frozen",
    "exact": "the exact gradient of back-propagation",
}


REACH: dict[Reach, str] = {
    "currents": "the layers of its sites alone",
    "normalisations": "the layers of its sites, and normalisations behind them",
    "blocks": "the layers of its sites, and what acts unit by unit behind them",
    "readout": "the readout alone",
    "parameters": "what has a derivative",
}
"""What a rule credits, in words."""


def check_outside(
    account: Account,
    estimator: Estimator,
    outside: Outside,
    limits: Sequence[str],
    layers_alone: bool = False,
) -> None:
    """Refuse parameters outside the rule, unless it was said what shall become of them.

    Raises:
        CapabilityError: with their names and the ways out; or nothing would learn.
    """
    names = named([entry.name for entry in account.of("outside")])
    reach = REACH["currents" if layers_alone else estimator.reach]
    if names and outside == "refuse":
        wide = [kind.__name__ for kind in ESTIMATORS.values() if kind.reach == "parameters"]
        raise CapabilityError(
            f"{account.rule} does not credit {names}: it reaches {reach}; say "
            "outside='freeze' (they stay as they are) or 'exact' (they learn by back-propagation) "
            "in biograd.attach or biograd.train, training.outside in a recipe; or name the module "
            "whose output is their current, attach(..., sites=[...]); or take "
            + " or ".join(f"biograd.{name}" for name in wide)
        )
    if names and outside == "exact" and limits:
        raise CapabilityError(
            f"outside = 'exact': {names} cannot have an exact gradient: {limits[0]}: take "
            "outside = 'freeze'"
        )
    if not account.of("rule", "readout") and not (names and outside == "exact"):
        raise CapabilityError(
            f"{account.rule} would train nothing of this network ({'; '.join(account.lines())}): "
            "unfreeze layers that it reaches, or take another rule"
        )


def trained(network: nn.Module) -> list[int]:
    """Return what tells whether other parameters are trained than before."""
    return [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
