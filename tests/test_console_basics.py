"""The console: help, JSON, exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import biograd
from biograd import __version__, commands, errors
from biograd.__main__ import main
from biograd.commands import COMMANDS, console, doctor, manual, options
from biograd.commands import list as list_command
from biograd.commands.options import Answer
from biograd.commands.train import summary
from biograd.data import READS, SOURCES, Parts, Request, with_settings
from biograd.display.columns import columns
from biograd.display.progress_display import ProgressDisplay, describe
from biograd.errors import BiogradError, RecipeError
from biograd.recipes import DatasetRecipe

MODEL = "[network]\nhidden = [4]\n[training]\nepochs = 1\n"
DATASET = "source = 'digits'\nshape = [64]\n"
RECORD = {
    "run": "runs/a.h5", "model": "rate", "dataset": "digits", "estimator": "weak",
    "decorrelation": "kappa", "seed": 3, "epochs": 20, "train_accuracy": 0.99,
    "test_accuracy": 0.953, "test_loss": 0.1711, "frozen_hidden_control": 0.81, "seconds": 75.2,
    "steps_per_second": 812.3,
}  # fmt: skip
PATHS = [[name] for name in COMMANDS] + [["data", name] for name in ("list", "fetch", "verify")]


def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the console in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "biograd", *arguments],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


@pytest.fixture
def recipe_files(tmp_path: Path) -> list[str]:
    (tmp_path / "model.toml").write_text(MODEL)
    (tmp_path / "dataset.toml").write_text(DATASET)
    return ["--model", str(tmp_path / "model.toml"), "--dataset", str(tmp_path / "dataset.toml")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Help, version


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("path", [[], *PATHS], ids=" ".join)
def test_every_command_has_help(path: list[str], flag: str) -> None:
    result = CliRunner().invoke(console, [*path, flag])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert "--debug" in result.output and "--help" in result.output
    if path not in ([], ["data"]):
        assert "--json" in result.output


def test_the_help_in_the_registry_is_that_of_the_commands() -> None:
    context = click.Context(console)
    for name, entry in COMMANDS.items():
        command = console.get_command(context, name)
        assert command is not None and command.name == name
        assert (command.help or "").startswith(entry.help.rstrip("."))
        assert entry.help in console.get_help(context)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    source = (
        "import sys; from biograd.__main__ import main; main(['--help']);"
        "print([name for name in ('torch', 'h5py', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"biograd {__version__}\n"


def test_nothing_asked_for_is_a_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Commands:" in printed.err


def test_the_manual_is_not_stale(root: Path) -> None:
    written = (root / "cli" / "README.md").read_text(encoding="utf-8")
    assert written == manual.text(), "run python -m biograd.commands.manual"


@pytest.mark.parametrize("page", manual.TABLES)
def test_the_tables_of_the_pages_are_not_stale(page: str, root: Path) -> None:
    written, (name, table) = (root / "docs" / page).read_text(encoding="utf-8"), manual.TABLES[page]
    assert written == manual.with_table(written, name, table()), (
        "run python -m biograd.commands.manual"
    )


def test_the_table_of_neurons_says_who_simulates_them() -> None:
    from biograd.neurons import NEURONS

    rows = manual.neurons().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| `{name}`" for name in NEURONS]
    simulators = {row.split(" | ")[0][3:-1]: row.split(" | ")[2] for row in rows}
    assert simulators["leaky"] == "torch, snntorch, brian2"
    assert simulators["alpha"] == "torch, brian2"
    assert simulators["event_driven"] == "torch, without steps"


def test_the_table_of_estimators_says_what_the_classes_say() -> None:
    from biograd.estimators import ESTIMATORS

    head, rule, *rows = manual.estimators().splitlines()
    assert len(rows) == len(ESTIMATORS) and {line.count(" | ") for line in (head, *rows)} == {5}
    for row, (name, estimator) in zip(rows, ESTIMATORS.items(), strict=True):
        assert row.startswith(f"| `{name}` | ") and set(rule) == set("| -")
        assert all(word in row for word in (*estimator.needs, estimator.passes, estimator.bias))
    old = "head\n<!-- rules -->\n| an old table |\n<!-- /rules -->\ntail\n"
    new = "head\n<!-- rules -->\n| a table |\n<!-- /rules -->\ntail\n"
    assert manual.with_table(old, "rules", "| a table |\n") == new
    with pytest.raises(ValueError, match="no <!-- rules -->"):
        manual.with_table("no marks", "rules", "")


# Wrong usage: exit code 2, one line


WRONG = [
    (["trian"], ["biograd: no command 'trian'", "did you mean 'train'?"]),
    (["train", "--modle", "x"], ["biograd train: no such option '--modle'", "--model"]),
    (["train", "--model"], ["biograd train: option '--model'", "biograd train --help"]),
    (["train", "--model", "no-such", "--dataset", "x"], ["no model 'no-such'", "known:"]),
    (["list", "model"], ["biograd list", "did you mean 'models'?"]),
    (["data", "fecth"], ["no such command 'fecth'", "fetch"]),
    (["data", "fetch", "no-such"], ["no dataset 'no-such'", "known:"]),
    (["data", "verify", "no-such"], ["no dataset 'no-such'"]),
    (["resume"], ["biograd resume: missing argument 'RUN'"]),
    (["inspect", "a", "b"], ["biograd inspect"]),
]
WRONG_CHOICES = [
    (["--epochs", "many"], ["'--epochs'", "many"]),
    (["--epochs", "-1"], ["'--epochs'", "-1"]),
    (["--batch-size", "0"], ["'--batch-size'"]),
    (["--device", "cdua"], ["'--device'", "did you mean 'cuda'?"]),
    (["--estimator", "waek"], ["'waek'", "did you mean 'weak'?"]),
    (["--set", "training.epoch=3"], ["training.epoch", "did you mean 'epochs'?"]),
    (["--set", "epochs"], ["--set 'epochs'", "KEY=VALUE"]),
]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for word in words:
        assert word in printed.err


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    refused(capsys, arguments, words)


@pytest.mark.parametrize(
    ("arguments", "words"), WRONG_CHOICES, ids=[" ".join(row[0]) for row in WRONG_CHOICES]
)
def test_wrong_choices_of_a_training(
    capsys: pytest.CaptureFixture[str],
    recipe_files: list[str],
    arguments: list[str],
    words: list[str],
) -> None:
    refused(capsys, ["train", *recipe_files, *arguments, "--json"], words)


def test_an_option_may_come_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe_files: list[str]
) -> None:
    monkeypatch.setenv("BIOGRAD_TRAIN_EPOCHS", "many")
    refused(capsys, ["train", *recipe_files], ["'--epochs'", "many"])


# The error boundary


class Stub:
    """Puts a failing command in the place of ``doctor``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, error: BaseException) -> None:
        @options.command("doctor")
        def failing() -> Answer:
            raise error

        self.monkeypatch.setattr(doctor, "doctor", failing)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(monkeypatch)


