"""Printing: one place for it, nothing invisible gets through, and no stream ends the work."""

from __future__ import annotations

import ast
import csv
import io
import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from runs_synthetic import edited

import biograd
from biograd import disk
from biograd.commands.options import Answer, show
from biograd.display import printing
from biograd.display.columns import columns
from biograd.display.csv_text import as_csv, spreadsheet_cell
from biograd.errors import RecipeError, visible, word
from biograd.plots.style import plain
from biograd.studies.results.page import html, table
from biograd.studies.results.writing import write_cell

SEEN = ["plain", "é ✓ – 漢 x", "a\u00a0b", "C:\\x"]
UNSEEN = {
    "escape": "\x1b[2J",
    "title": "\x1b]0;t\x07",
    "backspace": "ab\b",
    "return": "a\rb",
    "delete": "\x7f",
    "C1": "\x9b2J",
    "next line": "\x85",
    "override": "\u202eabc",
    "isolate": "\u2066a",
    "mark": "\u200f",
    "no width": "a\u200bb",
    "line separator": "\u2028",
    "surrogate": "\udc80",
    "tag": "\U000e0041",
}
SMALL = ["--model", "ann", "--epochs", "1", "--set", "dataset.training_examples=64",
         "--set", "dataset.test_examples=20"]  # fmt: skip


def raw(text: str) -> bool:
    """Whether a text could do more to a terminal than be read."""
    return not text.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", SEEN)
def test_what_is_seen_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("text", UNSEEN.values(), ids=UNSEEN)
def test_what_is_not_seen_is_escaped(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert raw(text) or "\x85" in text
    for answer in (text, Text(text), _drawn(text), columns([[text, "b"], ["c", text]])):
        show(Answer({"name": text, text: [text]}, answer), False)
        assert not raw(capsys.readouterr().out)
    show(Answer({"name": text, text: [text]}, ""), True)
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert found["name"] == text and found[text] == [text] and not raw(printed)


def _drawn(text: str) -> Table:
    drawn = Table(title=Text(text))
    drawn.add_column(Text(text))
    drawn.add_row(Text(text))
    return drawn


def test_columns_stay_aligned_and_rows_whole() -> None:
    text = columns([["a\x1b[2J", "first"], ["b\nc", "second"]], ["NAME", "WHAT"])
    assert text.split("\n") == ["NAME      WHAT", r"a\x1b[2J  first", r"b\nc      second"]


def test_the_json_of_a_narrow_stream_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    printing.dump({"name": "é✓😀"})
    stream.flush()
    assert json.loads(stream.buffer.getvalue()) == {"name": "é✓😀"}  # type: ignore[attr-defined]


# Files for others


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd", "-a", "@SUM(A1)", "  =1", "＝1+1", "=cmd|' /C x'!A0"]
)
def test_a_cell_is_no_formula(text: str) -> None:
    written = as_csv([{"cell": text, text: 1.0}])
    (row,) = csv.DictReader(io.StringIO(written))
    assert row == {"cell": f"'{text}", f"'{text}": "1.0"}


@pytest.mark.parametrize("value", [-1.5, "-1e3", "+2", "a=1", "", None, "ann:weak", "1-2", "-inf"])
def test_other_cells_stay(value: object) -> None:
    assert spreadsheet_cell(value) == value


def test_controls_before_a_formula_do_not_hide_it() -> None:
    assert spreadsheet_cell("\t=1") == "\\t=1" and spreadsheet_cell("\r=1") == "\\r=1"


def test_pages_and_pictures_are_plain() -> None:
    name = "\x1b[2J<b>$\\frac{$\u202e"
    assert not raw(html(name)) and "<b>" not in table([{"cell": name}], {"cell": name})
    assert not raw(write_cell("cell", name))
    assert not raw(plain(name))


# The only place


def test_nothing_prints_elsewhere() -> None:
    package, found = Path(biograd.__file__).parent, {}
    for path in sorted(package.rglob("*.py")):
        lines = [line for line, call in _printing(path.read_text(encoding="utf-8"))]
        if lines:
            found[path.relative_to(package).as_posix()] = len(lines)
    # a diagnosis draws itself as text, and what went wrong in work is for a log
    assert found == {"display/printing.py": 1, "diagnosis/report.py": 1}


PRINTS = {"print", "echo", "secho", "print_exc", "print_exception", "Console"}


