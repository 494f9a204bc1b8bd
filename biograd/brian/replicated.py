"""A Brian2 network many times in one: every neuron, synapse and spike of it for each of many rows.

Row ``r`` of a group of N neurons is neurons ``r N`` to ``(r + 1) N``.  What would not be the same
for a row alone is no matter for this: random numbers, objects of which Brian2 tells too little,
networks that have already run.  ``Alone`` says what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2

OWN_NUMBERS = {"i": "number_in_row", "N": "units_in_row"}
"""Variables by which rows would differ, to parameters that stand in for them."""
RANDOM = ("rand", "randn", "poisson")
INDEXED = ("i", "j", "N_pre", "N_post", "i_pre", "i_post", "j_pre", "j_post", "N")
"""Names in synapses by which rows would differ."""
KEPT = ("N", "i", "j", "t", "dt", "t_in_timesteps", "_spikespace", "N_incoming", "N_outgoing")
"""Variables that belong to the copy itself."""


Law = Callable[[np.random.Generator, tuple[int, ...]], Any]
"""Stream and shape to random numbers."""
BLOCK = 64
"""Steps for which random numbers are drawn at once."""


class Alone(Exception):
    """A network must be run for every row by itself; why."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """A variable that is drawn in every step, the same for rows of one seed.

    Attributes:
        view: of the variable, ``[rows, units]``.
        law: of its values.
    """

    view: Any
    law: Law

    def course(self, seeds: Sequence[int], place: int) -> Iterator[Any]:
        """Yield values ``[rows, units]`` step by step, without end.

        Args:
            seeds: of each row.
            place: tells this variable from others that are drawn.
        """
        known, rows = np.unique(np.asarray(seeds), return_inverse=True)
        streams = [np.random.default_rng([int(seed), place]) for seed in known]
        while True:
            shape = (BLOCK, self.view.shape[1])
            block = np.stack([self.law(stream, shape) for stream in streams])
            for step in range(BLOCK):
                yield block[rows, step]


class Replicas:
    """The objects of a network, ``rows`` times each, as a network of their own.

    Args:
        network: the original, in its state of now, at time zero.
        rows: how many times.
        namespace: of the run.

    Attributes:
        network: of the copies; nothing has been added to it yet.
        copies: by the name of the original, which is also that of the copy.

    Raises:
        Alone: something in it cannot be replicated.
    """

    def __init__(self, network: Any, rows: int, namespace: Mapping[str, Any]) -> None:
        b2 = import_brian2()
        self.rows, self.namespace = rows, namespace
        self.clock = b2.Clock(dt=_step(network) * b2.second, name="biograd_rows")
        self.copies: dict[str, Any] = {}
        self.draws: list[Draw] = []
        parts = sorted(network.objects, key=lambda part: str(part.name))
        self._inputs = [part for part in parts if type(part) is b2.PoissonInput]
        makers = {
            b2.NeuronGroup: self._neurons,
            b2.PoissonGroup: self._poisson,
            b2.SpikeGeneratorGroup: self._generator,
            b2.Synapses: self._synapses,  # last: they lead from and to the others
        }
        others = (b2.SpikeMonitor, b2.EventMonitor, b2.StateMonitor, b2.PopulationRateMonitor)
        for part in parts:
            if type(part) not in makers and not isinstance(part, (*others, b2.PoissonInput)):
                raise Alone(f"{part.name} ({type(part).__name__})")
        for kind, make in makers.items():
            for part in parts:
                if type(part) is kind:
                    self.copies[part.name] = made = make(part)
                    made.active = part.active
                    _like(part, made)
        if self._inputs:
            raise Alone(f"{self._inputs[0].name}: its target is not in the network")
        self.network = b2.Network(*self.copies.values())
        self.network.schedule = list(network.schedule)

    def tiled(self, values: Any) -> Any:
        """Return the values of one row for all."""
        return np.tile(np.asarray(values), self.rows)

    def _neurons(self, group: Any) -> Any:
        b2, where = import_brian2(), group.name
        if group._linked_variables or set(group.events) - {"spike"}:
            raise Alone(f"{where}: linked variables, or other events than spikes")
        runs = [one for one in group.contained_objects if _regular(one)]
        codes = [*group.events.values(), *group.event_codes.values()]
        codes += [run.abstract_code for run in runs]
        refractory = group._refractory
        codes += [refractory] if isinstance(refractory, str) else []
        equations, put = self._numbered(group.user_equations, codes, where)
        equations, noises = self._noises(equations, group)
        self._check_draws(equations, codes, group)
        inputs = self._take_inputs(group)
        for name in inputs:
            equations += b2.Equations(f"{name} : 1")
        made = b2.NeuronGroup(
            self.rows * len(group),
            equations,
            threshold=put(group.events.get("spike")),
            reset=put(group.event_codes.get("spike")),
            refractory=put(refractory) if isinstance(refractory, str) else refractory,
            method="euler" if noises else group.state_updater.method_choice,
            method_options=group.state_updater.method_options,
            namespace=group.namespace,
            clock=self.clock,
            order=group.order,
            dtype={n: group.variables[n].dtype for n in group.user_equations.names},
            name=group.name,
        )
        for run in runs:
            options = {"when": run.when, "order": run.order, "name": run.name}
            made.run_regularly(put(run.abstract_code), clock=self.clock, **options)
        for name, values in (("i", np.arange(len(group))), ("N", [len(group)] * len(group))):
            if OWN_NUMBERS[name] in made.variables:
                made.variables[OWN_NUMBERS[name]].set_value(self.tiled(values))
        self._fill(group, made)
        root = self.clock.dt_**-0.5
        for name in noises:
            self._draw(made, name, lambda stream, shape: root * stream.standard_normal(shape))
        for name, one in inputs.items():
            self._kick(made, name, one)
        return made

    def _noises(self, equations: Any, group: Any) -> tuple[Any, list[str]]:
        """Put parameters in place of noise ``xi``, which are drawn for each example."""
        b2 = import_brian2()
        found = sorted(equations.stochastic_variables)
        if not found:
            return equations, []
        # with a constant factor, all methods for noise take the step of Euler and Maruyama
        if equations.stochastic_type != "additive" or group.state_updater.method_options:
            raise Alone(f"{group.name}: noise xi with a factor that changes")
        choice = group.state_updater.method_choice
        if not isinstance(choice, tuple) and choice != "euler":
            raise Alone(f"{group.name}: noise xi by the method {choice!r:.40}")
        stands = {name: f"drawn_{name}" for name in found}
        equations = equations.substitute(**stands)
        for name in stands.values():
            equations += b2.Equations(f"{name} : second**-0.5")
        return equations, list(stands.values())

    def _draw(self, made: Any, name: str, law: Law) -> None:
        """Draw a variable anew in every step."""
        view = made.variables[name].get_value()
        self.draws.append(Draw(view.reshape(self.rows, -1), law))

    def _take_inputs(self, group: Any) -> dict[str, Any]:
        """Return the Poisson inputs of a group by the parameters that will hold their counts."""
        own = [one for one in self._inputs if one._group.name == group.name]
        self._inputs = [one for one in self._inputs if one not in own]
        for one in own:
            if isinstance(one.weight, str) or not one.active:
                raise Alone(f"{one.name}: its weight is a text, or it is switched off")
        return {f"drawn_count_{number}": one for number, one in enumerate(own)}

    def _kick(self, made: Any, name: str, one: Any) -> None:
        """Let a Poisson input add what was drawn."""
        share = float(np.asarray(one.rate)) * self.clock.dt_
        made.run_regularly(
            f"{one.target_var} += {name}*({one.weight!r})",
            clock=self.clock,
            when=one.when,
            order=one.order,
            name=one.name,
        )
        count = int(one.N)
        self._draw(made, name, lambda stream, shape: stream.binomial(count, share, shape))

    def _poisson(self, group: Any) -> Any:
        """Return neurons that spike where a number that is drawn is below their rate."""
        b2 = import_brian2()
        if isinstance(group._rates, str):
            raise Alone(f"{group.name}: rates that are a text")
        made = b2.NeuronGroup(
            self.rows * len(group),
            "rates : Hz\ndrawn : 1",
            threshold="drawn < rates*dt",
            clock=self.clock,
            order=group.order,
            name=group.name,
        )
        made.variables["rates"].set_value(self.tiled(group.variables["rates"].get_value()))
        self._draw(made, "drawn", lambda stream, shape: stream.random(shape))
        return made

    def _numbered(self, equations: Any, codes: list[Any], where: str) -> tuple[Any, Any]:
        """Return equations, and what changes a text, so that a neuron's number is that in a row."""
        from brian2.utils.stringtools import get_identifiers, word_substitute

        used = {name for code in codes if code for name in get_identifiers(code)}
        used |= {name for one in equations.values() for name in one.identifiers}
        stands = {name: other for name, other in OWN_NUMBERS.items() if name in used}
        if set(stands.values()) & set(equations.names):
            raise Alone(f"{where}: a variable called {', '.join(sorted(stands.values()))}")
        if stands:
            equations = equations.substitute(**stands)
            for other in stands.values():
                equations += import_brian2().Equations(f"{other} : integer (constant)")
        return equations, lambda code: word_substitute(code, stands) if code else code

    def _check_draws(self, equations: Any, codes: list[Any], group: Any) -> None:
        """Refuse random numbers, and functions whose values are not those of their arguments."""
        from brian2.core.functions import Function
        from brian2.utils.stringtools import get_identifiers

        used = {name for code in codes if code for name in get_identifiers(code)}
        used |= {name for one in equations.values() for name in one.identifiers}
        drawn = sorted(n for n in used if n in RANDOM or n == "xi" or n.startswith("xi_"))
        if drawn:
            raise Alone(f"{group.name} draws random numbers ({', '.join(drawn)})")
        known = {**self.namespace, **(group.namespace or {})}
        for name in sorted(used & set(known)):
            if isinstance(known[name], Function) and not known[name].stateless:
                raise Alone(f"{group.name} calls {name}, whose values may change")

    def _generator(self, group: Any) -> Any:
        b2, size = import_brian2(), len(group)
        index = np.asarray(group.variables["neuron_index"].get_value())
        times = np.asarray(group.variables["spike_time"].get_value())
        numbers = np.concatenate([index + row * size for row in range(self.rows)])
        order = np.argsort(np.tile(times, self.rows), kind="stable")
        period = float(np.asarray(group.variables["period"].get_value()).item())
        return b2.SpikeGeneratorGroup(
            self.rows * size,
            numbers[order],
            np.tile(times, self.rows)[order] * b2.second,
            period=period * b2.second,
            clock=self.clock,
            when=group.when,
            order=group.order,
            name=group.name,
        )

    def _synapses(self, group: Any) -> Any:
        b2 = import_brian2()
        (source, first), (target, begin) = _end(group.source), _end(group.target)
        for end in (source, target):
            if end.name not in self.copies:
                raise Alone(f"{group.name}: {end.name} is not in the network, or no group")
        if not len(group):
            raise Alone(f"{group.name}: there are no synapses")
        equations = _equations(group)
        for part in group.contained_objects:
            if _regular(part):
                raise Alone(f"{group.name}: run_regularly")
        pathways = group._pathways
        codes = [one.code for one in pathways]
        self._check_draws(equations, codes, group)
        self._check_indices(equations, codes, group)
        scalar = {p.objname: _delay(p) for p in pathways if p.variables["delay"].scalar}
        updater = group.state_updater
        made = b2.Synapses(
            self.copies[source.name],
            self.copies[target.name],
            equations,
            on_pre={p.objname: p.code for p in pathways if p.prepost == "pre"} or None,
            on_post={p.objname: p.code for p in pathways if p.prepost == "post"} or None,
            delay={name: value * b2.second for name, value in scalar.items()} or None,
            on_event={p.objname: p.event for p in pathways},
            namespace=group.namespace,
            dtype={n: group.variables[n].dtype for n in equations.names if n in group.variables},
            clock=self.clock,
            order=group.order,
            name=group.name,
            **({"method": updater.method_choice, "method_options": updater.method_options}
               if updater else {}),
        )  # fmt: skip
        pre, post = np.asarray(group.i[:]) + first, np.asarray(group.j[:]) + begin
        made.connect(
            i=np.concatenate([pre + row * len(source) for row in range(self.rows)]),
            j=np.concatenate([post + row * len(target) for row in range(self.rows)]),
        )
        self._fill(group, made)
        for old, new in zip(pathways, made._pathways, strict=True):
            if not old.variables["delay"].scalar:
                new.variables["delay"].set_value(self.tiled(old.variables["delay"].get_value()))
        return made

    def _check_indices(self, equations: Any, codes: list[Any], group: Any) -> None:
        from brian2.utils.stringtools import get_identifiers

        used = {name for code in codes for name in get_identifiers(code)}
        used |= {name for one in equations.values() for name in one.identifiers}
        found = sorted(used & {*INDEXED})
        if found:
            raise Alone(f"{group.name} uses {', '.join(found)}")

    def _fill(self, group: Any, made: Any) -> None:
        """Give the copies the values of now."""
        for name, variable in group.variables.items():
            own = getattr(variable, "owner", None)
            array = getattr(variable, "array", False) and hasattr(variable, "get_value")
            if not array or own is None or own.name != group.name or name in KEPT:
                continue
            if name.startswith("_") or name not in made.variables:
                continue
            values = np.asarray(variable.get_value())
            made.variables[name].set_value(values if variable.scalar else self.tiled(values))