ERRORS = [getattr(biograd, name) for name in biograd.__all__ if hasattr(errors, name)]


@pytest.mark.parametrize("kind", ERRORS, ids=[kind.__name__ for kind in ERRORS])
def test_every_error_has_its_exit_code_and_is_one_line(
    stub: Stub, capsys: pytest.CaptureFixture[str], kind: type[BiogradError]
) -> None:
    stub(kind("what, where\nand what to do"))
    assert main(["doctor"]) == kind.exit_code
    assert capsys.readouterr().err == "biograd: what, where and what to do\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("odd"), 1, "biograd: unexpected ValueError: odd (run again with --debug"),
        (RuntimeError(), 1, "biograd: unexpected RuntimeError (run again"),
        (KeyboardInterrupt(), 130, "biograd: interrupted"),
        (SystemExit(7), 7, ""),
    ],
    ids=repr,
)
def test_every_end_has_its_exit_code(
    stub: Stub,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    stub(error)
    assert main(["doctor", "--json"]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert printed.err.strip().startswith(words)


@pytest.mark.parametrize("arguments", [["doctor", "--debug"], ["--debug", "doctor"]])
def test_the_traceback_is_shown_when_asked_for(
    stub: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    stub(ValueError("odd"))
    assert main(arguments) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGTERM, 143, "biograd: terminated"), (signal.SIGINT, 130, "biograd: interrupted")],
)
def test_a_signal_lets_the_command_commit_first(
    tmp_path: Path, number: int, code: int, words: str
) -> None:
    source = (
        "import pathlib, sys, time\n"
        "from biograd.__main__ import main\n"
        "from biograd.commands import doctor, options\n"
        "@options.command('doctor')\n"
        "def waiting():\n"
        "    try:\n"
        "        print('ready', file=sys.stderr, flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        pathlib.Path(sys.argv[1]).write_text('committed')\n"
        "doctor.doctor = waiting\n"
        "sys.exit(main(['doctor']))\n"
    )
    command = [sys.executable, "-c", source, str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert process.stderr.read().strip() == words
    assert (tmp_path / "run").read_text() == "committed"


def test_main_gives_the_signal_handler_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_broken_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "biograd", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


# Answers


@pytest.mark.parametrize(
    "arguments",
    [["list", kind] for kind in list_command.KINDS] + [["data", "list"]],
    ids=" ".join,
)
def test_lists(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    rows = record[arguments[-1] if arguments[0] == "list" else "datasets"]
    assert record["schema_version"] == 1
    assert rows and all(row["name"] and row["description"] for row in rows)
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = {line.split(" ")[0] for line in lines}
    assert {row["name"] for row in rows} <= starts
    assert arguments[-1] == "estimators" or len(lines) == 1 + len(rows)


def test_generated_sources_are_listed_with_their_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "sources", "--json"]) == 0
    keys = {row["name"]: row["keys"] for row in json.loads(capsys.readouterr().out)["sources"]}
    assert "fidelity" in keys["evidence_accumulation"] and "smoothness" in keys["random_manifolds"]
    assert "train_seed" in keys["yin_yang"] and "rate_hz" in keys["pattern_generation"]
    assert {"arms", "train_rows"} <= {*keys["bandit"]} and "force" in keys["cart_pole"]
    assert {"format", "bands"} <= {*keys["folder"]}
    assert keys["idx"] == keys["digits"] == keys["npz"] == []