def _printing(source: str) -> list[tuple[int, str]]:
    """Return the calls that put something on a stream other than by way of ``visible``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        owner = getattr(node.func, "value", None)
        first = ast.unparse(node.args[0]) if node.args else ""
        through = "visible" in first or first.startswith("Plain(")
        stream = name in ("write", "writelines") and "sys.std" in ast.unparse(owner or node)
        console = name == "print" and ast.unparse(owner or node).startswith("Console(")
        if (name in PRINTS or stream) and not through and not console:
            found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "print(x)",
        "click.echo(x)",
        "sys.stdout.write(x)",
        "Console().print(x)",
        "traceback.print_exc()",
    ],
)
def test_what_prints_is_found(source: str) -> None:
    assert _printing(source)


# From outside


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run.h5"
    sizes = ["dataset.training_examples=64", "dataset.test_examples=20"]
    biograd.train("ann", "digits", epochs=1, path=path, settings=sizes)
    return path


def _ran(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    python = f"{shlex.quote(sys.executable)} -m biograd"
    return subprocess.run(
        ["bash", "-c", command.replace("biograd", python)],
        cwd=folder, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_names_in_files_are_shown_not_obeyed(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.h5"
    run.write_bytes(finished.read_bytes())
    with edited(run) as file:
        file.attrs["model"] = "ann\x1b]0;title\x07\x1b[2J\u202e"
    (tmp_path / "model.toml").write_text('[network]\n"\\u001b]0;t\\u0007\\u009b2J" = 1\n')
    for command in ("inspect run.h5", "train --model model.toml -o x.h5 --debug"):
        ran = _ran(f"biograd {command}", tmp_path)
        assert not raw(ran.stdout) and not raw(ran.stderr)
        assert "1b" in ran.stdout + ran.stderr  # it is there, to be seen


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ("<&- >&- 2>&-", 0),
        *(
            pytest.param(s, 0, marks=pytest.mark.slow)
            for s in ("2>&-", ">&-", "<&-", "2>/dev/full")
        ),
        pytest.param(">/dev/full", 1, marks=pytest.mark.slow),
    ],
)
def test_a_training_survives_its_streams(streams: str, code: int, tmp_path: Path) -> None:
    ran = _ran(f"biograd train {shlex.join(SMALL)} -o run.h5 {streams}", tmp_path)
    assert ran.returncode == code, ran.stderr
    assert biograd.load(tmp_path / "run.h5").status == "completed"
    assert "Traceback" not in ran.stderr and "unexpected" not in ran.stderr
    assert (ran.stderr.count("No space left") == 1) == (streams == ">/dev/full")


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "| head -c 1", "2>&- >/dev/full"])
@pytest.mark.parametrize("command", ["list models", "list models --json", "--help"])
def test_an_answer_without_a_reader(redirection: str, command: str, tmp_path: Path) -> None:
    ran = _ran(f"biograd {command} {redirection}", tmp_path)
    assert ran.returncode == int("full" in redirection)
    assert "Traceback" not in ran.stderr and "unexpected" not in ran.stderr
    assert "Exception ignored" not in ran.stderr
    said = "No space left" in ran.stderr
    assert said == (redirection == ">/dev/full")


def test_a_closed_stream_is_not_the_next_file(tmp_path: Path) -> None:
    """What others write on stderr must not land in what was opened later."""
    source = (
        "import os; os.close(2)\n"
        "from biograd.display.printing import streams\n"
        "with streams(), open('data', 'w') as file:\n"
        "    os.write(2, b'noise'); file.write('data')\n"
    )
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True)
    assert (tmp_path / "data").read_text() == "data"


def test_a_stream_fails_once() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, os.strerror(28))

    stream = printing.GuardedStream(Full())
    assert stream.write("a") == 1 and isinstance(stream.failure, OSError)
    first = stream.failure
    stream.write("b")
    stream.flush()
    assert stream.failure is first


@pytest.mark.parametrize("name", ["-x.h5", "a b.h5", "a'b.h5"])
def test_hints_can_be_typed(name: str) -> None:
    assert shlex.split(word(name))[0].removeprefix("./") == name and word(name)[0] != "-"


@pytest.mark.parametrize(
    "name", ["\udcff.h5", "c" * 216 + ".h5", "é" * 108], ids=["no text", "long", "bytes"]
)
def test_names_that_no_run_can_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        disk.check_target(tmp_path / name, False)
    assert not raw(str(caught.value)) and len(str(caught.value)) < 500


def test_what_is_logged_and_warned_is_printed_there(capsys: pytest.CaptureFixture[str]) -> None:
    with printing.streams():
        logging.getLogger("biograd.runs").warning("a\x1b[2J")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning(UserWarning("b\x1b[2J"), UserWarning, "file", 3)
    said = capsys.readouterr().err
    assert "a\\x1b" in said and "b\\x1b" in said and not raw(said)
