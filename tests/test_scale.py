"""The cost model of tests/benchmarks/scale.py: its counts are those of real steps."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

import biograd
from biograd import ranks
from biograd.data import Arrays
from biograd.estimators import ESTIMATORS
from biograd.recipes import TrainingRecipe
from biograd.recording.costs import operations
from biograd.training import Trainer

sys.path.append(str(Path(__file__).parent / "benchmarks"))  # the last place: it hides nothing
import scale
import scale_model as model
from scale_model import PERTURBING, RULES, Case, Link

CONSTANTS = scale.kept()["nanoseconds"]
LINK = Link("any", 1e-4, 1e9)
SMALL = [
    Case(rule, kind, 5 if rule in PERTURBING else 1, 6, (7, 5), steps, 9, 4)  # type: ignore[arg-type]
    for rule in RULES
    for kind, steps in (("rate", 1), ("spiking", 4))
]


def names(case: Case) -> str:
    return f"{case.rule} {case.kind}"


def trainer(case: Case, batches: int) -> Trainer:
    split = Arrays(*scale.batch(case, batches * case.batch))
    recipe = TrainingRecipe(epochs=1, batch_size=case.batch)
    return Trainer(scale.engine(case), recipe, split, seed=0)


# What is counted, against what runs --------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_forward_passes_are_those_of_a_training(case: Case) -> None:
    run = trainer(case, batches=3)
    list(run.steps())
    assert run.passes == 3 * case.passes


@pytest.mark.parametrize(("rule", "copies"), [("weak", 9), ("weight_perturbation", 5)])
def test_forward_passes_are_those_of_the_summary(rule: str, copies: int, tmp_path: Path) -> None:
    settings = [f"estimators.{rule}.copies={copies}", "dataset.training_examples=100"]
    settings = [*settings, "training.passes=2000", "training.batch_size=25"]
    path = tmp_path / "run.h5"
    run = biograd.train("ann", "digits", estimator=rule, path=path, settings=settings)
    steps, rest = divmod(run.summary["forward_passes"], Case(rule, copies=copies, batch=25).passes)
    assert rest == 0 and steps == -(-2000 // (copies * 25))


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_the_network_has_as_many_parameters(case: Case) -> None:
    parameters = scale.engine(case).network.parameters()
    assert sum(one.numel() for one in parameters) == case.parameters


def test_multiply_accumulates_are_those_of_the_network() -> None:
    rate, spiking = Case(hidden=(12, 7), inputs=9), Case("weak", "spiking", 5, 3, (12, 7), 4, 9)
    found = operations(scale.engine(rate).network, scale.batch(rate)[0])
    assert found.multiply_accumulates == sum(model.multiply_accumulates(rate))
    found = operations(scale.engine(spiking).network, scale.batch(spiking)[0])
    assert found.multiply_accumulates == model.multiply_accumulates(spiking)[0]


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_every_kind_of_work_has_a_measured_constant(case: Case) -> None:
    assert set(model.work(case)) <= set(CONSTANTS)
    assert set(model.work(replace(case, kind="brian2"))) <= set(CONSTANTS)
    assert model.seconds(CONSTANTS, model.work(case)) > 0


@pytest.mark.filterwarnings("default")  # of torch's profiler
@pytest.mark.parametrize(
    "case",
    [
        Case("backprop", "rate", 1, 512, (64, 64)),
        Case("weak", "spiking", 9, 64, (64, 64), 20),
        Case("weight_perturbation", "rate", 5, 4, (400, 400)),
    ],
    ids=names,
)
def test_the_peak_is_that_of_the_allocator(case: Case) -> None:
    measured = scale.allocated(case)
    assert 4 * model.peak(case) == pytest.approx(measured, rel=0.1)
    without = replace(case, batch=case.batch // 2, copies=max(1, case.copies // 2))
    if case.rule != "weight_perturbation":
        assert 4 * model.peak(without) != pytest.approx(measured, rel=0.1)


# What the ranks exchange -------------------------------------------------------------------------


class Done:
    """An exchange that has ended."""

    def wait(self, _timeout: object = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Join this process to one that does the same, and that no message reaches."""

    def gather(found: list[torch.Tensor], values: torch.Tensor, async_op: bool) -> Done:
        for one in found:
            one.copy_(values)
        return Done()

    monkeypatch.setattr(ranks.HERE, "world", ranks.World(0, 2, None))
    monkeypatch.setattr(distributed, "all_reduce", lambda values, async_op: Done())
    monkeypatch.setattr(distributed, "broadcast", lambda values, source, async_op: Done())
    monkeypatch.setattr(distributed, "all_gather", gather)


@pytest.mark.parametrize("case", SMALL, ids=names)
@pytest.mark.usefixtures("twin")
def test_traffic_is_what_is_counted(case: Case) -> None:
    run = trainer(case, batches=3)
    steps, way = run.steps(), scale.way(case)
    for _ in range(2):  # after the last step of an epoch, random streams are compared as well
        before = ranks.traffic()
        next(steps)
        assert ranks.traffic() - before == sum(model.traffic(case, way, 2).values())
    other: model.Way = "examples" if way == "copies" else "copies"
    assert sum(model.traffic(case, other, 2).values()) != ranks.traffic() - before