def test_keys_of_a_source_are_those_that_its_settings_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the class is called and wherever it stands."""

    @dataclasses.dataclass(frozen=True)
    class Odd:
        loudness: float = 1.0

    @with_settings(Odd)
    def own(request: Request, settings: Odd) -> Parts:
        """Return nothing."""
        raise AssertionError(settings)

    def without(request: Request) -> Parts:
        """Return nothing."""
        raise AssertionError(request)

    monkeypatch.setitem(SOURCES.own, "own", own)
    monkeypatch.setitem(SOURCES.own, "without", without)
    rows = {row["name"]: row for row in list_command.KINDS["sources"]()}
    assert rows["own"] == {"name": "own", "keys": ["loudness"], "description": "Return nothing."}
    assert rows["without"]["keys"] == []
    with pytest.raises(RecipeError, match=r"unknown key settings\.loud: did you mean 'loudness'"):
        own(Request(DatasetRecipe("own", settings={"loud": 2.0}), "mine"))


def test_every_source_that_reads_settings_lists_them() -> None:
    declared = {name for name, read in SOURCES.items() if hasattr(read, "Settings")}
    reads = {name for name, keys in READS.items() if "settings" in keys}
    assert reads - declared == {"environment"}  # whose keys are those of the user's own


def test_the_list_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {"schema_version", *list_command.KINDS}
    estimators = {row["name"]: row for row in record["estimators"]}
    assert "perturb_site" in estimators["weak"]["needs"]


def test_json_is_one_object_whatever_else_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @options.command("doctor")
    def chatty() -> Answer:
        print("chatter")
        return Answer({"loss": float("nan"), "path": Path("a"), "deep": [{"x": (1, 2)}]}, "text")

    monkeypatch.setattr(doctor, "doctor", chatty)
    assert main(["doctor", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "schema_version": 1, "loss": None, "path": "a", "deep": [{"x": [1, 2]}],
    }  # fmt: skip
    assert printed.err == "chatter\n"
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "chatter\ntext\n"


def test_the_doctor_finds_this_machine_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {"click": "click", "numpy": "numpy"})
    monkeypatch.setattr(doctor, "CUDA_PROBE", "print('\"\"')")
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] and record["biograd"] == __version__
    found = {finding["name"]: finding for finding in record["findings"]}
    assert found["click"]["status"] == "ok" and found["click"]["seconds"] > 0
    assert found["CUDA"]["status"] == "note"
    assert set(doctor.EXTRAS) <= set(found)


@pytest.mark.parametrize(
    ("package", "module", "words"),
    [("no-such-package", "click", "not installed"), ("click", "no_such_module", "does not import")],
)
def test_the_doctor_finds_what_is_broken(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    module: str,
    words: str,
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", {package: module})
    monkeypatch.setattr(doctor, "CUDA_PROBE", "raise SystemExit(1)")
    assert main(["doctor"]) == 3
    printed = capsys.readouterr()
    assert "FAIL" in printed.out and words in printed.out
    assert printed.err == f"biograd: doctor: not in order: {package}\n"


@pytest.mark.slow
def test_the_doctor_as_it_is() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ok"]


# Data


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a dataset of two files in the place of the real ones; the second may be bad."""

    def put(status: str) -> None:
        rows = [
            {"file": name, "path": f"/data/{name}", "expected": "a", "found": "b", "status": word}
            for name, word in (("images", "ok"), ("labels", status))
        ]
        module = importlib.import_module("biograd.data.files.fetch")
        monkeypatch.setattr(module, "verify", lambda *arguments: rows)
        archives = importlib.import_module("biograd.data.files.archives")
        monkeypatch.setattr(archives, "located", lambda _request: {"images": Path(rows[0]["path"])})

    return put


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("altered", 3), ("missing", 3)])
def test_verify_fails_if_a_file_is_not_as_it_should_be(
    capsys: pytest.CaptureFixture[str], recipe_files: list[str], files: Any, status: str, code: int
) -> None:
    files(status)
    assert main(["data", "verify", recipe_files[-1], "--json"]) == code
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["ok"] is (code == 0) and len(record["files"]) == 2
    assert ("1 of 2 files" in printed.err) is (code == 3)


