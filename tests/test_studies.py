"""Studies: one TOML file becomes runs, a table and results; nothing is run twice."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from data_paths import shared_data

from biograd import recipes, studies
from biograd.__main__ import main
from biograd.commands import console
from biograd.errors import RecipeError
from biograd.progress import Progress
from biograd.studies import KINDS, Place
from biograd.studies.results.comparison import rank_correlation

STUDY = """
description = "Two rules"
model = "ann"
dataset = "digits"
seeds = [0, 1]
baseline = "backprop"
set = ["training.epochs=2"]

[cells.backprop]
estimator = "backprop"
published = 1.0

[cells."weak, 9 copies"]
estimator = "weak"
set = ["estimators.weak.copies=9"]
published = 3.0

[cells.frozen]
estimator = "frozen_hidden"
published = 9.0

[quick]
seeds = [0]
set = ["training.epochs=1"]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(console, [str(argument) for argument in arguments])


def conduct(study: Path, folder: Path, quick: bool = False) -> studies.Report:
    return studies.run(*studies.read(str(study), quick), Place(folder), Progress())


def test_a_study_prints_its_table_and_writes_results(study: Path, tmp_path: Path) -> None:
    found = invoke(
        "run", study, "--out", tmp_path / "out", "--quiet", "--json", "--quick", "--workers", 1
    )
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    rows = {row["cell"]: row for row in record["rows"]}
    assert list(rows) == ["backprop", "weak, 9 copies", "frozen"]
    assert "difference" not in rows["backprop"] and rows["frozen"]["difference"] < -10
    assert rows["frozen"]["lowest"] <= rows["frozen"]["test"] <= rows["frozen"]["highest"]
    assert any("rank correlation" in note for note in record["notes"])
    with (tmp_path / "out" / "results.csv").open() as file:
        assert [row["cell"] for row in csv.DictReader(file)] == list(rows)
    assert len(list((tmp_path / "out").glob("*-seed0.h5"))) == 3


def test_what_is_there_is_not_run_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = conduct(study, tmp_path / "out", quick=True)
    lost = tmp_path / "out" / "frozen-seed0.json"
    lost.unlink()  # as if killed between the run and the note of it
    monkeypatch.setattr("biograd.experiment.execute", None)
    again = conduct(study, tmp_path / "out", quick=True)
    assert lost.exists()
    for one, other in zip(first.rows, again.rows, strict=True):
        assert one["test"] == other["test"]


def test_other_settings_are_not_mixed_in(study: Path, tmp_path: Path) -> None:
    conduct(study, tmp_path / "out", quick=True)
    study.write_text(STUDY.replace("epochs=1", "epochs=2"))
    with pytest.raises(RecipeError, match="holds another study"):
        conduct(study, tmp_path / "out", quick=True)
    (tmp_path / "out" / studies.SAVED).unlink()
    with pytest.raises(RecipeError, match=r"seed0\.json: was made with other settings"):
        conduct(study, tmp_path / "out", quick=True)
    (tmp_path / "out" / "backprop-seed0.json").unlink()
    with pytest.raises(RecipeError, match=r"seed0\.h5: was made with other settings"):
        conduct(study, tmp_path / "out", quick=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs=2", "epoch=2"), "training.epoch"),
        (('estimator = "weak"', 'estimator = "weka"'), "'weak'"),
        (('baseline = "backprop"', 'baseline = "backpop"'), "'backprop'"),
        (("seeds = [0, 1]", "seed = [0, 1]"), "'seeds'"),
        (("published = 3.0", "publisched = 3.0"), "'published'"),
        (('model = "ann"', 'kind = "trainning"'), "'training'"),
    ],
    ids=["setting", "estimator", "baseline", "key", "cell", "kind"],
)
def test_mistakes_are_one_line(
    study: Path, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    study.write_text(STUDY.replace(*change))
    with pytest.raises(RecipeError) as found:
        conduct(study, tmp_path / "out")
    assert words in str(found.value) and "\n" not in str(found.value)


def test_an_unknown_study_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "no_such_study"]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert rank_correlation([1, 2, 3, 4], [0.1, 0.2, 5, 90]) == 1


def test_every_kind_is_there() -> None:
    assert KINDS
    for kind in KINDS.values():
        module = __import__(kind.module, fromlist=["run"])
        assert callable(module.run) and hasattr(module, kind.settings)


SHIPPED = recipes.names("cli")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_runs_shortened(name: str, tmp_path: Path) -> None:
    arguments = ["run", name, "--quick", "--quiet", "--json", "--out", str(tmp_path / "out")]
    arguments += ["--data-dir", str(shared_data("mnist").parent), "--offline"]
    found = subprocess.run(
        [sys.executable, "-m", "biograd", *arguments], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["rows"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_is_valid(name: str) -> None:
    assert SHIPPED
    for quick in (False, True):
        table, path = studies.read(name, quick)
        kind = KINDS[table.get("kind", "training")]
        module = __import__(kind.module, fromlist=["run"])
        given = {k: v for k, v in table.items() if k != "kind"}
        settings = recipes.construct(getattr(module, kind.settings), given, path)
        if table.get("kind", "training") == "training":
            assert settings.lines()
        assert table["description"]