@pytest.mark.parametrize("way", ["examples", "copies", "sums"])
def test_a_rank_alone_exchanges_nothing(way: model.Way) -> None:
    case = Case("weight_perturbation", copies=9)
    assert model.traffic(case, way, 1) == {}
    assert model.exchange(case, way, 1, LINK) == model.wire(1000, 1) == 0
    alone = model.seconds(CONSTANTS, model.work(case))
    assert model.step(CONSTANTS, case, way, 1, LINK) == pytest.approx(alone, rel=1e-12)
    assert model.exchange(case, way, 2, LINK) > 0


def test_copies_send_losses_and_no_gradient() -> None:
    small, large = (Case("weight_perturbation", copies=9, hidden=(h, h)) for h in (10, 1000))
    assert model.traffic(small, "copies", 2) == model.traffic(large, "copies", 2)
    assert model.traffic(large, "sums", 2)["gradient"] > 4 * large.parameters
    assert model.wire(1000, 2) == 1000 and model.wire(1000, 1000) == pytest.approx(1998)


# How it grows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL, ids=names)
def test_more_of_anything_takes_longer(case: Case) -> None:
    more = {"batch": 60, "hidden": (70, 50), "inputs": 90}
    more |= {"copies": 51} if case.rule in PERTURBING else {}
    more |= {"steps": 40} if case.kind == "spiking" else {}
    for name, value in more.items():
        larger = replace(case, **{name: value})  # type: ignore[arg-type]
        times = [model.seconds(CONSTANTS, model.work(one)) for one in (case, larger)]
        assert times[0] < times[1], name
        assert model.peak(case) <= model.peak(larger), name


@pytest.mark.parametrize(
    ("rule", "way"),
    [
        *((rule, "examples") for rule in RULES),
        *(("weight_perturbation", way) for way in ("copies", "sums")),
    ],
)
def test_shares_get_smaller_and_are_all_of_it(rule: str, way: model.Way) -> None:
    case = Case(rule, "rate", 65 if rule in PERTURBING else 1, 48, (20, 20))
    counts = (1, 2, 3, 8, 64, 1024)
    shares = [model.share(case, way, count) for count in counts]
    times = [model.seconds(CONSTANTS, share) for share in shares]
    assert times == sorted(times, reverse=True)
    whole = shares[0]["multiply-accumulate"]
    for count, share in zip(counts, shares, strict=True):
        assert count * share["multiply-accumulate"] >= whole
    assert model.share(case, way, 1) == model.work(case)


def test_what_every_rank_draws() -> None:
    """The noise of the whole batch, or the directions of the whole gradient, do not divide."""
    weak = Case("weak", copies=17)
    assert model.share(weak, "examples", 8)["number drawn"] == 16 * weak.batch * weak.units
    copies = Case("weight_perturbation", copies=17)
    drawn = {way: model.share(copies, way, 8)["number drawn"] for way in ("copies", "sums")}  # type: ignore[arg-type]
    assert drawn == {"copies": (2 + 8) * copies.parameters, "sums": (2 + 1) * copies.parameters}


@pytest.mark.parametrize("rule", PERTURBING)
@pytest.mark.parametrize("wanted", [0.1, 0.5, 0.9])
def test_copies_are_enough_and_no_more(rule: str, wanted: float) -> None:
    case = Case(rule, copies=3, hidden=(100, 100))
    copies = model.copies_for(case, wanted)
    fewer = copies - (2 if rule == "weight_perturbation" else 1)
    assert model.cosine(replace(case, copies=copies)) >= wanted
    assert model.cosine(replace(case, copies=fewer)) < wanted


# The fit and the page ----------------------------------------------------------------------------


def test_the_fit_finds_the_constants() -> None:
    cases = scale.fitted()
    amounts = [model.work(case) for case in cases]
    # what is always there together can only be told apart by its sum
    asked = {**CONSTANTS, "number drawn": 3.0}
    times = [model.seconds(asked, one) for one in amounts]
    found = scale.fit(amounts, times, known={})
    assert np.allclose([found[name] for name in found], [asked[name] for name in found], rtol=1e-4)
    partial: list[dict[str, float]] = [
        {k: v for k, v in one.items() if k != "layer of a copy"} for one in amounts
    ]
    wrong = scale.fit(partial, times, known={})
    assert not np.allclose([wrong[name] for name in wrong], [asked[name] for name in wrong])


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "cli" / "SCALE.md").read_text(encoding="utf-8")


def test_the_page_shows_what_is_computed_from_the_kept_constants(page: str) -> None:
    lines = set(page.splitlines())
    computed = "\n".join(scale.simulated(CONSTANTS)).splitlines()
    assert len(computed) > 80
    assert [line for line in computed if line and line not in lines] == []
    for name, value in CONSTANTS.items():
        assert f"{value:.4g}" in page, name


def test_the_page_names_rules_that_exist(page: str) -> None:
    wide = [line for line in page.splitlines() if line.startswith("| `")]
    rules = {line.split("`")[1] for line in wide}
    assert rules == set(RULES) <= set(ESTIMATORS)
    words = {word for word in re.findall(r"`([a-z_]+)`", page) if "_" in word}
    assert words <= set(ESTIMATORS), words - set(ESTIMATORS)
    parts = set(re.findall(r"`(\w+)`", page.split("## The model")[0])) - set(ESTIMATORS)
    assert parts == {"times", "allocator", "memory", "traffic", "shares", "quality", "simulate"}


def test_the_page_names_files_that_exist(page: str, root: Path) -> None:
    paths: set[Any] = set(re.findall(r"(?:tests|models)/[\w/.]+\.\w+", page))
    assert len(paths) >= 4
    assert [path for path in paths if not (root / path).is_file()] == []