def test_fetch_says_where_the_files_are(
    capsys: pytest.CaptureFixture[str], recipe_files: list[str], files: Any
) -> None:
    files("ok")
    assert main(["data", "fetch", recipe_files[-1]]) == 0
    assert capsys.readouterr().out == "/data/images\n"


# Inspect


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    from biograd.runs.writer import RunWriter

    path = tmp_path / "run.h5"
    writer = RunWriter(
        path,
        config={"seed": 3},
        environment={},
        attributes={"seed": 3, "model": "rate"},
        probe=None,
        layers={},
    )
    writer.scalars("epoch", 7, 1, {"test_accuracy": 0.75})
    writer.commit(7)
    writer.close("completed")
    return path


def test_inspect(capsys: pytest.CaptureFixture[str], run_file: Path) -> None:
    assert main(["inspect", str(run_file), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "completed" and record["attributes"]["seed"] == 3
    assert record["last"]["epoch"]["test_accuracy"] == 0.75
    shapes = {entry["name"]: entry["shape"] for entry in record["data"]}
    assert shapes["scalars/epoch/test_accuracy"] == [1]
    assert main(["inspect", str(run_file)]) == 0
    text = capsys.readouterr().out
    for words in (str(run_file), "completed", "test_accuracy 0.75", "scalars", "float32"):
        assert words in text


@pytest.mark.parametrize("arguments", [["inspect"], ["resume"]], ids=" ".join)
@pytest.mark.parametrize("content", [None, b"", b"not a run file"])
def test_what_is_no_run_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], content: bytes | None
) -> None:
    path = tmp_path / "run.h5"
    if content is not None:
        path.write_bytes(content)
    assert main([*arguments, str(path), "--json"]) == 4
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert str(path) in printed.err


