"""A named neuron's population in Brian2: its text is traced, its course is Brian2's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biograd.brian.neuron_model import Details, NeuronModel
from biograd.brian.simulation import Simulation, Simulations, arrays, in_time
from biograd.neurons.neuron import Neuron
from biograd.neurons.scan import Course
from biograd.neurons.symbols import OUTPUT, SPIKED, write
from biograd.recipes import PopulationRecipe


class Brian2Group:
    """Runs a neuron's step in Brian2 over a trial, or step by step.

    Args:
        constants: those of a step; ``[U]`` where they differ between neurons.
        where: what the population is called in messages.
    """

    def __init__(
        self, neuron: Neuron, units: int, steps: int, dt_ms: float, constants: Any, where: str
    ) -> None:
        text = write(neuron, constants)
        self.neuron, self.units, self.steps, self.where = neuron, units, steps, where
        known = vars(constants)
        self.differing = tuple(n for n in text.constants if isinstance(known[n], Tensor))
        names = [*neuron.variables, *neuron.ports, SPIKED if neuron.spiking else OUTPUT]
        lines = [f"{name} : 1" for name in names]
        lines += [f"{name} : 1 (constant)" for name in self.differing]
        update = text.update if neuron.spiking else f"{text.update}\n{OUTPUT} = {text.output}"
        recipe = PopulationRecipe(
            equations="\n".join(lines),
            threshold=text.threshold,
            reset=f"{SPIKED} = 1" if neuron.spiking else "",
            update=update,
            output="spikes" if neuron.spiking else OUTPUT,
        )
        fixed = {n: float(known[n]) for n in text.constants if n not in self.differing}
        details = Details(ports=neuron.ports, found=True)
        self.model = NeuronModel(recipe, dt_ms, where, fixed, details)
        self.simulation = Simulations(self.model, units)

    def _begin(self, rows: int, constants: Any) -> Simulation:
        found = self.simulation(rows)
        found.begin(arrays({n: getattr(constants, n) for n in self.differing}))
        return found

    def begin(self, rows: int, constants: Any) -> None:
        """Put the neurons where a trial begins, to be taken step by step."""
        self.now, self.index = self._begin(rows, constants), 0

    def step(self, into: Mapping[str, Tensor], like: Tensor) -> tuple[list[Tensor], Tensor]:
        """Take a step; return the variables and what is passed on, ``[rows, U]``."""
        with np.errstate(all="ignore"):
            self.now.step(arrays(into))
        self.index += 1
        states = [_tensor(self.now.values[name], like) for name in self.neuron.variables]
        if self.index == self.steps:
            self._check(self.now)
        if self.neuron.spiking:
            return states, _tensor(self.now.spikes, like)
        return states, _tensor(self.now.values[OUTPUT], like)

    def run(self, into: Mapping[str, Tensor], constants: Any, states: bool) -> Course:
        """Return the course of a trial, ``[rows, T, U]``.

        Args:
            into: by port ``[rows, steps or 1, U]``.
            states: whether the variables are kept.
        """
        like = next(iter(into.values()))
        now = self._begin(len(like), constants)
        keep = [*(self.neuron.variables if states else ()), *(() if self._spiking else (OUTPUT,))]
        given = {port: in_time(values) for port, values in into.items()}
        differing = arrays({n: getattr(constants, n) for n in self.differing})
        kind = "float32" if like.dtype is torch.float32 else "float64"
        with np.errstate(all="ignore"):
            train, kept = now.run(given, self.steps, None, differing, keep, kind)
        self._check(now)
        passed = train if self._spiking else kept[OUTPUT]
        courses = [_rows_first(kept[name], like) for name in keep if name != OUTPUT]
        return Course(courses, _rows_first(passed, like))

    @property
    def _spiking(self) -> bool:
        return self.neuron.spiking

    def _check(self, simulation: Simulation) -> None:
        advice = "take shorter steps or a weaker current"
        simulation.check_finite(self.neuron.variables, self.where, advice)

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but what a trial holds."""
        return {k: v for k, v in self.__dict__.items() if k not in ("now", "index")}


def _rows_first(values: Any, like: Tensor) -> Tensor:
    """Return a course ``[T, rows, U]`` that nobody else holds, rows first."""
    return torch.from_numpy(values).to(like).transpose(0, 1)


def _tensor(values: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values)).to(like)
