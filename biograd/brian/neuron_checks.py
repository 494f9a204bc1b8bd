"""What a population's recipe must be, beside what Brian2 checks: no word of it may do nothing."""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.quantities import quantity
from biograd.errors import RecipeError, brief, nearest
from biograd.neurons import Leaky, Neuron
from biograd.recipes import PopulationRecipe

SCHEDULE = ("start", "groups", "thresholds", "synapses", "resets", "end")
"""Slots of a step in Brian2's own order, in which populations are simulated."""
NOISE = "biograd_noise"
"""What stands for ``xi`` in the equations that Brian2 receives."""
RESERVED = frozenset(("t", "dt", "i", "N", "xi", "pi", "e", "inf", "lastspike", "not_refractory"))
TEXTS = ("equations", "threshold", "reset", "refractory", "update")
"""Keys of a recipe that Brian2 reads as code."""
"""Keys of ``[neuron]`` that say nothing of neurons with equations."""
SPIKES = "spikes"


def names_in(code: str) -> list[str]:
    """Return the names that a code uses, in their order, less those of comments.

    >>> names_in("dv/dt = -v / tau : 1  # leaks")
    ['dv', 'dt', 'v', 'tau']
    """
    return re.findall(r"\b[A-Za-z_]\w*", re.sub(r"#.*", "", code))


def assigned(code: str) -> list[str]:
    """Return the names that statements assign.

    >>> assigned("v = 0; w += 1")
    ['v', 'w']
    """
    return re.findall(r"(?:^|[;\n])\s*(\w+)\s*[-+*/%]*=(?!=)", code)


def check_names(recipe: PopulationRecipe, where: str) -> None:
    """Refuse constants whose names mean something else."""
    known = import_brian2().core.namespace
    for name in recipe.namespace:
        taken = name in known.DEFAULT_UNITS or name in known.DEFAULT_FUNCTIONS or name in RESERVED
        if taken or not name.isidentifier() or keyword.iskeyword(name):
            raise RecipeError(f"{where}.namespace.{name}: no name for a constant")


def check_schedule_preference(where: str) -> None:
    """Refuse a preference by which Brian2 would take the parts of a step in another order."""
    slots = list(import_brian2().prefs.core.network.default_schedule)
    if slots != list(SCHEDULE):
        raise RecipeError(
            f"{where}: Brian2's preference core.network.default_schedule is {', '.join(slots)}: "
            f"populations are simulated in the order {', '.join(SCHEDULE)}: set it back"
        )


def check_noise(recipe: PopulationRecipe, where: str) -> None:
    """Refuse noise with a factor that changes: Brian2's methods for it take other steps."""
    if import_brian2().Equations(recipe.equations).stochastic_type == "multiplicative":
        raise RecipeError(
            f"{where}.equations: the factor of noise xi changes in time, for which steps of "
            "'euler' are not right: make it a constant"
        )


def check_no_constants(neuron: Neuron, instead: str) -> None:
    """Refuse constants of integrate-and-fire neurons where there are none.

    Args:
        instead: what has the constants of the neurons that there are.
    """
    for field in dataclasses.fields(neuron):
        value = getattr(neuron, field.name)
        if field.name not in ("surrogate", "slope") and value != getattr(Leaky(), field.name, None):
            raise RecipeError(
                f"neuron.{field.name} = {value!r}: the neurons are those of the equations: write "
                f"it into {instead}, or take it out"
            )


