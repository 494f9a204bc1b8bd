"""Search: ranges, the journal, going on, and that the test split has no part in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import biograd
from biograd import data, studies
from biograd.__main__ import main
from biograd.configuration import TrainingRequest, configure
from biograd.errors import BiogradError, RecipeError
from biograd.progress import Progress
from biograd.recipes import construct
from biograd.recording import Experiment
from biograd.studies import Place, search, trial_storage
from biograd.studies.search import Parameter, Search, parse
from biograd.training import evaluate

RANGES = {
    "training.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
    "training.batch_size": {"low": 16, "high": 64},
    "training.optimiser": {"choices": ["adam", "sgd"]},
}
REQUEST = TrainingRequest("ann", "digits", "backprop", assignments=("training.epochs=1",))


def settings(trials: int = 4, **changes: Any) -> Search:
    table = {"parameters": RANGES, "trials": trials, **changes}
    return construct(Search, table, "study", "tune")


def trials_of(journal: Path) -> list[dict[str, Any]]:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name="search", storage=kept)
    return [{**t.params, "value": t.value} for t in study.trials if t.value is not None]


@pytest.mark.parametrize("text", ["a=1", "a=1..x", "a", "=1..2", "a=1..2:lin", "a=true..2"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(RecipeError, match=r"write KEY=LOW\.\.HIGH") as found:
        parse(text)
    assert text in str(found.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"low": 1.0}, "give low and high"),
        ({"low": 2, "high": 1}, "not below"),
        ({"low": 0.0, "high": 1.0, "log": True}, "above 0"),
        ({"low": 1, "choices": [1, 2]}, "give choices, or"),
        ({"choices": ["a"]}, "two different"),
        ({"choices": ["a", "a"]}, "two different"),
    ],
)
def test_ranges_that_hold_nothing(table: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        construct(Parameter, table, "study").check("training.epochs")


def test_proposals_stay_in_their_ranges(tmp_path: Path) -> None:
    found = search.run(settings(6), REQUEST, tmp_path / "s.journal")
    trials = trials_of(tmp_path / "s.journal")
    assert len(trials) == found.trials == 6
    for trial in trials:
        assert 1e-4 <= trial["training.learning_rate"] <= 0.1
        assert trial["training.batch_size"] in range(16, 65)
        assert trial["training.optimiser"] in ("adam", "sgd")
    assert len({trial["training.learning_rate"] for trial in trials}) == 6
    best = max(trials, key=lambda trial: trial["value"])
    assert found.value == best["value"] > 0.2
    assert f"training.learning_rate={best['training.learning_rate']}" in found.assignments
    # what was found can be asked for, and is what it was
    request = TrainingRequest(
        **{
            **REQUEST.__dict__,
            "assignments": (
                *REQUEST.assignments,
                *found.assignments,
                "dataset.validation=0.2",
            ),
        }
    )
    assert search.validate(configure(request)) == found.value


def test_interrupted_it_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.run(settings(5), REQUEST, tmp_path / "whole.journal")
    validate, calls = search.validate, []

    def dying(configuration: Any, own: Any = None) -> float:
        calls.append(configuration)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(configuration)

    monkeypatch.setattr(search, "validate", dying)
    journal = tmp_path / "cut.journal"
    with pytest.raises(KeyboardInterrupt):
        search.run(settings(5), REQUEST, journal)
    assert len(trials_of(journal)) == 2
    search.run(settings(5), REQUEST, journal)
    assert len(calls) == 6  # the third trial came again, the first two did not
    assert trials_of(journal) == trials_of(tmp_path / "whole.journal")
    search.run(settings(5), REQUEST, journal)
    assert len(calls) == 6
    search.run(settings(6), REQUEST, journal)  # more of them may follow
    assert len(calls) == 7


def test_another_search_is_not_mixed_in(tmp_path: Path) -> None:
    search.run(settings(1), REQUEST, tmp_path / "s.journal")
    other = TrainingRequest("ann", "digits", "weak", assignments=("training.epochs=1",))
    with pytest.raises(RecipeError, match="other settings"):
        search.run(settings(1), other, tmp_path / "s.journal")
    with pytest.raises(RecipeError, match="other settings"):
        search.run(settings(1, validation=0.3), REQUEST, tmp_path / "s.journal")


def test_the_test_split_has_no_part_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other labels in the test split, the search finds the same, digit for digit."""
    honest = search.run(settings(2), REQUEST, tmp_path / "honest.journal")
    read, seen = data.SOURCES["digits"], []

    def poisoned(request: Any) -> Any:
        parts = read(request)
        test = parts.sources["test"]
        seen.append(len(test.targets))
        test.targets[:] = torch.arange(len(test.targets)) % 10
        test.inputs.mul_(torch.rand(test.inputs.shape))
        return parts

    monkeypatch.setitem(data.SOURCES.own, "digits", poisoned)
    again = search.run(settings(2), REQUEST, tmp_path / "poisoned.journal")
    assert seen and again == honest
    # a search that looked would have noticed
    configuration = configure(REQUEST)
    dataset = data.load(configuration.data, name="digits")
    assert dataset.evaluated_on == "test"
    with pytest.raises(BiogradError, match="must not look at the test split"):
        search.validate(configuration)


