"""The matrix of rules and networks: what is declared is what happens, and the table says so."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence

import pytest
from torch import Tensor

from biograd.__main__ import main
from biograd.commands.matrix import LABELS, text
from biograd.contracts import Capability, Plan, Round, Trace
from biograd.diagnosis import compatibility
from biograd.diagnosis.compatibility import Compatibility
from biograd.errors import RecipeError
from biograd.estimators import ESTIMATORS, Estimator
from biograd.networks import build, substrate

OWN_REASONS = {
    ("three_factor", "local losses"): "leave local out",
    ("three_factor", "spiking local"): "leave local out",
    ("decoupling", "spiking"): "cannot keep spikes as targets",
    ("decoupling", "spiking recurrent"): "cannot keep spikes as targets",
    ("synthetic_gradient", "local losses"): "nothing to predict",
    ("synthetic_gradient", "spiking local"): "nothing to predict",
    ("decoupling", "own equations"): "cannot keep spikes as targets",
    ("decoupling", "circuit"): "cannot keep spikes as targets",
    ("ottt", "event-driven"): "runs through time by itself",
    ("sltt", "event-driven"): "runs through time by itself",
    ("unitwise", "event-driven"): "exact spike times have no surrogate derivative",
    ("decoupling", "event-driven"): "an event-driven block passes on lists of spike times",
    ("predictive_coding", "event-driven"): "an event-driven block passes on lists of spike times",
    ("gain", "event-driven"): "an event-driven block passes on lists of spike times",
}
"""What rules refuse beside what they declare to need of a substrate."""


@functools.cache
def capabilities(simulator: str, network: str) -> frozenset[str]:
    made = build(compatibility.tiny(simulator, network), compatibility.SHAPE, compatibility.CLASSES)
    return substrate(made).capabilities


def missing(rule: str, cell: Compatibility) -> set[str]:
    """Return what the rule needs and the substrate of the cell cannot do."""
    return set(ESTIMATORS[rule].needs - capabilities(cell.substrate, cell.network))


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_every_cell_is_what_the_rule_declares(rule: str) -> None:
    cells = compatibility.fill([rule])
    assert [(cell.substrate, cell.network) for cell in cells] == compatibility.columns()
    for cell in cells:
        assert cell.status != "broken", cell
        assert (cell.status == "works") is (cell.reason == "") and "\n" not in cell.reason
        if cell.substrate == compatibility.USER:  # see test_accounting
            continue
        if cell.status == "no network":
            alone = cell.network in compatibility.BRIAN2_ALONE
            assert cell.reason and (cell.substrate != "torch" or alone)
            continue
        lacking = missing(rule, cell)
        own = OWN_REASONS.get((rule, cell.network), "")
        if lacking:
            assert cell.status == "refused", cell
            assert all(capability in cell.reason for capability in lacking)
        elif cell.network == "batch norm" and not ESTIMATORS[rule].batch_norm:
            assert "ties the examples of a batch together" in cell.reason
        elif own:
            assert own in cell.reason
        else:
            assert cell.status == "works", cell


@pytest.mark.parametrize("rule", ["backprop", "weak", "frozen_hidden"])
def test_what_works_has_gradients_in_all_its_layers(rule: str) -> None:
    for cell in compatibility.fill([rule]):
        if cell.status != "works" or cell.substrate == compatibility.USER:
            continue
        made = build(
            compatibility.tiny(cell.substrate, cell.network),
            compatibility.SHAPE,
            compatibility.CLASSES,
        )
        sites = made.sites if ESTIMATORS[rule].learns_hidden else made.sites[-1:]  # type: ignore[index]
        assert list(cell.gradients) == [name for site in sites for name in site.modules]
        assert all(0 < norm < math.inf for norm in cell.gradients.values())
        assert 1 <= cell.steps <= compatibility.STEPS


def test_all_networks_can_be_had_and_no_rule_works_nowhere() -> None:
    cells = compatibility.fill(["backprop", "weak"])
    built = {(cell.substrate, cell.network) for cell in cells if cell.status != "no network"}
    known = {*compatibility.NETWORKS, *compatibility.USERS}
    assert {network for _, network in built} == known == set(LABELS) - {"yours"}  # given by --model
    assert {name for name, _ in built} == {*compatibility.SUBSTRATES, compatibility.USER}


# Rules that do not work ---------------------------------------------------------------------------


class GivesNothing(Estimator):
    """Cut behind every hidden site, and forget to deliver credit."""

    needs: frozenset[Capability] = frozenset(("loss", "cut"))

    def plans(self, round: Round) -> Sequence[Plan]:
        return (Plan(cut=frozenset(round.hidden)),)


class Divides(GivesNothing):
    """Deliver what is not a number."""

    def credit(self, traces: Sequence[Trace], round: Round) -> Iterator[tuple[Tensor, Tensor]]:
        for name in round.hidden:
            current = traces[0].sites[name].current()
            yield from traces[0].sites[name].deliver(current / 0 * 0)


class Fails(GivesNothing):
    """Fail with an error of another kind."""

    def plans(self, round: Round) -> Sequence[Plan]:
        raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("rule", "words"),
    [(GivesNothing, "no gradient in 8 steps"), (Divides, "no gradient"), (Fails, "two lines")],
)
def test_a_rule_that_does_not_work_is_found(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rule: type[Estimator],
    words: str,
) -> None:
    monkeypatch.setitem(ESTIMATORS.own, "odd", rule)
    cells = [c for c in compatibility.fill(["odd"]) if c.status not in ("no network", "refused")]
    assert cells and all(cell.status == "broken" and words in cell.reason for cell in cells)
    assert main(["matrix", "--rule", "odd", "--quiet"]) == 3
    printed = capsys.readouterr()
    assert "!1" in printed.out and printed.err.count("\n") == 1
    assert "are broken, the first: odd on torch, dense" in printed.err


# The command --------------------------------------------------------------------------------------


def test_the_command_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["backprop", "frozen_hidden"]
    assert main(["matrix", "--quiet", "--rule", "backprop", "--rule", "frozen_hidden"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(rule) for line in lines) for rule in rules)
    assert "RULE needs vjp, which the substrate 'brian2' cannot do" in printed
    assert main(["matrix", "--quiet", "--rule", "backprop", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["cells"]) == len(compatibility.columns())
    assert {cell["rule"] for cell in record["cells"]} == {"backprop"}


def test_the_table_fits_however_many_rules_there_are() -> None:
    cells = [
        Compatibility(rule, substrate, network, "refused", f"{rule} does not")
        if place % 3
        else Compatibility(rule, substrate, network)
        for rule in ESTIMATORS
        for place, (substrate, network) in enumerate(compatibility.columns())
        if network.startswith("spiking")
        or (substrate == "torch" and network not in compatibility.BRIAN2_ALONE)
    ]
    written = text(cells)
    assert max(map(len, written.splitlines())) <= 100
    assert written.count("✓") - 1 == sum(cell.status == "works" for cell in cells)


def test_a_misspelt_rule_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="did you mean 'weak'"):
        compatibility.fill(["waek"])
    assert main(["matrix", "--rule", "waek"]) == 2  # before it says what it will do
    assert capsys.readouterr().err.count("\n") == 1