@dataclasses.dataclass(frozen=True)
class Checks:
    """What must hold for a recipe and the equations that Brian2 read in it.

    Attributes:
        where: what the population is called in messages.
        equations: Brian2's.
        ports: the variables that receive a current.
    """

    recipe: PopulationRecipe
    where: str
    equations: Any
    ports: tuple[str, ...]

    @property
    def variables(self) -> frozenset[str]:
        """The variables that have a value of their own."""
        found: frozenset[str] = self.equations.diff_eq_names | self.equations.parameter_names
        return found

    @property
    def overwritten(self) -> frozenset[str]:
        """The ports that are set in every step, not increased."""
        return frozenset(self.ports) - self.equations.diff_eq_names

    def sound(self) -> None:
        """Refuse what would fail later or elsewhere, before Brian2 makes its code."""
        for port in self.ports:
            self._check_port(port)
        self._check_method()
        self._check_draws()
        self._check_reset()

    def effective(self, found: bool) -> None:
        """Refuse what has no effect: a slip of the pen, or two keys that do not go together.

        Args:
            found: whether the equations are those of a group, in which idle parts may stay.
        """
        idle = [*self._idle_settings(), *([] if found else self._idle_equations())]
        for key, reason in idle:
            raise RecipeError(f"{self.where}.{key}: {reason}")

    def _idle_settings(self) -> Iterator[tuple[str, str]]:
        """Yield what says nothing of these equations, with the reason and what to do."""
        recipe = self.recipe
        for name in recipe.scale:
            if name not in self.ports:
                known = nearest(name, self.ports)
                yield f"scale.{name}", f"no current flows into it: {known}"
        if recipe.surrogate_scale != "" and not recipe.threshold:
            yield "surrogate_scale", "there is no threshold: give one, or take it out"
        elif recipe.surrogate_scale != "" and recipe.output != SPIKES:
            yield "surrogate_scale", f"the output is {recipe.output!r}, no spikes: take it out"

    def _idle_equations(self) -> Iterator[tuple[str, str]]:
        """Yield parts of a recipe that do nothing, with the reason and what to do."""
        recipe, out = self.recipe, "take it out"
        used = {name for key in TEXTS for name in names_in(getattr(recipe, key))}
        for name in recipe.namespace:
            if name in self.equations.names and name not in recipe.trainable:
                yield f"namespace.{name}", f"the equations have a variable of that name: {out}"
            if name not in used:
                yield f"namespace.{name}", f"nothing uses it: {out}, or see how it is spelt"
        if recipe.input not in (*self.ports, PopulationRecipe.input):
            yield f"input = {recipe.input!r}", f"no projection leads to it: {out}"
        for name in recipe.initial:
            if name in recipe.trainable:
                yield f"initial.{name}", f"it is learned, from its namespace value on: {out}"
            if name in self.overwritten:
                yield f"initial.{name}", f"the current sets it in every step: {out}"
        yield from self._idle_statements()
        for key in ("reset", "refractory"):
            if getattr(recipe, key) and not recipe.threshold:
                yield key, f"there is no threshold: give one, or {out}"
        if recipe.method and not self.equations.diff_eq_names:
            yield "method", f"there is no differential equation: {out}"

    def _idle_statements(self) -> Iterator[tuple[str, str]]:
        """Yield assignments in the update that nothing reads: Brian2 takes any name for its own."""
        lines = re.split(r"[;\n]", self.recipe.update)
        for place, line in enumerate(lines):
            for name in assigned(line):
                later = {used for other in lines[place + 1 :] for used in names_in(other)}
                if name not in self.variables | later:
                    known = nearest(name, self.variables)
                    yield "update", f"{brief(line)!r} assigns no variable of the equations: {known}"

    def _check_port(self, port: str) -> None:
        equations, recipe = self.equations, self.recipe
        own = port == recipe.input
        where = f"{self.where}.input = {port!r}" if own else f"{self.where}: variable {port!r}"
        free = equations.parameter_names - {"not_refractory", "lastspike", *recipe.trainable}
        known = {name for name in free if not name.startswith(NOISE)} | equations.diff_eq_names
        if port not in known:
            raise RecipeError(
                f"{where}: the equations have no such variable: {nearest(port, known)}"
            )
        if {"constant", "shared"} & {*equations[port].flags}:
            raise RecipeError(f"{where}: constant or shared, it cannot carry a current")
        if equations[port].var_type != "float":
            raise RecipeError(
                f"{where}: {equations[port].var_type}, it cannot carry a current: write "
                f"'{port} : 1', or its unit"
            )

    def _check_method(self) -> None:
        method, where = self.recipe.method, f"{self.where}.method"
        every = import_brian2().StateUpdateMethod.stateupdaters
        known = [name for name in every if not name.startswith("gsl")]
        if method in every and method not in known:
            raise RecipeError(
                f"{where} = {method!r}: its steps are GSL's own, of any length: take 'rk4'"
            )
        if method and method not in known:
            raise RecipeError(f"{where} = {method!r}: {nearest(method, known)}")

    def _check_draws(self) -> None:
        """Refuse what would differ between the copies of an example."""
        for key in TEXTS:
            text = getattr(self.recipe, key)
            index = re.search(r"\b[iN]\b", text)
            if index:
                raise RecipeError(
                    f"{self.where}.{key}: {index[0]!r} counts the neurons of all examples, not of "
                    "one: give each neuron a value of its own"
                )
            found = re.search(r"\b(rand|randn|poisson)\s*\(", text)
            if found:
                raise RecipeError(
                    f"{self.where}.{key}: {found[1]}() draws anew for every copy of an example: "
                    "write the noise as xi, which all copies share"
                )

    def _check_reset(self) -> None:
        """Refuse a reset of a variable that is not there: Brian2 takes it for a temporary one."""
        for name in assigned(self.recipe.reset):
            if name not in self.variables and not name.startswith("_"):
                raise RecipeError(
                    f"{self.where}.reset = {brief(self.recipe.reset)!r}: no variable {name!r}: "
                    f"{nearest(name, self.variables)}"
                )

    def check_output(self, output: str, codes: Iterable[str]) -> None:
        """Refuse a population that passes nothing on.

        Args:
            output: "spikes", or a variable.
            codes: statements, beside equations, that change variables.
        """
        own = self.equations.diff_eq_names
        if output == SPIKES:
            if not self.recipe.threshold:
                raise RecipeError(
                    f"{self.where}.threshold: missing: without spikes, name the variable that the "
                    "population passes on as output"
                )
            return
        if output not in self.variables or output in self.overwritten:
            hint = nearest(output, {SPIKES, *own})
            raise RecipeError(f"{self.where}.output = {output!r}: no such variable: {hint}")
        if output not in own and not any(output in assigned(code) for code in codes):
            raise RecipeError(f"{self.where}.output = {output!r}: nothing changes it")

    def check_surrogate_scale(self, compared: Collection[Any]) -> None:
        """Refuse a distance in another unit than that of what the threshold compares.

        Args:
            compared: dimensions of the variables in the threshold.
        """
        b2, given, where = import_brian2(), self.recipe.surrogate_scale, self.where
        if given == "":
            return
        value = quantity(given, f"{where}.surrogate_scale")
        fits = any(b2.have_same_dimensions(value, dim) for dim in compared) or not compared
        if not float(np.asarray(value)) > 0 or (isinstance(given, str) and not fits):
            raise RecipeError(
                f"{where}.surrogate_scale = {given!r}: must be above zero and in the unit of what "
                f"the threshold {brief(self.recipe.threshold)!r} compares"
            )
