"""A population of one kind of neuron on a simulator: where the two meet.

A simulator gives states and spikes; the way back is the neuron's, whoever simulates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from biograd.checking import Count, Positive, validate
from biograd.contracts.credit_paths import differentiated, join, needed, with_way
from biograd.contracts.trial_part import State
from biograd.errors import BiogradError, CapabilityError, RecipeError
from biograd.neurons.coefficients import Coefficients, SpikeLoop, coefficients
from biograd.neurons.neuron import Functions, Neuron, constants_of, state_of, step
from biograd.neurons.scan import Course, Recorded, Trial, check_end, record, scan, simulate
from biograd.neurons.stepped import SteppedPopulation
from biograd.neurons.values import bounded, check_trainable, spread
from biograd.process.threads import Turn
from biograd.simulators.gathered import GatheringLinear
from biograd.substrate.hooks import announce_whole, takes_whole

Simulator = Literal["torch", "snntorch", "brian2"]


class Population(SteppedPopulation):
    """Neurons of one kind, as a layer of a torch network.

    A current ``[rows, units]``, the same in every step, or ``[rows, steps, units]`` becomes what
    the neurons pass on, ``[rows, steps, units]``; by port if the neuron has several.

    Args:
        neuron: their kind.
        units: number of them.
        steps: number of time steps of a trial.
        dt_ms: length of a step in milliseconds.
        simulator: who computes the course: "torch", "snntorch" or "brian2".
        where: opens every message.
        stream: what tells its draws from those of other populations.

    Attributes:
        factors: what is learned of each field in ``neuron.trainable``, ``[units]``.

    Raises:
        CapabilityError: the simulator has no such neuron.
        RecipeError: values that do not fit the number of neurons, or cannot be learned.
    """

    _now: Any
    _seen: tuple[list[Tensor], Tensor]

    def __init__(
        self,
        neuron: Neuron,
        units: Count,
        steps: Count,
        dt_ms: Positive,
        simulator: Simulator = "torch",
        where: str = "neuron",
        stream: str = "",
    ) -> None:
        validate(Population, locals())
        if not isinstance(neuron, Neuron):  # a table would be taken for one
            raise RecipeError(f"Population: neuron = {neuron!r}: must be a neuron")
        super().__init__(steps)
        check_trainable(neuron, where)
        self.neuron, self.units, self.dt_ms = neuron, units, dt_ms
        self.simulator, self.where = simulator, where
        self.variables = len(neuron.variables) + neuron.spiking
        self.differing = tuple(found := spread(neuron, units, where, stream or where))
        for name, values in found.items():
            self.register_buffer(f"values_{name}", values, persistent=False)
        self.factors = nn.ParameterDict({name: torch.zeros(units) for name in neuron.trainable})
        self._turn = Turn()
        self._foreign: Any = None
        self._coefficients: tuple[Coefficients | None] | None = None
        if simulator != "torch":
            self.foreign()  # what it cannot do is refused here, not in the first pass

    @property
    def port(self) -> str:
        """The first of the neuron's ports."""
        return self.neuron.ports[0]

    def foreign(self) -> Any:
        """Return the simulator's own form of the population; None: torch is the simulator."""
        if self._foreign is None and self.simulator == "snntorch":
            self._foreign = self.neuron.snntorch(self.constants(), self._derivative)
        elif self._foreign is None and self.simulator == "brian2":
            from biograd.simulators.brian2_group import Brian2Group

            self._foreign = Brian2Group(
                self.neuron, self.units, self.steps, self.dt_ms, self.constants(), self.where
            )
        return self._foreign

    def _derivative(self, distance: Tensor) -> Tensor:
        return (self.transport.derivative or self.neuron.derivative)(distance)

    def _initial(self, name: str) -> Any:
        if name in self.differing:
            return self.get_buffer(f"values_{name}")
        return getattr(self.neuron, name)

    def describe_neurons(self) -> dict[str, Any]:
        """Return the kind of neuron and its constants, as JSON values."""
        drawn = {name: self._initial(name).tolist() for name in self.differing}
        return {**dataclasses.asdict(self.neuron), **drawn, "simulator": self.simulator}

    def learned(self) -> dict[str, Tensor]:
        """Return the learned fields, each ``[units]``, in the recipe's units."""
        return {
            name: bounded(self.factors[name], self._initial(name), *self.neuron.trainable[name])
            for name in self.factors
        }

    def values(self) -> dict[str, Tensor]:
        """Return the fields that differ between neurons, each ``[units]``."""
        return {name: self._initial(name) for name in self.differing} | self.learned()

    def constants(self) -> Any:
        """Return the constants of a step: numbers, or ``[units]``."""
        return constants_of(self.neuron, self.dt_ms, self.values())

    def _linear(self, c: Any) -> Coefficients | None:
        """Return the coefficients of a step; None: it is not linear between spikes."""
        if any(isinstance(value, Tensor) for value in vars(c).values()):
            return coefficients(self.neuron, c)
        if self._coefficients is None:
            self._coefficients = (coefficients(self.neuron, c),)
        return self._coefficients[0]

    def forward(
        self, current: Tensor | Mapping[str, Tensor], recurrent: nn.Module | None = None
    ) -> Tensor:
        """Return what the neurons pass on, ``[rows, steps, units]``.

        Args:
            current: ``[rows, steps or 1, units]``, or ``[rows, units]``; by port if there are
                several.
            recurrent: maps what they passed on in the step before to an additional current.
        """
        with self._turn, self._named():  # a prepared simulation holds one trial
            into = self.trials(current)
            if self.part is None and recurrent is not None and self._takes_loop(recurrent, into):
                return self._looped(into, recurrent)
            slots = self.transport.slots or self.simulator == "snntorch"
            if recurrent is not None or slots or self.part is not None:
                return self._by_steps(into, recurrent)
            return self._whole(into)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BiogradError as error:
            if isinstance(error, CapabilityError) or str(error).startswith(self.where):
                raise
            raise BiogradError(f"{self.where}: {error}") from None

    def _by_steps(self, into: Mapping[str, Tensor], recurrent: nn.Module | None) -> Tensor:
        whole = recurrent is None and not self.transport.slots and self.simulator != "snntorch"
        if len(into) > 1 and not whole:
            raise CapabilityError(
                f"{self.where} has several ports: no states can be handed from window to window"
            )
        try:
            return super().forward(into, recurrent)
        finally:
            self.end()

    def _whole(self, into: Mapping[str, Tensor]) -> Tensor:
        both, c = self.ways(into), self.constants()
        learned = self.learned()
        asked = [*both[0][0].values(), *learned.values()]
        if not any(differentiated(values) for values in asked):
            return self._without_graph(both[0][0], c)
        given, k = None, self._linear(c)
        moved = any(forward_ad.unpack_dual(v).tangent is not None for v in learned.values())
        if moved or k is None:
            return self._by_steps(into, None)
        if self.simulator == "brian2":
            given = self.foreign().run(both[0][0], c, states=True)
        return join(
            [self._scanned(drives, window, c, k, learned, given) for drives, window in needed(both)]
        )

    def _takes_loop(self, recurrent: nn.Module, into: Mapping[str, Tensor]) -> bool:
        """Return whether a recurrent trial is one scan: all who watch the layer agree to it."""
        learned = self.learned().values()
        return (
            self.simulator == "torch"
            and isinstance(recurrent, (nn.Linear, GatheringLinear))
            and type(recurrent).forward in (nn.Linear.forward, GatheringLinear.forward)
            and self.neuron.spiking
            and len(into) == 1
            and not (self.transport.slots or self.transport.traces or self.transport.derivative)
            and recurrent.weight.dtype == into[self.port].dtype
            and not torch.is_autocast_enabled(recurrent.weight.device.type)
            and not any(forward_ad.unpack_dual(v).tangent is not None for v in learned)
            and takes_whole(recurrent)
            and self._linear(self.constants()) is not None
        )

    def _looped(self, into: Mapping[str, Tensor], recurrent: Any) -> Tensor:
        """Return what is passed on: the trial without a graph first, then its derivative.

        The recurrent layer is called once, on the spikes of all steps; credit through it to
        earlier steps is the scan's.
        """
        c, learned, port = self.constants(), self.learned(), self.port
        ((drives, window),) = self.ways(into)
        found = self._linear(c)
        assert found is not None
        k = found if learned else found.without_unread()
        held = [
            None if one is None else forward_ad.unpack_dual(one).primal.detach()
            for one in (recurrent.weight, recurrent.bias)
        ]
        loop = SpikeLoop(*held)  # type: ignore[arg-type]
        asked = (drives[port], *recurrent.parameters(), *learned.values())
        graph = any(differentiated(values) for values in asked)
        keep = "nothing" if not graph else "states" if learned else "distance"
        with torch.no_grad():
            recorded = record(self.neuron, k, drives, self.steps, keep, loop)
        if not announce_whole(recurrent, graph) and not graph:
            return recorded[0]
        drive = drives[port] + recurrent(functional.pad(recorded[0][:, :-1], (0, 0, 1, 0)))
        if not graph:
            return recorded[0]
        return self._scanned({port: drive}, window, c, k, learned, None, loop, recorded)

    def _scanned(
        self,
        drives: Mapping[str, Tensor],
        window: int | None,
        c: Any,
        k: Coefficients,
        learned: Mapping[str, Tensor],
        given: Course | None,
        loop: SpikeLoop | None = None,
        recorded: Recorded | None = None,
    ) -> Tensor:
        """Return what is passed on, along one way."""
        other = self.transport.derivative
        values = {name: self._initial(name) for name in self.differing}
        held = (self.neuron, self.dt_ms, self.steps, values, tuple(learned), window, other, given)
        trial = Trial(*held, loop, recorded)
        return scan(trial, k, drives, *learned.values())

    def _without_graph(self, into: Mapping[str, Tensor], c: Any) -> Tensor:
        into = {port: values.detach() for port, values in into.items()}
        if self.simulator == "brian2":
            return self.foreign().run(into, c, states=False).passed
        k = self._linear(c)
        with torch.no_grad():
            if k is not None:
                return record(self.neuron, k.without_unread(), into, self.steps)[0]
            return simulate(self.neuron, c, into, self.steps, states=False).passed

    def begin(self, current: Tensor) -> State:
        """Return the state in which a trial begins.

        Args:
            current: ``[rows, steps or 1, units]``; of it, shape and dtype.
        """
        self.__dict__["_now"] = self.constants()
        like = current[:, 0]
        if self.simulator == "brian2":
            self.foreign().begin(len(like), self._now)
        x = tuple(self.neuron.begin(like))
        return (*x, torch.zeros_like(like)) if self.neuron.spiking else x

    def check_end(self, state: State, passed: Tensor) -> None:
        """Refuse a state that is not finite; Brian2's own check has seen more."""
        if self.neuron.spiking and self.simulator != "brian2":
            named = zip(self.neuron.variables, (v.detach() for v in state), strict=False)
            with self._named():
                check_end(dict(named), passed.detach(), self.steps)

    def end(self) -> None:
        """Forget the constants of a trial, which hold its graph."""
        self.__dict__.pop("_now", None)

    def passed(self, state: State) -> Tensor:
        """Return what the neurons passed on in a state, ``[rows, units]``."""
        if self.neuron.spiking:
            return state[-1]
        x = state_of(self.neuron.variables)(*state)
        found: Tensor = self.neuron.passed(x, self._now, Functions)
        return found

    def advance(
        self,
        state: State,
        current: Tensor | Mapping[str, Tensor],
        fed: Tensor | None,
        first: bool,
    ) -> tuple[State, Tensor]:
        """Return the state after one step and what is passed on (see ``SteppedPopulation``)."""
        neuron, now = self.neuron, self._now
        spiking, into = neuron.spiking, self.driven(current, fed)
        x = state_of(neuron.variables)(*(state[:-1] if spiking else state))
        last = state[-1] if spiking else neuron.passed(x, now, Functions)
        if self.simulator == "snntorch":
            new, out = self.foreign()(x, last, into[self.port], now)
        else:
            new, out = step(neuron, now, x, last, into, self.transport.derivative)
        if self.simulator == "brian2":
            new, out = self._as_brian2(new, out, into, first)
        return ((*new, out) if spiking else tuple(new)), out

    def _as_brian2(
        self, new: State, out: Tensor, into: Mapping[str, Tensor], first: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Return Brian2's values with the neuron's way back; it takes the step once."""
        if first:
            self.__dict__["_seen"] = self.foreign().step(into, out)
        states, passed = self._seen
        found = [with_way(a, way) for a, way in zip(states, tuple(new), strict=True)]
        return found, with_way(passed, out)

    def extra_repr(self) -> str:
        """Return what the population is for ``print``."""
        return f"{self.neuron}, {self.units}, steps={self.steps}, simulator={self.simulator!r}"

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but what a trial holds; a copy makes its simulator's form anew."""
        state = dict(self.__dict__)
        for name in ("_now", "_seen", "shared"):
            state.pop(name, None)
        return state | {"_foreign": None}

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        """Drop what earlier versions kept of snnTorch's cell: constants of the recipe."""
        for name in [key for key in state if key.startswith(f"{prefix}neuron.")]:
            del state[name]
        super()._load_from_state_dict(state, prefix, *rest)
