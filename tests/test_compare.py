"""Comparisons: the grid, what is paired with what, what stands in the folder, what survives."""

from __future__ import annotations

import csv
import html
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import biograd
from biograd import recipes, studies
from biograd.__main__ import main
from biograd.commands import console
from biograd.errors import BiogradError, RecipeError, RunFileError
from biograd.metrics import Shown
from biograd.plots.panel import files, paper
from biograd.progress import Progress
from biograd.studies import Place, Report, comparing, study_folder
from biograd.studies.design import Trainings
from biograd.studies.grid import Cell, Grid, expand
from biograd.studies.results import page, panels, set_file
from biograd.studies.results.comparison import Comparison, report

FAST = ("--epochs", "1", "--workers", "1", "--quiet")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(console, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two rules with two seeds, and its control."""
    where = tmp_path_factory.mktemp("compare") / "out"
    found = invoke(
        "compare", "--models", "ann", "--estimators", "backprop,weak", "--seeds", 2, *FAST,
        "--out", where, "--title", "Two <b>rules</b>",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    return where


# The grid -----------------------------------------------------------------------------------------


def test_a_grid_is_the_product_and_its_controls() -> None:
    grid = Grid(("ann", "spiking"), (), ("backprop", "weak"), ("off", "kappa"))
    cells = expand(grid, "ann", "digits", None)
    assert [cell.name for cell in cells] == [
        *(
            f"{model} · {rule} · decorrelation {decorrelation}"
            for model in ("ann", "spiking")
            for rule in ("backprop", "weak")
            for decorrelation in ("off", "kappa")
        ),
        *(
            f"{model} · frozen hidden · decorrelation {decorrelation}"
            for model in ("ann", "spiking")
            for decorrelation in ("off", "kappa")
        ),
    ]
    assert cells[1].assignments == cells[-1].assignments == ("decorrelation.rule=kappa",)
    assert [cell.control for cell in cells] == [False] * 8 + [True] * 4
    assert set(cells[0].factors) == {"model", "estimator", "decorrelation"}


def test_what_does_not_vary_is_not_named() -> None:
    (one, control) = expand(Grid(("ann",)), "spiking", "digits", "weak")
    assert (one.name, one.estimator, one.factors) == ("ann", "weak", {})
    assert control.name == "frozen hidden" and control.model == "ann"
    assert len(expand(Grid(("ann",), control=False), "ann", "digits", None)) == 1


def test_a_listed_control_is_not_made_twice() -> None:
    cells = expand(Grid(("ann",), (), ("weak", "frozen_hidden")), "ann", "digits", None)
    assert [cell.name for cell in cells] == ["weak", "frozen hidden"]


def test_cells_can_be_listed() -> None:
    table = comparing.study(cells=["ann:backprop", "spiking:weak:off"], datasets=["digits"])
    cells = recipes.construct(
        Trainings, {k: v for k, v in table.items() if k != "kind"}, "study"
    ).lines()
    assert [cell.name for cell in cells] == [
        "ann · backprop",
        "spiking · weak · off",
        "ann · frozen hidden",
        "spiking · frozen hidden",
    ]
    assert cells[1].assignments == ("decorrelation.rule=off",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid": {"models": ["ann", "ann"]}}, "'ann' is named twice"),
        ({"grid": {"models": ["an"]}}, "did you mean 'ann'"),
        ({"grid": {"models": ["ann"], "estimators": ["weka"]}}, "did you mean 'weak'"),
        ({"grid": {"models": ["ann"], "datasets": ["digit"]}}, "did you mean 'digits'"),
        ({"grid": {"modles": ["ann"]}}, "did you mean 'models'"),
        ({"grid": {"models": ["ann"]}, "baseline": "an"}, "did you mean 'ann'"),
        ({"grid": {"models": ["ann"]}, "seeds": [1, 1]}, "seeds"),
        ({"grid": {"models": ["ann"]}, "seeds": []}, "seeds"),
        ({"grid": {"models": ["ann"]}, "seeds": [-1]}, "seeds"),
        ({}, "no cells"),
        ({"cells": {"a b": {}, "a_b": {}, "a-b": {}}}, "same file"),
        ({"cells": {"ann": {}}, "grid": {"models": ["ann"]}}, "two cells"),
        ({"cells": {"a": 3}}, "cells.a = 3"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as found:
        recipes.construct(Trainings, settings, "study").lines()
    assert words in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--models"),
        (("--models", "ann,,spiking"), "commas"),
        (("--models", "ann", "--seeds", "x"), "number of seeds"),
        (("--models", "ann", "--cells", "ann:weak"), "or give models"),
        (("--cells", "ann"), "MODEL:ESTIMATOR"),
        (("--cells", "ann:weak,ann:weak"), "given twice"),
        (("--cells", "ann:weka"), "did you mean 'weak'"),
        (("--models", "ann", "--seeds", "0"), "number of seeds"),
        (("--models", "ann", "--epochs", "1", "--passes", "9"), "one budget"),
        (("--models", "ann", "--epochs", "1", "--set", "training.epochs=2"), "one budget"),
        (("--models", "ann", "--epochs", "1", "--tune", "training.epochs=1..4"), "one budget"),
        (("--models", "ann", "--decorrelate", "off", "--set", "decorrelation.rule=copi"), "one"),
        (("--resume", "nowhere", "--epochs", "0"), "leave --epochs away"),
        (("--resume", "nowhere"), "no study was begun there"),
        (("--resume", "nowhere", "--models", "ann"), "leave --models away"),
        (("--resume", "nowhere", "--dataset", "digits"), "leave --dataset away"),
        (("--models", "ann", "--engine", "locla"), "'local'"),
        (("--models", "ann", "--job", "time=3"), "submitit"),
        (("--models", "ann", "--address", "tcp://x"), "dask"),
        (("--models", "ann", "--set", "training.epoch=3"), "'epochs'"),
        (("--models", "ann", "--baseline", "weak"), "(known: ann"),
    ],
)
def test_mistakes_at_the_console(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()
    assert words in line[-1]
    assert not list(tmp_path.rglob("*.h5"))


# What is said -------------------------------------------------------------------------------------


def summaries(*accuracies: float) -> dict[int, dict[str, Any]]:
    return {
        seed: {
            "run": f"x{seed}.h5",
            "test_accuracy": accuracy,
            "train_accuracy": accuracy,
            "seconds": 1.0,
            "synaptic_operations": None,
            "multiply_accumulates": 10.0 * seed,
        }
        for seed, accuracy in enumerate(accuracies)
    }


def compared(found: dict[str, Any], **factors: dict[str, str]) -> Report:
    cells = [Cell(name, "ann", "digits", factors=factors.get(name, {})) for name in found]
    return report(Comparison(cells, (0, 1, 2), found, next(iter(found))))


def test_differences_are_paired_by_seed() -> None:
    """A seed that one cell lacks does not enter the difference."""
    first, second = summaries(0.90, 0.80, 0.70), summaries(0.92, 0.83, 0.71)
    del second[1]
    rows = compared({"a": first, "b": second}).rows
    assert rows[1]["difference"] == pytest.approx(1.5)  # 2 and 1 points, not the means' 1.5 + 0
    assert rows[1]["pairs"] == 2 and rows[0]["n"] == 3 and rows[1]["n"] == 2
    assert rows[1]["test"] == pytest.approx(81.5)
    assert rows[0]["multiply_accumulates"] == 10.0 and rows[0]["synaptic_operations"] is None


def test_contrasts_average_over_the_other_axis() -> None:
    accuracy = {
        ("ann", "off"): (0.90, 0.91, 0.95),
        ("ann", "on"): (0.92, 0.92, 0.97),
        ("snn", "off"): (0.80, 0.83, 0.85),
        ("snn", "on"): (0.86, 0.87, 0.88),
    }
    found = {f"{m} {d}": summaries(*values) for (m, d), values in accuracy.items()}
    factors = {f"{m} {d}": {"model": m, "decorrelation": d} for m, d in accuracy}
    contrasts = compared(found, **factors).tables["contrasts"]
    by_axis = {row["axis"]: row for row in contrasts}
    assert by_axis["model"]["against"] == "ann" and by_axis["model"]["cells"] == 2
    per_seed = [
        ((0.80 + 0.86) - (0.90 + 0.92)) / 2,
        ((0.83 + 0.87) - (0.91 + 0.92)) / 2,
        ((0.85 + 0.88) - (0.95 + 0.97)) / 2,
    ]
    assert by_axis["model"]["difference"] == pytest.approx(100 * sum(per_seed) / 3)
    assert by_axis["decorrelation"]["difference"] == pytest.approx(100 * (0.09 + 0.09) / 6)
    assert by_axis["model"]["pairs"] == 3


def test_a_cell_without_runs_leaves_the_others_be() -> None:
    rows = compared({"a": summaries(0.9, 0.8), "b": {}, "c": summaries(0.7, 0.7)}).rows
    assert [row["n"] for row in rows] == [2, 0, 2] and "test" not in rows[1]
    assert rows[2]["difference"] == pytest.approx(-15)
    assert all(row["n"] == 0 for row in compared({"a": {}, "b": {}}).rows)


# What stands in the folder ------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_agree_with_the_run_files(done: Path) -> None:
    runs = rows_of(done / "runs.csv")
    assert len(runs) == 6
    for row in runs:
        with biograd.load(done / row["run"]) as run:
            assert run.summary["test_accuracy"] == float(row["test_accuracy"])
            assert run.attributes["seed"] == int(row["seed"])
    results = json.loads((done / "results.json").read_text())
    by_cell = {row["cell"]: row for row in results["rows"]}
    weak = [float(row["test_accuracy"]) for row in runs if row["cell"] == "weak"]
    backprop = [float(row["test_accuracy"]) for row in runs if row["cell"] == "backprop"]
    assert by_cell["weak"]["test"] == pytest.approx(50 * sum(weak))
    difference = 50 * (sum(weak) - sum(backprop))
    assert by_cell["weak"]["difference"] == pytest.approx(difference)
    flat = {row["cell"]: row for row in rows_of(done / "results.csv")}
    assert float(flat["weak"]["interval_low"]) == by_cell["weak"]["interval"][0]
    courses = rows_of(done / "courses.csv")
    assert len(courses) == 6 and {row["epoch"] for row in courses} == {"1"}


def test_seeds_share_the_order_and_the_beginning(done: Path) -> None:
    """Both rules start from the same weights: the norms of the first snapshot are equal."""
    for seed in (0, 1):
        norms = []
        for rule in ("backprop", "weak", "frozen-hidden"):
            with biograd.load(done / f"{rule}-seed{seed}.h5") as run:
                norms.append({name: values["norm"][0] for name, values in run.params.items()})
        assert norms[0] == norms[1] == norms[2]
        assert any(norms[0].values())


def test_the_set_file_opens_every_run(done: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(done)
    for where in (done, moved / "set.h5"):
        found = biograd.load_set(where)
        assert set(found.runs) == {
            (cell, seed) for cell in ("backprop", "weak", "frozen hidden") for seed in (0, 1)
        }
        with found.open("weak", 1) as run:
            accuracy = run.summary["test_accuracy"]
        table = found.tables["runs"]
        place = [(c, s) for c, s in zip(table["cell"], table["seed"], strict=True)].index(
            ("weak", 1)
        )
        assert table["test_accuracy"][place] == accuracy
        assert found.configuration["grid"]["estimators"] == ["backprop", "weak"]
        printed = repr(found).splitlines()
        results = found.tables["results"]
        assert len(printed) == 5 and f"{results['test'][1]:.2f}" in printed[3]
        assert "weak" in printed[3] and "difference" in printed[1] and "nan" not in repr(found)
    with h5py.File(done / "set.h5") as file:  # as another program reads it
        epochs = file["runs/weak/seed0/scalars/epoch/test_accuracy"][...]
        assert len(epochs) == 1
        assert math.isnan(file["tables/results/p"][0])  # the baseline has none
    with pytest.raises(RunFileError, match="no run of 'week'"):
        found.open("week", 0)


def test_a_set_prints_whatever_its_tables_hold() -> None:
    named = {"cell": np.array(["a\x1b[31m", "b"], dtype=object), "test": np.array([np.nan])}
    for tables in ({}, {"results": {}}, {"results": named}, {"results": {"test": named["cell"]}}):
        printed = repr(set_file.RunSet(Path("set.h5"), {}, {}, tables))
        assert printed.startswith("RunSet of 0 runs") and "\x1b" not in printed
    assert len(repr(set_file.RunSet(Path("set.h5"), {}, {}, {"results": named})).splitlines()) == 3


def test_files_that_are_no_set(done: Path, tmp_path: Path) -> None:
    for path, words in (
        (done / "weak-seed0.h5", "not a set"),
        (tmp_path / "none.h5", "no such set"),
        (tmp_path, "no such set"),
    ):
        with pytest.raises(RunFileError, match=words):
            biograd.load_set(path)
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    with pytest.raises(RunFileError, match="not an HDF5 file"):
        biograd.load_set(text)
    with pytest.raises(RunFileError, match="load_set"):
        biograd.load(done / "set.h5")


def test_inspect_shows_a_set(done: Path) -> None:
    found = invoke("inspect", done / "set.h5", "--json")
    assert found.exit_code == 0, found.output
    runs = json.loads(found.stdout)["runs"]
    assert len(runs) == 6 and all(run["found"] for run in runs)
    text = invoke("inspect", done).stdout
    assert "weak-seed1.h5" in text and "missing" not in text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for k, v in attributes if k in ("src", "href")]


def test_the_page_needs_nothing_else(done: Path) -> None:
    text = (done / "report.html").read_text(encoding="utf-8")
    found = Tags()
    found.feed(text)
    assert {"table", "svg", "h1"} <= set(found.tags) and "script" not in found.tags
    assert "<b>rules" not in text and html.escape("Two <b>rules</b>") in text
    kinds = ("#", "data:", "./")
    assert found.sources and all(source.startswith(kinds) for source in found.sources)
    linked = {source[2:] for source in found.sources if source.startswith("./")}
    assert len(linked) == 6 and all((done / name).is_file() for name in linked)
    assert "frozen hidden" in text and "biograd run" in text


def test_hostile_names_are_escaped() -> None:
    name = "<script>alert(1)</script>"
    found = compared({name: summaries(0.9, 0.8), "b & c": summaries(0.7, 0.6)})
    for run in found.tables["runs"]:
        run |= {"dataset": name, "estimator": name}
    bad = [{"training": name, "reason": name}]
    text = page.page(
        name,
        Report(found.columns, found.rows, [name], found.tables, bad),
        {name: name},
        {},
        panels.panels(found.rows, found.tables["runs"], [], Shown()),
        name,
    )
    tags = Tags()
    tags.feed(text)
    assert "script" not in tags.tags and "&lt;script&gt;" in text


def test_pictures_are_made_and_repeat(done: Path) -> None:
    for ending, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert (done / f"comparison.{ending}").read_bytes().startswith(magic)
    found = compared({"a": summaries(0.9, 0.8), "b": summaries(0.7, 0.6)})
    for run in found.tables["runs"]:
        run["estimator"] = "weak"
    curves = [{"cell": "a", "seed": 0, "epoch": 1, "value": 50.0}]
    once, again = (
        files(paper(panels.panels(found.rows, found.tables["runs"], curves, Shown())), ENDINGS)
        for _ in range(2)
    )
    assert once == again and set(once) == set(ENDINGS)
    assert panels.panels([{"cell": "a", "n": 0}], [], [], Shown()) == []


ENDINGS = ("pdf", "png", "svg")


# Going on -----------------------------------------------------------------------------------------


def conduct(folder: Path, table: dict[str, Any]) -> Report:
    return studies.run(table, folder / studies.SAVED, Place(folder), Progress())


STUDY: dict[str, Any] = {
    "kind": "training",
    "seeds": [0],
    "set": ["training.epochs=1"],
    "cells": {
        "good": {"estimator": "backprop"},
        "poisoned": {"estimator": "weak", "set": ["training.learning_rate=1e30"]},
        "impossible": {"estimator": "weak", "set": ["estimators.weak.copies=1"]},
        "also good": {"estimator": "frozen_hidden"},
    },
}


def test_what_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    found = conduct(tmp_path, STUDY)
    assert [row["n"] for row in found.rows] == [1, 0, 0, 1]
    reasons = {one["training"]: one["reason"] for one in found.failures}
    assert "not finite" in reasons["poisoned, seed 0"]
    assert "copies = 1" in reasons["impossible, seed 0"]
    assert all("\n" not in reason for reason in reasons.values())
    text = (tmp_path / "report.html").read_text()
    assert "Not trained" in text and "copies = 1" in text


def test_failures_end_with_exit_code_1_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(STUDY))
    code = main(["run", str(path), "--out", str(tmp_path / "out"), "-w", "1", "-q", "--json"])
    output = capsys.readouterr()
    assert code == 1 and len(output.err.strip().splitlines()) == 1
    assert "2 of 4 trainings failed" in output.err and "copies = 1" in output.err
    record = json.loads(output.out)
    assert len(record["rows"]) == 4 and len(record["failures"]) == 2


def test_resumed_it_is_equal_and_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"seeds": [0, 1], "set": ["training.epochs=1"], "grid": {"models": ["ann"]}}
    undisturbed = conduct(tmp_path / "one", table)
    part = {**table, "seeds": [0]}
    conduct(tmp_path / "two", part)
    (tmp_path / "two" / "frozen-hidden-seed0.json").unlink()  # killed before it was noted
    calls: list[Path] = []
    from biograd import experiment

    execute = experiment.execute

    def counted(request: Any, progress: Any = None) -> Any:
        calls.append(request.out)
        return execute(request, progress)

    monkeypatch.setattr(experiment, "execute", counted)
    found = conduct(tmp_path / "two", table)
    assert [path.name for path in calls] == ["ann-seed1.h5", "frozen-hidden-seed1.h5"]
    for one, other in zip(undisturbed.rows, found.rows, strict=True):
        assert one["test"] == other["test"] and one["n"] == other["n"] == 2
    again = invoke("compare", "--resume", tmp_path / "two", "--workers", 1, "--quiet", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["rows"][0]["n"] == 2
    assert len(calls) == 2


TABLE: dict[str, Any] = {
    "seeds": [0],
    "set": ["training.epochs=1"],
    "grid": {"models": ["ann"], "estimators": ["backprop", "frozen_hidden"]},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"set": ["training.epochs=2"]}, "'set'"),
        ({"grid": {**TABLE["grid"], "estimators": ["frozen_hidden", "weak"]}}, "'backprop'"),
        ({"tune": {"parameters": {"training.epochs": {"low": 1, "high": 2}}}}, "'tune'"),
    ],
)
def test_a_folder_keeps_its_study(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    study_folder.keep({"kind": "training", **TABLE}, tmp_path)
    before = (tmp_path / studies.SAVED).read_text()
    with pytest.raises(RecipeError, match="holds another study") as found:
        conduct(tmp_path, {**TABLE, **change})
    assert words in str(found.value)
    assert (tmp_path / studies.SAVED).read_text() == before
    study_folder.check({**TABLE, "seeds": [0, 1], "baseline": "frozen hidden"}, tmp_path)  # goes on


def test_a_printed_script_keeps_the_study_too(tmp_path: Path) -> None:
    study_folder.keep({"kind": "training", **TABLE}, tmp_path)
    found = invoke("compare", "--models", "ann", "--print-sbatch", "--out", tmp_path)
    assert isinstance(found.exception, RecipeError) and "another study" in str(found.exception)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"configuration": {}, "summary": {}}'])
def test_damaged_and_lost_files_are_named(text: str, tmp_path: Path) -> None:
    conduct(tmp_path, TABLE)
    note = tmp_path / "backprop-seed0.json"
    kept = note.read_text()
    note.write_text(text)
    with pytest.raises(RecipeError, match=r"backprop-seed0\.json: is damaged: delete it"):
        conduct(tmp_path, TABLE)
    note.write_text(kept)
    (tmp_path / "backprop-seed0.h5").unlink()
    with pytest.raises(RecipeError, match=r"is gone.*delete backprop-seed0\.json"):
        conduct(tmp_path, TABLE)


def test_one_process_works_in_a_folder(tmp_path: Path) -> None:
    with (
        study_folder.owned(tmp_path),
        pytest.raises(RecipeError, match="another process works in this folder"),
    ):
        conduct(tmp_path, TABLE)
    conduct(tmp_path, TABLE)


def test_no_table_of_an_earlier_study_stays(tmp_path: Path) -> None:
    conduct(tmp_path, TABLE)
    (tmp_path / "contrasts.csv").write_text("stale")
    conduct(tmp_path, TABLE)
    assert not (tmp_path / "contrasts.csv").exists()


def test_a_comparison_shows_the_rows_that_nothing_was_chosen_by(tmp_path: Path) -> None:
    found = conduct(tmp_path, {**TABLE, "set": [*TABLE["set"], "dataset.validation=0.2"]})
    assert found.columns["test"] == "test accuracy %"
    with biograd.load(next(tmp_path.glob("backprop*.h5"))) as run:
        unseen = 100 * run.summary["test"]["accuracy"]
        assert unseen != 100 * run.summary["test_accuracy"]
    assert found.rows[0]["test"] == pytest.approx(unseen)


def test_held_out_data_are_not_called_test(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = {
        f"{name}_{split}": values
        for split in ("train", "validation")
        for name, values in (("x", draw.normal(size=(40, 4))), ("y", np.arange(40) % 2))
    }
    np.savez(tmp_path / "mine.npz", **rows)
    grid = {**TABLE["grid"], "datasets": [str(tmp_path / "mine.npz")]}
    found = conduct(tmp_path / "held", {**TABLE, "grid": grid})
    assert found.columns["test"] == "validation accuracy %"


def test_every_data_set_has_its_own_baseline() -> None:
    values = {("a", "x"): 0.9, ("a", "y"): 0.8, ("b", "x"): 0.5, ("b", "y"): 0.4}
    found = {f"{d} {m}": summaries(v, v - 0.1, v + 0.01) for (d, m), v in values.items()}
    factors = {f"{d} {m}": {"dataset": d, "model": m} for d, m in values}
    result = compared(found, **factors)
    differences = [row.get("difference") for row in result.rows]
    assert differences == [None, pytest.approx(-10), None, pytest.approx(-10)]
    assert [row["axis"] for row in result.tables["contrasts"]] == ["model"]


def test_a_recipe_of_ones_own_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.toml").write_text(
        (recipes.shipped("models") / "ann.toml").read_text()
    )
    monkeypatch.chdir(tmp_path / "here")
    found = invoke(
        "compare", "--models", "mine.toml", "--seeds", 1, "--no-control", *FAST, "--out", "out"
    )
    assert found.exit_code == 0, found.output
    monkeypatch.chdir(tmp_path)
    again = invoke("compare", "--resume", "here/out", "-w", 1, "-q", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["rows"][0]["cell"] == "mine"


def test_a_task_of_a_job_array(tmp_path: Path) -> None:
    found = invoke(
        "compare", "--models", "ann", "--estimators", "backprop,weak", "--seeds", 2, *FAST,
        "--out", tmp_path / "out", "--print-sbatch", "--job", "time=10", "--engine", "submitit",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "#SBATCH --array=0-5" in found.stdout and not list(tmp_path.rglob("*.h5"))
    study = tmp_path / "out" / studies.SAVED
    code = main(["run", str(study), "--out", str(study.parent), "--task", "3", "-q"])
    assert code == 0
    assert [path.name for path in study.parent.glob("*.h5")] == ["backprop-seed1.h5"]
    note = json.loads((study.parent / "backprop-seed1.json").read_text())
    assert note["summary"]["peak_memory_bytes"] > 0  # it is alone in its process
    assert not (study.parent / "results.csv").exists()
    assert main(["run", str(study), "--out", str(study.parent), "--task", "6", "-q"]) == 2


def test_the_library_compares(tmp_path: Path) -> None:
    found = biograd.compare(
        ["ann"], ["backprop", "weak"], seeds=2, folder=tmp_path, settings=["training.epochs=1"]
    )
    assert isinstance(found, set_file.RunSet)
    assert list(found.tables["results"]["cell"]) == ["backprop", "weak", "frozen hidden"]
    with pytest.raises(BiogradError, match="copies = 1"):
        biograd.compare(
            ["ann"],
            ["weak"],
            seeds=1,
            folder=tmp_path / "bad",
            settings=["training.epochs=1", "estimators.weak.copies=1"],
        )
