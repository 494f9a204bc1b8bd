"""A package of a laboratory adds parts to biograd: one file and one line each."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from biograd.encoding import build
from biograd.errors import CheckFailed
from biograd.recipes import EncodingRecipe
from biograd.testing import (
    check_encoding,
    check_estimator,
    check_neuron,
    check_source,
    check_task,
)
from biograd.testing.neurons import drive, fields

PLUGIN = Path(__file__).parent / "plugin"
LAB = PLUGIN / "lab_plugin"
sys.path.append(str(PLUGIN))  # modules of the package; its entry points act in other processes

from lab_plugin.direction import Direction  # noqa: E402
from lab_plugin.one_bit import OneBit  # noqa: E402
from lab_plugin.phase import Phase  # noqa: E402
from lab_plugin.quadratic import Quadratic  # noqa: E402
from lab_plugin.tuned_cells import Settings, TunedCells  # noqa: E402
from lab_plugin.two_compartment import TwoCompartment  # noqa: E402

sys.path.remove(str(PLUGIN))

# On the console ----------------------------------------------------------------------------------

CONSOLE = """
import contextlib, io, json, sys
from biograd.__main__ import main
said = []
for words in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(words)
    said.append([code, out.getvalue()])
json.dump(said, sys.stdout)
"""
"""Runs commands one after the other: a process for each would import torch each time."""
Said = dict[str, tuple[int, str]]


def console(commands: dict[str, str], folder: Path, installed: bool = True) -> Said:
    """Run biograd as a user who has installed the package does; return exit codes and words."""
    path = [str(PLUGIN), *sys.path] if installed else sys.path
    done = subprocess.run(
        [sys.executable, "-P", "-c", CONSOLE],
        input=json.dumps([words.split() for words in commands.values()]),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, map(tuple, json.loads(done.stdout)), strict=True))


def train(name: str, words: str, rows: int = 300) -> str:
    """Return the command of a small training."""
    size = "" if "toml" in words else " --set network.hidden=[16]"
    size += "" if "--dataset" in words else f" --set dataset.training_examples={rows}"
    return f"train {words}{size} --out {name}.h5 --quiet --json"


RULE = "--model ann --estimator one_bit --set decorrelation.rule=off"
NEURON = "--model spiking --epochs 1 --set neuron.kind=quadratic"
TRAININGS = {
    "rule": train("rule", f"{RULE} --epochs 3 --set training.learning_rate=0.01"),
    "neuron": train("neuron", NEURON),
    "neuron_brian2": train("neuron_brian2", f"{NEURON} --set network.substrate=brian2", 60),
    "ports": train("ports", f"--model {LAB}/feedback_circuit.toml", 60),
    "task": train(
        "task", f"--model ann --dataset {LAB}/tuned_cells.toml --task direction --epochs 2"
    ),
    "source": train("source", f"--model ann --dataset {LAB}/tuned_cells.toml --epochs 1"),
    "encoding": train(
        "encoding",
        "--model spiking --epochs 1 --set encoding.kind=phase --set encoding.settings.period_ms=5",
    ),
    "recipe": train("recipe", f"--model {LAB}/convolution.toml", 600),
}
AGAIN = ("rule", "neuron", "neuron_brian2", "ports", "task", "encoding", "recipe")
MISSPELT = {
    "one_bits": "train --model ann --estimator one_bits",
    "quadratik": "train --model spiking --set neuron.kind=quadratik",
    "directions": "train --model ann --task directions",
    "tuned_cel": "train --model ann --set dataset.source=tuned_cel",
    "phases": "train --model spiking --set encoding.kind=phases",
}
NEAREST = dict(
    zip(MISSPELT, ("one_bit", "quadratic", "direction", "tuned_cells", "phase"), strict=True)
)
PARTS = {
    "estimators": ["one_bit"],
    "neurons": ["quadratic", "two_compartment"],
    "tasks": ["direction"],
    "sources": ["tuned_cells"],
    "encodings": ["phase"],
}
OTHERS = {
    "list": "list --json",
    "two ports": "train --model spiking --set neuron.kind=two_compartment",
    "snntorch": f"train {NEURON} --set network.substrate=snntorch",
    "key": "train --model spiking --set encoding.kind=phase --set encoding.settings.period=5",
    "period": "train --model spiking --set encoding.kind=phase "
    "--set encoding.settings.period_ms=500",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def said(folder: Path) -> Said:
    resumed = {f"{name} again": f"resume {name}.h5 --epochs 4 --quiet --json" for name in AGAIN}
    inspected = {f"{name} inspected": f"inspect {name}.h5 --json" for name in AGAIN}
    return console(TRAININGS | resumed | inspected | MISSPELT | OTHERS, folder)


def answer(said: Said, name: str) -> dict[str, Any]:
    """Return the object that a command printed."""
    code, text = said[name]
    assert code == 0, text
    found: dict[str, Any] = json.loads(text[text.index("{\n") :])
    return found


@pytest.mark.parametrize("name", TRAININGS)
def test_each_part_trains(name: str, said: Said, folder: Path) -> None:
    assert answer(said, name)["epochs"] and (folder / f"{name}.h5").is_file()


def test_what_was_trained_has_learned(said: Said) -> None:
    chance = {"accuracy": 0.1, "degrees": 90.0}
    assert answer(said, "rule")["test_accuracy"] > 3 * chance["accuracy"]
    assert answer(said, "recipe")["test_accuracy"] > 5 * chance["accuracy"]
    assert answer(said, "task")["test_degrees"] < chance["degrees"] / 3
    assert "test_r2" in answer(said, "source")  # what its targets ask for by themselves


@pytest.mark.parametrize("name", AGAIN)
def test_runs_go_on_and_can_be_read(name: str, said: Said) -> None:
    assert answer(said, f"{name} again")["epochs"] == 4
    assert answer(said, f"{name} inspected")


@pytest.mark.parametrize("kind", PARTS)
def test_parts_are_listed_with_their_keys(kind: str, said: Said) -> None:
    rows = {row["name"]: row for row in answer(said, "list")[kind]}
    assert [rows[name]["name"] for name in PARTS[kind]] == PARTS[kind]
    assert all(rows[name]["description"] for name in PARTS[kind])
    keys = {"neurons": "critical", "sources": "sharpness", "encodings": "period_ms"}
    assert kind not in keys or keys[kind] in rows[PARTS[kind][0]]["keys"]


@pytest.mark.parametrize("word", MISSPELT)
def test_a_misspelt_name_is_answered_with_those_of_the_package(word: str, said: Said) -> None:
    code, text = said[word]
    assert code == 2 and f"{word!r}: did you mean {NEAREST[word]!r}? (known: " in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two ports", "neuron.kind = 'two_compartment': has the ports basal, apical: needs"),
        ("snntorch", "Quadratic: snnTorch has no such neuron: take network.substrate"),
        ("key", "unknown key settings.period: did you mean 'period_ms'?"),
        ("period", "encoding.settings.period_ms = 500: from one step"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(name: str, words: str, said: Said) -> None:
    code, text = said[name]
    assert code == 2 and words in text and text.count("\n") == 1


def test_without_the_package_names_are_unknown_and_runs_can_still_be_read(
    said: Said, folder: Path
) -> None:
    known = {"rule": "one_bit", "neuron": "quadratic", "task": "tuned_cells", "encoding": "phase"}
    commands = {name: f"resume {name}.h5 --epochs 5" for name in known}
    commands |= {f"{name} inspected": f"inspect {name}.h5" for name in known}
    found = console(commands | {"list": "list --json"}, folder, installed=False)
    for name, word in known.items():
        code, text = found[name]
        assert code in (2, 4) and f"{word!r}" in text and "known: " in text, text
        assert found[f"{name} inspected"][0] == 0
    names = {row["name"] for kind in PARTS for row in answer(found, "list")[kind]}
    assert len(names) > 30 and not names & {name for kind in PARTS.values() for name in kind}


# The public checks -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rule_passes() -> None:
    check_estimator(OneBit)


class Ascending(OneBit):
    """Has the wrong sign."""

    def credit(self, traces: Sequence[Any], round: Any) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((tensor, -delta) for tensor, delta in super().credit(traces, round))


def test_a_rule_of_the_wrong_sign_does_not() -> None:
    with pytest.raises(CheckFailed, match=r"points against|do not descend|does not lower the loss"):
        check_estimator(Ascending)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Quadratic, TwoCompartment])
def test_the_neurons_pass(kind: type[Any]) -> None:
    check_neuron(kind)


@dataclasses.dataclass(frozen=True)
class Deaf(Quadratic):
    """Ignores its threshold."""

    def passed(self, x: Any, c: Any, f: Any) -> Any:
        return x.v - 1.0


def test_a_neuron_that_ignores_a_field_does_not() -> None:
    assert not list(fields(Quadratic(), drive(Quadratic()), ("torch",)))
    found = list(fields(Deaf(), drive(Deaf()), ("torch",)))
    assert found and all("torch ignores threshold" in line for line in found)


def angles(rows: int = 7) -> Tensor:
    return 6 * torch.rand(rows, generator=torch.Generator().manual_seed(1))


def test_the_task_passes() -> None:
    check_task(Direction(), torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), angles())


class Whole(Direction):
    """Adds up degrees of the whole batch."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> Any:
        error, count = super().metrics(outputs, targets)["degrees"]
        return {"degrees": (error.mean().expand(len(error)) ** 2, count)}


