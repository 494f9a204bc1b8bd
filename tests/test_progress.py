"""What ``progress=`` of a call shows: on a terminal, in a notebook, in a pipe, to a function."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import biograd
from biograd.display import shown
from biograd.display.board import Board
from biograd.display.notebooks import KEPT_LINES
from biograd.display.progress_display import FIRST_LINES, ProgressDisplay
from biograd.errors import RecipeError
from biograd.progress import Progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Notebook:
    """Stands in for IPython in the kernel of a notebook."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.kernel = object()

    def display(self, shown: Any, raw: bool, display_id: bool) -> Notebook:
        assert raw and display_id
        return self.update(shown, raw)

    def update(self, shown: Any, raw: bool) -> Notebook:
        self.lines.append(shown["text/plain"])
        return self


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    made = Notebook()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython, display.display = lambda: made, made.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("biograd.display.progress_display.time.monotonic", lambda: now[0])
    return now


def train(path: Path, **given: Any) -> Any:
    return biograd.train("ann", epochs=2, path=path / "run.h5", **given)


def test_a_library_call_says_nothing_in_a_pipe_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path)
    assert capsys.readouterr() == ("", "")
    run = biograd.resume(tmp_path / "run.h5", epochs=3, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    said = printed.err
    assert "\r" not in said and "\x1b" not in said
    epochs = [line for line in said.splitlines() if line.startswith("epoch")]
    assert epochs and epochs[-1].startswith("epoch 3/3  loss ") and run.status == "completed"


def test_on_a_terminal_it_is_shown_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    with shown(None) as display:
        assert isinstance(display, ProgressDisplay)
    with shown(False) as display:
        assert type(display) is Progress
    monkeypatch.setattr(sys, "stderr", None)  # a program without a console
    with shown(True) as display:
        display.begin(3, "title")


def test_a_function_hears_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    run = train(tmp_path, progress=lambda what, figures: heard.append((what, dict(figures))))
    words = [what for what, _ in heard]
    assert words[0] == "begin" and words.count("step") == run.last_step == heard[0][1]["total"]
    losses = [figures["train_loss"] for what, figures in heard if what == "epoch"]
    assert losses == pytest.approx(run.scalars("epoch")["train_loss"].tolist())
    assert capsys.readouterr() == ("", "")


def test_a_comparison_tells_of_its_trainings(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    def listen(what: str, figures: Any) -> None:
        if what == "training":
            heard.append(dict(figures))

    words: dict[str, Any] = {"folder": tmp_path, "seeds": 1, "epochs": 1, "control": False}
    biograd.compare(["ann"], ["backprop"], progress=listen, **words)
    assert [(one["cell"], one["state"]) for one in heard] == [("ann", "started"), ("ann", "done")]
    biograd.compare(["ann"], ["backprop"], progress=listen, **words)
    assert heard[-1]["state"] == "known" and heard[-1]["summary"]["epochs"] == 1


def test_an_error_of_the_function_is_the_users(tmp_path: Path) -> None:
    def broken(what: str, figures: Any) -> None:
        raise KeyError(what)

    with pytest.raises(KeyError, match="begin"):
        train(tmp_path, progress=broken)


@pytest.mark.parametrize("given", [3, "yes", []])
def test_what_is_no_choice(given: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"progress: .*: give True, False, None, or a function"):
        train(tmp_path, progress=given)
    assert not list(tmp_path.iterdir())


def test_in_a_pipe_thousands_of_epochs_are_no_flood(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream=stream) as display:
        display.begin(5000, "title")
        for epoch in range(1, 5001):
            clock[0] += 0.01
            display.step({"loss": 1.0})
            display.epoch({"epoch": epoch, "epochs": 5000})
    lines = stream.getvalue().splitlines()[1:]
    assert len(lines) == pytest.approx(FIRST_LINES + 50 / 2, abs=3)
    assert lines[0].startswith("epoch    1/") and lines[-1].startswith("epoch 5000/5000")


def test_in_a_pipe_a_long_epoch_gives_signs_of_life(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream=stream) as display:
        display.begin(600, "title")
        for _ in range(600):
            clock[0] += 1.0
            display.step({"loss": 0.5})
    lines = stream.getvalue().splitlines()[1:]
    assert len(lines) == 10 and lines[0].startswith("60/600  loss 0.5000")


def test_in_a_notebook_lines_are_written_anew(notebook: Notebook, clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream=stream) as display:
        display.begin(10, "title")
        for _ in range(10):
            clock[0] += 0.15
            display.step({"loss": 0.5})
        display.epoch({"epoch": 1, "epochs": 1, "test_accuracy": 0.5})
        display.note("worth a look")
    assert 5 <= len(notebook.lines) <= 9
    assert notebook.lines[1].startswith("title\n2/10  loss 0.5000")
    title, epoch = notebook.lines[-1].splitlines()
    assert title == "title" and epoch.startswith("epoch 1/1  test 50.0 %")
    assert stream.getvalue() == "worth a look\n"  # and nothing else


def test_in_a_notebook_the_last_of_many_lines_stay(notebook: Notebook) -> None:
    stream = io.StringIO()
    order = [("own", seed) for seed in range(30)]
    with Board(stream=stream) as board:
        board.trainings(order, {})
        for key in order:
            board.event(key, "started", "", None)
        board.event(order[0], "failed", "no memory", None)
    assert notebook.lines[-1].splitlines()[-1] == "own, seed 29: started"
    assert len(notebook.lines[-1].splitlines()) == KEPT_LINES
    assert stream.getvalue() == "own, seed 0: no memory (1 of 30)\n"


def test_a_repetition_takes_what_a_training_takes(tmp_path: Path) -> None:
    """Metrics of the user's are columns that agree; without them they are differences."""
    spread = {"spread": lambda outputs, targets: outputs.std(1)}
    train(tmp_path, metrics=spread)
    assert biograd.reproduce(tmp_path / "run.h5", metrics=spread).verdict == "bits"
    found = biograd.reproduce(tmp_path / "run.h5")
    assert found.verdict == "neither" and any("spread" in str(one) for one in found.differences)