# Progress and summary


def test_progress_away_from_a_terminal_is_one_line_for_each_epoch() -> None:
    stream = io.StringIO()
    with ProgressDisplay(stream=stream) as progress:
        progress.begin(20, "rate on digits")
        for epoch in (1, 2):
            progress.step({"loss": 1.0})
            record = {"train_accuracy": 0.5, "silent_fraction": 0.031, "steps_per_second": 9.0}
            progress.epoch({"epoch": epoch, "epochs": 10, **record})
        progress.note("a note")
        progress.close()
    assert stream.getvalue().splitlines() == [
        "rate on digits",
        "epoch  1/10  train 50.0 %  silent 3.1 %  9 steps/s",
        "epoch  2/10  train 50.0 %  silent 3.1 %  9 steps/s",
        "a note",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with ProgressDisplay(stream=stream) as progress:
        progress.begin(3, "rate on digits")
        for _ in range(3):
            progress.step({"loss": 1.0, "accuracy": 0.5})
        progress.epoch({"epoch": 1, "epochs": 1, "test_accuracy": 0.9})
        progress.begin(3, "control")
    text = stream.getvalue()
    assert "rate on digits" in text and "control" in text
    assert "test 90.0 %" in text
    assert "\x1b[3" not in text, "NO_COLOR was not honoured"


def test_the_speed_is_that_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("biograd.display.progress_display.time.monotonic", lambda: now)
    stream = io.StringIO()
    progress = ProgressDisplay(stream=stream)
    progress.begin(8, "title")
    for epoch in (1, 2):
        for _ in range(4):
            progress.step({})
        now += 2.0 * epoch
        progress.epoch({"epoch": epoch})
    assert stream.getvalue().splitlines() == ["title", "epoch 1  2 steps/s", "epoch 2  1 steps/s"]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_is_quiet(stream: io.StringIO) -> None:
    with ProgressDisplay(quiet=True, stream=stream) as progress:
        progress.begin(3, "title")
        progress.step({"loss": 1.0})
        progress.epoch({"epoch": 1})
        progress.note("a note")
        progress.close()
    assert stream.getvalue() == ""


def test_the_terminal_is_given_back_when_a_training_fails() -> None:
    progress = ProgressDisplay(stream=Terminal())
    with pytest.raises(ValueError, match="odd"), progress:
        progress.begin(3, "title")
        raise ValueError("odd")
    assert progress._bar is None


def test_counting_a_step_costs_little() -> None:
    progress = ProgressDisplay(stream=Terminal())
    with progress:
        progress.begin(2000, "title")
        begin = time.perf_counter()
        for _ in range(2000):
            progress.step({"loss": 1.0})
        assert (time.perf_counter() - begin) / 2000 < 5e-4


def test_a_record_is_described_in_a_fixed_order() -> None:
    assert describe({"seconds": 3, "loss": float("nan")}) == "loss nan  3.0 s"
    assert describe({"unknown": 3, "loss": None}) == ""


def test_the_summary_says_what_came_out_and_what_to_do_next() -> None:
    text = summary(RECORD)
    for words in ("runs/a.h5", "weak, decorrelation kappa", "95.3 %", "81.0 %", "1 min 15 s"):
        assert words in text
    assert "biograd inspect runs/a.h5" in text
    assert "biograd resume runs/a.h5 --epochs 40" in text
    bare = {**RECORD, "frozen_hidden_control": None, "test_loss": None, "decorrelation": "off"}
    assert "frozen" not in summary(bare) and "decorrelation" not in summary(bare)


def test_columns_wrap_the_last_one() -> None:
    text = columns([["a", "some words that are long"], ["bb", "few"]], limit=12)
    assert text == "a   some words that are long\nbb  few"
    text = columns([["a", "some words that are rather long"]], limit=28)
    assert text == "a  some words that are\n   rather long"
    assert columns([]) == ""


def test_the_registry_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = commands.Listing("biograd.commands.doctor:no_such", "Never.")
    monkeypatch.setitem(COMMANDS, "doctor", entry)
    assert main(["doctor"]) == 1
