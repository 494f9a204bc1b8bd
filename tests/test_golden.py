"""What was recorded of networks and rules is what they still do."""

from __future__ import annotations

from collections.abc import Iterator

import golden
import pytest

from biograd.estimators import ESTIMATORS

FAST = ("backprop", "direct_feedback", "weak", "decoupling")
FAST_RUNS = ("ann-backprop", "spiking-weak", "ann_recurrent-eprop", "circuit-direct_feedback")
CONTROLS = ("ann", "spiking_snntorch", "circuit", "spiking_float32")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import brian2

    kept = brian2.prefs.codegen.target
    golden.quiet()
    yield
    brian2.prefs.codegen.target = kept


def differences(cells: Iterator[tuple[str, golden.Cell]]) -> list[str]:
    old, found = golden.recorded(), []
    for key, cell in cells:
        state, text = golden.verdict(key, cell, old.get(key, {}))
        found += [f"{key}: {text}"] if state == "DIFFERS" else []
    return found


@pytest.mark.parametrize("name", golden.NETWORKS)
def test_networks_and_a_few_rules_do_as_recorded(name: str) -> None:
    assert not differences(golden.table([name], FAST))


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.NETWORKS)
def test_all_rules_do_as_recorded(name: str) -> None:
    assert not differences(golden.table([name], [r for r in ESTIMATORS if r not in FAST]))


def test_runs_of_before_go_on_as_recorded() -> None:
    found = dict(golden.all_continued(FAST_RUNS))
    assert len(found) == len(FAST_RUNS) and not differences(iter(found.items()))


@pytest.mark.slow
def test_all_runs_of_before_go_on_as_recorded() -> None:
    found = dict(golden.all_continued())
    assert len(found) == len(golden.RUN_NETWORKS) * len(golden.RUN_RULES)
    assert not any("refused" in cell for cell in found.values())
    assert not differences(iter(found.items()))


@pytest.mark.parametrize(
    "name",
    [n if n in CONTROLS else pytest.param(n, marks=pytest.mark.slow) for n in golden.NETWORKS],
)
def test_the_comparison_sees_a_change_of_one_weight(name: str) -> None:
    state, text = golden.verdict(name, golden.tried(name, "", 1e-3), golden.recorded()[name])
    assert state == "DIFFERS" and text
    found = golden.tried(name, "backprop", 1e-3)
    state, text = golden.verdict(name, found, golden.recorded()[f"{name} / backprop"])
    assert state == "DIFFERS" and text


@pytest.mark.parametrize(
    "change", [{"refused": "CapabilityError: another"}, {}, {"passes": 2}, {"tensors": {}}]
)
def test_the_comparison_sees_other_refusals_names_and_passes(change: golden.Cell) -> None:
    old = golden.recorded()["ann / backprop"]
    refused = golden.recorded()["spiking / decoupling"]
    new = change if "refused" in change or not change else old | change
    assert golden.verdict("ann / backprop", new, old)[0] == "DIFFERS"
    assert golden.verdict("spiking / decoupling", new, refused)[0] == "DIFFERS"
