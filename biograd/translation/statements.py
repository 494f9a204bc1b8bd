"""The statements of a Brian2 population, in the order in which a step executes them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any

from biograd.errors import CapabilityError

KEPT = ("not_refractory", "lastspike")
"""Variables of Brian2's own book-keeping of refractoriness."""


def runners_of(group: Any) -> tuple[list[Any], Any, list[Any]]:
    """Return Brian2's code runners of a step: before the threshold, the threshold, the resets."""
    from brian2 import prefs
    from brian2.groups.neurongroup import Resetter, StateUpdater, Thresholder

    before, threshold, resets, slots = [], None, [], prefs.core.network.default_schedule
    for runner in _ordered(group, slots):
        if getattr(runner, "event", "spike") != "spike":
            refuse = f"the event {runner.event!r} cannot be differentiated; only spikes can"
            raise CapabilityError(f"population {group.name}: {refuse}")
        if isinstance(runner, Thresholder):
            threshold = runner
        elif isinstance(runner, Resetter):
            resets.append(runner)
        else:
            before.append(runner)
    updates = [place for place, runner in enumerate(before) if isinstance(runner, StateUpdater)]
    for place, runner in enumerate(before):
        _check_moment(group, runner, slots, early=place < min(updates, default=0))
    return before, threshold, resets


def _ordered(group: Any, slots: Sequence[str]) -> Iterable[Any]:
    """Return the group's code runners that have something to do, in the order of a step."""
    from brian2.groups.group import CodeRunner
    from brian2.groups.neurongroup import StateUpdater

    runners = []
    for runner in group.contained_objects:
        if not isinstance(runner, CodeRunner):
            continue
        if runner.codeobj is not None:
            runners.append(runner)
        elif not isinstance(runner, StateUpdater) or group.equations.diff_eq_names:
            where = f"population {group.name}: {runner.name} is not compiled"
            raise CapabilityError(f"{where}; run its network for 0 s first")
    return sorted(runners, key=lambda runner: (*_moment(runner, slots), runner.order, runner.name))


def _moment(runner: Any, slots: Sequence[str]) -> tuple[int, int]:
    """Return the slot of a code runner in a step, and whether before, in or after it."""
    for place, slot in enumerate(slots):
        if runner.when in (f"before_{slot}", slot, f"after_{slot}"):
            return place, (f"before_{slot}", slot, f"after_{slot}").index(runner.when)
    return len(slots), 0


def _check_moment(group: Any, runner: Any, slots: Sequence[str], early: bool) -> None:
    """Refuse statements in a place of the step where the record has no values for them."""
    where = f"population {group.name}: {runner.name}"
    if float(runner.clock.dt_) != float(group.clock.dt_):
        raise CapabilityError(f"{where} has a time step of its own; give it the population's")
    if _moment(runner, slots) >= (slots.index("thresholds"), 1):
        raise CapabilityError(f"{where} runs after the threshold; run it in 'before_thresholds'")
    if early and group._refractory is not False and _asks_readiness(group, runner):
        raise CapabilityError(
            f"{where} needs to know who is refractory, which is found out later; "
            "run it in 'before_thresholds'"
        )


def _asks_readiness(group: Any, runner: Any) -> bool:
    statements = statements_of(runner)
    names = {name for statement in statements for name in _names(statement)}
    written = [group.variables.get(statement.var) for statement in statements]
    return "not_refractory" in names or any(
        getattr(variable, "conditional_write", None) is not None for variable in written
    )


def statements_of(runner: Any) -> list[Any]:
    """Return the statements as Brian2 compiles them: the order of operations is part of a result.

    They have ``var``, ``op`` and ``expr``; what is the same for all neurons is pulled out.
    """
    from brian2 import prefs
    from brian2.codegen.translation import make_statements

    kind = prefs.core.default_float_dtype
    scalar, vector = make_statements(runner.abstract_code, runner.codeobj.variables, kind)
    return [*scalar, *vector]


def live(statements: Sequence[Any]) -> list[Any]:
    """Return the statements without those that only serve to find out who is refractory."""
    kept: list[Any] = []
    dead = set(KEPT)
    for statement in reversed(statements):
        temporary = statement.op == ":=" or statement.var.startswith("_")
        used = any(statement.var in _names(other) for other in kept)
        if statement.var not in dead and (used or not temporary):
            kept.insert(0, statement)
    return kept


def _names(statement: Any) -> set[str]:
    tree = ast.parse(statement.expr, mode="eval")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