class Wide(Direction):
    """Packs as many targets as it has outputs."""

    width = 2  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (Whole(), "degrees does not add up"),
        (Wide(), "packed beside weights of 1 are others: width = 2"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_tasks_that_break_a_promise_do_not(task: Direction, line: str) -> None:
    outputs = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(CheckFailed, match=line):
        check_task(task, outputs, angles())


def test_the_source_passes() -> None:
    check_source(TunedCells(Settings(rows=9), 0, "train"))


class Restless(TunedCells):
    """Draws another noise whenever it is asked."""

    asked = 0

    def _noise(self, row: int, key: Any) -> Tensor:
        self.asked += 1
        return super()._noise(row, (self.asked, 0))


def test_a_source_that_does_not_repeat_does_not() -> None:
    with pytest.raises(CheckFailed, match="not the same the second time"):
        check_source(Restless(Settings(rows=9), 0, "train"))


def phase(kind: type[Phase] = Phase) -> Phase:
    return kind(EncodingRecipe(kind="phase", duration_ms=20, settings={"period_ms": 5.0}), (12,))


def test_the_encoding_passes_and_spikes_once_in_a_period() -> None:
    check_encoding(phase())
    code = phase()(torch.tensor([[0.0, 0.5, 1.0] * 4]), torch.Generator())
    first = code[0, :5, :3].argmax(0).tolist()
    assert first == [4, 2, 0] and torch.equal(code[:, :5], code[:, 15:])


class Fixed(Phase):
    """Ignores the period."""

    def __init__(self, recipe: Any, shape: tuple[int, ...]) -> None:
        super().__init__(recipe, shape)
        self.period = 5


class Beside(Phase):
    """Looks at the rows beside a row."""

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return super().encode((inputs - inputs.mean(0)).clamp(0, 1), generator)


def test_an_encoding_that_mixes_rows_is_named() -> None:
    with pytest.raises(CheckFailed, match="depends on the rows beside it"):
        check_encoding(phase(Beside))


class Loud(Phase):
    """Calls spikes what is none."""

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return 2 * super().encode(inputs, generator)


class Careless(Phase):
    """Draws from torch's global stream."""

    def encode(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return super().encode(inputs + 0 * torch.rand(()), generator)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Fixed, "settings.period_ms is ignored"),
        (Loud, "neither 0 nor 1"),
        (Careless, "global generator"),
    ],
)
def test_encodings_that_break_a_promise_do_not(kind: type[Phase], line: str) -> None:
    with pytest.raises(CheckFailed, match=line):
        check_encoding(phase(kind))


@pytest.mark.parametrize("kind", ["current", "poisson", "latency", "delta", "rows", "given"])
def test_encodings_of_biograd_pass(kind: str) -> None:
    shape = (4,) if kind == "given" else (4, 3)
    check_encoding(build(EncodingRecipe(kind=kind, duration_ms=12.0), shape))


# The page ----------------------------------------------------------------------------------------


def test_the_page_shows_what_stands_in_the_files(root: Path) -> None:
    page = (root / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.findall(r"```(?:python|toml)\n# (tests/plugin/\S+)\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 6
    for file, block in shown:
        assert block in (root / file).read_text(encoding="utf-8"), file
    lines = (PLUGIN / "lab_plugin-1.0.dist-info" / "entry_points.txt").read_text().splitlines()
    (group,), (name,), (value,) = (
        re.findall(pattern, page)
        for pattern in (r'entry-points\."(.*)"', r"\n(\w+) = \"lab_", r'"(lab_plugin\.\S+)"')
    )
    assert f"[{group}]" in lines and f"{name} = {value}" in lines
    assert sum("=" in line for line in lines) == sum(map(len, PARTS.values()))
