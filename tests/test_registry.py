"""Registries: parts of other packages, found by their entry points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from biograd.data import SOURCES, load
from biograd.decorrelation.rules import RULES
from biograd.encoding import ENCODINGS
from biograd.errors import BiogradError, RecipeError
from biograd.estimators import ESTIMATORS
from biograd.estimators.loss_regression import METHODS
from biograd.estimators.synthesisers import SYNTHESISERS
from biograd.estimators.tangents import TANGENTS
from biograd.local.objectives import LOCAL_LOSSES
from biograd.neurons import NEURONS
from biograd.neurons.surrogate import SURROGATES
from biograd.recipes import DatasetRecipe
from biograd.registry import Registry
from biograd.tasks import TASKS

REGISTRIES = (ESTIMATORS, NEURONS, TASKS, SOURCES, ENCODINGS, SURROGATES)
REGISTRIES += (RULES, LOCAL_LOSSES, METHODS, TANGENTS, SYNTHESISERS)
GROUP = "biograd.numbers"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which a distribution is taken for installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, points: str, group: str = GROUP) -> None:
    """Install a distribution with these entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")


def numbers() -> Registry[int]:
    return Registry(GROUP, {"one": 1, "two": 2})


def test_own_parts_come_first_in_their_order() -> None:
    known = numbers()
    assert list(known.items()) == [("one", 1), ("two", 2)] and len(known) == 2
    assert known.find("two", "file: key") == 2


def test_another_package_adds_a_part(installed: Path) -> None:
    (installed / "number_three.py").write_text("THREE = 3")
    install(installed, "three", "three = number_three:THREE")
    known = numbers()
    assert dict(known) == {"one": 1, "two": 2, "three": 3} and len(known) == 3
    assert known.find("three", "file: key") == 3


def test_a_part_is_imported_when_it_is_used(installed: Path) -> None:
    (installed / "number_four.py").write_text("raise ValueError('imported')")
    install(installed, "four", "four = number_four:FOUR")
    known = numbers()
    assert "four" in known and list(known) == ["one", "two", "four"] and known["one"] == 1
    line = r"^biograd.numbers: four = number_four:FOUR cannot be imported: imported$"
    with pytest.raises(BiogradError, match=line):
        known.find("four", "file: key")


@pytest.mark.parametrize("points", ["five = nowhere_at_all:FIVE", "five = math:FIVE"])
def test_a_part_that_is_not_there_is_one_line(points: str, installed: Path) -> None:
    install(installed, "five", points)
    with pytest.raises(BiogradError, match=r"^biograd.numbers: five = .* cannot be imported: .+$"):
        numbers()["five"]


def test_a_name_given_twice_is_refused(installed: Path) -> None:
    install(installed, "six", "two = math:pi")
    line = "^two parts are called 'two' in biograd.numbers: math:pi and one of biograd: rename"
    with pytest.raises(BiogradError, match=line):
        numbers().find("one", "file: key")
    with pytest.raises(BiogradError, match=line):
        list(numbers())


def test_two_packages_cannot_give_one_name(installed: Path) -> None:
    install(installed, "seven", "seven = math:pi")
    install(installed, "eight", "seven = math:tau")
    with pytest.raises(BiogradError, match=r"'seven' in biograd.numbers: math:.* and math:"):
        numbers().find("seven", "file: key")


def test_a_name_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"^file: key = 'tow': did you mean 'two'\?"):
        numbers().find("tow", "file: key")
    with pytest.raises(KeyError):
        numbers()["tow"]


def test_every_registry_has_a_group_of_its_own() -> None:
    assert len({one.group for one in REGISTRIES}) == len(REGISTRIES)
    for known in REGISTRIES:
        assert known.group.startswith("biograd.") and known.own


@pytest.mark.parametrize(
    ("known", "value", "noun"),
    [
        (ESTIMATORS, "1", "class of Estimator"),
        (ESTIMATORS, "lambda: None", "class of Estimator"),
        (ESTIMATORS, "biograd.WeakGradient()", "class of Estimator"),
        (NEURONS, "biograd.WeakGradient", "class of Neuron"),
        (TASKS, "type('Mine', (), {})", "class of Task"),
        (ENCODINGS, "print", "class of Encoding"),
        (SOURCES, "'text'", "function"),
        (SURROGATES, "2.0", "function"),
    ],
)
def test_a_part_of_another_kind_is_named(
    known: Registry[object], value: str, noun: str, installed: Path
) -> None:
    name = f"other_{known.group.partition('.')[2]}_{abs(hash(value))}"
    (installed / f"{name}.py").write_text(f"import biograd\nPART = {value}\n")
    install(installed, name, f"mine = {name}:PART", known.group)
    fresh = Registry(known.group, known.own, known.callables)
    with pytest.raises(BiogradError, match=rf"mine = {name}:PART is .*, no {noun}: name another"):
        fresh.find("mine", "file: key")


def test_a_part_that_ends_the_program_is_named(installed: Path) -> None:
    (installed / "number_nine.py").write_text("raise SystemExit(3)")
    install(installed, "nine", "nine = number_nine:NINE")
    with pytest.raises(BiogradError, match=r"cannot be imported: it ends the program, SystemExit"):
        numbers().find("nine", "file: key")


def test_a_name_given_twice_is_refused_however_it_is_asked_for(installed: Path) -> None:
    install(installed, "ten", "two = math:pi")
    with pytest.raises(BiogradError, match="two parts are called 'two'"):
        numbers()["two"]


def test_own_parts_are_of_one_kind_in_every_registry() -> None:
    for known in REGISTRIES:
        assert all(known._fits(part) for part in known.own.values())


def raising(error: BaseException) -> Callable[[object], object]:
    """Return a source that fails."""

    def read(request: object) -> object:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda request: None, "returns NoneType, not biograd.data.Parts"),
        (lambda request: {"train": 1}, "returns dict, not biograd.data.Parts"),
        (raising(ValueError("no\nway")), "fails: ValueError: no; way"),
        (raising(SystemExit(0)), "fails: SystemExit: 0"),
        (raising(BiogradError("so it is")), "^so it is$"),
    ],
)
def test_a_source_of_another_package_that_fails_is_named(
    read: Callable[[object], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(SOURCES), "find", lambda self, name, where: read)
    with pytest.raises(BiogradError, match=words) as caught:
        load(DatasetRecipe(source="mine"), name="cells")
    where = "dataset cells: source = 'mine' (test_registry) "
    assert words.startswith("^") or str(caught.value).startswith(where)
