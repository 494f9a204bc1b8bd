"""Signals: heard once, whenever they come; the process ends with 129, 130 or 143."""

from __future__ import annotations

import importlib
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from biograd.signals import WORDS, Terminated, ending, graceful

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RAISED = dict.fromkeys(ALL, Terminated) | {signal.SIGINT: KeyboardInterrupt}


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """Hear SIGHUP also where the tests themselves run under nohup, and so their children."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _wait() -> None:
    for _ in range(500):
        time.sleep(0.01)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_raised_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with ending(keep=True) as heard:
        with pytest.raises(RAISED[number]):
            signal.raise_signal(number)
        assert heard.number == number and heard.answered
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ending(keep=True) as heard:
        signal.raise_signal(signal.SIGHUP)
        assert not heard.answered


def test_those_that_follow_sigterm_are_the_same() -> None:
    with ending(keep=True):
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):  # a user insists
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", ALL)
def test_an_import_is_finished_first(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would turn what is raised into something else, or into nothing."""
    swallows = f"""
        import signal
        try:
            signal.raise_signal({int(number)})
            for _ in range(1000): pass
        except BaseException: caught = True
        else: caught = False
        """
    (tmp_path / "swallowing.py").write_text(textwrap.dedent(swallows))
    monkeypatch.syspath_prepend(tmp_path)
    with ending(keep=True) as heard:
        with pytest.raises(RAISED[number]):
            importlib.import_module("swallowing")
            _wait()
        assert not sys.modules.pop("swallowing").caught and heard.answered


class Swallowing:
    """Raises a signal where no exception can go."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_what_del_swallows_comes_again() -> None:
    with ending(keep=True), pytest.raises(Terminated):
        Swallowing()
        _wait()


def test_a_signal_in_an_import_stops_the_training_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signalling.py").write_text("import signal; signal.raise_signal(signal.SIGTERM)")
    monkeypatch.syspath_prepend(tmp_path)
    with ending(keep=True) as heard:
        with graceful() as stop:
            importlib.import_module("signalling")
            assert stop == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):  # the second kills
                signal.raise_signal(signal.SIGINT)
        heard.answered = False
        with graceful() as stop:
            assert stop == [signal.SIGTERM]
    sys.modules.pop("signalling")


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending(keep=True), graceful():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_import_that_does_not_end_is_ended(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import signal, time; signal.raise_signal(signal.SIGTERM); time.sleep(60)"
    )
    source = (
        "from biograd import signals; signals.IMPORT_SECONDS = 0.2\n"
        "with signals.ending(keep=True): import endless"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 143 and done.stderr == "biograd: terminated\n"


# The console


def _training(folder: Path, *options: str, python: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Begin a training that would take long, with options of the command and of Python."""
    command = ["-m", "biograd", "train", "--model", "ann", "--epochs", "20000", *options]
    return subprocess.Popen(
        [sys.executable, *python, *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(number: int, seconds: float, folder: Path) -> tuple[int, str]:
    """Return exit code and stderr of a training that is sent a signal after a time."""
    small = ("--set", "dataset.training_examples=64")
    with _training(folder, *small, "-o", "run.h5", "--force") as process:
        time.sleep(seconds)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


def _check(draws: random.Random, folder: Path, longest: float) -> None:
    number, seconds = draws.choice(ALL), draws.uniform(0.02, longest)
    code, said = _ended(number, seconds, folder)
    if said.startswith("Fatal Python error: init_import_site"):
        return  # Python itself had not started
    at = f"{number.name} after {seconds:.3f} s"
    assert code in (128 + number, -number), f"{at}: {code}: {said}"
    if code > 0:
        lines = said.splitlines()
        assert sum(any(word in line for word in WORDS.values()) for line in lines) == 1, at
        assert "Traceback" not in said and "unexpected" not in said, f"{at}: {said}"


def test_a_signal_while_it_starts(tmp_path: Path) -> None:
    draws = random.Random(12)
    for _ in range(2):
        _check(draws, tmp_path, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_signals(tmp_path: Path) -> None:
    draws = random.Random(0)
    for _ in range(100):
        _check(draws, tmp_path, 5.0)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", ALL)
def test_a_training_that_is_asked_to_stop_can_go_on(tmp_path: Path, number: signal.Signals) -> None:
    small = ("--set", "dataset.training_examples=64")
    with _training(tmp_path, *small, "-o", "run.h5") as process:
        commits = tmp_path / "run.h5.parts" / "commits.jsonl"
        while not (commits.exists() and commits.stat().st_size):
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "biograd resume run.h5" in said
    assert "Traceback" not in said and len(said.splitlines()) < 4


@pytest.mark.parametrize("marker", ["numpy._core._multiarray_umath", "torch.nn"])
def test_a_signal_at_an_import(marker: str, tmp_path: Path) -> None:
    with _training(tmp_path, "-o", "x.h5", python=("-X", "importtime")) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == marker:
                process.terminate()
        assert process.wait(60) == 143
    assert list(tmp_path.iterdir()) == []