def test_a_training_that_diverges_is_worth_nothing(tmp_path: Path) -> None:
    table = {"training.learning_rate": {"choices": [1e29, 1e30]}}
    found = search.run(settings(2, parameters=table), REQUEST, tmp_path / "s.journal")
    assert found.value == 0.0


def study(**changes: Any) -> dict[str, Any]:
    return {
        "seeds": [0, 1],
        "set": ["training.epochs=1"],
        "grid": {"models": ["ann"], "estimators": ["backprop"]},
        "tune": {"parameters": RANGES, "trials": 3},
        **changes,
    }


def test_every_cell_is_searched_and_trained_with_what_was_found(tmp_path: Path) -> None:
    report = studies.run(study(), tmp_path / "x", Place(tmp_path), Progress())
    rows = {row["cell"]: row for row in report.tables["tuning"]}
    assert set(rows) == {"ann", "frozen hidden"} and all(r["trials"] == 3 for r in rows.values())
    import biograd

    for seed in (0, 1):
        with biograd.load(tmp_path / f"ann-seed{seed}.h5") as run:
            training = run.config["recipe"]["training"]
            assert run.config["data"]["validation"] == 0  # trained on all, tested on the test split
        assert training["batch_size"] == int(rows["ann"]["training.batch_size"])
        assert training["learning_rate"] == float(rows["ann"]["training.learning_rate"])
    page = (tmp_path / "report.html").read_text()
    assert ">Search</h2>" in page and "training.batch_size" in page
    again = studies.run(study(), tmp_path / "x", Place(tmp_path), Progress())
    assert again.rows == report.rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--trials", "3"), "--trials"),
        (("--tune", "training.learning_rate=1"), "KEY=LOW..HIGH"),
        (("--tune", "training.learning_rat=0.1..1"), "learning_rate"),
        (("--tune", "dataset.validation=0.1..0.2"), "not searched over"),
        (("--tune", "a=1..2", "--tune", "a=1..3"), "given twice"),
        (("--tune", "training.epochs=1..3", "--print-sbatch"), "search comes first"),
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
    common = ["compare", "--models", "ann", "--seeds", "1", "--epochs", "1", "-w", "1", "-q"]
    if "epochs" in arguments[-1] or "--print-sbatch" in arguments:
        common.remove("--epochs")
        common.remove("1")
    assert main([*common, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_optuna_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    table = tmp_path / "study.json"
    table.write_text(json.dumps(study()))
    assert main(["run", str(table), "--out", str(tmp_path), "-w", "1", "-q"]) == 5
    assert "biograd[sweep]" in capsys.readouterr().err


def test_a_trial_ends_early_and_keeps_the_best_as_a_run_does() -> None:
    asked = ("training.epochs=12", "training.learning_rate=0.05", "dataset.validation=0.3",
             "dataset.training_examples=200", "training.batch_size=20")  # fmt: skip
    chosen = (*asked, "training.keep=best")
    plain, best = (
        search.validate(configure(TrainingRequest("ann", estimator="backprop", assignments=one)))
        for one in (asked, chosen)
    )
    configuration = configure(TrainingRequest("ann", estimator="backprop", assignments=asked))
    made = Experiment(configuration, search.trial_data(configuration))
    seen = [
        evaluate(made.engine, made.dataset.evaluated)["accuracy"]
        for record in made.trainer.steps()
        if record.last
    ]
    assert (plain, best) == (seen[-1], max(seen))
    assert plain < best


# A storage by URL -------------------------------------------------------------------------------


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the complete trials of a database, in their order."""
    import optuna

    found = []
    for name in optuna.get_all_study_names(url(path)):
        study = optuna.load_study(study_name=name, storage=url(path))
        found += [{**t.params, "value": t.value} for t in study.trials if t.value is not None]
    return found


def test_a_database_holds_the_same_trials_as_a_journal(tmp_path: Path) -> None:
    journal = search.run(settings(3), REQUEST, tmp_path / "s.journal")
    stored = search.run(settings(3), REQUEST, tmp_path / "no.journal", url(tmp_path / "s.db"))
    assert stored == journal and rows_of(tmp_path / "s.db") == trials_of(tmp_path / "s.journal")
    assert not (tmp_path / "no.journal").exists()


def test_a_database_goes_on_and_mixes_no_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.db", tmp_path / "cut.db"
    search.run(settings(3), REQUEST, tmp_path / "a", url(whole))
    validate, calls = search.validate, []

    def dying(configuration: Any, own: Any = None) -> float:
        calls.append(configuration)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(configuration)

    monkeypatch.setattr(search, "validate", dying)
    with pytest.raises(KeyboardInterrupt):
        search.run(settings(3), REQUEST, tmp_path / "a", url(cut))
    # as if the process were gone, which cannot be killed in a test of itself
    monkeypatch.setattr(trial_storage, "_lost", lambda by: bool(by))
    search.run(settings(3), REQUEST, tmp_path / "a", url(cut))
    assert len(calls) == 4 and rows_of(cut) == rows_of(whole)
    other = TrainingRequest("ann", "digits", "weak", assignments=("training.epochs=1",))
    search.run(settings(1), other, tmp_path / "a", url(cut))
    assert len(calls) == 5 and len(rows_of(cut)) == 4


def test_two_share_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, they do as many trials together as were asked for, and agree."""
    turn, tried = threading.Barrier(2), list[str]()

    def judged(given: Search, request: Any, assignments: list[str]) -> Any:
        if len(tried) < 2:
            turn.wait(60)  # both have begun
        tried.append(threading.current_thread().name)
        return ("accuracy", "higher"), float(assignments[0].partition("=")[2])

    monkeypatch.setattr(search, "_judged", judged)
    found: list[Any] = []

    def work() -> None:
        found.append(search.run(settings(6), REQUEST, tmp_path / "x", url(tmp_path / "s.db")))

    started = [threading.Thread(target=work) for _ in range(2)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(60)
    assert len(found) == 2 and found[0] == found[1]
    trials = rows_of(tmp_path / "s.db")
    assert len(trials) == len(tried) == 6 and len(set(tried)) == 2
    assert len({trial["training.learning_rate"] for trial in trials}) == 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_share_a_search(tmp_path: Path) -> None:
    """Started at once, they do as many trials together as were asked for, and agree."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; import test_search as t; from biograd.studies import search\n"
        "print(search.run(t.settings(6), t.REQUEST, Path('x'), sys.argv[1]))"
    )
    words = [sys.executable, "-c", code, url(tmp_path / "s.db"), "", str(Path(__file__).parent)]
    known = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    started = [
        subprocess.Popen(words, env=known, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert said[0] == said[1] and "Chosen(" in said[0]
    trials = rows_of(tmp_path / "s.db")
    assert len(trials) == 6 and len({trial["training.learning_rate"] for trial in trials}) == 6


def test_a_trial_of_a_dead_process_is_lost() -> None:
    here, gone = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    now = time.time()
    for by, lost in (
        ({"host": here, "process": os.getpid(), "time": now}, False),
        ({"host": here, "process": gone.pid, "time": now}, True),
        ({"host": "elsewhere", "process": gone.pid, "time": now}, False),
        ({"host": "elsewhere", "process": gone.pid, "time": now - 1000}, True),
        ({}, False),  # it has just begun
    ):
        assert trial_storage._lost(by) is lost


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("search.db", "--storage search.db: is no URL of a database"),
        ("sqlite://", "--storage sqlite://: names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("nosuch://a", "is no URL of a database"),
        ("postgresql://me:secret@host:x/db", "--storage postgresql://…@host:x/db: is no URL"),
    ],
)
def test_what_is_no_storage(given: str, words: str, tmp_path: Path) -> None:
    tune = ["training.learning_rate=0.01|0.02"]
    with pytest.raises(RecipeError) as caught:
        biograd.compare(["ann"], folder=tmp_path / "a", tune=tune, storage=given)
    assert words in str(caught.value) and "secret" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_storage_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--storage: say over what to search"):
        biograd.compare(["ann"], folder=tmp_path / "a", storage=url(tmp_path / "s.db"))


def test_a_storage_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BiogradError, match=r"--storage sqlite:///.*unable to open database"):
        search.run(settings(1), REQUEST, tmp_path / "a", url(tmp_path / "none" / "s.db"))


def test_a_relative_file_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert trial_storage.check_storage("sqlite:///s.db") == url(tmp_path / "s.db")


def test_a_comparison_searches_in_a_storage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--models", "ann", "--estimators", "backprop", "--seeds", "1"]
    words += ["--no-control", "--epochs", "1", "--tune", "training.learning_rate=0.01|0.02"]
    words += ["--trials", "1", "--storage", url(tmp_path / "s.db"), "-o", str(tmp_path / "a")]
    assert main([*words, "--workers", "1", "--quiet"]) == 0
    assert len(rows_of(tmp_path / "s.db")) == 1
    for path in (tmp_path / "a").rglob("*.json"):
        assert "sqlite" not in path.read_text()  # it might hold a password
    assert not list((tmp_path / "a").glob("*.journal"))