def _like(part: Any, made: Any) -> None:
    """Let the parts of a copy run when, and only if, those of the original do."""
    others = {str(new.name): new for new in made.contained_objects}
    for old in part.contained_objects:
        new = others.get(str(old.name))
        if new is None or type(new) is not type(old):
            raise Alone(f"{part.name}: {old.name} ({type(old).__name__})")
        new.when, new.order, new.active = old.when, old.order, old.active


def _step(network: Any) -> float:
    """Return the length of the only step of a network that has not run, in seconds."""
    if float(network.t_) != 0:
        raise Alone("the network has run already")
    steps = {float(part.clock.dt_) for part in network.sorted_objects if part.active}
    if len(steps) != 1:
        raise Alone("several clocks")
    return steps.pop()


def _regular(part: Any) -> bool:
    from brian2.groups.group import CodeRunner

    return type(part) is CodeRunner


def _end(side: Any) -> tuple[Any, int]:
    parent = getattr(side, "source", None)
    if type(side).__name__ == "Subgroup" and parent is not None:
        return parent, int(side.start)
    return side, 0


def _delay(pathway: Any) -> float:
    return float(np.asarray(pathway.variables["delay"].get_value()).item())


def _equations(synapses: Any) -> Any:
    """Return the equations of synapses as they were given, which Brian2 has divided."""
    from brian2.equations.equations import (
        DIFFERENTIAL_EQUATION,
        FLOAT,
        SUBEXPRESSION,
        Equations,
        SingleEquation,
    )

    if synapses.subexpression_updater is not None:
        raise Alone(f"{synapses.name}: subexpressions that are constant over a step")
    parts = list(synapses.equations.values())
    if synapses.event_driven:
        found = synapses.event_driven.values()
        parts += [one for one in found if one.type == DIFFERENTIAL_EQUATION]
    for name, updater in synapses.summed_updaters.items():
        dimensions, expression = synapses.variables[name].dim, updater.expression
        flags = ["summed"]
        parts.append(SingleEquation(SUBEXPRESSION, name, dimensions, FLOAT, expression, flags))
    return Equations(parts)
